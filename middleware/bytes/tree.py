"""What byte laws need of a model: the laws of the next token after token strings that share their
beginnings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from midstream.middleware.errors import InputError
from midstream.middleware.host import Host, logits_on_host
from midstream.middleware.vocabulary import Vocabulary


class Tree(Protocol):
    """Token strings as nodes of trees, one tree a prompt. A node's number never changes."""

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> Any:
        """New nodes, numbered on from the last one: node parents[i] and then tokens[i].

        Parents may be new nodes of the same call, of lower number. One forward. Returns logits
        [n, V] of what follows each, numpy or torch, at least float32.
        """

    def keep(self, nodes: Sequence[int]) -> None:
        """No other node will be a parent again; what is no ancestor of these may be forgotten."""


@runtime_checkable
class TreeHost(Protocol):
    """Whatever owns a model and reads trees of tokens."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary."""

    def tree(self, prompts: Sequence[Sequence[int]]) -> tuple[Tree, Any]:
        """A tree whose nodes 0 to R - 1 are the ends of the prompts, and their logits [R, V]."""


class RowsTree:
    """A `Tree` of any host, by reading whole token strings again. Correct, and slow.

    prompts: the fixed ids before each text, as the host takes them.
    """

    def __init__(self, host: Host, prompts: Sequence[Sequence[int]]) -> None:
        self._host = host
        self._strings: dict[int, tuple[int, ...]] = dict(enumerate(map(tuple, prompts)))
        self._size = len(prompts)

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> Any:
        """See `Tree.extend`."""
        first = self._size
        for parent, token in zip(parents, tokens, strict=True):
            if parent not in self._strings:
                raise InputError("parents", parent, "nodes that were kept")
            self._strings[self._size] = (*self._strings[parent], int(token))
            self._size += 1
        return self._host.start([self._strings[n] for n in range(first, self._size)]).logits

    def keep(self, nodes: Sequence[int]) -> None:
        """See `Tree.keep`."""
        kept = set(nodes)
        self._strings = {node: ids for node, ids in self._strings.items() if node in kept}


def grow(host: Host | TreeHost, prompts: Sequence[Sequence[int]]) -> tuple[Tree, Any]:
    """The host's own tree, or a `RowsTree` where it has none."""
    tree: Tree
    if isinstance(host, TreeHost):
        tree, logits = host.tree(prompts)
    else:
        tree, logits = RowsTree(host, prompts), host.start(prompts).logits
    return tree, np.asarray(logits_on_host(logits))
