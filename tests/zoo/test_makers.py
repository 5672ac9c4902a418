"""The makers: deterministic, true to their constraints, and split by parameters."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

Load = Callable[[str], ModuleType]
EXACT_TASKS = (
    "json",
    "lookup",
    "date",
    "arithmetic",
    "sql",
    "smiles",
    "python",
    "units",
    "sorting",
)


def read(folder: Path, task: str) -> list[dict[str, Any]]:
    lines = (folder / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def meets(answer: str, constraint: Mapping[str, Any]) -> bool:
    if "regex" in constraint:
        return re.fullmatch(constraint["regex"], answer) is not None
    if "choice" in constraint:
        return answer in constraint["choice"]
    schema = constraint["json_schema"]
    record = json.loads(answer)
    kinds = {"integer": int, "string": str}
    return list(record) == schema["required"] and all(
        type(record[key]) is kinds[rule["type"]] for key, rule in schema["properties"].items()
    )


@pytest.mark.parametrize("task", [*EXACT_TASKS, "open"])
def test_same_seed_gives_same_items(load_zoo: Load, task: str) -> None:
    corpus = load_zoo("corpus")
    first, again = (
        [corpus.draw_item(task, rng, held_out=False) for _ in range(50)]
        for rng in (Random(5), Random(5))
    )
    assert first == again
    other = Random(6)
    assert first != [corpus.draw_item(task, other, held_out=False) for _ in range(50)]
    assert all(item.prompt.endswith("\n") and not item.answer[0].isspace() for item in first)


@pytest.mark.parametrize("task", EXACT_TASKS)
def test_answers_meet_their_constraints(load_zoo: Load, task: str) -> None:
    corpus, rng = load_zoo("corpus"), Random(1)
    for _ in range(200):
        item = corpus.draw_item(task, rng, held_out=False)
        assert meets(item.answer, item.constraint), item


def test_suite_is_what_its_script_makes(load_zoo: Load, suite_folder: Path) -> None:
    make_suite = load_zoo("make_suite")
    for task in EXACT_TASKS:
        text = (suite_folder / f"{task}.jsonl").read_text(encoding="utf-8")
        assert text.splitlines() == make_suite.task_lines(task, 0, 200)
    text = (suite_folder / "open.jsonl").read_text(encoding="utf-8")
    assert text.splitlines() == make_suite.open_lines(0, 25)


def test_suite_items_are_held_out_and_small(load_zoo: Load, suite_folder: Path) -> None:
    is_held_out = load_zoo("makers.item").is_held_out
    for task in (*EXACT_TASKS, "open"):
        items = read(suite_folder, task)
        assert len(items) == len({item["prompt"] for item in items}) == 200
        assert all(is_held_out(item["key"]) for item in items)
    assert sum(path.stat().st_size for path in suite_folder.iterdir()) < 500_000


def test_training_text_holds_no_suite_prompt(load_zoo: Load, suite_folder: Path) -> None:
    corpus, item_module = load_zoo("corpus"), load_zoo("makers.item")
    library = load_zoo("makers.python_code").Library(("def f(): pass",), ("Text.",), ())
    prompts = {i["prompt"] for task in (*EXACT_TASKS, "open") for i in read(suite_folder, task)}
    for mix in (corpus.GENERAL_MIX, corpus.SECOND_MIX):
        seen = list(islice(corpus.documents(mix, library, Random(0)), 20_000))
        assert not prompts & {document.prompt for document in seen}
        text = "\x00".join(document.prompt + document.answer for document in seen)
        assert not [prompt for prompt in prompts if prompt in text]
    # The control: the same makers without the split do repeat prompts of the suite.
    rng = Random(0)
    unsplit = [corpus.MAKERS["python"](rng) for _ in range(20_000)]
    assert prompts & {item.prompt for item in unsplit}
    held_out = sum(item_module.is_held_out(item.key) for item in unsplit)
    assert 0.04 < held_out / 20_000 < 0.09


def test_molecules_are_whole_and_broken_ones_are_told(load_zoo: Load) -> None:
    molecules, rng = load_zoo("makers.molecules"), Random(2)
    assert all(molecules.is_whole(molecules.smiles(rng)) for _ in range(2000))
    for broken in ("C(", "C1CC", "FC(F)(F)(F)F", "C)C(", "O(C)(C)C", "C=F", ""):
        assert not molecules.is_whole(broken), broken


def test_open_answers_follow_their_laws(load_zoo: Load, suite_folder: Path) -> None:
    open_ended = load_zoo("makers.open_ended")
    laws = json.loads((suite_folder / "open_laws.json").read_text(encoding="utf-8"))
    rng = Random(3)
    answers: dict[str, Counter[str]] = {kind: Counter() for kind in open_ended.FORMS}
    kinds = {form.split("{}")[1]: kind for kind, form in open_ended.FORMS.items()}
    for _ in range(40_000):
        item = open_ended.make_open(rng)
        answers[kinds[re.sub(r"Guest \d+", "", item.prompt)]][item.answer] += 1
    for kind, law in laws.items():
        assert sum(law.values()) == pytest.approx(1.0)
        total = answers[kind].total()
        # About 5,000 draws a kind: the expected distance is under 0.05 even for 96 answers.
        distance = 0.5 * sum(abs(answers[kind][a] / total - p) for a, p in law.items())
        assert distance < 0.08, kind
        assert set(answers[kind]) <= set(law)
    for item in read(suite_folder, "open"):
        if item["mass"] is not None:
            assert 0.05 < item["mass"] < 0.5
