"""A limit of llguidance that is met on the way is a state that allows nothing, no exception."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from midstream.middleware.constraints import ll_compile
from midstream.middleware.constraints.lazy import compile_lazy, compile_lazy_regex
from midstream.middleware.errors import ConstraintError
from midstream.middleware.vocabulary import Vocabulary

RULES = 30
BRANCHING = (
    'start: "ab" ("c" | after)\nafter: '
    + " | ".join(f"r{index}" for index in range(RULES))
    + "\n"
    + "".join(f'r{index}: "d" "{index}."\n' for index in range(RULES))
)
LETTERS = "start: /x/ letter{1,9}\nletter: " + " | ".join(f'"{c}"' for c in "abcdefghinmpty") + "\n"


def limited(monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    monkeypatch.setattr(ll_compile, "LIMITS", {**ll_compile.LIMITS, **limits})


def compiled(lark: str, vocabulary: Vocabulary) -> Any:
    """Past the cache, which does not know of changed limits."""
    return compile_lazy(lark, vocabulary, argument="lark", got=lark, accepted="a grammar")


def assert_dead(matcher: Any, state: Any) -> str:
    vocabulary = matcher.vocabulary
    out = np.full(vocabulary.mask_words, 0xFFFFFFFF, np.uint32)
    assert not matcher.allows(state, range(len(vocabulary))).any()
    assert not matcher.allows(state, [65]).any()
    matcher.mask(state, out)
    assert not out.any()
    assert not matcher.accepts(state)
    assert all(matcher.advance(state, token) is None for token in (65, *vocabulary.eos_ids))
    reason = matcher.reason(state)
    assert reason is not None
    assert "\n" not in reason
    assert "<" not in reason
    return reason


@pytest.mark.parametrize("by_mask", [True, False])
def test_a_row_that_grows_too_large_ends_the_text(
    by_mask: bool,
    small_vocabulary: Vocabulary,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    limited(monkeypatch, max_items_in_row=RULES)
    matcher = compiled(BRANCHING, small_vocabulary)
    a, b, ab = (small_vocabulary.token_bytes.index(word) for word in (b"a", b"b", b"ab"))
    out = np.zeros(small_vocabulary.mask_words, np.uint32)
    if by_mask:
        matcher.mask(matcher.start(), out)
    inside = matcher.advance(matcher.start(), a)
    for state in (matcher.advance(matcher.start(), ab), matcher.advance(inside, b)):
        assert state is not None  # allowed, as far as one can see
        assert "items" in assert_dead(matcher, state)
    # Other states of the same matcher live on.
    assert matcher.allows(inside, [a, b]).tolist() == [False, True]
    assert matcher.reason(inside) is None
    assert capfd.readouterr() == ("", "")


def test_a_mask_that_costs_too_much_ends_the_text(
    small_vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, spell: Any
) -> None:
    limited(monkeypatch, step_max_items=300)
    matcher = compiled(LETTERS, small_vocabulary)
    state = matcher.advance(matcher.start(), spell(small_vocabulary, b"x")[0])
    assert "limit 300" in assert_dead(matcher, state)


def test_a_lexer_that_grows_too_large_ends_the_text(
    small_vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, max_lexer_states=300)
    matcher = compiled("start: /(a|b)*a(a|b){16}x/\n", small_vocabulary)
    letters = [small_vocabulary.token_bytes.index(letter) for letter in (b"a", b"b")]
    draw = random.Random(0)
    out = np.zeros(small_vocabulary.mask_words, np.uint32)
    reasons = set()
    for _ in range(40):
        state = matcher.start()
        for _ in range(40):
            matcher.mask(state, out)
            if matcher.reason(state) is not None:
                reasons.add(assert_dead(matcher, state))
                break
            state = matcher.advance(state, draw.choice(letters))
    # A lexer that other texts filled does not count: a new one is asked.
    assert not reasons
    limited(monkeypatch, max_lexer_states=20)
    matcher = compiled("start: /(a|b)*a(a|b){16}x/\n", small_vocabulary)
    state = matcher.start()
    while matcher.reason(state) is None:
        state = matcher.advance(state, draw.choice(letters))
    assert "too many states" in assert_dead(matcher, state)


def test_a_lexer_without_fuel_is_not_believed(
    small_vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks use up the fuel that the last mask left: llguidance refuses all, without an error."""
    pattern = "([a-z]{1,9}[a-f]{1,9}){1,50}x"
    plenty = compile_lazy_regex(pattern, small_vocabulary)
    limited(monkeypatch, step_lexer_fuel=3000)
    scarce = compile_lazy_regex(pattern, small_vocabulary)
    again, renewed = scarce._pool._again, []
    monkeypatch.setattr(scarce._pool, "_again", lambda: (renewed.append(1), again())[1])
    spellings = small_vocabulary.token_bytes
    ids = [token for token, word in enumerate(spellings) if word.isascii() and word.islower()][:24]
    draw = random.Random(0)
    state, other = plenty.start(), scarce.start()
    for _ in range(60):
        expected = plenty.allows(state, ids)
        found = scarce.allows(other, ids)
        assert np.array_equal(found, expected)
        token = draw.choice([t for t, yes in zip(ids, expected, strict=True) if yes])
        state, other = plenty.advance(state, token), scarce.advance(other, token)
        assert state is not None
        assert other is not None
    assert renewed


def test_limits_at_the_start_are_errors(
    small_vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, step_max_items=300)
    with pytest.raises(ConstraintError, match="Too many items"):
        compiled(LETTERS.replace("/x/ ", ""), small_vocabulary)
    limited(monkeypatch, initial_lexer_fuel=10)
    with pytest.raises(ConstraintError, match="too big"):
        compiled("start: /[a-z]{1,9}[0-9]+(x|y|z)/", small_vocabulary)
