"""Samplers: how one constrained token is drawn from a row of logits, with its log weight.

Every sampler has the law p of its `Law` (temperature and truncation included) as target: with w =
exp(log_weight), E[w 1{token = t}] = p(t) allowed(t) for every token t, except where `Law.proper` is
False.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask as Bits
from midstream.kernels.bitmask import mask_words
from midstream.kernels.row import Row, Rows
from midstream.middleware.draw import NO_TOKEN, Draw, no_draw
from midstream.middleware.errors import StrategyError
from midstream.middleware.estimators import (
    DEFAULT_SCHEDULE,
    Checks,
    Estimate,
    Schedule,
    geometric,
    recursive,
)
from midstream.middleware.finish import Finish, Step, always, greedy, why_dead, why_unusable
from midstream.middleware.greedy import greedy_mask
from midstream.middleware.law import PLAIN, Law
from midstream.middleware.matcher import Matcher, State, fault
from midstream.middleware.proposal import Proposal, propose
from midstream.middleware.random import Float, Source, Stream, StreamSource
from midstream.middleware.superset import superset_of

Logits = npt.NDArray[Any]

MASK_COST_LIMIT = 20_000.0
"""`auto` takes a mask that costs at most this many single checks (a few milliseconds)."""


Read = tuple[Row, Bits]
"""A row that was read under its law, and what it was restricted to."""


class Sampler(Protocol):
    """One way to draw a constrained token."""

    def restriction(self, matcher: Matcher, state: State, size: int) -> Bits:
        """What a row of `size` is restricted to before anything is drawn from it: uint32 [W]."""

    def prepare(
        self,
        logits: Logits,
        matcher: Matcher,
        state: State,
        *,
        law: Law = ...,
        proposal: Logits | None = None,
        read: Read | None = None,
    ) -> Step:
        """Read a row once, for one or many draws.

        logits: float32 or float64 [V], V at least the vocabulary's length; not changed.
        law: temperature and truncation, part of the target.
        proposal: logits [V] of another law to draw from, whose support must hold the target's; the
            weight is corrected by p(token) / q(token).
        read: the row under its law and `restriction`, where it was read before.
        A row that allows nothing, holds NaN or meets a fault of the matcher is a status, not an
        exception.
        """

    def draw(
        self,
        logits: Logits,
        matcher: Matcher,
        state: State,
        stream: Stream,
        *,
        law: Law = ...,
        proposal: Logits | None = None,
    ) -> Draw:
        """Draw one token with the random numbers of one sequence and position. See `prepare`."""


def _draw(
    self: Sampler,
    logits: Logits,
    matcher: Matcher,
    state: State,
    stream: Stream,
    *,
    law: Law = PLAIN,
    proposal: Logits | None = None,
) -> Draw:
    """See `Sampler.draw`."""
    step = self.prepare(logits, matcher, state, law=law, proposal=proposal)
    return step(StreamSource(stream))


@dataclass(frozen=True, slots=True)
class Mask:
    """All allowed tokens at once: the exact draw, log weight = log Z_allowed - log Z_all,
    no noise in it.
    """

    def restriction(self, matcher: Matcher, state: State, size: int) -> Bits:
        """See `Sampler.restriction`. The mask."""
        bits = np.empty(mask_words(size), np.uint32)
        matcher.mask(state, bits)
        return bits

    def prepare(
        self,
        logits: Logits,
        matcher: Matcher,
        state: State,
        *,
        law: Law = PLAIN,
        proposal: Logits | None = None,
        read: Read | None = None,
    ) -> Step:
        """See `Sampler.prepare`. Greedy: the most probable allowed token,
        with the allowed mass at T = 1.
        """
        if not matcher.has_mask:
            raise StrategyError("sampler", "mask for a matcher without a mask", "'awrs' or 'auto'")
        try:
            bits = self.restriction(matcher, state, logits.size) if read is None else read[1]
        except Exception as error:  # one request's constraint must not stop the loop
            return always(no_draw("dead", "mask", fault(error)))
        other = None if proposal is None else propose(logits, proposal, bits, law)
        row = _row(logits, bits, law, other, read)
        unusable = why_unusable(row, other, bits)
        if unusable:
            return always(no_draw("dead", "mask", unusable))
        if row.log_z_allowed == -math.inf:
            return always(no_draw("dead", "mask", why_dead(matcher, state, bits, law)))
        finish = Finish("mask", matcher.vocabulary.eos_ids, other)
        log_weight = row.log_z_allowed - row.log_z_all
        if law.temperature == 0:
            return always(finish(greedy_mask(logits, bits), log_weight, 0))
        return lambda source: finish(int(source.tokens(row, 1)[0]), log_weight, 0)

    def draw_rows(self, rows: Rows, uniforms: Float) -> list[tuple[int, float] | None]:
        """What `prepare` draws from each of some rows, read under a law of temperature over 0 and
        their masks: the token and its log weight. None where there is no token.

        uniforms: float64 [R, 2], the first of each row's stream.
        """
        tokens = rows.take(uniforms).tolist()
        masses = zip(tokens, rows.log_z_allowed, rows.log_z_all, strict=True)
        return [
            (token, allowed - whole) if -math.inf < allowed and whole < math.inf else None
            for token, allowed, whole in masses
        ]

    draw = _draw


@dataclass(frozen=True, slots=True)
class AWRS:
    """Adaptive weighted rejection: draws are checked one by one, the weight is estimated from the
    rejects.

    accepts: of the geometric estimator, at least 2; more cost checks and lower the variance,
        relative variance at most (1 - Z) / (accepts - 2).
    rejects: a fixed limit on rejects (geometric, at least 2) or on candidates (recursive, at least
        1); running out is `exhausted` with weight 0, and weights stay unbiased. None: the whole
        vocabulary is walked before `dead`.
    estimator: "geometric" or "recursive" (see `midstream.middleware.estimators`).
    Tokens outside the matcher's superset are pruned first and their mass accounted for.
    """

    accepts: int = 4
    rejects: int | None = None
    estimator: Literal["geometric", "recursive"] = "geometric"
    schedule: Schedule = DEFAULT_SCHEDULE

    def __post_init__(self) -> None:
        if self.estimator not in ("geometric", "recursive"):
            raise StrategyError("estimator", self.estimator, "'geometric' or 'recursive'")
        if self.accepts < 2:
            raise StrategyError("accepts", self.accepts, "an integer, at least 2")
        least = 2 if self.estimator == "geometric" else 1
        if self.rejects is not None and self.rejects < least:
            raise StrategyError("rejects", self.rejects, f"None or an integer, at least {least}")

    def restriction(self, matcher: Matcher, state: State, size: int) -> Bits:
        """See `Sampler.restriction`. A superset of the mask."""
        return superset_of(matcher, state, size)

    def prepare(
        self,
        logits: Logits,
        matcher: Matcher,
        state: State,
        *,
        law: Law = PLAIN,
        proposal: Logits | None = None,
        read: Read | None = None,
    ) -> Step:
        """See `Sampler.prepare`. Greedy: down from the most probable token until one is allowed,
        weight NaN.
        """
        if law.truncates and law.truncation == "after_mask":
            accepted = "'target' (awrs never sees the whole mask), or the sampler 'mask'"
            raise StrategyError("truncation", "'after_mask' with awrs", accepted)
        checks = Checks(matcher, state)
        try:
            bits = self.restriction(matcher, state, logits.size) if read is None else read[1]
        except Exception as error:  # a user's predicate must not stop the loop
            return always(no_draw("dead", "awrs", fault(error)))
        other = None if proposal is None else propose(logits, proposal, bits, law)
        row = _row(logits, bits, law, other, read)
        unusable = why_unusable(row, other, bits)
        if unusable:
            return always(no_draw("dead", "awrs", unusable))
        finish = Finish("awrs", matcher.vocabulary.eos_ids, other)
        if law.temperature == 0:
            return always(greedy(logits, bits, checks, self.rejects, finish))
        log_pruned = row.log_z_allowed - row.log_z_all

        def step(source: Source) -> Draw:
            before = checks.count
            try:
                estimate = self._estimate(row.copy(), checks, source)
            except Exception as error:
                return no_draw("dead", "awrs", fault(error), checks.count - before)
            count = checks.count - before
            if estimate.token == NO_TOKEN:
                reason = estimate.reason
                if estimate.status == "dead":
                    reason = why_dead(matcher, state, bits, law)
                return no_draw(estimate.status, "awrs", reason, count)
            return finish(estimate.token, estimate.log_weight + log_pruned, count)

        return step

    draw = _draw

    def _estimate(self, row: Row, checks: Checks, source: Source) -> Estimate:
        schedule = self.schedule
        if self.estimator == "recursive":
            return recursive(row, checks, source, rejects=self.rejects, schedule=schedule)
        accepts, rejects = self.accepts, self.rejects
        return geometric(row, checks, source, accepts=accepts, rejects=rejects, schedule=schedule)


@dataclass(frozen=True, slots=True)
class Auto:
    """Mask where the matcher has one at tolerable cost, AWRS elsewhere.

    The choice is a pure function of the matcher, so the same inputs choose the same on every host.
    A mask gives the exact weight whatever the allowed mass, where AWRS walks the vocabulary when
    that mass is tiny.
    """

    awrs: AWRS = AWRS()

    def choice(self, matcher: Matcher) -> tuple[Mask | AWRS, str]:
        """The sampler for a matcher, and why."""
        if not matcher.has_mask:
            return self.awrs, "the constraint can only be checked token by token"
        if matcher.mask_cost <= MASK_COST_LIMIT:
            return Mask(), "the matcher gives the whole mask at the price of a few checks"
        return self.awrs, f"a mask costs {matcher.mask_cost:.0f} checks, over {MASK_COST_LIMIT:.0f}"

    def restriction(self, matcher: Matcher, state: State, size: int) -> Bits:
        """See `Sampler.restriction`."""
        sampler, _ = self.choice(matcher)
        return sampler.restriction(matcher, state, size)

    def prepare(
        self,
        logits: Logits,
        matcher: Matcher,
        state: State,
        *,
        law: Law = PLAIN,
        proposal: Logits | None = None,
        read: Read | None = None,
    ) -> Step:
        """See `Sampler.prepare`."""
        sampler, _ = self.choice(matcher)
        return sampler.prepare(logits, matcher, state, law=law, proposal=proposal, read=read)

    draw = _draw


def prepare_rows(
    sampler: Sampler, logits: Logits, matcher: Matcher, states: Sequence[State], law: Law
) -> list[Step]:
    """`prepare` for each row of [R, V] and its state: the same steps, but the rows are read
    together, which saves most of the cost of a draw from a short row.
    """
    try:
        bits = [sampler.restriction(matcher, state, logits.shape[1]) for state in states]
    except Exception:  # one by one, so that a fault is told of its own row alone
        each = zip(logits, states, strict=True)
        return [sampler.prepare(row, matcher, state, law=law) for row, state in each]
    rows = [row for group in law.read_rows(logits, np.stack(bits)) for row in group]
    return [
        sampler.prepare(one, matcher, state, law=law, read=(row, mask))
        for one, state, row, mask in zip(logits, states, rows, bits, strict=True)
    ]


def chosen(sampler: Sampler, matcher: Matcher) -> Sampler:
    """The sampler that draws for a matcher: what `Auto` chooses, any other itself."""
    return sampler.choice(matcher)[0] if isinstance(sampler, Auto) else sampler


def _row(logits: Logits, bits: Bits, law: Law, proposal: Proposal | None, read: Read | None) -> Row:
    """The row to draw from."""
    if proposal is not None:
        return proposal.drawn
    return law.read(logits, bits) if read is None else read[0]


def sampler_of(value: str | Sampler) -> Sampler:
    """A sampler from its name ("auto", "mask", "awrs"), or the sampler itself."""
    if not isinstance(value, str):
        return value
    named: dict[str, Sampler] = {"auto": Auto(), "mask": Mask(), "awrs": AWRS()}
    if value not in named:
        raise StrategyError("sampler", value, "'auto', 'mask', 'awrs', or a sampler")
    return named[value]
