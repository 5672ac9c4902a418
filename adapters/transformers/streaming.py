"""Streaming of a particle run: what is certain is sent, the rest at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from midstream.middleware.particles import Particle, SMCResult


class CommonPrefix:
    """Sends a streamer the tokens that all particles of positive weight share.

    A particle that died cannot come back, and every later one goes on from one that lives: the
    common prefix only grows. `finish` sends the rest of the heaviest finished particle (the
    heaviest that was cut off where none finished); the answer of the run is all particles with
    their weights, of which that is one.
    """

    def __init__(self, streamer: Any, prompt_ids: Sequence[int]) -> None:
        self._streamer = streamer
        self._sent = 0
        streamer.put(torch.tensor([list(prompt_ids)]))

    def step(self, particles: Sequence[Particle]) -> None:
        """Send what became certain."""
        live = [particle.token_ids for particle in particles if particle.log_weight > -math.inf]
        if live:
            self._send(live[0], _common_length(live))

    def finish(self, result: SMCResult) -> None:
        """Send the rest and end the stream."""
        for status in ("finished", "length", "cancelled"):
            found = [p for p in result.particles if p.status == status and p.log_weight > -math.inf]
            if found:
                best = max(found, key=lambda particle: particle.log_weight)
                self._send(best.token_ids, len(best.token_ids))
                break
        self._streamer.end()

    def _send(self, token_ids: Sequence[int], end: int) -> None:
        for token in token_ids[self._sent : end]:
            self._streamer.put(torch.tensor([token]))
        self._sent = max(self._sent, end)


def _common_length(sequences: Sequence[tuple[int, ...]]) -> int:
    """Length of the common prefix, which the least and the greatest have by themselves."""
    first, last = min(sequences), max(sequences)
    for place, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return place
    return len(first)
