"""What each model reads: the mix of tasks, and documents drawn from it by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

from makers.arithmetic import make_arithmetic, make_units
from makers.calendar_dates import make_date
from makers.item import Item, Maker, is_held_out
from makers.json_records import make_json
from makers.molecules import make_smiles
from makers.open_ended import make_open
from makers.python_code import Library, make_python
from makers.tables import make_lookup, make_sorting, make_sql

MAKERS: Mapping[str, Maker] = {
    "json": make_json,
    "lookup": make_lookup,
    "date": make_date,
    "arithmetic": make_arithmetic,
    "sql": make_sql,
    "smiles": make_smiles,
    "python": make_python,
    "open": make_open,
    "units": make_units,
    "sorting": make_sorting,
}
# Shares of documents. "functions" and "docstrings" are the standard library's.
GENERAL_MIX: Mapping[str, float] = {
    "json": 0.16,
    "lookup": 0.13,
    "date": 0.14,
    "arithmetic": 0.18,
    "sql": 0.10,
    "smiles": 0.07,
    "python": 0.05,
    "open": 0.10,
    "functions": 0.045,
}
# The last part of training: more of what is hard and has short answers, which otherwise make up
# a twentieth of the targets.
GENERAL_LATE_MIX: Mapping[str, float] = {
    "json": 0.10,
    "lookup": 0.27,
    "date": 0.10,
    "arithmetic": 0.26,
    "sql": 0.05,
    "smiles": 0.10,
    "python": 0.02,
    "open": 0.08,
    "functions": 0.02,
}
SECOND_LATE_MIX: Mapping[str, float] = {
    "json": 0.11,
    "lookup": 0.24,
    "date": 0.11,
    "arithmetic": 0.20,
    "units": 0.12,
    "sorting": 0.12,
    "open": 0.08,
    "docstrings": 0.02,
}
SECOND_MIX: Mapping[str, float] = {
    "json": 0.18,
    "lookup": 0.15,
    "date": 0.16,
    "arithmetic": 0.14,
    "units": 0.10,
    "sorting": 0.10,
    "open": 0.10,
    "docstrings": 0.045,
}


@dataclass(frozen=True, slots=True)
class Document:
    """`prompt` is empty for running text."""

    prompt: str
    answer: str
    task: str


def draw_item(task: str, rng: Random, *, held_out: bool) -> Item:
    """The next item of a maker that lies on the wanted side of the split."""
    while True:
        item = MAKERS[task](rng)
        if is_held_out(item.key) == held_out:
            return item


def documents(mix: Mapping[str, float], library: Library, rng: Random) -> Iterator[Document]:
    """Training documents without end, none of them held out."""
    tasks, shares = tuple(mix), tuple(mix.values())
    texts = {"functions": library.functions, "docstrings": library.docstrings}
    while True:
        task = rng.choices(tasks, shares)[0]
        if task in texts:
            yield Document("", rng.choice(texts[task]), task)
        else:
            item = draw_item(task, rng, held_out=False)
            yield Document(item.prompt, item.answer, task)
