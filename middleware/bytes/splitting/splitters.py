"""How one pre-tokenizer cuts a text, read from left to right.

Where a cut is may hang on what comes later. So a splitter guesses: a step over a character leads to
several states, each with the word whether there is a cut before that character, and a state
whose guess turns out wrong leads nowhere. The true cuts are the one way that survives to the end.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

Step: TypeAlias = tuple[bool, int]
"""Whether there is a cut before the character; the state behind it."""


class Splitter(Protocol):
    """States are ints, 0 the start of a text (or of a piece of an outer splitter)."""

    def step(self, state: int, kind: int) -> tuple[Step, ...]:
        """All that may be once a character of class `kind` has come."""

    def ends(self, state: int) -> bool:
        """Whether the text may end here."""


class NoCuts:
    """The whole text is one piece."""

    def step(self, state: int, kind: int) -> tuple[Step, ...]:
        """No cut, but at the start."""
        return ((state == 0, 1),)

    def ends(self, state: int) -> bool:
        """Anywhere."""
        return True


class FirstIs:
    """The whole text is one piece, and begins with a character of one set.

    alone: whether that character may be all of it.
    """

    def __init__(self, members: int, *, alone: bool) -> None:
        self.members = members
        self.alone = alone

    def step(self, state: int, kind: int) -> tuple[Step, ...]:
        """Nowhere from the start but by the set; state 1: behind the first, 2: later."""
        if state == 0:
            return ((True, 1),) if self.members >> kind & 1 else ()
        return ((False, 2),)

    def ends(self, state: int) -> bool:
        """An empty text begins with nothing."""
        return state != 1 or self.alone


class EdgeCuts:
    """Cuts at the edges of characters of one set.

    before, after: a cut before, after each of them. between: also between two of them (False: a
        run of them is one piece).
    """

    def __init__(self, members: int, *, before: bool, after: bool, between: bool) -> None:
        self.members = members
        self.before = before
        self.after = after
        self.between = between

    def step(self, state: int, kind: int) -> tuple[Step, ...]:
        """State 1: behind another character; 2: behind one of the set."""
        inside = bool(self.members >> kind & 1)
        if state == 0:
            cut = True
        elif state == 2 and inside:
            cut = self.between
        else:
            cut = (inside and self.before) or (state == 2 and self.after)
        return ((cut, 2 if inside else 1),)

    def ends(self, state: int) -> bool:
        """Anywhere."""
        return True
