"""What becomes of a drawn token, and why none could be drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from midstream.kernels.bitmask import Mask as Bits
from midstream.kernels.row import Row
from midstream.middleware.draw import Draw, no_draw
from midstream.middleware.estimators import BUDGET_SPENT, Checks
from midstream.middleware.greedy import greedy_walk
from midstream.middleware.law import Law
from midstream.middleware.matcher import Matcher, State, fault, why_nothing
from midstream.middleware.proposal import Proposal
from midstream.middleware.random import Source

Logits = npt.NDArray[Any]

Step = Callable[[Source], Draw]
"""Draws from one prepared row; may be called once for each sequence that stands at the same
prefix.
"""


def why_unusable(row: Row, proposal: Proposal | None, bits: Bits) -> str:
    """Why nothing can be drawn from a row, whatever is allowed; empty where something can."""
    if not row.finite or (proposal is not None and not proposal.finite):
        return "the logits hold NaN or +inf"
    if proposal is not None and not proposal.covers(bits):
        return "the proposal has no mass on tokens that the target may give"
    return ""


def why_dead(matcher: Matcher, state: State, bits: Bits, law: Law) -> str:
    """Why no token of the bits, a mask or a superset of it, could be drawn."""
    reason = why_nothing(matcher, state)
    if reason or not bits.any():
        return reason or "nothing is allowed here"
    if law.truncates:
        return "truncation left nothing that is allowed"
    return "nothing that has any probability is allowed here"


def always(draw: Draw) -> Step:
    """The same draw for every sequence: nothing is random in it."""
    return lambda source: draw


@dataclass(frozen=True, slots=True)
class Finish:
    """Turns a drawn token and the weight of drawing it into a `Draw`."""

    sampler: str
    eos: tuple[int, ...]
    proposal: Proposal | None

    def __call__(self, token: int, log_weight: float, checks: int) -> Draw:
        ended = token in self.eos
        if self.proposal is not None:
            correction = self.proposal.log_ratio(list(self.eos) if ended else [token])
            if correction == -math.inf:
                reason = "the proposal drew a token of target probability 0"
                return no_draw("exhausted", self.sampler, reason, checks)
            log_weight += correction
        if ended:
            return Draw(self.eos[0], log_weight, "finished", checks, self.sampler)
        return Draw(token, log_weight, "running", checks, self.sampler)


def greedy(logits: Logits, bits: Bits, checks: Checks, rejects: int | None, finish: Finish) -> Draw:
    """The most probable token that passes its check."""
    try:
        token = greedy_walk(logits, bits, checks, rejects)
    except Exception as error:  # a user's predicate must not stop the loop
        return no_draw("dead", "awrs", fault(error), checks.count)
    if token is not None:
        return finish(token, math.nan, checks.count)
    if rejects is not None and checks.count >= rejects:
        return no_draw("exhausted", "awrs", BUDGET_SPENT, checks.count)
    return no_draw("dead", "awrs", checks.why_nothing(), checks.count)
