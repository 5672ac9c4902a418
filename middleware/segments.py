"""Sequential Monte Carlo over a host that draws inside its engine.

Prefixes go in, a few constrained tokens with their weights come out, and between such segments
particles are resampled. With equal `resample_every` the tokens are those of `smc.run` over rows:
particle i draws from its own stream at its own positions in both.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from midstream.middleware.draw import Status
from midstream.middleware.errors import StrategyError
from midstream.middleware.particles import Particle, Prefix, SMCResult
from midstream.middleware.population import Population
from midstream.middleware.potentials import Potential
from midstream.middleware.random import Stream, StreamSource, particle_sequence
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Continuation:
    """A sequence to go on with.

    prompt: ids before the constrained text. generated: the constrained ids so far, at whose length
        the stream's position stands.
    sequence: of its stream. (run, slot, segment): the key of this piece of work, which is counted
        once however often it is asked for.
    """

    run: str
    prompt: tuple[int, ...]
    generated: tuple[int, ...]
    sequence: int
    slot: int
    segment: int


@dataclass(frozen=True, slots=True)
class Segment:
    """What was drawn after a prefix.

    log_weight: of these tokens, nats, -inf for dead and exhausted. status: `running` where it goes
        on, else how it ended.
    """

    tokens: tuple[int, ...]
    log_weight: float
    checks: int
    status: Status
    reason: str = ""


class Segments(Protocol):
    """A host that draws inside its engine."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary."""

    def extend(
        self,
        prefixes: Sequence[Continuation],
        steps: int,
        strategy: Strategy,
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> Sequence[Segment]:
        """At most `steps` tokens after each prefix, by the strategy's constraint, sampler, law and
        seed; its `limits` count from the first constrained token. What runs when `cancelled` turns
        true comes back as `cancelled`.
        """


def run_segments(
    host: Segments,
    prompt: Sequence[int],
    strategy: Strategy,
    *,
    potentials: Sequence[Potential] = (),
    sequence: int = 0,
    run: str | None = None,
    on_segment: Callable[[Population], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> SMCResult:
    """Draw `strategy.smc.particles` weighted texts; target and evidence are those of `smc.run`.

    run: what names it among all runs, a random one as it comes. on_segment: told the particles
        after each segment and its resampling.
    Particles are resampled every `resample_every` tokens, and their potentials are taken there;
    ancestry and ess have an entry for each segment. Raises StrategyError for options out of range
    and what the host raises: a run that fails has no result.
    """
    options = strategy.run_options()
    if options["law"].temperature == 0:
        accepted = "above 0: particles are draws, not a search"
        raise StrategyError("law.temperature", 0.0, accepted)
    limit, every = options["max_new_tokens"], options["resample_every"]
    population = Population(
        host.vocabulary,
        Prefix((), b"", None, 0),
        options["particles"],
        resampling=options["resampling"],
        finished=options["finished"],
        potentials=tuple(potentials),
    )
    run = run or secrets.token_hex(16)
    position = 0
    while population.running():
        if cancelled is not None and cancelled():
            population.stop("cancelled")
            break
        steps = min(every, limit - position)
        running = population.running()
        prefixes = [_continuation(run, p, prompt, sequence, position // every) for p in running]
        segments = host.extend(prefixes, steps, strategy, cancelled=cancelled)
        for particle, segment in zip(running, segments, strict=True):
            _take(population, particle, segment)
        position += steps
        last = position == limit
        source = StreamSource(Stream(options["seed"], sequence, position - 1))
        population.resample(0.0 if last else options["ess_threshold"], source)
        if last:
            population.stop("length")
        if on_segment is not None:
            on_segment(population)
    return population.result(options["law"])


def _continuation(
    run: str, particle: Particle, prompt: Sequence[int], sequence: int, segment: int
) -> Continuation:
    which = particle_sequence(sequence, particle.index)
    return Continuation(run, tuple(prompt), particle.token_ids, which, particle.index, segment)


def _take(population: Population, particle: Particle, segment: Segment) -> None:
    """Put a segment onto its particle."""
    spelled = _spelled(particle, segment.tokens)
    old = particle.prefix
    particle.prefix = Prefix((*old.token_ids, *segment.tokens), old.text + spelled, None, 0)
    particle.log_weight += segment.log_weight
    particle.status = segment.status
    particle.reason = segment.reason
    particle.checks += segment.checks
    population.twist(particle)


def _spelled(particle: Particle, tokens: Sequence[int]) -> bytes:
    """The bytes of tokens in a particle's vocabulary."""
    table = particle.vocabulary.token_bytes
    return b"".join(table[token] for token in tokens)
