"""Where a prompt is cut for healing, and what a healed text has beyond the prompt."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.middleware.errors import InputError
from midstream.middleware.token_bytes import wrapped_tokenizer
from midstream.middleware.vocabulary import Vocabulary


@lru_cache(maxsize=16)
def byte_sorted(vocabulary: Vocabulary) -> ByteSortedVocabulary:
    """The vocabulary in the order of its bytes, made once and shared."""
    return ByteSortedVocabulary(vocabulary.token_bytes, eos_ids=vocabulary.eos_ids)


def added_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of a tokenizer's added tokens, special or not: healing never crosses one.

    Empty for a Vocabulary, and for libraries without added tokens, whose control tokens are special
    ids in any case.
    """
    if isinstance(tokenizer, Vocabulary):
        return frozenset()
    found = getattr(tokenizer, "added_tokens_decoder", None)
    if found is None and hasattr(tokenizer, "get_added_tokens_decoder"):
        found = tokenizer.get_added_tokens_decoder()
    if found is not None:
        return frozenset(found)
    inner = wrapped_tokenizer(tokenizer)
    return frozenset() if inner is None else added_ids(inner)


def text_start(
    token_ids: Sequence[int], vocabulary: Vocabulary, walls: Collection[int] = ()
) -> int:
    """Where the text at the end of a prompt begins: after the last special or walled id.

    len(token_ids) where the prompt ends in one. Raises InputError for ids that are not of the
    vocabulary.
    """
    start = len(token_ids)
    while start and vocabulary.token_bytes[_known(token_ids[start - 1], vocabulary)]:
        if token_ids[start - 1] in walls:
            break
        start -= 1
    return start


def cut_place(token_ids: Sequence[int], vocabulary: Vocabulary, walls: Collection[int] = ()) -> int:
    """How many ids of a prompt stay when its tail is healed by masks: from 1 to len(token_ids).

    The prompt is cut before the first byte from which some token reaches beyond its end, and at the
    place between two ids at or before that byte. So each token that straddles the end of the prompt
    stays possible, and a prompt that no token can straddle is not cut. The cut is after the last
    special id or wall, and the first id stays in any case: a model has no law without one.
    Raises InputError for an empty prompt and for ids that are not of the vocabulary.
    """
    if not len(token_ids):
        raise InputError("input_ids", "an empty prompt", "at least one id")
    first = max(text_start(token_ids, vocabulary, walls), 1)
    trie = byte_sorted(vocabulary)
    place, text = len(token_ids), b""
    for start in range(len(token_ids) - 1, first - 1, -1):
        spelling = vocabulary.token_bytes[token_ids[start]]
        text = spelling + text
        if any(_goes_on(trie, text[skip:]) for skip in range(len(spelling))):
            place = start
        elif len(text) >= _longest(vocabulary):
            break
    return place


def _goes_on(trie: ByteSortedVocabulary, text: bytes) -> bool:
    """Whether a token begins with these bytes and is longer."""
    node = trie.node(text)
    return node >= 0 and bool(trie.high[node] > trie.ends[node])


@lru_cache(maxsize=16)
def _longest(vocabulary: Vocabulary) -> int:
    return max(map(len, vocabulary.token_bytes))


def _known(token: int, vocabulary: Vocabulary) -> int:
    if not 0 <= token < len(vocabulary):
        raise InputError("input_ids", token, f"ids from 0 to {len(vocabulary) - 1}")
    return token


class Overshoot:
    """What the tokens after a cut spell beyond the bytes that were cut: what may be streamed.

    The bytes that were cut are the user's, who has them: of them nothing is given again, and
    nothing after them is lost.
    """

    __slots__ = ("_left", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary, tail: bytes) -> None:
        self._vocabulary = vocabulary
        self._left = tail

    @property
    def spelled(self) -> bool:
        """Whether all of the tail has been spelled."""
        return not self._left

    def push(self, token: int) -> bytes:
        """The new bytes of one more token; b"" while it spells the tail, and for special ids.

        Raises InputError for a token that does not spell the tail: it cannot be of a healed row.
        """
        spelling = self._vocabulary.token_bytes[_known(token, self._vocabulary)]
        shared = min(len(spelling), len(self._left))
        if spelling[:shared] != self._left[:shared]:
            raise InputError("token", f"{token} ({spelling!r})", f"one that spells {self._left!r}")
        self._left = self._left[shared:]
        return spelling[shared:]
