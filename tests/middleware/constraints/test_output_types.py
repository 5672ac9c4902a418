"""`as_constraint`: what Outlines takes as an output type."""

from __future__ import annotations

import datetime
import enum
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Literal, Optional, Union

import pydantic
import pytest
from genson import SchemaBuilder
from outlines import types
from outlines.types import dsl
from typing_extensions import TypedDict

from midstream.middleware.constraints import (
    AllOf,
    Choice,
    Grammar,
    JsonSchema,
    Predicate,
    Regex,
    as_constraint,
)
from midstream.middleware.errors import ConstraintError
from midstream.middleware.vocabulary import Vocabulary


class Model(pydantic.BaseModel):
    id: int
    kind: Literal["ab", "xx"]


class Mapped(TypedDict):
    id: int


@dataclass
class Record:
    id: int
    name: str = "am"


class Word(enum.Enum):
    AM = "am"
    THE = "the"


class Mixed(enum.Enum):
    ONE = 1
    THE = "the"


def call(id: int, name: str = "am") -> None: ...


def built() -> SchemaBuilder:
    builder = SchemaBuilder()
    builder.add_object({"id": 3})
    return builder


# What is given, what it becomes, a text it takes, a text it does not take.
TAKEN: list[tuple[Any, type, str, str]] = [
    (Model, JsonSchema, '{"id":1,"kind":"xx"}', '{"id":1}'),
    (Mapped, JsonSchema, '{"id":12}', '{"id": 12}'),
    (Record, JsonSchema, '{"id":1}', '{"name":"the"}'),
    (call, JsonSchema, '{"id":1,"name":"a"}', "{}"),
    (built(), JsonSchema, '{"id":10}', '{"id":"a"}'),
    (Word, Choice, "the", "th"),
    (Mixed, Regex, "1", "2"),
    (Literal["a", "ab"], Choice, "ab", "b"),
    (Literal["a", 3, True], Regex, "True", "b"),
    (int, Regex, "-12", "1.5"),
    (float, Regex, "1.5e3", "x"),
    (bool, Regex, "True", "true"),
    (str, Regex, '"a b"', "a b"),
    (datetime.date, Regex, "2024-02-29", "2024-13-01"),
    (datetime.time, Regex, "23:59:00", "24:00:00"),
    (datetime.datetime, Regex, "2024-02-29 23:59:00", "2024-02-29"),
    (dict, Grammar, '{"a" : [1, null]}', "{"),
    (list[int], Regex, "[1, 22]", "[1,22]"),
    (list[Model], Regex, '[{ "id":1, "kind":"ab" }]', "[1]"),
    (tuple[int, str], Regex, '(1, "a")', "(1)"),
    (tuple[int, ...], Regex, "(1, 2, 3)", "()"),
    (dict[str, int], Regex, '{"a":1}', '{"a":"b"}'),
    (Union[int, Literal["x"]], Regex, "x", "y"),  # noqa: UP007
    (Optional[int], Regex, "None", "null"),  # noqa: UP045
    (int | None, Regex, "7", "x"),
    (3, Regex, "3", "4"),
    (1.5, Regex, "1.5", "1x5"),
    (types.email, Regex, "a@the.am", "a@"),
    (types.ipv4, Regex, "10.0.0.1", "10.0.0.256"),
    (types.Regex("[ab]+"), Regex, "ab", "c"),
    (types.JsonSchema({"type": "null"}), JsonSchema, "null", " null"),
    (
        types.JsonSchema({"type": "array", "items": {"type": "null"}}, whitespace_pattern=" ?"),
        Regex,
        "[null, null]",
        "[null,  null]",
    ),
    (types.CFG('start: "a" | "(" start ")"'), Grammar, "((a))", "((a)"),
    (types.Choice(["x", "y"]), Choice, "y", "z"),
    (types.Choice(["x", 1]), Regex, "1", "z"),
    (dsl.String("a.b"), Choice, "a.b", "axb"),
    (types.either("a", "b"), Choice, "b", "c"),
    (types.exactly(3, types.digit), Regex, "123", "12"),
    (types.optional("a") + "b", Regex, "b", "a"),
    (types.one_or_more(types.either("a", "bc")), Regex, "abca", ""),
]


@pytest.mark.parametrize("case", TAKEN, ids=lambda case: str(case[0])[:30])
def test_output_types_of_outlines(
    case: tuple[Any, type, str, str], small_vocabulary: Vocabulary, spell: Any
) -> None:
    given, kind, text, other = case
    constraint = as_constraint(given)
    assert type(constraint) is kind
    assert constraint == as_constraint(given)
    matcher = constraint.compile(small_vocabulary)

    def takes(text: str) -> bool:
        state = matcher.start()
        for token in spell(small_vocabulary, text.encode()):
            state = matcher.advance(state, token)
            if state is None:
                return False
        return matcher.accepts(state)

    assert takes(text)
    assert not takes(other)


@pytest.mark.parametrize(
    "constraint",
    [
        Regex("a"),
        JsonSchema(True),
        Grammar('start: "a"'),
        Choice(["a"]),
        Predicate(bool, bool),
        AllOf([Regex("a")]),
    ],
    ids=lambda constraint: type(constraint).__name__,
)
def test_constraints_pass(constraint: Any) -> None:
    assert as_constraint(constraint) is constraint


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("[0-9]+", "Regex(...)"),
        ("[0-9]+", "Choice([...])"),
        (b"a", "Grammar(...)"),
        (object, "pydantic"),
        (None, "output type of Outlines"),
        (Any, "not supported"),
        (list, "not supported"),
        (set[int], "set[int]"),
        (lambda x: x, "annotation"),
        (Regex, "an instance of it"),
        (types.isbn, "lookaround"),
        (types.CFG("start: <|end|>"), "special tokens"),
        (types.JsonSchema({"not": {}}), "not"),
        (types.JsonSchema({"not": {}}) + "a", "output_type"),
        (list[dict], "output_type"),
        (re.compile("a"), "output type of Outlines"),
    ],
)
def test_what_is_not_taken_says_why(given: Any, told: str, small_vocabulary: Vocabulary) -> None:
    with pytest.raises(ConstraintError) as caught:
        as_constraint(given).compile(small_vocabulary)
    assert told in str(caught.value)


def test_an_import_of_constraints_is_light() -> None:
    code = (
        "import json, sys; import midstream.middleware.constraints; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    loaded = set(json.loads(run.stdout))
    heavy = {"llguidance", "outlines", "outlines_core", "torch", "transformers", "tokenizers"}
    assert not loaded & heavy
    assert "pydantic" in loaded
