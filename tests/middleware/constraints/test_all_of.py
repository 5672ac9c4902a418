"""`AllOf`: what all allow, with the costly ones asked about the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from midstream.kernels.bitmask import unpack_mask
from midstream.middleware.constraints import AllOf, Choice, Grammar, JsonSchema, Predicate, Regex
from midstream.middleware.constraints.all_of import AllOfMatcher
from midstream.middleware.errors import ConstraintError
from midstream.middleware.vocabulary import Vocabulary

PIECES = [b"a", b"b", b"c", b"ab", b"bc", b"ca", b""]
SMALL = Vocabulary(PIECES, eos_ids=[6])


def texts(matcher: Any, longest: int) -> set[bytes]:
    """All complete texts of at most `longest` bytes."""
    found = set()
    stack = [(matcher.start(), b"")]
    while stack:
        state, text = stack.pop()
        if matcher.accepts(state):
            found.add(text)
        for token in np.flatnonzero(matcher.allows(state, range(6))).tolist():
            if len(text) + len(PIECES[token]) <= longest:
                stack.append((matcher.advance(state, token), text + PIECES[token]))
    return found


def odd(text: bytes) -> bool:
    return len(text) % 2 == 1


LANGUAGES = {
    "a regex": Regex("[ab]*c"),
    "another": Regex("(ab|b|c)+"),
    "a choice": Choice(["abc", "bc", "ac", "cab"]),
    "a grammar": Grammar('start: X+ "c"\nX: "a" | "b"'),
    "a predicate": Predicate(prefix=lambda text: b"bb" not in text, complete=odd),
}


@pytest.mark.parametrize("first", LANGUAGES)
@pytest.mark.parametrize("second", LANGUAGES)
def test_the_texts_are_those_that_both_have(first: str, second: str) -> None:
    both = AllOf([LANGUAGES[first], LANGUAGES[second]]).compile(SMALL)
    alone = [texts(LANGUAGES[name].compile(SMALL), 5) for name in (first, second)]
    assert texts(both, 5) == alone[0] & alone[1]


def test_masks_and_checks_agree(
    small_vocabulary: Vocabulary, walk: Any, replay: Any, mask_of: Any
) -> None:
    schema = {"type": "array", "items": {"enum": ["ab", "abc", 12, True]}, "maxItems": 4}
    matcher = AllOf([JsonSchema(schema), Regex(r'\[["ab,12]*\]'), JsonSchema(True)]).compile(
        small_vocabulary
    )
    assert matcher.has_mask
    assert matcher.tokens_to_finish(matcher.start()) is None
    seen = 0
    for seed in range(10):
        for path in walk(matcher, seed, 30):
            state = replay(matcher, path)
            one_by_one = np.array(
                [matcher.allows(state, [t])[0] for t in range(len(small_vocabulary))]
            )
            again = replay(matcher, path)
            assert np.array_equal(one_by_one, mask_of(matcher, again))
            for token in small_vocabulary.eos_ids:
                assert one_by_one[token] == matcher.accepts(state)
            out = np.zeros(small_vocabulary.mask_words, np.uint32)
            assert matcher.superset(again, out)
            assert not (one_by_one & ~unpack_mask(out, len(small_vocabulary))).any()
            seen += 1
    assert seen > 60


def test_a_predicate_is_asked_only_about_what_others_allow() -> None:
    asked: list[bytes] = []

    def prefix(text: bytes) -> bool:
        asked.append(text)
        return text != b"ab"

    def complete(text: bytes) -> bool:
        asked.append(text)
        return True

    for parts in (
        [Predicate(prefix, complete), Choice(["ab", "ac"])],
        [Choice(["ab", "ac"]), Predicate(prefix, complete)],
    ):
        asked.clear()
        matcher = AllOf(parts).compile(SMALL)
        assert not matcher.has_mask
        start = matcher.start()
        assert matcher.allows(start, range(7)).tolist() == [True] + [False] * 6
        assert asked == [b"a", b"ab"]
        assert not matcher.accepts(start)
        assert asked == [b"a", b"ab"]
        out = np.zeros(2, np.uint32)
        assert matcher.superset(start, out)
        assert asked == [b"a", b"ab"]
        assert unpack_mask(out, 7)[[0, 3]].all()
        assert not unpack_mask(out, 64)[[1, 2, 4, 5, *range(7, 64)]].any()


def test_without_a_superset_there_is_none() -> None:
    one = Predicate(prefix=lambda text: True, complete=lambda text: True)
    other = Predicate(prefix=lambda text: True, complete=lambda text: False)
    matcher = AllOf([one, other]).compile(SMALL)
    assert not matcher.superset(matcher.start(), np.zeros(1, np.uint32))
    assert not matcher.accepts(matcher.start())


def test_where_the_languages_part_the_text_is_dead(
    small_vocabulary: Vocabulary, mask_of: Any
) -> None:
    matcher = AllOf([Regex("ax"), JsonSchema({"const": 1}), Regex("ay")]).compile(small_vocabulary)
    assert not mask_of(matcher, matcher.start()).any()
    matcher = AllOf([Regex("[xy]y"), Grammar('start: "x" "x"')]).compile(small_vocabulary)
    x = small_vocabulary.token_bytes.index(b"x")
    state = matcher.advance(matcher.start(), x)
    assert state is not None
    assert not mask_of(matcher, state).any()
    assert matcher.advance(state, x) is None
    assert matcher.reason(state) is None  # type: ignore[attr-defined]


def test_the_end_is_the_end_of_all() -> None:
    matcher = AllOf([Regex("a|ab"), Choice(["a", "abc"])]).compile(SMALL)
    state = matcher.advance(matcher.start(), 0)
    assert matcher.allows(state, [6, 1]).tolist() == [True, True]
    ended = matcher.advance(state, 6)
    assert ended is not None
    assert not matcher.allows(ended, range(7)).any()
    longer = matcher.advance(state, 1)
    assert not matcher.accepts(longer)
    assert matcher.advance(longer, 6) is None


def test_one_alone_keeps_its_distance() -> None:
    matcher = AllOf([Choice(["abc"])]).compile(SMALL)
    assert matcher.tokens_to_finish(matcher.start()) == 2
    assert isinstance(matcher, AllOfMatcher)


def test_they_are_values() -> None:
    assert AllOf([Regex("a"), Choice(["a"])]) == AllOf((Regex("a"), Choice(["a"])))
    assert hash(AllOf([Regex("a")])) == hash(AllOf([Regex("a")]))
    assert AllOf([AllOf([Regex("a")])]).compile(SMALL) is AllOf([AllOf([Regex("a")])]).compile(
        SMALL
    )


@pytest.mark.parametrize("given", [[], "abc", 3, [Regex("a"), "b"], [Regex], [None]])
def test_what_is_no_list_of_constraints_is_refused(given: Any) -> None:
    with pytest.raises(ConstraintError, match="constraints"):
        AllOf(given)
