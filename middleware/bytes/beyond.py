"""Matchers around a prompt's end: one that allows all, one asked for bytes that its last token has
written, one that goes on from a state.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask, pack_mask, unpack_mask
from midstream.middleware.matcher import Matcher, State, TokenIds
from midstream.middleware.vocabulary import Vocabulary


class AnyIds:
    """A matcher that refuses nothing: all ids of the vocabulary, until the sequence ends.

    Control tokens are allowed, as the model alone would draw them.
    """

    has_mask = True
    mask_cost = 1.0

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        words = pack_mask(np.ones(len(vocabulary), np.bool_))
        self._all = words

    def start(self) -> State:
        """See `Matcher.start`. A state is whether the sequence goes on."""
        return True

    def allows(self, state: State, token_ids: TokenIds) -> npt.NDArray[np.bool_]:
        """See `Matcher.allows`."""
        ids = np.asarray(token_ids, np.int64)
        return (ids >= 0) & (ids < len(self.vocabulary)) & bool(state)

    def advance(self, state: State, token_id: int) -> State | None:
        """See `Matcher.advance`."""
        if not state or not 0 <= token_id < len(self.vocabulary):
            return None
        return token_id not in self.vocabulary.eos_ids

    def mask(self, state: State, out: Mask) -> None:
        """See `Matcher.mask`."""
        out[:] = 0
        if state:
            out[: self._all.size] = self._all

    def superset(self, state: State, out: Mask) -> bool:
        """See `Matcher.superset`."""
        self.mask(state, out)
        return True

    def accepts(self, state: State) -> bool:
        """See `Matcher.accepts`."""
        return bool(state)

    def tokens_to_finish(self, state: State) -> int | None:
        """See `Matcher.tokens_to_finish`. None: a text without an end is cut off at the limit."""
        return None


@dataclass(frozen=True, slots=True)
class Anything:
    """The constraint that is none: `AnyIds` of whatever vocabulary."""

    def compile(self, vocabulary: Vocabulary) -> Matcher:
        """See `Constraint.compile`."""
        return AnyIds(vocabulary)


class Beyond:
    """What a matcher says of bytes that come first, written over the end of a prompt by its last
    token.

    The bytes are looked up as a token of their own, or given to the matcher in any tokens that
    spell them: a language is over bytes, so the choice of tokens means nothing. Where no tokens
    spell them they are not allowed. `AnyIds` allows all bytes.
    """

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._free = isinstance(matcher, AnyIds)
        self._after: dict[bytes, State | None] = {b"": matcher.start()}

    def state_after(self, text: bytes) -> State | None:
        """The state of the matcher after bytes, None where it refuses them."""
        if self._free:
            return self._matcher.start()
        if text not in self._after:
            known, found = _ids_of(self._matcher.vocabulary), None
            for cut in range(len(text) - 1, -1, -1):
                token = known.get(text[cut:])
                before = None if token is None else self.state_after(text[:cut])
                if token is not None and before is not None:
                    found = self._matcher.advance(before, token)
                    break
            self._after[text] = found
        return self._after[text]

    def allows(self, token_ids: npt.NDArray[np.int64], skip: int) -> npt.NDArray[np.bool_]:
        """Whether the bytes of each token behind its first `skip` are allowed: bool [n]."""
        allowed = np.ones(token_ids.size, np.bool_)
        if self._free:
            return allowed
        known, spellings = _ids_of(self._matcher.vocabulary), self._matcher.vocabulary.token_bytes
        first = self._first()
        for i, token in enumerate(token_ids.tolist()):
            text = spellings[token][skip:]
            whole = known.get(text)
            if first is not None and whole is not None:
                allowed[i] = first[whole]
            elif text:
                allowed[i] = self.state_after(text) is not None
        return allowed

    def _first(self) -> npt.NDArray[np.bool_] | None:
        """The tokens that may come first, None where there is no mask."""
        if not self._matcher.has_mask:
            return None
        bits = np.empty(self._matcher.vocabulary.mask_words, np.uint32)
        self._matcher.mask(self._matcher.start(), bits)
        return unpack_mask(bits, len(self._matcher.vocabulary))


_OF_A_MATCHER = (
    "vocabulary",
    "has_mask",
    "mask_cost",
    "allows",
    "advance",
    "mask",
    "superset",
    "accepts",
    "tokens_to_finish",
    "reason",
    "finish_bound",
    "mask_within",
)


class _StartsAt:
    """All of a matcher but its start, what it may have besides too."""

    def __init__(self, matcher: Matcher, state: State) -> None:
        self._state = state
        for name in _OF_A_MATCHER:
            if hasattr(matcher, name):
                setattr(self, name, getattr(matcher, name))

    def start(self) -> State:
        return self._state


def starts_at(matcher: Matcher, state: State) -> Matcher:
    """A matcher that begins in a given state of another one."""
    return cast(Matcher, _StartsAt(matcher, state))


@lru_cache(maxsize=16)
def _ids_of(vocabulary: Vocabulary) -> dict[bytes, int]:
    """An id for each spelling of the vocabulary."""
    return {spelt: token for token, spelt in enumerate(vocabulary.token_bytes) if spelt}
