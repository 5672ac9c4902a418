"""What llguidance's matchers permit is the language, in every tokenization, and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from midstream.middleware.constraints import Grammar, JsonSchema
from midstream.middleware.constraints.lazy import compile_lazy_regex
from midstream.middleware.vocabulary import Vocabulary

PIECES = [b"a", b"b", b"c", b"ab", b"bc", b"abc", b"ca", b"\xc3", b"\xa9", b"\xc3\xa9", b"a", b""]
VOCABULARY = Vocabulary(PIECES, eos_ids=[len(PIECES) - 1])


def permitted(matcher: Any) -> Counter[bytes]:
    """Every text that the matcher lets end, with the number of token sequences that spell it."""
    found: Counter[bytes] = Counter()
    stack = [(matcher.start(), b"")]
    while stack:
        state, text = stack.pop()
        assert len(text) < 12
        allowed = np.flatnonzero(matcher.allows(state, range(len(PIECES))))
        for token in allowed.tolist():
            following = matcher.advance(state, token)
            assert following is not None
            if token in VOCABULARY.eos_ids:
                found[text] += 1
            else:
                stack.append((following, text + PIECES[token]))
    return found


def spellings(text: bytes) -> int:
    """The number of token sequences that spell a text."""
    counts = [1] + [0] * len(text)
    for end in range(1, len(text) + 1):
        for piece in PIECES:
            if piece and text[:end].endswith(piece):
                counts[end] += counts[end - len(piece)]
    return counts[-1]


@pytest.mark.parametrize(
    ("lark", "texts"),
    [
        ('start: "abc"', {"abc"}),
        ('start: W\nW: "a" ("b" | "bc")? "c"', {"ac", "abc", "abcc"}),
        # Rules are made of terminals, and a terminal takes all it can: "abc" is a, bc.
        ('start: "a" ("b" | "bc")? "c"', {"ac", "abcc"}),
        ('start: x{1,3}\nx: "ab" | "c"', {a + b + c for a in ("ab", "c") for b in ("", "ab", "c")
                                          for c in ("", "ab", "c")}),
        ('start: "a" nest? "a"\nnest: "b" | "é" "c"', {"aa", "aba", "aéca"}),
        ('start: W\nW: /[ab]{0,2}/ & /.*b.*/', {"b", "ab", "ba", "bb"}),
        ('start: ""', {""}),
        ('start: A?\nA: "a"', {"", "a"}),
    ],
)  # fmt: skip
def test_every_text_of_a_small_language_in_every_tokenization(lark: str, texts: set[str]) -> None:
    expected = {text.encode(): spellings(text.encode()) for text in texts}
    assert permitted(Grammar(lark).compile(VOCABULARY)) == expected


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("a|b?c", {"a", "c", "bc"}),
        ("(ab|é){1,2}", {"ab", "é", "abab", "abé", "éab", "éé"}),
        ("", {""}),
        ("^a$", {"a"}),
        (r"a[^\x00-\x7f]", {"aé"}),
        ("(?s)a./?", None),
    ],
)
def test_a_lazy_regex_permits_its_matches(pattern: str, texts: set[str] | None) -> None:
    if texts is None:
        texts = {"aa", "ab", "ac", "aé"}
    expected = {text.encode(): spellings(text.encode()) for text in texts}
    assert permitted(compile_lazy_regex(pattern, VOCABULARY)) == expected


SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "id": {"type": "integer", "minimum": -5, "maximum": 1200},
            "kind": {"enum": ["abc", 12, None, True, [1]]},
            "tags": {"type": "array", "items": {"const": "am"}, "minItems": 1, "maxItems": 3},
        },
        "required": ["id", "tags"],
        "additionalProperties": False,
    },
    {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"type": "string", "pattern": "^[a-c]{1,3}$"}],
        "items": False,
        "minItems": 2,
    },
    {"anyOf": [{"type": "null"}, {"type": "number", "minimum": 0, "maximum": 9.5}]},
    {"type": "string", "format": "date"},
]


@pytest.mark.parametrize("whitespace", ["compact", "flexible"])
@pytest.mark.parametrize("schema", SCHEMAS)
def test_walks_give_json_that_satisfies_the_schema(
    schema: dict[str, Any], whitespace: Any, vocabulary: Vocabulary, walk: Any, replay: Any
) -> None:
    matcher = JsonSchema(schema, whitespace=whitespace).compile(vocabulary)
    checker = Draft202012Validator(schema)
    texts = set()
    for seed in range(30 if len(vocabulary) < 1000 else 8):
        path: tuple[int, ...] = ()
        *_, path = walk(matcher, seed, 120)
        text = vocabulary.decode(path)
        if matcher.accepts(replay(matcher, path)):
            value = json.loads(text)
            checker.validate(value)
            if whitespace == "compact":
                # Not Python's own compact text: numbers and escapes may be written otherwise.
                assert b", " not in text.replace(b'"', b"") or isinstance(value, (str, dict))
            texts.add(text)
    assert len(texts) >= 2


def test_white_space_is_compact_unless_asked_for(small_vocabulary: Vocabulary, spell: Any) -> None:
    schema = {"type": "array", "items": {"type": "integer"}}

    def takes(text: str, whitespace: Any) -> bool:
        matcher = JsonSchema(schema, whitespace=whitespace).compile(small_vocabulary)
        state: Any = matcher.start()
        for token in spell(small_vocabulary, text.encode()):
            state = matcher.advance(state, token)
            if state is None:
                return False
        return bool(matcher.accepts(state))

    assert takes("[1,2]", "compact")
    assert takes("[1,2]", "flexible")
    for text in ("[1, 2]", "[ 1]", "[1 ]", "[\n1,\n2\n]"):
        assert not takes(text, "compact")
        assert takes(text, "flexible")
    assert not takes(" [1]", "flexible")


def test_bytes_that_are_no_text_are_never_allowed() -> None:
    vocabulary = Vocabulary(
        [b'"', b"\xff", b"\xc3", b"\xa9", b'"\xff', b"\xa9\xff", b""], eos_ids=[6]
    )
    matcher = JsonSchema({"type": "string"}).compile(vocabulary)
    state = matcher.advance(matcher.start(), 0)
    assert matcher.allows(state, range(7)).tolist() == [
        True,
        False,
        True,
        False,
        False,
        False,
        False,
    ]
    inside = matcher.advance(state, 2)
    assert matcher.allows(inside, range(7)).tolist() == [False] * 3 + [True] + [False] * 3


def test_tokens_with_the_same_bytes_are_allowed_together(small_vocabulary: Vocabulary) -> None:
    spellings = small_vocabulary.token_bytes
    twins = [token for token, spelling in enumerate(spellings) if spelling == b'"']
    assert len(twins) > 1
    matcher = JsonSchema({"type": "string"}).compile(small_vocabulary)
    assert matcher.allows(matcher.start(), twins).all()
    after = [matcher.advance(matcher.start(), token) for token in twins]
    allowed = [matcher.allows(state, range(300)).tolist() for state in after]
    assert allowed.count(allowed[0]) == len(twins)
