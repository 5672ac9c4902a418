"""`Predicate`: a user's own test, asked as seldom as can be, whose faults are a draw's status."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from midstream.middleware.constraints import Predicate, PredicateError
from midstream.middleware.constraints.predicate import VERDICTS_REMEMBERED
from midstream.middleware.errors import ConstraintError
from midstream.middleware.random import Stream
from midstream.middleware.sampling import AWRS
from midstream.middleware.vocabulary import Vocabulary

# 0 a, 1 b, 2 ab, 3 a again, 4 c, 5 end, 6 another end, 7 control
VOCABULARY = Vocabulary(
    [b"a", b"b", b"ab", b"a", b"c", b"", b"", b"<x>"], eos_ids=[5, 6], special_ids=[7]
)


class Asked:
    """The texts (ab)* and what was asked about them."""

    def __init__(self) -> None:
        self.prefixes: Counter[bytes] = Counter()
        self.completes: Counter[bytes] = Counter()

    def prefix(self, text: bytes) -> bool:
        self.prefixes[text] += 1
        return (b"ab" * 9).startswith(text)

    def complete(self, text: bytes) -> bool:
        self.completes[text] += 1
        return len(text) % 2 == 0


def test_the_language_is_the_predicate(mask_of: Any) -> None:
    asked = Asked()
    matcher = Predicate(prefix=asked.prefix, complete=asked.complete).compile(VOCABULARY)
    assert not matcher.has_mask
    assert matcher.vocabulary is VOCABULARY
    start = matcher.start()
    everything = [*range(8), -1, 8, 100]
    expected = [True, False, True, True, False, True, True, False, False, False, False]
    assert matcher.allows(start, everything).tolist() == expected
    assert mask_of(matcher, start).tolist() == expected[:8]
    state = matcher.advance(start, 0)
    assert matcher.allows(state, np.arange(8)).tolist() == [False, True] + [False] * 6
    assert not matcher.accepts(state)
    assert matcher.advance(state, 5) is None
    assert matcher.advance(state, 0) is None
    for outside in (-1, 7, 8, 100):
        assert matcher.advance(state, outside) is None
    ended = matcher.advance(matcher.advance(state, 1), 6)
    assert ended is not None
    assert not matcher.allows(ended, everything).any()
    assert not matcher.accepts(ended)
    assert not mask_of(matcher, ended).any()
    assert all(matcher.advance(ended, token) is None for token in range(8))
    assert not matcher.superset(start, np.zeros(1, np.uint32))
    assert matcher.tokens_to_finish(start) is None


def test_each_text_is_asked_about_once_in_a_state() -> None:
    asked = Asked()
    matcher = Predicate(prefix=asked.prefix, complete=asked.complete).compile(VOCABULARY)
    state = matcher.start()
    for _ in range(3):
        matcher.allows(state, [0, 3, 0, 1, 2, 4, 5, 6, 7])
        matcher.accepts(state)
    assert asked.prefixes == {b"a": 1, b"b": 1, b"ab": 1, b"c": 1}
    assert asked.completes == {b"": 1}
    after = [matcher.advance(state, token) for token in (0, 3, 2)]
    assert all(one is not None for one in after)
    assert sum(asked.prefixes.values()) == 4


def test_memory_of_a_state_is_bounded() -> None:
    size = VERDICTS_REMEMBERED + 100
    words = [index.to_bytes(3, "big") for index in range(size)]
    vocabulary = Vocabulary([*words, b""], eos_ids=[size])
    matcher: Any = Predicate(prefix=lambda text: True, complete=lambda text: True).compile(
        vocabulary
    )
    state = matcher.start()
    assert matcher.allows(state, range(size)).all()
    assert len(state.verdicts) == VERDICTS_REMEMBERED


def picky(text: bytes) -> bool:
    if text.startswith(b"c"):
        raise ZeroDivisionError("division by zero")
    return True


@pytest.mark.parametrize("seed", range(4))
def test_what_a_predicate_raises_ends_the_draw_as_dead(seed: int) -> None:
    matcher = Predicate(prefix=picky, complete=lambda text: True).compile(VOCABULARY)
    assert matcher.allows(matcher.start(), [0, 1, 2, 3]).all()
    with pytest.raises(PredicateError, match=r"prefix\(b'c'\) raised ZeroDivisionError"):
        matcher.allows(matcher.start(), [0, 4])
    with pytest.raises(PredicateError):
        matcher.advance(matcher.start(), 4)
    logits = np.zeros(8, np.float32)
    logits[4] = 4.0
    draw = AWRS().draw(logits, matcher, matcher.start(), Stream(seed))
    assert draw.status == "dead"
    assert draw.log_weight == -math.inf
    assert draw.token == -1
    assert "ZeroDivisionError: division by zero" in draw.reason
    # Where the fault is not met there is none.
    state = matcher.advance(matcher.start(), 0)
    assert AWRS().draw(logits, matcher, state, Stream(seed)).status in ("running", "finished")


def test_what_complete_raises_is_told_apart() -> None:
    def broken(text: bytes) -> bool:
        raise UnicodeDecodeError("utf-8", text + b"\xc3", 0, 1, "unexpected end of data")

    matcher = Predicate(prefix=lambda text: True, complete=broken).compile(VOCABULARY)
    assert matcher.allows(matcher.start(), [0, 1]).all()
    for ask in (matcher.accepts, lambda state: matcher.allows(state, [5])):
        with pytest.raises(
            PredicateError, match=r"complete\(b''\) raised UnicodeDecodeError"
        ) as it:
            ask(matcher.start())
        assert isinstance(it.value.__cause__, UnicodeDecodeError)


def test_a_long_text_is_cut_in_the_message() -> None:
    vocabulary = Vocabulary([b"x" * 500, b""], eos_ids=[1])

    def broken(text: bytes) -> bool:
        raise KeyError(3)

    matcher = Predicate(prefix=broken, complete=broken).compile(vocabulary)
    with pytest.raises(PredicateError) as caught:
        matcher.allows(matcher.start(), [0])
    assert len(str(caught.value)) < 150


def test_predicates_are_equal_by_identity_of_their_functions() -> None:
    class Odd:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

        def __call__(self, text: bytes) -> bool:
            return True

    one, other = Odd(), Odd()
    assert Predicate(one, one) == Predicate(one, one)
    assert hash(Predicate(one, one)) == hash(Predicate(one, one))
    assert Predicate(one, one) != Predicate(one, other)
    assert Predicate(one, one) != 3
    matcher = Predicate(one, one).compile(VOCABULARY)
    assert Predicate(one, one).compile(VOCABULARY) is matcher
    assert Predicate(one, other).compile(VOCABULARY) is not matcher


@pytest.mark.parametrize(
    ("argument", "prefix", "complete"), [("prefix", 3, bool), ("complete", bool, "x")]
)
def test_what_cannot_be_called_is_refused(argument: str, prefix: Any, complete: Any) -> None:
    with pytest.raises(ConstraintError) as caught:
        Predicate(prefix=prefix, complete=complete)
    assert caught.value.argument == argument
