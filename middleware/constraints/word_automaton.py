"""The smallest automaton of a list of words."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

from midstream.middleware.constraints.automaton import DEAD, Automaton

MAX_ENTRIES = 1 << 25
"""States times distinct bytes: a table of 128 MB."""


class TooManyWordsError(Exception):
    """The automaton would exceed the bound."""


def word_automaton(words: Iterable[bytes]) -> Automaton:
    """The automaton of the words, at least one. Raises TooManyWordsError.

    Incremental construction from sorted words (Daciuk et al. 2000, algorithm 1): a node of the trie
    that can get no more children is replaced by an equal one that is already there, so that only
    one path is ever kept in full.
    """
    ordered = sorted(set(words))
    columns = np.zeros(256, np.int16)
    used = sorted(set().union(*ordered))
    columns[used] = np.arange(1, len(used) + 1)
    graph = _Graph(MAX_ENTRIES // (len(used) + 1))
    path = [_Node()]
    before = b""
    for word in ordered:
        common = next(
            (i for i, (a, b) in enumerate(zip(before, word, strict=False)) if a != b), len(before)
        )
        graph.close(path, before, common)
        path += [_Node() for _ in word[common:]]
        path[-1].accepting = True
        before = word
    graph.close(path, before, 0)
    graph.number(path[0])
    return graph.automaton(columns)


class _Node:
    """A node of the trie that may still get children."""

    __slots__ = ("accepting", "children")

    def __init__(self) -> None:
        self.accepting = False
        self.children: list[tuple[int, int]] = []  # (byte, number of a closed node)


class _Graph:
    """The closed nodes, numbered in the order of closing; the root is the last."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.numbers: dict[tuple[bool, tuple[tuple[int, int], ...]], int] = {}

    def number(self, node: _Node) -> int:
        key = (node.accepting, tuple(node.children))
        if len(self.numbers) >= self.most:
            raise TooManyWordsError
        return self.numbers.setdefault(key, len(self.numbers))

    def close(self, path: list[_Node], word: bytes, depth: int) -> None:
        """Close the nodes of `path`, which spells `word`, below `depth`."""
        while len(path) > depth + 1:
            node = path.pop()
            path[-1].children.append((word[len(path) - 1], self.number(node)))

    def automaton(self, columns: np.ndarray[tuple[int], np.dtype[np.int16]]) -> Automaton:
        """The root becomes state 1, as the order of closing is reversed."""
        size = len(self.numbers)
        sources, letters, targets = array("i"), array("i"), array("i")
        accepting = np.zeros(size + 1, np.bool_)
        for (accepts, children), number in self.numbers.items():
            accepting[size - number] = accepts
            for byte, target in children:
                sources.append(size - number)
                letters.append(byte)
                targets.append(size - target)
        table = np.full((size + 1, int(columns.max()) + 1), DEAD, np.int32)
        table[np.asarray(sources), columns[np.asarray(letters, np.intp)]] = targets
        return Automaton(table, columns, accepting)
