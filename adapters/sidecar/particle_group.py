"""One sequential Monte Carlo run whose model is at the other end of a stream. Knows no wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from midstream.middleware.draw import Status
from midstream.middleware.errors import InputError
from midstream.middleware.particles import SMCResult
from midstream.middleware.smc import SMC


@dataclass(frozen=True, slots=True)
class Resampled:
    """A resampling: particle i goes on from ancestors[i]. ess: before it."""

    position: int
    ancestors: tuple[int, ...]
    ess: float


@dataclass(frozen=True, slots=True)
class Grown:
    """What the engine reads next: row i goes on from row parents[i] of the step with tokens[i].

    Empty: the run is over. resampled: None where there was none. drawn: of each particle that was
    running, the status and the checks of its draw. ess: before resampling.
    """

    parents: tuple[int, ...]
    tokens: tuple[int, ...]
    resampled: Resampled | None
    drawn: tuple[tuple[Status, int], ...]
    ess: float


class ParticleGroup:
    """Steps of an `SMC`, with what the wire has to check: the shape of each step's logits.

    rows: of the next step; 0 once the run is over.
    """

    def __init__(self, smc: SMC, row_size: int) -> None:
        self._smc = smc
        self._row_size = row_size
        self.rows = 1

    @property
    def particles(self) -> int:
        """How many there are."""
        return len(self._smc.particles)

    @property
    def over(self) -> bool:
        """Whether no further logits are wanted."""
        return self.rows == 0

    def step(self, logits: npt.NDArray[Any] | None) -> Grown:
        """One token for each running particle.

        logits: [R, row_size], of the one prompt at first, then of the rows that the last step
            asked for. Raises InputError for any other shape, and once the run is over.
        """
        if self.over:
            raise InputError("step", "a step after the last", "none: the run is over")
        if logits is None:
            raise InputError("step.logits", "none", "logits, which only ANSWER_MASK can miss")
        if logits.shape != (self.rows, self._row_size):
            accepted = f"({self.rows}, {self._row_size}): the rows that were asked for"
            raise InputError("step.logits.shape", tuple(logits.shape), accepted)
        smc = self._smc
        before = list(smc.particles)
        running = [(each, each.checks) for each in before if each.status == "running"]
        growth = smc.step(logits)
        parents, tokens = ((), ()) if growth is None else (growth.parents, growth.tokens)
        self.rows = len(parents)
        ancestors, ess = smc.population.ancestry[-1], smc.population.ess[-1]
        replaced = any(a is not b for a, b in zip(before, smc.particles, strict=True))
        resampled = Resampled(smc.position, ancestors, ess) if replaced else None
        drawn = tuple((each.status, each.checks - checks) for each, checks in running)
        return Grown(parents, tokens, resampled, drawn, ess)

    def result(self) -> SMCResult:
        """The particles; those that would go on are `cancelled`."""
        self._smc.stop("cancelled")
        self.rows = 0
        return self._smc.result()
