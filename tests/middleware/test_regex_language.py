"""The language of a regex matcher, against Python's `re` and brute force over a small alphabet."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.kernels.bitmask import pack_mask, unpack_mask
from midstream.middleware.constraints.automaton_matcher import AutomatonMatcher
from midstream.middleware.constraints.regex import Regex
from midstream.middleware.constraints.regex_automaton import determinize
from midstream.middleware.constraints.regex_syntax import parse
from midstream.middleware.errors import ConstraintError
from midstream.middleware.matcher import Matcher
from midstream.middleware.vocabulary import Vocabulary

ALPHABET = "aéêz"  # ê shares its first byte with é, z stands for all other characters of one byte
LONGEST_PREFIX = 4  # bytes, hence characters
MOST_POSITIONS = 3  # characters that a completion may take, at the most
LONGEST = LONGEST_PREFIX + MOST_POSITIONS

PIECES = ["a", "é", "z", ".", "[aé]", "[^a]", "[^é]", r"\w", r"\xE9", "(?i:É)", "[é-ê]"]
REPEATS = ["*", "+", "?", "{0,2}", "{2}", "{1,}", "*?", "??", "{1,2}"]


@lru_cache(maxsize=1)
def all_texts() -> list[str]:
    lengths = range(LONGEST + 1)
    return ["".join(t) for n in lengths for t in itertools.product(ALPHABET, repeat=n)]


class Language:
    """The texts of a pattern up to LONGEST characters, by Python's `re`."""

    def __init__(self, pattern: str) -> None:
        matches = re.compile(pattern).fullmatch
        self.texts = sorted(text.encode() for text in all_texts() if matches(text))

    def continuing(self, prefix: bytes) -> list[bytes]:
        """Those that begin with `prefix`."""
        begin = bisect.bisect_left(self.texts, prefix)
        end = bisect.bisect_left(self.texts, prefix + b"\xff")
        return self.texts[begin:end]

    def least_tokens(self, prefix: bytes, tokens: Sequence[bytes]) -> int:
        """Breadth first over what may follow `prefix`."""
        front, steps = {text[len(prefix) :] for text in self.continuing(prefix)}, 0
        while b"" not in front:
            front = {rest[len(t) :] for rest in front for t in tokens if t and rest.startswith(t)}
            steps += 1
        return steps


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """Patterns whose automaton has at most MOST_POSITIONS characters on any shortest path."""
    pattern, _ = draw(_parts(MOST_POSITIONS))
    return draw(st.sampled_from(["", "^"])) + pattern + draw(st.sampled_from(["", "$"]))


@st.composite
def _parts(draw: st.DrawFn, most: int) -> tuple[str, int]:
    kind = draw(st.sampled_from(["piece", "concat", "either", "repeat"] if most > 1 else ["piece"]))
    if kind == "piece":
        return draw(st.sampled_from(PIECES)), 1
    if kind == "repeat":
        repeat = draw(st.sampled_from(REPEATS))
        times = 2 if "2" in repeat else 1
        pattern, size = draw(_parts(most // times))
        return f"(?:{pattern}){repeat}", size * times
    left, used = draw(_parts(draw(st.integers(1, most - 1))))
    right, more = draw(_parts(most - used))
    return (left + right if kind == "concat" else f"(?:{left}|{right})"), used + more


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """The alphabet's bytes, slices of texts that may split a character, a twin, and two ends."""
    single = sorted({bytes([byte]) for byte in ALPHABET.encode()})
    slices = st.tuples(st.text(ALPHABET, min_size=2, max_size=3), st.integers(0, 2)).map(
        lambda pair: pair[0].encode()[pair[1] :][:3]
    )
    longer = draw(st.lists(slices.filter(bool), max_size=6))
    tokens = draw(st.permutations([*single, *longer, single[0], b"", b"", b""]))
    empty = [token for token, spelling in enumerate(tokens) if not spelling]
    return Vocabulary(tokens, eos_ids=empty[:2])


def check_state(matcher: Matcher, state: Any) -> np.ndarray:
    """Whether each token may come next, once all that a matcher says of it agrees."""
    vocabulary = matcher.vocabulary
    ids = [-1, *range(len(vocabulary) + 40)]
    allowed = matcher.allows(state, ids)
    assert allowed.dtype == np.bool_
    assert not allowed[0]
    assert not allowed[1 + len(vocabulary) :].any()
    allowed = allowed[1:]
    np.testing.assert_array_equal(matcher.allows(state, np.array(ids[1:])), allowed)
    np.testing.assert_array_equal(matcher.allows(state, [ids[5]]), allowed[4:5])
    words = np.full(vocabulary.mask_words + 2, 0xFFFFFFFF, np.uint32)
    matcher.mask(state, words)
    np.testing.assert_array_equal(unpack_mask(words, allowed.size), allowed)
    assert not words[vocabulary.mask_words :].any()
    pruned = np.full_like(words, 0)
    if matcher.superset(state, pruned):
        np.testing.assert_array_equal(words & ~pruned, 0)
    for token in range(len(vocabulary)):
        assert (matcher.advance(state, token) is not None) == allowed[token]
    for eos in vocabulary.eos_ids:
        assert bool(allowed[eos]) == matcher.accepts(state)
    return allowed


def walk(matcher: Matcher, data: st.DataObject, longest: int) -> list[tuple[Any, bytes]]:
    """States on some paths of tokens, with their texts of at most `longest` bytes."""
    found = [(matcher.start(), b"")]
    for _ in range(6):
        state, text = data.draw(st.sampled_from(found))
        tokens = [t for t, b in enumerate(matcher.vocabulary.token_bytes) if b]
        token = data.draw(st.sampled_from(tokens))
        child = matcher.advance(state, token)
        text = text + matcher.vocabulary.token_bytes[token]
        if child is not None and len(text) <= longest:
            found.append((child, text))
    return found


@settings(max_examples=50, deadline=None)
@given(patterns(), vocabularies(), st.data())
def test_every_state_allows_what_brute_force_allows(
    pattern: str, vocabulary: Vocabulary, data: st.DataObject
) -> None:
    language = Language(pattern)
    matcher = Regex(pattern).compile(vocabulary)
    for state, text in walk(matcher, data, LONGEST_PREFIX - 1):
        allowed = check_state(matcher, state)
        assert matcher.accepts(state) == (text in language.continuing(text)[:1])
        for token, spelling in enumerate(vocabulary.token_bytes):
            if spelling and len(text + spelling) <= LONGEST_PREFIX:
                assert allowed[token] == bool(language.continuing(text + spelling)), spelling


@settings(max_examples=50, deadline=None)
@given(patterns(), vocabularies(), st.data())
def test_tokens_to_finish_is_the_least_by_brute_force(
    pattern: str, vocabulary: Vocabulary, data: st.DataObject
) -> None:
    language = Language(pattern)
    matcher = Regex(pattern).compile(vocabulary)
    for state, text in walk(matcher, data, LONGEST_PREFIX - 1):
        expected = language.least_tokens(text, vocabulary.token_bytes)
        assert matcher.tokens_to_finish(state) == expected
        assert expected <= matcher.finish_bound


def test_the_order_of_alternatives_does_not_matter(byte_tokens: Vocabulary) -> None:
    """An automaton that prefers the first alternative, as outlines-core's, loses these texts."""
    cases = {"a|ab": "ab", "a??b?": "ab", "a*?": "aa", "(a|ab)(c|bcd)?": "abcd", "(?U)a*": "aa"}
    for pattern, text in cases.items():
        matcher = Regex(pattern).compile(byte_tokens)
        assert matches(matcher, text.encode()), pattern


def matches(matcher: Matcher, text: bytes) -> bool:
    """Of a vocabulary whose token t is byte t."""
    state: Any = matcher.start()
    for byte in text:
        state = matcher.advance(state, byte)
        if state is None:
            return False
    return matcher.accepts(state)


@pytest.fixture(scope="module")
def byte_tokens() -> Vocabulary:
    return Vocabulary([*(bytes([byte]) for byte in range(256)), b""], eos_ids=[256])


@pytest.mark.parametrize(
    ("pattern", "taken", "refused"),
    [
        ("^abc$", ["abc"], ["ab", "abcd", ""]),
        (r"\Aa\z|^b", ["a", "b"], ["ab"]),
        ("(^a|b)*c", ["c", "ac", "abc", "bbc"], ["aac", "bac"]),
        ("a$|a$b|ac", ["a", "ac"], ["ab"]),
        ("", [""], ["a"]),
        ("a||b", ["", "a", "b"], ["ab"]),
        ("()", [""], ["a"]),
        ("a{2}{3}", ["aaaaaa"], ["aa", "aaa"]),
        ("a{ 1 , 2 }", ["a", "aa"], ["", "aaa"]),
        ("a{2,}", ["aa", "aaaa"], ["a"]),
        ("x{0}y", ["y"], ["xy"]),
        ("(?:a?){3}", ["", "a", "aaa"], ["aaaa"]),
        ("(a*)*b", ["b", "aab"], ["a"]),
        (r"\d+", ["12", "٣"], ["", "a"]),
        (r"\w", ["é", "漢", "_", "𐍈"], ["-", ""]),
        ("a.c", ["abc", "a漢c", "a😀c"], ["a\nc", "ac"]),
        ("(?s)a.c", ["a\nc"], ["ac"]),
        ("(?i)straße", ["STRAßE", "straẞe"], ["strasse"]),
        ("(?i:k)k", ["Kk", "\u212ak"], ["kK"]),
        ("a(?i)b|c", ["aB", "ab", "C"], ["Ab"]),
        ("(?i-i:a)", ["a"], ["A"]),
        ("(?x) a b # c\n [ x y ] {2}", ["abxy"], ["a b", "ab ", "ab x"]),
        (r"(?x)a\ b\#", ["a b#"], ["ab#"]),
        ("(?P<n>a)(?<m>b)", ["ab"], ["a"]),
        ("[]a]", ["]", "a"], ["b", ""]),
        ("[^]a]", ["b"], ["]", "a"]),
        ("[-a]", ["-", "a"], ["b"]),
        ("[a-c&&b-d]", ["b", "c"], ["a", "d"]),
        ("[a-z--[aeiou]]", ["b"], ["e"]),
        ("[[:digit:]x]", ["1", "x"], [":", "a"]),
        (r"[\]\\]", ["]", "\\"], ["["]),
        (r"[{}()|*+?^$.]+", ["{}()|*+?^$."], ["a"]),
        (r"}]", ["}]"], ["}"]),
        (r"\x41\u00e9\u{1F600}\U0001F600", ["Aé😀😀"], ["A"]),
        (r"\p{Greek}\pL\P{L}", ["λb1"], ["abc"]),
        (r"\t\n\r\f\v\a", ["\t\n\r\f\v\a"], ["t"]),
        (r"\.\*\/\-\_\"\'\%", [".*/-_\"'%"], ["a"]),
    ],
)
def test_syntax(
    pattern: str, taken: list[str], refused: list[str], byte_tokens: Vocabulary
) -> None:
    matcher = Regex(pattern).compile(byte_tokens)
    for text in taken:
        assert matches(matcher, text.encode()), text
    for text in refused:
        assert not matches(matcher, text.encode()), text


def test_end_of_sequence_leads_to_a_state_that_allows_nothing(byte_tokens: Vocabulary) -> None:
    matcher = Regex("a*").compile(byte_tokens)
    ended = matcher.advance(matcher.start(), 256)
    assert ended is not None
    assert not check_state(matcher, ended).any()
    assert not matcher.accepts(ended)
    assert matcher.tokens_to_finish(ended) == 0


def test_states_are_values(byte_tokens: Vocabulary) -> None:
    matcher = Regex("[a-z]{0,50}é[0-9]+").compile(byte_tokens)
    parent = matcher.start()
    for byte in b"abcdefgh":
        parent = matcher.advance(parent, byte)
    before = check_state(matcher, parent)
    children = [matcher.advance(parent, ord("a") + i % 26) for i in range(1000)]
    grandchildren = [matcher.advance(child, 0xC3) for child in children]
    np.testing.assert_array_equal(check_state(matcher, parent), before)
    for state in grandchildren[:3]:
        assert check_state(matcher, state).sum() == 1
    np.testing.assert_array_equal(check_state(matcher, children[0]), before)


def test_masks_kept_are_bounded_and_found_again(byte_tokens: Vocabulary) -> None:
    matcher = AutomatonMatcher(determinize(parse("[a-z]{0,500}")), byte_tokens)
    matcher._masks._size = 3
    state, states = matcher.start(), []
    for _ in range(20):
        states.append(state)
        state = matcher.advance(state, ord("q"))
    for state in [*states, *states]:
        check_state(matcher, state)
    assert len(matcher._masks._kept) <= 3


def test_threads_share_a_matcher(byte_tokens: Vocabulary) -> None:
    matcher = AutomatonMatcher(determinize(parse("[a-z]{0,500}é")), byte_tokens)
    matcher._masks._size = 3
    states = [matcher.start()]
    for _ in range(40):
        states.append(matcher.advance(states[-1], ord("q")))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda state: check_state(matcher, state), states * 5))
    for allowed, state in zip(found, states * 5, strict=True):
        np.testing.assert_array_equal(allowed, check_state(matcher, state))


@dataclass
class CanonicalMask:
    """A matcher whose mask leaves out tokens that begin a longer allowed one, as engines do."""

    inner: Matcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def mask(self, state: Any, out: np.ndarray) -> None:
        self.inner.mask(state, out)
        spellings = self.inner.vocabulary.token_bytes
        allowed = unpack_mask(out, len(spellings))
        kept = [spellings[token] for token in np.flatnonzero(allowed)]
        for token in np.flatnonzero(allowed):
            mine = spellings[token]
            if mine and any(other != mine and other.startswith(mine) for other in kept):
                allowed[token] = False
        pack_mask(allowed, out)


def test_negative_control_a_canonical_mask_fails_the_check() -> None:
    vocabulary = Vocabulary([b"t", b"ta", b"tag", b"a", b"g", b""], eos_ids=[5])
    matcher = Regex("tag").compile(vocabulary)
    check_state(matcher, matcher.start())
    with pytest.raises(AssertionError):
        check_state(CanonicalMask(matcher), matcher.start())


def test_a_vocabulary_that_cannot_spell_the_pattern_is_refused() -> None:
    vocabulary = Vocabulary([b"a", b"bb", b""], eos_ids=[2])
    assert Regex("a|b").compile(vocabulary).tokens_to_finish(1) == 1
    with pytest.raises(ConstraintError, match="no tokens of this vocabulary"):
        Regex("ab").compile(vocabulary)


def test_without_end_of_sequence_only_the_text_counts() -> None:
    matcher = Regex("a").compile(Vocabulary([b"a"], eos_ids=[]))
    end = matcher.advance(matcher.start(), 0)
    assert matcher.accepts(end)
    assert not check_state(matcher, end).any()
