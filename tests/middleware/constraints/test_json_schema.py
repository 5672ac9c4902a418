"""`JsonSchema`: what it takes, what it refuses and why."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Literal

import pydantic
import pytest

from midstream.middleware.constraints import JsonSchema
from midstream.middleware.constraints.json_least import least_bytes
from midstream.middleware.errors import ConstraintError
from midstream.middleware.vocabulary import Vocabulary

REFUSED = {
    "minimum above maximum": ({"type": "integer", "minimum": 5, "maximum": 1}, "minimum (5)"),
    "minLength above": ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength (5)"),
    "minItems above maxItems": ({"type": "array", "minItems": 5, "maxItems": 2}, "minItems (5)"),
    "no integer between": ({"type": "integer", "minimum": 1.2, "maximum": 1.8}, "integer range"),
    "no value of the type": ({"type": "integer", "enum": ["a"]}, "Unsatisfiable"),
    "two constants": ({"allOf": [{"const": 1}, {"const": 2}]}, "Unsatisfiable"),
    "a required property that cannot be": (
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        "no finite text",
    ),
    "a property that must not be": (
        {"type": "object", "required": ["b"], "additionalProperties": False},
        "Unsatisfiable",
    ),
    "no choice": ({"enum": []}, "no finite text"),
    "false": (False, "no finite text"),
    "itself": ({"$ref": "#"}, "no finite text"),
    "a loop of references": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        "no finite text",
    ),
    "texts without end": (
        {
            "$defs": {
                "a": {
                    "type": "object",
                    "properties": {"x": {"$ref": "#/$defs/a"}},
                    "required": ["x"],
                }
            },
            "$ref": "#/$defs/a",
        },
        "no finite text",
    ),
    "an empty pattern": ({"type": "string", "pattern": "^abc$", "maxLength": 2}, "Regex is empty"),
    "not": ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "if": ({"if": {}, "then": {}}, '["if", "then"]'),
    "an unknown type": ({"type": "strin"}, "Invalid type: strin"),
    "an unknown format": ({"type": "string", "format": "frob"}, "Unknown format: frob"),
    "lookahead": ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    "a reference elsewhere": ({"$ref": "http://example.com/x.json"}, "example.com"),
    "properties of no kind": ({"type": "object", "properties": 3}, "properties must be"),
    "a minimum of no kind": ({"type": "integer", "minimum": "a"}, "minimum"),
    "required of no kind": ({"type": "object", "required": [[1]]}, "required"),
    "options of no kind": ({"type": "null", "x-guidance": 3}, "x-guidance"),
    "text that is no JSON": ('{"type":', "Expecting value"),
    "text that is no schema": ("3", "JSON Schema"),
    "a number": (3, "JSON Schema"),
    "not a number": ({"const": math.nan}, "not JSON compliant"),
    "what is no JSON": ({"const": {1, 2}}, "not JSON serializable"),
    "an instance": (object(), "JSON Schema"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_satisfied_or_compiled_is_refused(
    name: str, small_vocabulary: Vocabulary
) -> None:
    schema, reason = REFUSED[name]
    with pytest.raises(ConstraintError) as caught:
        JsonSchema(schema).compile(small_vocabulary)
    assert caught.value.argument == "schema"
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nesting_that_is_too_deep_is_refused(small_vocabulary: Vocabulary) -> None:
    nested: Any = {}
    for _ in range(20_000):
        nested = {"items": nested}
    for schema in (nested, '{"items":' * 20_000 + "{}" + "}" * 20_000):
        with pytest.raises(ConstraintError, match="deep"):
            JsonSchema(schema).compile(small_vocabulary)
    nested = {"type": "array"}
    for _ in range(60):
        nested = {"type": "array", "items": nested}
    assert JsonSchema(nested).compile(small_vocabulary)


def test_schemas_are_values() -> None:
    schema = {"type": "object", "properties": {"b": {"type": "null"}, "a": {"type": "null"}}}
    one, same = JsonSchema(schema), JsonSchema(json.dumps(schema, indent=2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != JsonSchema(schema, whitespace="flexible")
    assert one != JsonSchema({"type": "object"})
    schema["type"] = "array"
    assert json.loads(one.schema)["type"] == "object"
    with pytest.raises(AttributeError):
        one.schema = "{}"  # type: ignore[misc]
    with pytest.raises(ConstraintError, match="whitespace: got free"):
        JsonSchema(schema, whitespace="free")  # type: ignore[arg-type]


class Inner(pydantic.BaseModel):
    kind: Literal["abc", "xx"]


class Outer(pydantic.BaseModel):
    id: int = pydantic.Field(ge=0, le=9)
    tags: list[Inner] = pydantic.Field(max_length=2)
    note: str | None = pydantic.Field(max_length=3)


def test_pydantic_models(small_vocabulary: Vocabulary, walk: Any, replay: Any) -> None:
    matcher = JsonSchema(Outer).compile(small_vocabulary)
    complete = 0
    for seed in range(10):
        *_, path = walk(matcher, seed, 200)
        if matcher.accepts(replay(matcher, path)):
            Outer.model_validate_json(small_vocabulary.decode(path))
            complete += 1
    assert complete >= 5

    class Odd(pydantic.BaseModel):
        callback: Callable[[int], int]

    with pytest.raises(ConstraintError, match="pydantic"):
        JsonSchema(Odd)


def takes(schema: Any, text: str, vocabulary: Vocabulary, spell: Any, **options: Any) -> bool:
    matcher = JsonSchema(schema, **options).compile(vocabulary)
    state = matcher.start()
    for token in spell(vocabulary, text.encode()):
        state = matcher.advance(state, token)
        if state is None:
            return False
    return matcher.accepts(state)


def test_options_of_llguidance_are_kept(small_vocabulary: Vocabulary, spell: Any) -> None:
    array = {"type": "array", "items": {"type": "null"}}
    assert not takes(array, "[null, null]", small_vocabulary, spell)
    pattern = {**array, "x-guidance": {"whitespace_pattern": " ?"}}
    assert takes(pattern, "[null, null]", small_vocabulary, spell)
    separators = {**array, "x-guidance": {"item_separator": "; "}}
    assert takes(separators, "[null; null]", small_vocabulary, spell)
    insisting = {**array, "x-guidance": {"whitespace_flexible": True}}
    assert not takes(insisting, "[null, null]", small_vocabulary, spell)
    assert takes(insisting, "[null, null]", small_vocabulary, spell, whitespace="flexible")


@pytest.mark.parametrize(
    "draft", ["http://json-schema.org/schema#", "http://json-schema.org/schema"]
)
def test_the_newest_draft_is_known(draft: str, small_vocabulary: Vocabulary, spell: Any) -> None:
    assert takes({"$schema": draft, "type": "null"}, "null", small_vocabulary, spell)


BOUNDS: list[tuple[Any, float]] = [
    (True, 1),
    ({"type": "null"}, 4),
    ({"type": ["boolean", "string"]}, 2),
    ({"type": "string", "minLength": 7}, 9),
    ({"const": "é"}, 4),
    ({"enum": ["abc", [1, None], {"a": True}]}, 5),
    ({"type": "array", "minItems": 3, "items": {"type": "null"}}, 16),
    (
        {
            "type": "array",
            "minItems": 2,
            "prefixItems": [{"const": "a"}],
            "items": {"type": "null"},
        },
        10,
    ),
    ({"type": "object", "properties": {"ab": {"type": "null"}}, "required": ["ab", "c"]}, 17),
    ({"anyOf": [{"type": "string", "minLength": 9}, {"type": "boolean"}]}, 4),
    ({"allOf": [{"type": "string"}, {"minLength": 9}], "type": "string"}, 2),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}}, 4),
    ({"$ref": "#anchor", "$defs": {"a": {"$anchor": "anchor", "type": "null"}}}, 1),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$id": "http://x/y", "$ref": "#/$defs/a"}}}, 1),
    (
        {
            "$ref": "#/$defs/n",
            "$defs": {
                "n": {
                    "type": "object",
                    "properties": {"v": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
                    "required": ["v"],
                }
            },
        },
        10,
    ),
    ({"type": "object", "required": 3, "properties": 4}, 2),
    ({"type": "array", "minItems": "x", "prefixItems": 5}, 2),
    ({"type": 3, "anyOf": 4, "enum": 5, "$ref": 6}, 1),
]


@pytest.mark.parametrize(("schema", "bound"), BOUNDS)
def test_the_least_length_of_a_text(schema: Any, bound: float) -> None:
    assert least_bytes(schema) == bound


def test_no_text_is_shorter_than_the_bound(
    small_vocabulary: Vocabulary, walk: Any, replay: Any
) -> None:
    for schema, bound in BOUNDS[:11]:
        matcher: Any = JsonSchema(schema).compile(small_vocabulary)
        longest = max(map(len, small_vocabulary.token_bytes))
        assert matcher.least_tokens == math.ceil(bound / longest)
        for seed in range(6):
            for path in walk(matcher, seed, 20):
                if matcher.accepts(replay(matcher, path)):
                    assert len(small_vocabulary.decode(path)) >= bound
                    assert len(path) >= matcher.least_tokens


def test_nothing_is_known_of_the_tokens_to_the_end(small_vocabulary: Vocabulary) -> None:
    matcher = JsonSchema({"type": "null"}).compile(small_vocabulary)
    assert matcher.tokens_to_finish(matcher.start()) is None
    assert matcher.has_mask
    assert matcher.mask_cost < 100
