"""llguidance's matchers: `mask` equals `allows` in every state, in whatever order of visits."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from midstream.middleware.constraints import Grammar, JsonSchema, cache, ll_pool
from midstream.middleware.constraints.lazy import compile_lazy_regex
from midstream.middleware.vocabulary import Vocabulary

RECORD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["abc", "abca", "xx"]},
        "tags": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "size": {"type": "number", "minimum": -1, "maximum": 99.5},
        "note": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^(ab|é)+$"}]},
    },
    "required": ["name", "kind", "tags", "size", "note"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "id": {"type": "integer", "minimum": 0, "maximum": 120},
                "age": {"type": "boolean"},
                "kind": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["id"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
SUM = """
start: sum
sum: term (("+" | "-") term)*
term: NUMBER | "(" sum ")"
NUMBER: /-?[0-9]{1,3}/
"""
SPACED = """
start: "the" word+ "."
word: /[a-c]+/ | "é"
%ignore /[ \\n]+/
"""
# Two rules whose words are alike to the lexer and end differently: its state does not tell which.
TWINS = """
start: a | b
a: "x" WORD ")"
b: "y" WORD "}"
WORD: /[ab]+/
"""
CONSTRAINTS = {
    "record": JsonSchema(RECORD),
    "flexible": JsonSchema(RECORD, whitespace="flexible"),
    "tree": JsonSchema(TREE),
    "any": JsonSchema(True),
    "sum": Grammar(SUM),
    "spaced": Grammar(SPACED),
    "twins": Grammar(TWINS),
}


def allowed_one_by_one(matcher: Any, state: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """All single checks, in rounds that are too small for the matcher to make a mask for them."""
    ids = np.arange(len(matcher.vocabulary))
    return np.concatenate([matcher.allows(state, ids[i : i + 30]) for i in range(0, ids.size, 30)])


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_the_mask_equals_the_checks_in_every_state(
    name: str, vocabulary: Vocabulary, walk: Any, replay: Any, mask_of: Any
) -> None:
    matcher = CONSTRAINTS[name].compile(vocabulary)
    walks, steps = (16, 40) if len(vocabulary) < 1000 else (2, 10)
    seen = 0
    for seed in range(walks):
        for path in walk(matcher, seed, steps):
            state = replay(matcher, path)
            one_by_one = allowed_one_by_one(matcher, state)
            assert np.array_equal(one_by_one, mask_of(matcher, state)), path
            again = matcher.allows(state, list(range(len(vocabulary))))
            assert np.array_equal(one_by_one, again)
            for token in vocabulary.eos_ids:
                assert one_by_one[token] == matcher.accepts(state)
            seen += 1
    assert seen >= (60 if walks == 16 else 8)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_the_order_of_visits_does_not_matter(
    name: str,
    small_vocabulary: Vocabulary,
    walk: Any,
    replay: Any,
    mask_of: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ll_pool, "BYTES_A_TOKEN", 1e-9)  # copies cost too much: one engine moves
    cache.clear_matchers()
    matcher: Any = CONSTRAINTS[name].compile(small_vocabulary)
    paths = [path for seed in range(12) for path in walk(matcher, seed, 40)]
    states = [replay(matcher, path) for path in paths]
    expected = [matcher.allows(state, range(30)) for state in states]
    order = list(range(len(paths))) * 2
    random.Random(1).shuffle(order)
    for index in order:
        fresh = replay(matcher, paths[index])
        assert np.array_equal(mask_of(matcher, fresh)[:30], expected[index])
    assert len(matcher._pool) == 1


def test_a_mask_after_going_back_is_that_of_its_own_branch(
    small_vocabulary: Vocabulary, spell: Any, mask_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llguidance import LLMatcher

    from midstream.middleware.constraints.ll_tokenizer import engine_tokens

    monkeypatch.setattr(ll_pool, "BYTES_A_TOKEN", 1e-9)
    cache.clear_matchers()
    matcher: Any = Grammar(TWINS).compile(small_vocabulary)
    ids = {text: spell(small_vocabulary, text.encode())[0] for text in "xya)}"}
    after_x, after_y = (
        matcher.advance(matcher.advance(matcher.start(), ids[first]), ids["a"]) for first in "xy"
    )
    for _ in range(3):
        for state, right, wrong in ((after_x, ")", "}"), (after_y, "}", ")")):
            state.mask = None
            allowed = mask_of(matcher, state)
            assert allowed[ids[right]]
            assert not allowed[ids[wrong]]

    # llguidance alone, moved in the same way, gives the second branch the mask of the first.
    tokens = engine_tokens(small_vocabulary)
    known = {text: tokens.engine_ids[token] for text, token in ids.items()}
    raw = LLMatcher(tokens.tokenizer, TWINS)
    assert raw.consume_tokens([known["x"], known["a"]])
    first = raw.compute_bitmask()
    raw.rollback(2)
    assert raw.consume_tokens([known["y"], known["a"]])
    assert raw.compute_bitmask() == first
    assert raw.validate_tokens([known["}"]]) == 1
    assert raw.validate_tokens([known[")"]]) == 0


def test_masks_of_llguidance_itself_fail_where_bytes_are_forced() -> None:
    """Negative control of the first test: without `no_forcing` masks hold canonical tokens."""
    from llguidance import LLMatcher, LLTokenizer

    class Wrapper:
        is_tokenizer_wrapper = True
        eos_token_id = None
        bos_token_id = None
        special_token_ids: tuple[int, ...] = ()
        tokens = (b"t", b"ta", b"tag", b"tags", b"a", b"s", b"x")

        def __call__(self, text: bytes) -> list[int]:
            assert text in (b"tags", "tags")
            return [3]

    tokenizer = LLTokenizer(Wrapper())
    forcing = LLMatcher(tokenizer, 'start: "tags"')
    bits = np.unpackbits(np.frombuffer(forcing.compute_bitmask(), np.uint8), bitorder="little")
    checks = [forcing.validate_tokens([token]) == 1 for token in range(7)]
    assert checks == [True, True, True, True, False, False, False]
    assert bits[:7].astype(bool).tolist() == [False, False, False, True, False, False, False]

    vocabulary = Vocabulary([*Wrapper.tokens, b""], eos_ids=[7])
    matcher = Grammar('start: "tags"').compile(vocabulary)
    out = np.zeros(1, np.uint32)
    matcher.mask(matcher.start(), out)
    assert out[0] == 0b1111


def test_special_and_unknown_ids_are_never_allowed(small_vocabulary: Vocabulary) -> None:
    matcher = JsonSchema(True).compile(small_vocabulary)
    state = matcher.start()
    outside = [-1, -100, len(small_vocabulary), 10**6, *small_vocabulary.special_ids]
    for _ in range(3):
        assert not matcher.allows(state, outside).any()
        assert all(matcher.advance(state, token) is None for token in outside)
        following = matcher.advance(state, small_vocabulary.token_bytes.index(b"["))
        assert following is not None
        state = following


def test_after_the_end_nothing_is_allowed(small_vocabulary: Vocabulary, mask_of: Any) -> None:
    matcher = compile_lazy_regex("a+", small_vocabulary)
    letter = small_vocabulary.token_bytes.index(b"a")
    state = matcher.advance(matcher.start(), letter)
    assert state is not None
    assert matcher.accepts(state)
    assert not matcher.accepts(matcher.start())
    assert matcher.advance(matcher.start(), small_vocabulary.eos_ids[0]) is None
    for token in small_vocabulary.eos_ids:
        ended = matcher.advance(state, token)
        assert ended is not None
        assert not mask_of(matcher, ended).any()
        assert not matcher.allows(ended, [letter, *small_vocabulary.eos_ids]).any()
        assert not matcher.accepts(ended)
        assert matcher.advance(ended, letter) is None
        assert matcher.advance(ended, token) is None
    assert matcher.advance(state, letter) is not None


def test_matchers_of_different_vocabularies_end_apart(small_vocabulary: Vocabulary) -> None:
    for vocabulary in (Vocabulary([b"a", b""], eos_ids=[1]), small_vocabulary):
        matcher = compile_lazy_regex("a", vocabulary)
        letter, end = vocabulary.token_bytes.index(b"a"), vocabulary.eos_ids[0]
        ended = matcher.advance(matcher.advance(matcher.start(), letter), end)
        assert not matcher.allows(ended, range(len(vocabulary))).any()


def test_rows_may_be_longer_or_shorter_than_the_vocabulary(small_vocabulary: Vocabulary) -> None:
    matcher = JsonSchema({"type": "array"}).compile(small_vocabulary)
    opening = small_vocabulary.token_bytes.index(b"[")
    long = np.full(40, 0xFFFFFFFF, np.uint32)
    matcher.mask(matcher.start(), long)
    assert long[opening >> 5] >> (opening & 31) & 1
    assert not long[small_vocabulary.mask_words :].any()
    short = np.zeros(4, np.uint32)
    matcher.mask(matcher.start(), short)
    assert np.array_equal(short, long[:4])
    assert matcher.superset(matcher.start(), short)


def test_a_state_that_the_vocabulary_cannot_leave_is_dead(
    mask_of: Callable[..., Any],
) -> None:
    matcher = Grammar('start: "a" ("b" | "c")').compile(Vocabulary([b"a", b""], eos_ids=[1]))
    state = matcher.advance(matcher.start(), 0)
    assert state is not None
    assert not mask_of(matcher, state).any()
    assert not matcher.allows(state, [0, 1]).any()
    assert not matcher.accepts(state)
    assert matcher.reason(state) == "no token of the vocabulary continues the text"
    assert matcher.advance(state, 0) is None
    assert matcher.reason(matcher.start()) is None
