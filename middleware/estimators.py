"""Adaptive weighted rejection sampling: a token by rejection, its weight from the rejects.

Lipkin et al., "Fast controlled generation from language models with adaptive weighted rejection
sampling" (arXiv 2504.05410). Both estimators return a pair (x, w) with E[w 1{x = t}] = p(t) f(t)
for every token t, where p is the law of the row that was passed (its masked part, renormalised) and
f the check. w > 0 if and only if x is valid.

Candidates come from independent draws in rounds; one call checks a round. Dropping the repeats of
independent draws leaves draws without replacement, so the same rounds serve both estimators.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from midstream.kernels.row import Row
from midstream.middleware.draw import NO_TOKEN, Status
from midstream.middleware.matcher import Matcher, why_nothing
from midstream.middleware.random import Source

ROUNDS: tuple[int, ...] = (8, 16, 32, 64)
"""Draws a round; the last size repeats.
Part of the law of a seed: another schedule draws other tokens.
"""

FOLD_ABOVE = 0.125
"""Rejected tokens stay in the row, counted each time they are drawn again,
until they hold this share of it.
"""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How rounds go on. It changes which token a seed draws, never the law."""

    rounds: tuple[int, ...] = ROUNDS
    fold_above: float = FOLD_ABOVE

    def sizes(self) -> Iterator[int]:
        """The sizes of all rounds."""
        return itertools.chain(self.rounds, itertools.repeat(self.rounds[-1]))


DEFAULT_SCHEDULE = Schedule()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A token and the log of the estimate of the valid share of the row;
    -inf where there is no token.
    """

    token: int
    log_weight: float
    status: Status
    reason: str = ""


def _none(status: Status, reason: str) -> Estimate:
    return Estimate(NO_TOKEN, -math.inf, status, reason)


BUDGET_SPENT = "the budget of rejects ran out"

SMALLEST_LIVE = 1e-300
"""Of a row that is left, below which counts of phantom rejects pass what float64 holds."""


class Checks:
    """The answers of a matcher in one state, each asked for once."""

    __slots__ = ("_answers", "_eos", "_first_eos", "_matcher", "_state", "count")

    def __init__(self, matcher: Matcher, state: Any) -> None:
        self._matcher = matcher
        self._state = state
        self._answers: dict[int, bool] = {}
        eos = matcher.vocabulary.eos_ids
        self._eos = frozenset(eos)
        self._first_eos = next(iter(eos), NO_TOKEN)
        self.count = 0

    def merged(self, tokens: list[int]) -> list[int]:
        """The tokens with every end-of-sequence id replaced by the first: they are one symbol."""
        if self._eos.isdisjoint(tokens):
            return tokens
        return [self._first_eos if token in self._eos else token for token in tokens]

    def ids_of(self, tokens: Sequence[int]) -> list[int]:
        """The ids that stand behind merged tokens."""
        ids = [token for token in tokens if token not in self._eos]
        return ids if len(ids) == len(tokens) else ids + sorted(self._eos)

    def why_nothing(self) -> str:
        """Why no token is allowed."""
        told = why_nothing(self._matcher, self._state)
        return told or "nothing that has any probability is allowed here"

    def ask(self, tokens: Sequence[int]) -> dict[int, bool]:
        """Check what was not checked before, in one call; all answers so far."""
        new = [token for token in dict.fromkeys(tokens) if token not in self._answers]
        if new:
            self.count += len(new)
            flags = self._matcher.allows(self._state, new).tolist()
            self._answers.update(zip(new, flags, strict=True))
        return self._answers


def geometric(
    row: Row,
    checks: Checks,
    source: Source,
    *,
    accepts: int,
    rejects: int | None,
    schedule: Schedule = DEFAULT_SCHEDULE,
) -> Estimate:
    """The first accepted token of a run with replacement, and the estimate from its counts.

    Independent draws go on until `accepts` accepts or `rejects` rejects; with a and n of them,
    w = min(accepts - 1, a) / (a + n - 1), 0 if a = 0. Stopped by accepts this is the
    negative-binomial estimator. Rejected tokens that were taken out of the row are still drawn, as
    phantoms: before each draw, a geometric number of rejects that nobody has to check.
        `rejects=None` sets no limit; the row is dead when nothing is left of it, and
    exhausted, with that reason, when less than 1e-300 of it is left (counts are float64).
    """
    limit = math.inf if rejects is None else float(rejects)
    log_start = row.log_live()
    first, accepted, rejected = NO_TOKEN, 0, 0.0
    pending: set[int] = set()  # rejected, still in the row
    share = 0.0  # of what is left of the row, held by them
    for size in schedule.sizes():
        if share > schedule.fold_above:
            row.remove(checks.ids_of(list(pending)))
            pending.clear()
            share = 0.0
        log_live = row.log_live()
        if log_live == -math.inf:
            return _none("dead", checks.why_nothing())
        live = row.fraction(log_live, log_start)
        if live < SMALLEST_LIVE:
            return _none("exhausted", "what is left of the row is below 1e-300 of it")
        tokens = checks.merged(source.tokens(row, size).tolist())
        answers = checks.ask(tokens)
        phantoms = source.phantoms(live, size)
        for token, phantom in zip(tokens, phantoms, strict=True):
            rejected += phantom
            if rejected < limit:
                if answers[token]:
                    accepted += 1
                    first = token if first == NO_TOKEN else first
                else:
                    rejected += 1
            if accepted == accepts or rejected >= limit:
                break
        if rejected >= limit:
            rejected = limit
        if accepted == accepts or rejected >= limit:
            break
        fresh = {token for token in tokens if not answers[token]} - pending
        share += row.share(checks.ids_of(list(fresh))) if fresh else 0.0
        pending |= fresh
    if accepted == 0:
        return _none("exhausted", BUDGET_SPENT)
    weight = min(accepts - 1, accepted) / (accepted + rejected - 1)
    return Estimate(first, math.log(weight), "running")


def recursive(
    row: Row,
    checks: Checks,
    source: Source,
    *,
    rejects: int | None,
    schedule: Schedule = DEFAULT_SCHEDULE,
) -> Estimate:
    """The first accepted token of a walk without replacement, and one look ahead.

    After rejecting R of mass r, x is accepted with q = p(x) / (1 - r); y is the next token of the
    same order: w = (1 - r) (1 if f(y) else q), and 1 - r if x was the last token. With `rejects` =
    M the M-th candidate gives w = (1 - r) f(x) without the look ahead. Cheapest in checks, highest
    in variance.
    """
    limit = math.inf if rejects is None else float(rejects)
    log_start = row.log_live()
    order: list[int] = []  # candidates without replacement, so far
    removed = tried = 0
    sizes = schedule.sizes()
    while True:
        if tried == len(order):
            row.remove(checks.ids_of(order[removed:]))
            removed = len(order)
            if row.log_live() == -math.inf:
                return _none("dead", checks.why_nothing())
            drawn = checks.merged(source.tokens(row, next(sizes)).tolist())
            order.extend(dict.fromkeys(drawn))
            checks.ask(order[removed:])
        tried += 1
        if checks.ask(())[order[tried - 1]]:
            break
        if tried >= limit:
            return _none("exhausted", BUDGET_SPENT)
    token = order[tried - 1]
    row.remove(checks.ids_of(order[removed : tried - 1]))
    log_left = row.log_live() - log_start
    ids = checks.ids_of([token])
    share = row.share(ids)
    row.remove(ids)
    if tried >= limit or row.log_live() == -math.inf:
        return Estimate(token, log_left, "running")
    if tried == len(order):
        order.extend(checks.merged(source.tokens(row, 1).tolist()))
    follower = order[tried]
    valid = checks.ask((follower,))[follower]
    return Estimate(token, log_left if valid else log_left + math.log(share), "running")
