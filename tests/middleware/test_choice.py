"""Choice: one text out of a list, over random vocabularies, against brute force."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.kernels.bitmask import unpack_mask
from midstream.middleware.constraints import word_automaton
from midstream.middleware.constraints.choice import Choice
from midstream.middleware.errors import ConstraintError
from midstream.middleware.matcher import Matcher
from midstream.middleware.vocabulary import Vocabulary

texts = st.text("abé", max_size=4).map(str.encode) | st.binary(max_size=3)
items = st.lists(texts, min_size=1, max_size=8)


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """All bytes, longer tokens and twins, in any order; the last two ids end a text."""
    longer = draw(st.lists(texts.filter(bool), max_size=8))
    single = [bytes([byte]) for byte in range(256)]
    tokens = draw(st.permutations([*single, *longer]))
    return Vocabulary([*tokens, b"", b""], eos_ids=[len(tokens), len(tokens) + 1])


def allowed_by(matcher: Matcher, state: Any) -> np.ndarray:
    """The mask as bool [V], which `allows` and `advance` agree with."""
    size = len(matcher.vocabulary)
    words = np.full(matcher.vocabulary.mask_words + 1, 0xFFFFFFFF, np.uint32)
    matcher.mask(state, words)
    allowed = unpack_mask(words, size)
    np.testing.assert_array_equal(matcher.allows(state, range(size)), allowed)
    some = np.flatnonzero(allowed)[:8]
    assert matcher.allows(state, some.tolist()).all()
    assert all(matcher.advance(state, int(token)) is not None for token in some)
    return allowed


def least_tokens(rests: set[bytes], tokens: Sequence[bytes]) -> int:
    steps = 0
    while b"" not in rests:
        rests = {rest[len(t) :] for rest in rests for t in tokens if t and rest.startswith(t)}
        steps += 1
    return steps


@settings(max_examples=60, deadline=None)
@given(items, vocabularies(), st.data())
def test_every_state_is_that_of_the_list(
    choices: list[bytes], vocabulary: Vocabulary, data: st.DataObject
) -> None:
    matcher = Choice(choices).compile(vocabulary)
    spellings = vocabulary.token_bytes
    state, text = matcher.start(), b""
    while True:
        allowed = allowed_by(matcher, state)
        rests = {item[len(text) :] for item in choices if item.startswith(text)}
        for token, spelling in enumerate(spellings):
            if spelling:
                assert allowed[token] == any(rest.startswith(spelling) for rest in rests)
            else:
                assert allowed[token] == (b"" in rests)
        assert matcher.accepts(state) == (b"" in rests)
        assert matcher.tokens_to_finish(state) == least_tokens(rests, spellings)
        going_on = [t for t in np.flatnonzero(allowed).tolist() if spellings[t]]
        if not going_on:
            break
        token = data.draw(st.sampled_from(going_on))
        state = matcher.advance(state, token)
        text += spellings[token]


@pytest.fixture(scope="module")
def byte_tokens() -> Vocabulary:
    return Vocabulary([*(bytes([byte]) for byte in range(256)), b""], eos_ids=[256])


def test_an_item_that_begins_another_may_end_or_go_on(byte_tokens: Vocabulary) -> None:
    matcher = Choice(["a", "ab"]).compile(byte_tokens)
    state = matcher.advance(matcher.start(), ord("a"))
    assert set(np.flatnonzero(allowed_by(matcher, state))) == {ord("b"), 256}
    assert matcher.tokens_to_finish(state) == 0
    ended = matcher.advance(state, 256)
    assert not allowed_by(matcher, ended).any()
    assert not matcher.accepts(ended)


def test_the_empty_text_may_be_chosen(byte_tokens: Vocabulary) -> None:
    matcher = Choice(["", "b"]).compile(byte_tokens)
    assert set(np.flatnonzero(allowed_by(matcher, matcher.start()))) == {ord("b"), 256}
    nothing = Choice([""]).compile(byte_tokens)
    assert set(np.flatnonzero(allowed_by(nothing, nothing.start()))) == {256}


def test_items_may_hold_any_bytes(byte_tokens: Vocabulary) -> None:
    matcher = Choice([bytes([byte, 255 - byte]) for byte in range(256)]).compile(byte_tokens)
    assert allowed_by(matcher, matcher.start())[:256].all()
    state = matcher.advance(matcher.start(), 0xFF)
    assert set(np.flatnonzero(allowed_by(matcher, state))) == {0}


def test_states_are_values(byte_tokens: Vocabulary) -> None:
    matcher = Choice([f"{n:04d}" for n in range(10_000)]).compile(byte_tokens)
    parent = matcher.advance(matcher.start(), ord("7"))
    children = [matcher.advance(parent, ord(str(n % 10))) for n in range(1000)]
    assert set(np.flatnonzero(allowed_by(matcher, parent))) == set(b"0123456789")
    for child in children[:10]:
        assert matcher.tokens_to_finish(child) == 2


def test_equal_branches_are_shared(byte_tokens: Vocabulary) -> None:
    """Ten thousand numbers of four digits need five states, and the dead one."""
    words = [b"%04d" % n for n in range(10_000)]
    assert word_automaton.word_automaton(words).table.shape == (6, 11)


@pytest.mark.parametrize(
    ("given_items", "argument"),
    [
        ([], "items"),
        ("yes", "items"),
        (b"yes", "items"),
        (None, "items"),
        (7, "items"),
        (["yes", 7], "items[1]"),
        (["yes", None], "items[1]"),
        (["\ud800"], "items[0]"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(given_items: Any, argument: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        Choice(given_items)
    assert caught.value.argument == argument


def test_an_item_that_no_tokens_spell_is_named() -> None:
    vocabulary = Vocabulary([b"ab", b"bc", b"c", b"d", b""], eos_ids=[4])
    Choice(["abc", "bcd", "abab", "abbc"]).compile(vocabulary)
    with pytest.raises(ConstraintError, match=r"items\[1\]: got 'bab'.*no tokens"):
        Choice(["abc", "bab"]).compile(vocabulary)


def test_too_large_a_list_is_refused(
    byte_tokens: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_automaton, "MAX_ENTRIES", 1000)
    with pytest.raises(ConstraintError, match="300 items of 1200 bytes"):
        Choice([f"{n * 977:04x}"[:4] for n in range(300)]).compile(byte_tokens)


def test_equal_lists_compile_once(byte_tokens: Vocabulary) -> None:
    assert Choice(["x", "y"]).compile(byte_tokens) is Choice(("x", "y")).compile(byte_tokens)
    assert hash(Choice(["x"])) == hash(Choice(["x"]))
    assert Choice(["x"]) != Choice([b"x"])
