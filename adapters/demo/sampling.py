"""The weighted runs of the demonstration: calls to a sidecar, or in process where they must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from midstream.adapters.demo.tasks import Task
from midstream.middleware.host import Host
from midstream.middleware.particles import SMCResult
from midstream.middleware.random import sequence_of
from midstream.middleware.sampling import AWRS, Sampler
from midstream.middleware.smc import run

if TYPE_CHECKING:
    from midstream.adapters.sidecar.client import Client, Outcome

    Run: TypeAlias = SMCResult | Outcome

REJECTS = 1 << 16
"""A server takes no rejection without a bound. This one is reached by hopeless particles alone, so
that the numbers are those without a bound, to eight digits.
"""

Sample: TypeAlias = Callable[[Sampler, int, float], "Run"]
"""Draws texts, given the sampler, which of several equal requests it is, and the ESS threshold."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What all runs of a task share. prompt: its ids."""

    task: Task
    prompt: Sequence[int]
    particles: int
    seed: int


def by_calls(client: Client, ask: Ask) -> Sample:
    """Runs that are calls of `Decoding.Generate`. The constraint must be data."""

    def sample(sampler: Sampler, occurrence: int, ess_threshold: float) -> Outcome:
        awrs = {"awrs": {"rejects": REJECTS}}
        return client.generate(
            ask.prompt,
            constraint=ask.task.constraint,
            strategy={
                "sampler": awrs if isinstance(sampler, AWRS) else "mask",
                "smc": {"particles": ask.particles, "ess_threshold": ess_threshold},
                "seed": ask.seed,
                "limits": {"max_new_tokens": ask.task.max_new_tokens},
            },
            occurrence=occurrence,
        )

    return sample


def in_process(host: Host, ask: Ask) -> Sample:
    """The same runs by `smc.run`, of any constraint."""
    matcher = ask.task.constraint.compile(host.vocabulary)

    def sample(sampler: Sampler, occurrence: int, ess_threshold: float) -> SMCResult:
        return run(
            host.start([ask.prompt]),
            matcher,
            particles=ask.particles,
            max_new_tokens=ask.task.max_new_tokens,
            seed=ask.seed,
            sampler=sampler,
            sequence=sequence_of(ask.prompt, occurrence),
            ess_threshold=ess_threshold,
        )

    return sample
