"""A draw: one token with its log weight, its status and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["running", "finished", "length", "dead", "exhausted", "cancelled"]
"""How a sequence stands. dead: nothing is allowed.
exhausted: the budget of rejects ran out, an honest weight of 0.
"""

NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class Draw:
    """One constrained token.

    token: the id drawn, the first end-of-sequence id for any of them, -1 where there is none.
    log_weight: with w = exp(log_weight), E[w 1{token = t}] = p(t) allowed(t) under the sampler's
        law p; -inf where there is no token; NaN where a weight cannot be known (greedy rejection).
    status: running, finished (end of sequence), dead or exhausted.
    checks: tokens that the matcher checked one by one.
    sampler: which sampler made the draw. reason: why it is dead or exhausted.
    """

    token: int
    log_weight: float
    status: Status
    checks: int = 0
    sampler: str = ""
    reason: str = ""


def no_draw(status: Status, sampler: str, reason: str, checks: int = 0) -> Draw:
    """A draw without a token: weight 0, told why."""
    return Draw(NO_TOKEN, float("-inf"), status, checks, sampler, reason)
