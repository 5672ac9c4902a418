"""Fill-in-the-middle prompts that are healed at both inner edges.

A hole that begins or ends inside a token leaves a model two places where its tokens cannot fit. So
the end of the prefix and the beginning of the suffix that some token could straddle are taken out
of their parts and are written as part of the middle: behind the last sentinel the middle is to
begin with the former, and to end with the latter. Phan et al. (arXiv 2410.09303) show what the
edges cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask, mask_of_tokens, pack_mask
from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.middleware.bytes.tail import added_ids, cut_place
from midstream.middleware.errors import InputError
from midstream.middleware.matcher import Matcher, State, TokenIds
from midstream.middleware.token_bytes import read_token_table
from midstream.middleware.vocabulary import Vocabulary

Order = Literal["psm", "spm"]
"""prefix, suffix, middle; or suffix, prefix, middle."""


@dataclass(frozen=True, slots=True)
class Sentinels:
    """The ids that a model was trained with, in front of each part.

    begin: ids before all of them, a beginning of sequence for instance.
    """

    prefix: int
    suffix: int
    middle: int
    order: Order = "psm"
    begin: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.order not in ("psm", "spm"):
            raise InputError("order", self.order, '"psm" or "spm"')


@dataclass(frozen=True, slots=True)
class FimPrompt:
    """A prompt to heal, and what its answer is.

    token_ids: with the prefix's tail behind the last sentinel, where healing finds it. constraint:
        of the bytes behind the prompt: any that end with `head`. tail, head: the bytes that moved
        from the end of the prefix, and from the beginning of the suffix, into the middle.
    """

    token_ids: tuple[int, ...]
    constraint: EndsWith
    tail: bytes
    head: bytes

    def middle(self, continuation: bytes) -> bytes:
        """The middle in the bytes behind the healed prompt; all where a limit cut it off."""
        return continuation.removesuffix(self.head)


class Fim:
    """Makes fill-in-the-middle prompts for one tokenizer.

    tokenizer: of tokenizers or transformers, with the sentinels among its special or added tokens.
    Raises InputError for sentinels that are text.
    """

    def __init__(self, tokenizer: Any, vocabulary: Vocabulary, sentinels: Sentinels) -> None:
        walls = added_ids(tokenizer) | set(vocabulary.special_ids)
        for name in ("prefix", "suffix", "middle"):
            token = getattr(sentinels, name)
            if token not in walls:
                raise InputError(name, token, "the id of a special or added token")
        self._encode = read_token_table(tokenizer).encode
        self._vocabulary = vocabulary
        self._sentinels = sentinels

    def prompt(self, prefix: str, suffix: str, *, heal: bool = True) -> FimPrompt:
        """The prompt for a hole between two texts. heal: whether to move anything."""
        marks, spelt = self._sentinels, self._vocabulary
        before, after = self._encode(prefix), self._encode(suffix)
        stay = cut_place([marks.middle, *before], spelt, {marks.middle}) - 1 if before else 0
        moved = _straddled(after, spelt)
        if not heal:
            stay, moved = len(before), 0
        tail_ids, head = before[stay:], spelt.decode(after[:moved])
        parts = [marks.prefix, *before[:stay]], [marks.suffix, *after[moved:]]
        if marks.order == "spm":
            parts = parts[::-1]
        ids = (*marks.begin, *parts[0], *parts[1], marks.middle, *tail_ids)
        return FimPrompt(ids, EndsWith(head), spelt.decode(tail_ids), head)


@dataclass(frozen=True, slots=True)
class EndsWith:
    """The constraint on texts that end with some bytes; any bytes before them."""

    end: bytes

    def compile(self, vocabulary: Vocabulary) -> Matcher:
        """See `Constraint.compile`."""
        return _EndsWithMatcher(self.end, vocabulary)


class _EndsWithMatcher:
    """A state is the last bytes, as many as `end` has; None once the text has ended."""

    has_mask = True
    mask_cost = 2.0

    def __init__(self, end: bytes, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._end = end
        spelt = np.fromiter(map(bool, vocabulary.token_bytes), np.bool_, len(vocabulary))
        self._text = pack_mask(spelt)
        self._ended = np.zeros_like(self._text)
        mask_of_tokens(vocabulary.eos_ids, self._ended)

    def start(self) -> State:
        return b""

    def allows(self, state: State, token_ids: TokenIds) -> npt.NDArray[np.bool_]:
        return np.array([self.advance(state, int(t)) is not None for t in token_ids], np.bool_)

    def advance(self, state: State, token_id: int) -> State | None:
        if state is _ENDED or not 0 <= token_id < len(self.vocabulary):
            return None
        if token_id in self.vocabulary.eos_ids:
            return _ENDED if self.accepts(state) else None
        spelling = self.vocabulary.token_bytes[token_id]
        text = state + spelling
        return text[max(len(text) - len(self._end), 0) :] if spelling else None

    def mask(self, state: State, out: Mask) -> None:
        out[:] = 0
        if state is not _ENDED:
            out[: self._text.size] = self._text
            if self.accepts(state):
                out[: self._text.size] |= self._ended

    def superset(self, state: State, out: Mask) -> bool:
        self.mask(state, out)
        return True

    def accepts(self, state: State) -> bool:
        return state is not _ENDED and bool(state == self._end)

    def tokens_to_finish(self, state: State) -> int | None:
        return None


_ENDED = object()


def _straddled(ids: list[int], vocabulary: Vocabulary) -> int:
    """How many of the first ids of a text some token could straddle that begins before it."""
    trie, place, text = _reversed(vocabulary), 0, b""
    for end, token in enumerate(ids, 1):
        spelling = vocabulary.token_bytes[token]
        if not spelling:
            break
        text += spelling
        lengths = range(len(text) - len(spelling) + 1, len(text) + 1)
        if any(_reaches_back(trie, text[:length]) for length in lengths):
            place = end
        elif len(text) >= 64:
            break
    return place


def _reaches_back(trie: ByteSortedVocabulary, text: bytes) -> bool:
    """Whether a token ends with these bytes and is longer."""
    node = trie.node(text[::-1])
    return node >= 0 and bool(trie.high[node] > trie.ends[node])


@lru_cache(maxsize=4)
def _reversed(vocabulary: Vocabulary) -> ByteSortedVocabulary:
    """The vocabulary in the order of its bytes read backwards."""
    spelt = [spelling[::-1] for spelling in vocabulary.token_bytes]
    return ByteSortedVocabulary(spelt, eos_ids=vocabulary.eos_ids)
