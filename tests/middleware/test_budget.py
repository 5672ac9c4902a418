"""A matcher that never starts what it cannot finish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.kernels.bitmask import unpack_mask
from midstream.middleware.budget import Finishing, within_budget
from midstream.middleware.constraints import token_distances
from midstream.middleware.constraints.choice import Choice
from midstream.middleware.constraints.regex import Regex
from midstream.middleware.errors import ConstraintError, StrategyError
from midstream.middleware.matcher import Matcher
from midstream.middleware.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    [b"a", b"b", b"ab", b"aa", b"bbb", b"c", b"abc", b"\xc3", b"\xa9", b"", b"", b"x"],
    eos_ids=[10, 9],
)
PATTERNS = [
    *("a*", "(ab)*c", "a{2,5}|bbb", "(a|ab)(c|bcc)*", "[ab]{0,7}c", "a?b?c?", "(é|a)*é", "aaaaaa"),
    *("(abc|c){1,3}", "a(b{3})*", "(a{3}|b{4})*", "x|ab{6}", "(aab|x)*c{2}"),
]


@dataclass(frozen=True)
class Plain:
    """A matcher with the bare protocol only: no `finish_bound`, no `mask_within`."""

    inner: Matcher

    def __getattr__(self, name: str) -> Any:
        if name in ("finish_bound", "mask_within"):
            raise AttributeError(name)
        return getattr(self.inner, name)


def least_by_brute_force(matcher: Matcher, state: Any, limit: int) -> int | None:
    """Least number of tokens to a complete text, by trying all paths of up to `limit` tokens."""
    front = {state}
    for steps in range(limit + 1):
        if any(matcher.accepts(one) for one in front):
            return steps
        tokens = [t for t, spelling in enumerate(VOCABULARY.token_bytes) if spelling]
        front = {child for one in front for t in tokens if (child := matcher.advance(one, t))}
    return None


@pytest.mark.parametrize("plain", [False, True])
@settings(max_examples=80, deadline=None)
@given(pattern=st.sampled_from(PATTERNS), budget=st.integers(1, 9), data=st.data())
def test_a_token_is_allowed_where_the_rest_still_fits(
    plain: bool, pattern: str, budget: int, data: st.DataObject
) -> None:
    inner = Regex(pattern).compile(VOCABULARY)
    inner = Plain(inner) if plain else inner
    least = least_by_brute_force(inner, inner.start(), 9)
    if least is None or least + 1 > budget:
        with pytest.raises(ConstraintError, match="max_new_tokens"):
            within_budget(inner, budget)
        return
    matcher = within_budget(inner, budget)
    state, inner_state, left = matcher.start(), inner.start(), budget
    while True:
        allowed = _checked(matcher, state)
        assert allowed.any() == (left > 0)
        for token, spelling in enumerate(VOCABULARY.token_bytes):
            child = inner.advance(inner_state, token)
            if child is None:
                expected = False
            elif spelling:
                expected = least_by_brute_force(inner, child, left - 2) is not None and left > 1
            else:
                expected = left > 0
            assert allowed[token] == expected
        token = data.draw(st.sampled_from(np.flatnonzero(allowed).tolist()))
        assert matcher.tokens_to_finish(state) == inner.tokens_to_finish(inner_state)
        state, left = matcher.advance(state, token), left - 1
        if token in VOCABULARY.eos_ids:
            break
        inner_state = inner.advance(inner_state, token)
    assert not _checked(matcher, state).any()
    assert left >= 0


def _checked(matcher: Matcher, state: Any) -> np.ndarray:
    """The mask as bool [V], which allows, advance, accepts and the superset agree with."""
    size = len(VOCABULARY)
    words = np.full(VOCABULARY.mask_words + 1, 0xFFFFFFFF, np.uint32)
    matcher.mask(state, words)
    allowed = unpack_mask(words, size)
    assert not words[VOCABULARY.mask_words :].any()
    np.testing.assert_array_equal(matcher.allows(state, list(range(size + 3)))[:size], allowed)
    np.testing.assert_array_equal(matcher.allows(state, np.arange(size)), allowed)
    for token in range(size):
        assert (matcher.advance(state, token) is not None) == allowed[token]
    assert all(matcher.accepts(state) == allowed[eos] for eos in VOCABULARY.eos_ids)
    pruned = np.zeros_like(words)
    if matcher.superset(state, pruned):
        assert not (words & ~pruned).any()
    return allowed


def test_every_path_ends_in_time_and_none_that_fits_is_lost() -> None:
    """All texts that end within the budget, by enumeration of both matchers."""
    inner = Regex("[ab]{0,7}c|x").compile(VOCABULARY)
    for budget in range(2, 5):
        matcher = within_budget(inner, budget)
        within = _paths(matcher, matcher.start(), budget)
        fitting = _paths(inner, inner.start(), budget)
        assert within == {path for path in fitting if path[-1] in VOCABULARY.eos_ids}
        assert len(fitting) > len(within)  # the inner matcher starts what does not end
        forgetful = within_budget(inner, budget + 1)  # control: end of sequence not counted
        assert _paths(forgetful, forgetful.start(), budget) != within


def _paths(matcher: Matcher, state: Any, left: int) -> set[tuple[int, ...]]:
    """The sequences of up to `left` tokens that are stopped by their end or by the limit."""
    if left == 0:
        return {()}
    tokens = np.flatnonzero(matcher.allows(state, range(len(VOCABULARY)))).tolist()
    found = set()
    for token in tokens:
        child = matcher.advance(state, token)
        more = {()} if token in VOCABULARY.eos_ids else _paths(matcher, child, left - 1)
        found |= {(token, *path) for path in more}
    return found


def test_ample_room_costs_a_comparison() -> None:
    inner = Regex("[ab]*c").compile(VOCABULARY)
    matcher = within_budget(inner, 1000)
    assert isinstance(inner, Finishing)
    state = matcher.start()
    mine, theirs = (np.zeros(VOCABULARY.mask_words, np.uint32) for _ in range(2))
    matcher.mask(state, mine)
    inner.mask(inner.start(), theirs)
    np.testing.assert_array_equal(mine, theirs)
    assert all(limit == 2**31 - 1 for _, limit in inner._masks._kept)


def test_states_are_values() -> None:
    matcher = within_budget(Regex("[ab]{0,40}c").compile(VOCABULARY), 30)
    parent = matcher.start()
    for _ in range(5):
        parent = matcher.advance(parent, 0)
    before = _checked(matcher, parent)
    children = [matcher.advance(parent, token % 2) for token in range(1000)]
    assert len(set(children)) <= 2
    np.testing.assert_array_equal(_checked(matcher, parent), before)


def test_the_least_number_of_tokens_is_named() -> None:
    with pytest.raises(ConstraintError, match=r"got 2; accepted: at least 3.*fewer than 2 tokens"):
        within_budget(Choice(["abab", "abcabc"]).compile(VOCABULARY), 2)
    within_budget(Choice(["abab", "abcabc"]).compile(VOCABULARY), 3)


@pytest.mark.parametrize("budget", [0, -1, 2.0, True, None])
def test_a_budget_that_is_no_count_is_refused(budget: Any) -> None:
    with pytest.raises(StrategyError, match="max_new_tokens"):
        within_budget(Choice(["a"]).compile(VOCABULARY), budget)


def test_texts_cannot_end_without_an_end_of_sequence() -> None:
    matcher = Choice(["a"]).compile(Vocabulary([b"a"], eos_ids=[]))
    with pytest.raises(ConstraintError, match="end-of-sequence"):
        within_budget(matcher, 9)


@dataclass(frozen=True)
class Unknown(Plain):
    """A matcher that does not know how far the end is, or only a bound from below."""

    least_tokens: int = 0

    def tokens_to_finish(self, state: Any) -> None:
        return None


def test_a_matcher_that_does_not_know_is_passed_through() -> None:
    matcher = Unknown(Choice(["abab"]).compile(VOCABULARY))
    assert within_budget(matcher, 1) is matcher


def test_an_automaton_too_large_to_measure_is_passed_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_distances, "MAX_WORK", 10)
    matcher = Regex("(aa|bbb){3,}abc").compile(VOCABULARY)
    assert matcher.tokens_to_finish(matcher.start()) is None
    assert within_budget(matcher, 50) is matcher


def test_a_bound_from_below_refuses_what_can_never_fit() -> None:
    matcher = Unknown(Choice(["abab"]).compile(VOCABULARY), least_tokens=2)
    assert within_budget(matcher, 3) is matcher
    with pytest.raises(ConstraintError, match="at least 3"):
        within_budget(matcher, 2)


def test_paths_from_which_no_tokens_finish_are_never_taken() -> None:
    """The vocabulary has no way to end what begins with b, though the language has."""
    vocabulary = Vocabulary([b"a", b"b", b""], eos_ids=[2])
    inner = Regex("a+|bz").compile(vocabulary)
    assert inner.allows(inner.start(), [0, 1]).tolist() == [True, True]
    matcher = within_budget(inner, 50)
    assert matcher.allows(matcher.start(), [0, 1]).tolist() == [True, False]
    words = np.zeros(1, np.uint32)
    matcher.mask(matcher.start(), words)
    assert words[0] == 1
