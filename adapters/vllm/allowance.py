"""How much of an engine's time a constraint may take from the requests beside it."""

from __future__ import annotations

import time
from collections.abc import Callable

ROW_SECONDS = 0.002
"""Of processor time that finding what one row allows may take as a matter of course."""

SECONDS_AT_ONCE = 0.25
"""What a constraint may take beyond that at once: masks are dear while a lexer is new."""

SHARE = 0.2
"""Of the time that passes, what it may take beyond ROW_SECONDS in the long run."""


class Allowance:
    """The time that one constraint has left: SECONDS_AT_ONCE, which SHARE of the clock refills.

    clock: a monotonic one, seconds.
    """

    __slots__ = ("_clock", "_left", "_seen")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = SECONDS_AT_ONCE
        self._seen = clock()

    def spend(self, seconds: float) -> None:
        """Count the processor time of one row."""
        if seconds > ROW_SECONDS:
            self._refill()
            self._left -= seconds - ROW_SECONDS

    def refusal(self) -> str:
        """Why no row of the constraint is looked at now; empty where it has time left."""
        if self._left > 0.0:
            return ""
        self._refill()
        if self._left > 0.0:
            return ""
        return (
            "the constraint holds up the requests beside it: what its tokens may be took "
            f"{SECONDS_AT_ONCE} s more than {ROW_SECONDS * 1000:.0f} ms each; ask for one with "
            "fewer readings of the same text (ambiguous rules, repetitions within repetitions)"
        )

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(SECONDS_AT_ONCE, self._left + SHARE * (now - self._seen))
        self._seen = now
