"""The tokens of a vocabulary as a trie over the classes of bytes that one automaton tells apart.

Tokens that the automaton cannot tell apart share a path, and tokens that it never takes are left
out, so the trie is small where the pattern is loose as well as where it is tight.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from midstream.middleware.constraints.automaton import DEAD, Automaton, ranges
from midstream.middleware.vocabulary import Vocabulary

_PAIRS_PER_LEVEL = 1000
"""What a step in numpy costs whatever its size, in pairs of state and node."""

_PAIRS_PER_NODE = 60
"""What a node costs by itself, in Python, in the same unit."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """Where tokens lead: each token of `node` from number `origin` of the states asked to `state`.

    work: about what it cost, in pairs of state and node.
    """

    origin: Ints
    node: Ints
    state: Ints
    work: int


@dataclass(frozen=True, slots=True, eq=False)
class TokenTrie:
    """Nodes are numbered breadth first, the root is 0, the children of a node are consecutive.

    All [N] but `tokens` and `levels`. column: the class of bytes that leads to a node; parent: of
    the root 0; first_token, token_count: the tokens that end at a node, as a stretch of `tokens`;
    below: the number of nodes below it; levels: the first node of each depth, and N.
    """

    first_child: Ints
    children: Ints
    column: Ints
    parent: Ints
    first_token: Ints
    token_count: Ints
    tokens: Ints
    below: Ints
    levels: list[int]

    def arrivals(self, table: npt.NDArray[np.int32], states: Ints) -> Arrivals:
        """All tokens that survive from each of `states`, level by level."""
        width = table.shape[1]
        flat = table.ravel()
        origin, node, state = np.arange(states.size), np.zeros_like(states), states
        found: list[tuple[Ints, Ints, Ints]] = []
        work = 0
        while node.size:
            count = self.children[node]
            work += _PAIRS_PER_LEVEL + int(count.sum())
            child = ranges(self.first_child[node], count)
            after = flat[np.repeat(state * width, count) + self.column[child]]
            alive = np.flatnonzero(after != DEAD)
            origin = np.repeat(origin, count)[alive]
            node, state = child[alive], after[alive].astype(np.int64)
            ends = np.flatnonzero(self.token_count[node])
            found.append((origin[ends], node[ends], state[ends]))
        origin, node, state = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return Arrivals(origin, node, state, work)

    def arrivals_from(self, table: npt.NDArray[np.int32], state: int) -> tuple[Ints, Ints]:
        """The nodes whose tokens survive from one state, and the states that they lead to.

        Few nodes are walked one by one, many are swept together with those that died above.
        """
        first = slice(1, 1 + int(self.children[0]))
        alive = table[state, self.column[first]] != DEAD
        survivors = int(((1 + self.below[first]) * alive).sum())
        sweep = _PAIRS_PER_LEVEL // 2 * len(self.levels) + self.parent.size
        if survivors * _PAIRS_PER_NODE < sweep:
            return self._walk(table, state)
        flat, width = table.ravel(), table.shape[1]
        states = np.empty(self.parent.size, np.int64)
        states[0] = state
        for begin, end in pairwise(self.levels[1:]):
            before = states[self.parent[begin:end]]
            states[begin:end] = flat[before * width + self.column[begin:end]]
        nodes = np.flatnonzero((states != DEAD) & (self.token_count > 0))
        return nodes, states[nodes]

    def _walk(self, table: npt.NDArray[np.int32], state: int) -> tuple[Ints, Ints]:
        flat, width = table.ravel().data, table.shape[1]
        first, children, column = self.first_child.data, self.children.data, self.column.data
        token_count = self.token_count.data
        nodes, states = array("q"), array("q")
        stack = [(0, state)]
        while stack:
            parent, before = stack.pop()
            for child in range(first[parent], first[parent] + children[parent]):
                after = flat[before * width + column[child]]
                if after != DEAD:
                    stack.append((child, after))
                    if token_count[child]:
                        nodes.append(child)
                        states.append(after)
        return np.array(nodes, np.int64), np.array(states, np.int64)

    def tokens_of(self, nodes: Ints) -> Ints:
        """The tokens that end at any of `nodes`."""
        return self.tokens[ranges(self.first_token[nodes], self.token_count[nodes])]


@dataclass(frozen=True, slots=True, eq=False)
class _Spelling:
    text: npt.NDArray[np.uint8]
    begin: Ints  # [V]
    length: Ints  # [V]


@lru_cache(maxsize=4)
def _spelling(vocabulary: Vocabulary) -> _Spelling:
    length = np.fromiter(map(len, vocabulary.token_bytes), np.int64, len(vocabulary))
    text = np.frombuffer(b"".join(vocabulary.token_bytes), np.uint8)
    return _Spelling(text, np.cumsum(length) - length, length)


def token_trie(vocabulary: Vocabulary, automaton: Automaton) -> TokenTrie:
    """The trie of the tokens that `automaton` may take from some state."""
    spelling, width = _spelling(vocabulary), automaton.table.shape[1]
    columns = automaton.classes[spelling.text].astype(np.int64)
    dead_before = np.concatenate([[0], np.cumsum(columns == DEAD)])
    dead = dead_before[spelling.begin + spelling.length] - dead_before[spelling.begin]
    tokens = np.flatnonzero((dead == 0) & (spelling.length > 0))
    levels, end = _grown(columns, spelling.begin[tokens], spelling.length[tokens], width)
    parent = np.concatenate([level.parent for level in levels])
    starts = np.cumsum([0, *(level.parent.size for level in levels)]).tolist()
    children = np.bincount(parent[1:], minlength=parent.size)
    token_count = np.bincount(end, minlength=parent.size)
    return TokenTrie(
        first_child=1 + np.cumsum(children) - children,
        children=children,
        column=np.concatenate([level.column for level in levels]),
        parent=parent,
        first_token=np.cumsum(token_count) - token_count,
        token_count=token_count,
        tokens=tokens[np.argsort(end, kind="stable")],
        below=_below(parent, starts),
        levels=starts,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """The nodes of one depth, in order."""

    parent: Ints
    column: Ints


def _grown(columns: Ints, begin: Ints, length: Ints, width: int) -> tuple[list[_Level], Ints]:
    """The levels of the trie of some stretches of `columns`, and the node that each ends at."""
    end = np.zeros(begin.size, np.int64)
    active, node = np.arange(begin.size), np.zeros(begin.size, np.int64)
    levels, size, depth = [_Level(np.zeros(1, np.int64), np.zeros(1, np.int64))], 1, 0
    while active.size:
        above = levels[-1].parent.size
        key = (node - (size - above)) * width + columns[begin[active] + depth]
        present = np.zeros(above * width, np.bool_)
        present[key] = True
        distinct = np.flatnonzero(present)
        node = size + np.searchsorted(distinct, key)
        levels.append(_Level(size - above + distinct // width, distinct % width))
        size += distinct.size
        depth += 1
        end[active] = node
        longer = length[active] > depth
        active, node = active[longer], node[longer]
    return levels, end


def _below(parent: Ints, starts: list[int]) -> Ints:
    below = np.zeros_like(parent)
    for begin, end in reversed(list(pairwise(starts[1:]))):
        np.add.at(below, parent[begin:end], 1 + below[begin:end])
    return below
