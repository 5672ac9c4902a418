"""Several splitters in a row: each cuts the pieces that the one before it left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from midstream.middleware.bytes.splitting.splitters import Splitter, Step

_States: TypeAlias = tuple[int, ...]


class Chain:
    """A splitter of splitters, whose states are those from which some text leads to a right end.

    A piece of an outer splitter is a whole text to the inner ones: their guesses must hold at its
    end. kinds: how many classes of characters there are.
    """

    def __init__(self, splitters: Sequence[Splitter], kinds: int) -> None:
        self.splitters = tuple(splitters)
        self.kinds = kinds
        start = (0,) * len(self.splitters)
        self._states: list[_States] = [start]
        self._numbers: dict[_States, int] = {start: 0}
        self._steps: dict[tuple[int, int], tuple[Step, ...]] = {}
        self._lives: dict[int, bool] = {}

    def step(self, state: int, kind: int) -> tuple[Step, ...]:
        """The ways on that some continuation makes true."""
        return tuple([way for way in self._ways(state, kind) if self.lives(way[1])])

    def ends(self, state: int) -> bool:
        """Whether the text may end here."""
        return all(map(lambda one, at: one.ends(at), self.splitters, self._states[state]))

    def lives(self, state: int) -> bool:
        """Whether some continuation, or the end of the text, makes all guesses true."""
        known = self._lives.get(state)
        if known is None:
            reached, frontier = {state}, [state]
            known = False
            while frontier and not known:
                at = frontier.pop()
                known = self.ends(at) or self._lives.get(at, False)
                following = {way for kind in range(self.kinds) for _, way in self._ways(at, kind)}
                frontier.extend(following - reached)
                reached |= following
            self._lives[state] = known
        return known

    def _ways(self, state: int, kind: int) -> tuple[Step, ...]:
        found = self._steps.get((state, kind))
        if found is None:
            ways: list[tuple[bool, _States]] = [(False, ())]
            for splitter, at in zip(self.splitters, self._states[state], strict=True):
                ways = [
                    (cut or cuts, (*behind, after))
                    for cut, behind in ways
                    if not cut or splitter.ends(at)
                    for cuts, after in splitter.step(0 if cut else at, kind)
                ]
            found = tuple(dict.fromkeys([(cut, self._number(states)) for cut, states in ways]))
            self._steps[state, kind] = found
        return found

    def _number(self, states: _States) -> int:
        number = self._numbers.setdefault(states, len(self._states))
        if number == len(self._states):
            self._states.append(states)
        return number
