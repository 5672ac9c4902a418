"""Which token may stand to the right of which, within a piece that the merges see whole.

Tokens l and r beside each other stay as they are unless a merge (a, b) of rank k fires between
them: a is on l's right spine (l, its right half, that one's right half, ...), b on r's left spine,
both stand there at one time, and nothing within l or r is merged before. All that l alone does
happens at levels: a is complete at level(a) and gone at the level of its parent within l. So with
v = max(level(a), level(b), k) the merge fires where v is less than both parents' levels. Of equal
levels the left merge comes first: k = v at r's parent fires, at l's parent does not; what else is
equal is left to a run of the merges themselves.

The tokens whose left spine holds b are one stretch of a tour through the forest of left halves, and
so are those of them whose level at b's parent exceeds v, if children stand by falling level. What
may not follow l is therefore a union of stretches.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from midstream.middleware.bytes.merges import Merges

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Neighbours:
    """The pair rule of a table of merges. Immutable, shared."""

    def __init__(self, merges: Merges) -> None:
        self.merges = merges
        self._beyond = int(max(merges.level.max(initial=0), max(merges.ranks.values(), default=0)))
        self._beyond += 2  # above every level
        self._tour()
        self._stretches()
        self._levels: list[int] = merges.level.tolist()
        self._halves: list[list[int]] = merges.halves.tolist()

    def follows(self, left: int, right: int) -> bool:
        """Whether two reachable tokens stay as they are beside each other."""
        size, ranks, levels = self.merges.size, self.merges.ranks, self._levels
        a, b, a_gone, b_gone = left, right, self._beyond, self._beyond
        while True:
            rank = ranks.get(a * size + b)
            if rank is not None:
                fires = max(levels[a], levels[b], rank)
                if fires < a_gone and fires < b_gone:
                    return False
                if fires == a_gone or fires == b_gone:
                    return self._stay(left, right)
            if levels[a] < 0 and levels[b] < 0:
                return True
            if levels[a] == levels[b]:
                return self._stay(left, right)
            if levels[a] > levels[b]:
                a_gone, a = levels[a], self._halves[a][1]
            else:
                b_gone, b = levels[b], self._halves[b][0]

    def after(self, left: int) -> Bools:
        """bool [V]: the reachable tokens that may follow a reachable one."""
        lows, highs, unsure = self._refused(left)
        size = self._place.size
        turns = np.bincount(lows, minlength=size + 1) - np.bincount(highs, minlength=size + 1)
        refused = np.cumsum(turns[:size]) > 0
        for low, high in unsure:
            for at in np.flatnonzero(~refused[low:high]) + low:
                refused[at] = not self._stay(left, int(self._place[at]))
        allowed = np.zeros(self.merges.size, np.bool_)
        allowed[self._place[~refused]] = True
        return allowed

    def _stay(self, left: int, right: int) -> bool:
        base = self.merges.base
        return self.merges.encode([*base[left], *base[right]])[0] == [left, right]

    def _refused(self, left: int) -> tuple[Ints, Ints, list[tuple[int, int]]]:
        """Stretches that may not follow, and those where equal levels need a closer look."""
        lows, highs, unsure = [], [], []
        at, gone = left, self._beyond
        while True:
            first, end = self._begin[at], self._begin[at + 1]
            known, equal = first + np.searchsorted(self._fires[first:end], [gone, gone + 1])
            lows.append(self._low[first:known])
            highs.append(self._high[first:known])
            doubtful = np.flatnonzero(self._doubt[first:known] > self._high[first:known]) + first
            unsure += [(self._high[entry], self._doubt[entry]) for entry in doubtful]
            tied = np.arange(known, equal)[self._tied[known:equal]]
            unsure += [(self._low[entry], self._doubt[entry]) for entry in tied]
            if self._levels[at] < 0:
                break
            gone, at = self._levels[at], self._halves[at][1]
        return np.concatenate(lows), np.concatenate(highs), unsure

    def _tour(self) -> None:
        """Places in a tour of the forest of left halves, children by falling level."""
        merges = self.merges
        tokens = np.flatnonzero(merges.reachable)
        parent = merges.halves[tokens, 0]
        order = np.lexsort((-merges.level[tokens], parent))
        self._children, self._parents = tokens[order], parent[order]
        first = np.searchsorted(self._parents, np.arange(-1, merges.size + 1))
        self._position = np.full(merges.size, -1, np.int64)
        self._last = np.zeros(merges.size, np.int64)
        place: list[int] = []
        children, bounds = self._children.tolist(), first.tolist()
        stack = children[bounds[0] : bounds[1]][::-1]
        while stack:
            token = stack.pop()
            if token < 0:
                self._last[~token] = len(place)
                continue
            self._position[token] = len(place)
            place.append(token)
            stack.append(~token)
            stack += children[bounds[token + 1] : bounds[token + 2]][::-1]
        self._place = np.array(place, np.int64)

    def _stretches(self) -> None:
        """Of each merge of reachable tokens, by its left one and the level at which it fires:
        the stretch that it refuses, and how far the doubtful part behind it goes.
        """
        merges, beyond = self.merges, self._beyond
        keys = np.fromiter(merges.ranks.keys(), np.int64, len(merges.ranks))
        rank = np.fromiter(merges.ranks.values(), np.int64, len(merges.ranks))
        left, right = keys // merges.size, keys % merges.size
        some = merges.reachable[left] & merges.reachable[right]
        left, right, rank = left[some], right[some], rank[some]
        ready = np.maximum(merges.level[left], merges.level[right])
        fires = np.maximum(ready, rank)
        order = np.lexsort((fires, left))
        left, right, rank = left[order], right[order], rank[order]
        ready, fires = ready[order], fires[order]
        plain = rank > ready  # the merge itself waits for its rank: of equals the left one is first
        sorted_keys = (self._parents + 1) * (beyond + 1) + beyond - merges.level[self._children]
        ask = (right + 1) * (beyond + 1) + beyond - fires
        above = self._stretch_end(right, np.searchsorted(sorted_keys, ask, side="left"))
        equal = self._stretch_end(right, np.searchsorted(sorted_keys, ask, side="right"))
        self._fires = fires
        self._low = self._position[right]
        self._high = np.where(plain, equal, above)
        self._doubt = equal
        self._tied = ~plain
        self._begin = np.searchsorted(left, np.arange(merges.size + 1)).tolist()

    def _stretch_end(self, right: Ints, before: Ints) -> Ints:
        """The end of the stretch of b and its first children, given the place behind the last."""
        last = self._children[np.maximum(before - 1, 0)]
        own = (before > 0) & (self._parents[np.maximum(before - 1, 0)] == right)
        return np.where(own, self._last[last], self._position[right] + 1)
