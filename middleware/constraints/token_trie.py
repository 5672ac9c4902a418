"""The tokens of a vocabulary as a trie over the classes of bytes that one automaton tells apart.

Tokens that the automaton cannot tell apart share a path, and tokens that it never takes are left
out, so the trie is small where the pattern is loose as well as where it is tight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from midstream.middleware.constraints.automaton import DEAD, Automaton, ranges
from midstream.middleware.vocabulary import Vocabulary

_NODES_PER_LEVEL = 40
"""One level of a walk in numpy costs about as much as this many nodes one by one."""

_PAIRS_PER_LEVEL = 1000
"""The price of a level, however few its pairs."""

_PAIRS_PER_NODE = _PAIRS_PER_LEVEL // _NODES_PER_LEVEL
"""The price of a node by itself."""

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

    All [N] but `tokens`. column: the class of bytes that leads to a node; first_token, token_count:
    the tokens that end at a node, as a stretch of `tokens`; below: the number of nodes below it;
    height: the length of its longest path.
    """

    first_child: Ints
    children: Ints
    column: Ints
    first_token: Ints
    token_count: Ints
    tokens: Ints
    below: Ints
    height: Ints

    def arrivals(self, table: npt.NDArray[np.int32], states: Ints) -> Arrivals:
        """All tokens that survive from each of `states`."""
        width = table.shape[1]
        flat = table.ravel()
        origin, node, state = np.arange(states.size), np.zeros_like(states), states
        found: list[tuple[Ints, Ints, Ints]] = []
        work = 0
        while node.size:
            below = int(self.below[node].sum())
            if below <= _NODES_PER_LEVEL * int(self.height[node].max()):
                work += _PAIRS_PER_LEVEL + _PAIRS_PER_NODE * below
                found.append(self._walk(flat.data, width, origin, node, state))
                break
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

    def _walk(
        self, flat: memoryview, width: int, origin: Ints, node: Ints, state: Ints
    ) -> tuple[Ints, Ints, Ints]:
        """The rest of `arrivals`, node by node: long thin tails cost less than by levels."""
        first, children, column = self.first_child.data, self.children.data, self.column.data
        token_count = self.token_count.data
        found: list[tuple[int, int, int]] = []
        stack = list(zip(origin.tolist(), node.tolist(), state.tolist(), strict=True))
        while stack:
            source, parent, before = stack.pop()
            for child in range(first[parent], first[parent] + children[parent]):
                after = flat[before * width + column[child]]
                if after != DEAD:
                    stack.append((source, child, after))
                    if token_count[child]:
                        found.append((source, child, after))
        ends = np.array(found, np.int64).reshape(-1, 3)
        return ends[:, 0], ends[:, 1], ends[:, 2]

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
    begin, length = spelling.begin[tokens], spelling.length[tokens]
    end = np.zeros(tokens.size, np.int64)  # the node that each token ends at
    active, node = np.arange(tokens.size), np.zeros(tokens.size, np.int64)
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
    children, below, height = _shape(levels, size)
    token_count = np.bincount(end, minlength=size)
    return TokenTrie(
        first_child=1 + np.cumsum(children) - children,
        children=children,
        column=np.concatenate([level.column for level in levels]),
        first_token=np.cumsum(token_count) - token_count,
        token_count=token_count,
        tokens=tokens[np.argsort(end, kind="stable")],
        below=below,
        height=height,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """The nodes of one depth, in order."""

    parent: Ints
    column: Ints


def _shape(levels: list[_Level], size: int) -> tuple[Ints, Ints, Ints]:
    """children, below and height [N] of a trie. (The root is its own parent, and counted apart.)"""
    children, below, height = (np.zeros(size, np.int64) for _ in range(3))
    end = size
    for level in reversed(levels[1:]):
        nodes = slice(end - level.parent.size, end)
        np.add.at(children, level.parent, 1)
        np.add.at(below, level.parent, 1 + below[nodes])
        np.maximum.at(height, level.parent, 1 + height[nodes])
        end = nodes.start
    return children, below, height
