"""A host under a law of its own: its rows as temperature, truncation or processors make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.middleware.bytes.context import room_behind
from midstream.middleware.bytes.tree import Tree, grow
from midstream.middleware.host import Host, Rows, logits_on_host
from midstream.middleware.law import Law
from midstream.middleware.vocabulary import Vocabulary

Logits = npt.NDArray[Any]

RowsOf = Callable[[Sequence[Sequence[int]], Logits], Logits]
"""From the ids before each row and the model's logits [n, V] to those of the target."""


def truncated(law: Law, before: RowsOf | None = None) -> RowsOf:
    """The rows of a law that truncates, at temperature 1: log p, -inf where it is 0.

    before: what comes first, processors for instance.
    """

    def rows(ids: Sequence[Sequence[int]], logits: Logits) -> Logits:
        logits = logits if before is None else before(ids, logits)
        with np.errstate(divide="ignore"):
            return np.stack([np.log(law.read(row, None).law()) for row in logits])

    return rows


class LawfulHost:
    """A host whose trees have the rows that a function makes of the model's."""

    def __init__(self, host: Host, rows_of: RowsOf) -> None:
        self._host = host
        self._rows_of = rows_of

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary."""
        return self._host.vocabulary

    @property
    def context_length(self) -> int | None:
        """How many tokens the model takes; None where the host does not say."""
        return room_behind(self._host, 0)

    def start(self, prompts: Sequence[Sequence[int]]) -> Rows:
        """The host's own rows."""
        return self._host.start(prompts)

    def tree(self, prompts: Sequence[Sequence[int]]) -> tuple[Tree, Any]:
        """See `TreeHost.tree`."""
        tree, logits = grow(self._host, prompts)
        return _LawfulTree(tree, prompts, self._rows_of), self._rows_of(prompts, logits)


class _LawfulTree:
    def __init__(self, tree: Tree, prompts: Sequence[Sequence[int]], rows_of: RowsOf) -> None:
        self._tree = tree
        self._rows_of = rows_of
        self._ids = [tuple(prompt) for prompt in prompts]

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> Logits:
        """See `Tree.extend`."""
        first = len(self._ids)
        for parent, token in zip(parents, tokens, strict=True):
            self._ids.append((*self._ids[parent], token))
        logits = logits_on_host(self._tree.extend(parents, tokens))
        return self._rows_of(self._ids[first:], logits)

    def keep(self, nodes: Sequence[int]) -> None:
        """See `Tree.keep`."""
        self._tree.keep(nodes)
