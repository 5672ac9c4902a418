"""The merges of a BPE tokenizer as one table, and how each token is made by them.

Pieces of text begin as base tokens; the pair with the lowest rank is merged, of equal ranks the
leftmost first, until none is left. A token that this makes of its own bytes is *reachable*; the
last merge that made it gives its two halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

NEVER = 1 << 62
BASE = -1


@dataclass(frozen=True, slots=True, eq=False)
class Merges:
    """A table of merges and the tokens that they make. Immutable.

    size: V. ranks, made: a * V + b -> the rank of merging tokens a and b, and what they become.
    base: token -> the base tokens of its text.
    halves: int64 [V, 2], of a reachable token that is no base token; else -1.
    level: int64 [V], the highest rank among the merges within a token: it is complete once all
        merges up to that rank are done, whatever stands beside it. BASE for a base token.
    reachable: bool [V].
    """

    size: int
    ranks: Mapping[int, int]
    made: Mapping[int, int]
    base: Mapping[int, Sequence[int]]
    halves: Ints
    level: Ints
    reachable: npt.NDArray[np.bool_]

    def encode(self, symbols: Sequence[int]) -> tuple[list[int], tuple[int, int]]:
        """What the merges make of base tokens, and the last pair that was merged."""
        return _encode(list(symbols), self.size, self.ranks, self.made)


def derive(
    size: int,
    ranks: Mapping[int, int],
    made: Mapping[int, int],
    base: Mapping[int, Sequence[int]],
) -> Merges:
    """Merge every token's own text, to learn which are reachable and from what halves."""
    halves = np.full((size, 2), -1, np.int64)
    level = np.full(size, BASE, np.int64)
    reachable = np.zeros(size, np.bool_)
    for token in sorted(base, key=lambda token: len(base[token])):
        result, last = _encode(list(base[token]), size, ranks, made)
        if result != [token]:
            continue
        reachable[token] = True
        if len(base[token]) > 1:
            halves[token] = last
            rank = ranks[last[0] * size + last[1]]
            level[token] = max(rank, level[last[0]], level[last[1]])
    return Merges(size, ranks, made, base, halves, level, reachable)


def _encode(
    symbols: list[int],
    size: int,
    ranks: Mapping[int, int],
    made: Mapping[int, int],
) -> tuple[list[int], tuple[int, int]]:
    last = (-1, -1)
    get = ranks.get
    beside = [get(a * size + b, NEVER) for a, b in pairwise(symbols)]
    while beside:
        rank = min(beside)
        if rank == NEVER:
            break
        at = beside.index(rank)
        last = (symbols[at], symbols[at + 1])
        symbols[at : at + 2] = [made[last[0] * size + last[1]]]
        del beside[at]
        if at:
            beside[at - 1] = get(symbols[at - 1] * size + symbols[at], NEVER)
        if at < len(beside):
            beside[at] = get(symbols[at] * size + symbols[at + 1], NEVER)
    return symbols, last
