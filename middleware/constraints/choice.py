"""One text out of a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from midstream.middleware.constraints.automaton_matcher import AutomatonMatcher
from midstream.middleware.constraints.cache import compiled
from midstream.middleware.constraints.word_automaton import TooManyWordsError, word_automaton
from midstream.middleware.errors import ConstraintError
from midstream.middleware.matcher import Matcher
from midstream.middleware.vocabulary import Vocabulary

_ACCEPTED = "a list of at least one str or bytes, together small enough for a table of 128 MB"


@dataclass(frozen=True, slots=True, init=False)
class Choice:
    """The texts of a list, and no others.

    items: str (as UTF-8) or bytes, in any order; repetitions count once. The empty text may be one
        of them: then end of sequence is allowed at once. Where one item begins another, both end of
        sequence and going on are allowed.

    Compiles to the smallest automaton of the items (a trie whose equal branches are shared); masks
    and checks agree bit for bit, and `tokens_to_finish` is exact. Raises ConstraintError for an
    empty list, or an item that is neither str nor bytes, or is no valid Unicode.
    """

    items: tuple[str | bytes, ...]

    def __init__(self, items: Iterable[str | bytes]) -> None:
        if isinstance(items, (str, bytes)) or not isinstance(items, Iterable):
            raise ConstraintError("items", items, _ACCEPTED)
        given = tuple(items)
        if not given:
            raise ConstraintError("items", "an empty list", _ACCEPTED)
        for index, item in enumerate(given):
            _as_bytes(index, item)
        object.__setattr__(self, "items", given)

    def compile(self, vocabulary: Vocabulary) -> Matcher:
        """The matcher for one vocabulary.

        Raises ConstraintError for a list that is too large, or an item that no tokens of the
        vocabulary spell.
        """
        return compiled(self, vocabulary, lambda: self._matcher(vocabulary))

    def _matcher(self, vocabulary: Vocabulary) -> Matcher:
        words = [_as_bytes(index, item) for index, item in enumerate(self.items)]
        for index in _unspellable(words, vocabulary):
            got = f"{self.items[index]!r}, which no tokens of this vocabulary spell"
            raise ConstraintError(f"items[{index}]", got, _ACCEPTED)
        try:
            automaton = word_automaton(words)
        except TooManyWordsError:
            got = f"{len(words)} items of {sum(map(len, words))} bytes"
            raise ConstraintError("items", got, _ACCEPTED) from None
        return AutomatonMatcher(automaton, vocabulary)


def _as_bytes(index: int, item: object) -> bytes:
    if isinstance(item, bytes):
        return item
    if not isinstance(item, str):
        raise ConstraintError(f"items[{index}]", item, "str or bytes")
    try:
        return item.encode()
    except UnicodeEncodeError:
        raise ConstraintError(f"items[{index}]", item, "valid Unicode, or bytes") from None


@lru_cache(maxsize=16)
def _single_bytes(vocabulary: Vocabulary) -> bytes:
    """The bytes that are tokens of their own."""
    return b"".join({token for token in vocabulary.token_bytes if len(token) == 1})


def _unspellable(words: list[bytes], vocabulary: Vocabulary) -> Iterator[int]:
    """The numbers of the words that are no concatenation of tokens."""
    single = _single_bytes(vocabulary)
    doubtful = [number for number, word in enumerate(words) if word.translate(None, single)]
    tokens = frozenset(vocabulary.token_bytes) - {b""} if doubtful else frozenset[bytes]()
    longest = max(map(len, tokens), default=0)
    for number in doubtful:
        word = words[number]
        reached = [True] + [False] * len(word)
        for end in range(1, len(word) + 1):
            reached[end] = any(
                reached[begin] and word[begin:end] in tokens
                for begin in range(max(0, end - longest), end)
            )
        if not reached[-1]:
            yield number
