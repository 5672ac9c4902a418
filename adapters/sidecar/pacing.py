"""How long requests that are ready for a pass wait for those that are not."""

from __future__ import annotations

import math
from typing import Generic, TypeVar

T = TypeVar("T")

LEAST_WAIT_SECONDS = 0.005
MOST_WAIT_SECONDS = 0.25

PATIENCE = 2.0
"""How long is waited, in times from logits to growth as they were of late."""

MEMORY = 0.02
"""Weight of the newest of these times in their average."""


class Pace(Generic[T]):
    """Who has logits and is not ready again, and how long that usually takes."""

    __slots__ = ("_told", "_usual")

    def __init__(self) -> None:
        self._told: dict[T, float] = {}  # in the order of the times
        self._usual = 0.0  # seconds

    @property
    def patience(self) -> float:
        """Seconds."""
        return min(max(PATIENCE * self._usual, LEAST_WAIT_SECONDS), MOST_WAIT_SECONDS)

    def tell(self, who: T, now: float) -> None:
        """They got their logits."""
        self._told[who] = now

    def ready(self, who: T, now: float) -> None:
        """They are ready again."""
        seconds = now - self._told.pop(who)
        # What is far from usual counts as no more than twice what is waited for.
        self._usual += MEMORY * (min(seconds, 2 * self.patience) - self._usual)

    def leave(self, who: T) -> None:
        """They will not be ready again."""
        self._told.pop(who, None)

    def clear(self) -> None:
        """Nobody will."""
        self._told.clear()

    def due_at(self, since: float) -> float:
        """When to go on without those that are not ready, given when the first became so.

        At once where all are; and where the last that is not has had time enough.
        """
        last_told = next(reversed(self._told.values()), -math.inf)
        return min(since, last_told) + self.patience
