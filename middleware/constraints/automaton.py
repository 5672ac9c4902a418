"""Deterministic automata over bytes, as dense tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DEAD = 0
"""The state that accepts nothing and is never left; the class of the bytes that only lead there."""

START = 1

NEVER = 2**31 - 1
"""A number of tokens that no budget holds: the distance to the end from where there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class Automaton:
    """A deterministic automaton over bytes; from every state but DEAD an accepting one is reached.

    table: int32 [S, C], the next state. Row DEAD and column 0 hold DEAD.
    classes: int16 [256], the column of each byte.
    accepting: bool [S].
    """

    table: npt.NDArray[np.int32]
    classes: npt.NDArray[np.int16]
    accepting: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        for array in (self.table, self.classes, self.accepting):
            array.flags.writeable = False

    def steps_to_finish(self, usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        """Least number of bytes to an accepting state, int32 [S].

        usable: bool [C], the classes that the bytes may be of.
        """
        width = self.table.shape[1]
        edges = np.flatnonzero(((self.table != DEAD) & usable).ravel())
        return distances(edges // width, self.table.ravel()[edges], self.accepting)


def distances(
    sources: npt.NDArray[np.integer],  # [E]
    targets: npt.NDArray[np.integer],  # [E]
    accepting: npt.NDArray[np.bool_],  # [S]
) -> npt.NDArray[np.int32]:
    """Least number of edges from each state to an accepting one, int32 [S]; NEVER without a way."""
    found = np.where(accepting, 0, NEVER).astype(np.int32)
    order = np.argsort(targets, kind="stable")
    into = sources[order]
    begin = np.searchsorted(targets[order], np.arange(accepting.size + 1))
    front = np.flatnonzero(accepting)
    steps = 0
    while front.size:
        steps += 1
        reached = into[ranges(begin[front], begin[front + 1] - begin[front])]
        front = np.unique(reached[found[reached] == NEVER])
        found[front] = steps
    return found


def ranges(begin: npt.NDArray[np.integer], count: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """begin[0], begin[0] + 1, ... (count[0] of them), begin[1], ..., in one array."""
    before = np.cumsum(count, dtype=np.int64) - count
    steps: npt.NDArray[np.int64] = np.arange(count.sum(), dtype=np.int64)
    steps += np.repeat(begin - before, count)
    return steps
