"""Beam search: the rows of a call are reordered and compete, so they are only masked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import mask_words, unpack_mask
from midstream.middleware.draw import Status
from midstream.middleware.errors import StrategyError
from midstream.middleware.matcher import Matcher, State

Prefix = tuple[int, ...]

REFUSED = -1e30
"""The score of a token that is not allowed. Beam sampling adds scores up and needs one finite sum
for each prompt, also where all its beams are at an end; and no sum of these, divided by a length,
is above the -1e9 that `generate()` keeps for an output that it has no beam for."""


class MaskedBeams:
    """All beams of a call.

    Beams move between rows, so a state is found by the prompt and the generated ids. A forced token
    would leave each beam one candidate, and a weight has no meaning where sequences are chosen by
    score: nothing is drawn.
    """

    def __init__(self, matchers: Sequence[Matcher], num_beams: int) -> None:
        for matcher in matchers:
            if not matcher.has_mask:
                accepted = "1: this constraint has no mask, it can only be checked token by token"
                raise StrategyError("num_beams", num_beams, accepted)
        self._matchers = list(matchers)  # one for each row
        self._beams = num_beams
        self._states: dict[tuple[int, Prefix], State | None] = {
            (row // num_beams, ()): matcher.start() for row, matcher in enumerate(matchers)
        }
        self.status: list[Status] = ["running"] * len(matchers)

    def step(
        self,
        logits: npt.NDArray[np.float32],  # [B, V]
        generated: Sequence[Sequence[int]],  # the ids of each row after its prompt
    ) -> npt.NDArray[np.float32]:
        """Scores [B, V]: `REFUSED` where a token is not allowed; all for a beam at its end."""
        masked = np.full_like(logits, REFUSED)
        states: dict[tuple[int, Prefix], State | None] = {}
        allowed: dict[tuple[int, Prefix], npt.NDArray[np.bool_]] = {}
        for row, ids in enumerate(generated):
            key = (row // self._beams, tuple(ids))
            if key not in states:
                states[key] = self._state(self._matchers[row], key)
                allowed[key] = _allowed(self._matchers[row], states[key], logits.shape[1])
            kept = allowed[key] if not np.isnan(logits[row]).any() else np.zeros_like(allowed[key])
            masked[row, kept] = np.maximum(logits[row, kept], REFUSED)
            self.status[row] = "running" if kept.any() else "dead"
        self._states = states
        return masked

    def _state(self, matcher: Matcher, key: tuple[int, Prefix]) -> State | None:
        prompt, ids = key
        if not ids:
            return self._states[key]
        parent = self._states.get((prompt, ids[:-1]))
        return None if parent is None else matcher.advance(parent, ids[-1])


def _allowed(matcher: Matcher, state: State | None, size: int) -> npt.NDArray[np.bool_]:
    if state is None:
        return np.zeros(size, np.bool_)
    bits = np.empty(mask_words(size), np.uint32)
    matcher.mask(state, bits)
    return unpack_mask(bits, size)
