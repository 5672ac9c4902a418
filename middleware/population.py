"""The particles of a run and their resampling, whoever moves them."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from midstream.kernels.row import log_sum_exp
from midstream.middleware.law import Law
from midstream.middleware.particles import Particle, Prefix, SMCResult
from midstream.middleware.potentials import Potential, log_potential
from midstream.middleware.random import Source
from midstream.middleware.resampling import SCHEMES, Resampling, effective_sample_size
from midstream.middleware.vocabulary import Vocabulary

# Of the threshold: equal weights whose sample size is N but for rounding are not resampled.
_ROUNDING = 1e-9

Finished = Literal["aside", "together"]


class Population:
    """N particles that stand at the same number of steps.

    ancestry: for each resampling the index each particle went on from. ess: the effective sample
        size before it, of those that could be resampled.
    """

    __slots__ = ("ancestry", "ess", "finished", "particles", "potentials", "resampling")

    def __init__(
        self,
        vocabulary: Vocabulary,
        start: Prefix,
        count: int,
        *,
        resampling: Resampling,
        finished: Finished,
        potentials: tuple[Potential, ...],
    ) -> None:
        self.resampling: Resampling = resampling
        self.finished: Finished = finished
        self.potentials = potentials
        self.ancestry: list[tuple[int, ...]] = []
        self.ess: list[float] = []
        self.particles = [Particle(vocabulary, start, i) for i in range(count)]
        for particle in self.particles:
            self.twist(particle)

    def twist(self, particle: Particle) -> None:
        """Weight a particle by the potentials of the prefix where it stands."""
        if self.potentials:
            complete = particle.status == "finished"
            text = particle.prefix.text
            particle.twist(*log_potential(self.potentials, text, complete=complete))

    def running(self) -> list[Particle]:
        """Those that go on."""
        return [particle for particle in self.particles if particle.status == "running"]

    def stop(self, status: Literal["cancelled", "length"]) -> None:
        """End what is running."""
        for particle in self.running():
            particle.status = status

    def result(self, law: Law) -> SMCResult:
        """The particles as they are."""
        ancestry, ess = tuple(self.ancestry), tuple(self.ess)
        return SMCResult(tuple(self.particles), ancestry, ess, law.proper)

    def resample(self, threshold: float, source: Source) -> None:
        """Copy particles in proportion to their weights where the effective sample size is low.

        threshold: a share of the particles that can be resampled.
        """
        group = [
            i
            for i, p in enumerate(self.particles)
            if self.finished == "together" or p.status != "finished"
        ]
        log_weights = np.array([self.particles[i].log_weight for i in group])
        ess = effective_sample_size(log_weights)
        self.ess.append(ess)
        ancestors = list(range(len(self.particles)))
        low = threshold * len(group) * (1.0 - _ROUNDING)
        if 0.0 < ess < low and any(self.particles[i].status == "running" for i in group):
            log_total = log_sum_exp(log_weights)
            chosen = SCHEMES[self.resampling](np.exp(log_weights - log_total), source)
            log_mean = log_total - math.log(len(group))
            old = [self.particles[i] for i in group]
            for i, ancestor in zip(group, chosen, strict=True):
                self.particles[i] = old[ancestor].copy(i, log_mean)
                ancestors[i] = group[ancestor]
        self.ancestry.append(tuple(ancestors))
