"""One sequence of a stream, and what is said of it. Knows no wire."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from midstream.middleware.draw import NO_TOKEN, Draw, Status
from midstream.middleware.matcher import State


@dataclass(frozen=True, slots=True)
class RowOf:
    """Whose row of a step it is.

    token: what the engine drew from the last mask or logits, None where it drew nothing. sequence:
        of a new id, its number for the random numbers.
    """

    id: int
    token: int | None = None
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Stepped:
    """What a step came to for one sequence.

    token: -1 where there is none. log_weight: of this step, nats; NaN where no logits told it.
    total_log_weight: of all steps. checks: of this step. drawn: whether a token was drawn here, or
    could not be.
    """

    id: int
    token: int
    log_weight: float
    total_log_weight: float
    status: Status
    reason: str
    checks: int
    drawn: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """One result for each row of a step, and what the engine draws from.

    offered: uint32 [R, W] masks, or [R, V] logits; None where the tokens were drawn here. A
    sequence that has ended is offered nothing.
    """

    rows: tuple[Stepped, ...]
    offered: npt.NDArray[Any] | None = None


class Member:
    """One sequence. awaits: whether the engine still owes the token of its last answer."""

    __slots__ = ("awaits", "position", "reason", "sequence", "state", "status", "total")

    def __init__(self, state: State, sequence: int) -> None:
        self.state = state
        self.sequence = sequence
        self.position = 0
        self.total = 0.0
        self.status: Status = "running"
        self.reason = ""
        self.awaits = False

    def copy(self, sequence: int) -> Member:
        other = Member(self.state, sequence)
        for name in ("awaits", "position", "reason", "status", "total"):
            setattr(other, name, getattr(self, name))
        return other

    def end(self, status: Status, reason: str) -> None:
        """End it; without weight where it has no token to end with."""
        self.status, self.reason = status, reason
        if status in ("dead", "exhausted"):
            self.total = -math.inf


def stepped(id: int, member: Member, draw: Draw | None) -> Stepped:
    """draw: None for a sequence that had ended before this step's logits."""
    token, log_weight, checks = NO_TOKEN, 0.0, 0
    if draw is not None:
        token, log_weight, checks = draw.token, draw.log_weight, draw.checks
    if member.status in ("dead", "exhausted"):
        token, log_weight = NO_TOKEN, -math.inf
    drawn = draw is not None and draw.sampler != ""
    total, status, reason = member.total, member.status, member.reason
    return Stepped(id, token, log_weight, total, status, reason, checks, drawn)


def answers(
    rows: Sequence[RowOf], members: Sequence[Member], draws: dict[int, Draw]
) -> tuple[Stepped, ...]:
    """What each row of a step is answered; `draws` has those of the rows that went on."""
    return tuple(stepped(row.id, members[i], draws.get(i)) for i, row in enumerate(rows))
