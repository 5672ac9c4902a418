"""Sequential Monte Carlo over token sequences: particles, their weights, resampling, the evidence.

Target: the model's law of a text (temperature and truncation included), restricted to complete
texts of the constraint that end within the limit, times the potentials. With `finished` and
`resampling` as they come the evidence is an unbiased estimate of that target's mass for every
number of particles. Lew et al., "Sequential Monte Carlo steering of large language models" (arXiv
2306.03081); Loula et al., "Syntactic and semantic control of large language models via sequential
Monte Carlo" (arXiv 2504.13139).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from midstream.middleware.budget import within_budget
from midstream.middleware.errors import InputError, StrategyError, VocabularyError
from midstream.middleware.host import Rows, logits_on_host
from midstream.middleware.law import PLAIN, Law
from midstream.middleware.matcher import Matcher
from midstream.middleware.particles import Particle, Prefix, SMCResult
from midstream.middleware.population import Finished, Population
from midstream.middleware.potentials import Potential
from midstream.middleware.random import Sources, StreamSources, particle_sequence
from midstream.middleware.resampling import SCHEMES, Resampling
from midstream.middleware.sampling import Sampler, prepare_rows, sampler_of


@dataclass(frozen=True, slots=True)
class Growth:
    """What to read next: row i continues row parents[i] of the last logits with tokens[i]."""

    parents: tuple[int, ...]
    tokens: tuple[int, ...]


class SMC:
    """A run of particles that is moved by whoever owns the model: logits go in, growth comes out.

    It starts with one row, the prompt. `step` takes the logits of the rows and says how they go on,
    until it says None; `stop` ends it before. `run` is the loop over a host's rows, and its
    docstring that of the options.
    """

    def __init__(
        self,
        matcher: Matcher,
        *,
        particles: int,
        max_new_tokens: int,
        seed: int,
        sampler: str | Sampler = "auto",
        law: Law = PLAIN,
        ess_threshold: float = 0.5,
        resampling: Resampling = "systematic",
        resample_every: int = 1,
        finished: Finished = "aside",
        potentials: Sequence[Potential] = (),
        sequence: int = 0,
        sources: Sources | None = None,
        begun: bytes = b"",
        log_weight: float = 0.0,
    ) -> None:
        _check(particles, max_new_tokens, ess_threshold, resampling, resample_every, finished, law)
        self.matcher = within_budget(matcher, max_new_tokens)
        self.sampler = sampler_of(sampler)
        self.law = law
        self.sequence = sequence
        sequences = [particle_sequence(sequence, i) for i in range(particles)]
        self.sources = sources or StreamSources(seed, sequences)
        self.max_new_tokens = max_new_tokens
        self.ess_threshold = ess_threshold
        self.resample_every = resample_every
        self.position = 0
        self.population = Population(
            matcher.vocabulary,
            Prefix((), begun, self.matcher.start(), 0),
            particles,
            resampling=resampling,
            finished=finished,
            potentials=tuple(potentials),
        )
        for particle in self.population.particles:
            particle.log_weight += log_weight

    @property
    def particles(self) -> Sequence[Particle]:
        """All of them, as they stand."""
        return self.population.particles

    def step(self, logits: Any) -> Growth | None:
        """One token for each running particle, then resampling; None where nothing goes on.

        logits: [R, V], numpy or torch, of the rows of the growth before (at first of the prompt).
        """
        self._draw(logits_on_host(logits))
        self.position += 1
        last = self.position == self.max_new_tokens  # nobody goes on from there
        due = self.position % self.resample_every == 0 and not last
        source = self.sources(self.sequence, self.position - 1)
        self.population.resample(self.ess_threshold if due else 0.0, source)
        if last:
            self.stop("length")
        return self._growth() if self.population.running() else None

    def stop(self, status: Literal["cancelled", "length"]) -> None:
        """End what is running."""
        self.population.stop(status)

    def result(self) -> SMCResult:
        """The particles as they are."""
        return self.population.result(self.law)

    def _draw(self, logits: npt.NDArray[Any]) -> None:
        """One token for each running particle; a row is read once for all that share it."""
        tokens = len(self.matcher.vocabulary)
        if logits.shape[1] < tokens:
            accepted = f"at least {tokens}, one for each token of the vocabulary"
            raise VocabularyError("logits", f"rows of {logits.shape[1]}", accepted)
        states = {p.prefix.row: p.prefix.state for p in self.population.running()}
        if not states:
            return
        if len(logits) != len(states):  # each row has a running particle
            raise InputError("logits", f"{len(logits)} rows", f"{len(states)}, as asked for")
        by_row = [states[row] for row in range(len(states))]
        steps = prepare_rows(self.sampler, logits, self.matcher, by_row, self.law)
        children: dict[tuple[int, int], tuple[Prefix | None, str]] = {}
        for particle in self.population.running():
            parent = particle.prefix
            which = particle_sequence(self.sequence, particle.index)
            draw = steps[parent.row](self.sources(which, self.position))
            particle.take(draw)
            if draw.token < 0:
                continue
            key = (parent.row, draw.token)
            if key not in children:
                children[key] = parent.child(self.matcher, draw.token)
            child, reason = children[key]
            if child is None:
                particle.kill(reason)
                continue
            particle.prefix = child
            self.population.twist(particle)

    def _growth(self) -> Growth:
        """One forward row for each distinct running prefix."""
        distinct: dict[int, int] = {}  # id of a prefix -> its row to be
        parents: list[int] = []
        tokens: list[int] = []
        for particle in self.population.running():
            prefix = particle.prefix
            if id(prefix) not in distinct:
                distinct[id(prefix)] = len(parents)
                parents.append(prefix.row)
                tokens.append(prefix.token_ids[-1])
        placed: dict[int, Prefix] = {}
        for particle in self.population.running():
            key = id(particle.prefix)
            if key not in placed:
                placed[key] = particle.prefix.at(distinct[key])
        for particle in self.population.running():
            particle.prefix = placed[id(particle.prefix)]
        return Growth(tuple(parents), tuple(tokens))


def run(
    rows: Rows,
    matcher: Matcher,
    *,
    particles: int,
    max_new_tokens: int,
    seed: int,
    sampler: str | Sampler = "auto",
    law: Law = PLAIN,
    ess_threshold: float = 0.5,
    resampling: Resampling = "systematic",
    resample_every: int = 1,
    finished: Finished = "aside",
    potentials: Sequence[Potential] = (),
    sequence: int = 0,
    sources: Sources | None = None,
    begun: bytes = b"",
    log_weight: float = 0.0,
    on_step: Callable[[Sequence[Particle]], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> SMCResult:
    """Draw `particles` weighted texts that satisfy a constraint.

    rows: one started prompt ([1, V] logits). Particles with equal prefixes share one forward row,
        so the model reads the prompt once and each distinct generated token once.
    max_new_tokens: end of sequence included. Where the matcher knows `tokens_to_finish` nothing is
        started that cannot be finished; elsewhere what does not end is `length`: its weight is that
        of its prefix, and it counts 0 in the evidence.
    ess_threshold: resample when the effective sample size falls below this share of the particles;
        0 never.
    finished: "aside" resamples the unfinished among themselves at their own mean weight; "together"
        all of them. Both are unbiased; where the end is rare "together" loses the first to finish.
    sequence: of the stream, from the prompt (`sequence_of`). Particle i draws from its own stream
        of it.
    sources: where randomness comes from instead, by (sequence, position).
    begun, log_weight: bytes that the last token of the prompt has written of the answer already,
        and the log weight of their draw (see `Healed`). The matcher begins behind them.
    on_step: called with all particles after each step. cancelled: asked before each step; what runs
        then is `cancelled`.
    Raises StrategyError for options out of range and ConstraintError where nothing can end within
    the limit, before any further model call; VocabularyError for rows shorter than the vocabulary.
    """
    smc = SMC(
        matcher,
        particles=particles,
        max_new_tokens=max_new_tokens,
        seed=seed,
        sampler=sampler,
        law=law,
        ess_threshold=ess_threshold,
        resampling=resampling,
        resample_every=resample_every,
        finished=finished,
        potentials=potentials,
        sequence=sequence,
        sources=sources,
        begun=begun,
        log_weight=log_weight,
    )
    while True:
        if cancelled is not None and cancelled():
            smc.stop("cancelled")
            break
        growth = smc.step(rows.logits)
        if on_step is not None:
            on_step(smc.particles)
        if growth is None:
            break
        rows = rows.advance(growth.parents, growth.tokens)
    return smc.result()


def _check(
    particles: int,
    max_new_tokens: int,
    ess_threshold: float,
    resampling: str,
    resample_every: int,
    finished: str,
    law: Law,
) -> None:
    for name, value in (
        ("particles", particles),
        ("max_new_tokens", max_new_tokens),
        ("resample_every", resample_every),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise StrategyError(name, value, "an integer, at least 1")
    if not 0.0 <= ess_threshold <= 1.0:
        raise StrategyError("ess_threshold", ess_threshold, "a number from 0 (never) to 1")
    if resampling not in SCHEMES:
        raise StrategyError("resampling", resampling, "one of " + ", ".join(SCHEMES))
    if finished not in ("aside", "together"):
        raise StrategyError("finished", finished, "'aside' or 'together'")
    if law.temperature == 0:
        raise StrategyError("temperature", 0.0, "above 0: particles are draws, not a search")
