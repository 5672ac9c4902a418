"""Trees of tokens on a transformers model: each token is read once, a step is one forward.

The keys and values of all nodes stand in one cache in the order of their reading, a row for each
prompt. What a node attends to is said by a mask, its depth by its position.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from midstream.middleware.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from midstream.adapters.transformers.host import TransformersHost

Flags = npt.NDArray[np.bool_]


def reads_trees(host: TransformersHost) -> bool:
    """Whether the model takes a mask of ancestors and positions, over a cache that keeps all."""
    config = host.model.config.get_text_config(decoder=True)
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    return (
        host.static is None
        and host.model.config._attn_implementation in ("eager", "sdpa")
        and "position_ids" in inspect.signature(host.model.forward).parameters
        and set(layers) == {"full_attention"}
        and getattr(config, "sliding_window", None) is None
        and not getattr(config, "alibi", False)
    )


@dataclass(slots=True)
class _Node:
    """One token string: the row of its prompt, its length, and the columns it attends to."""

    row: int
    depth: int
    sees: Flags  # as long as the cache was when it was read, itself the last True


class TransformersTree:
    """A `Tree` over the prompts of a batch, on one append-only cache.

    What was forgotten stays in the cache until it is more than what is live, and then leaves it.
    Raises InputError for a prompt, or a token string, longer than the model takes, for parents that
    were forgotten, and for ids that are not the model's.
    """

    def __init__(self, host: TransformersHost, cache: Any, lengths: Sequence[int]) -> None:
        """cache: of prompts of these lengths, padded on the left."""
        width = max(lengths)
        self._host = host
        self._cache = cache
        self._columns = width
        self._count = len(lengths)
        self._size = len(lengths)
        self._nodes: dict[int, _Node] = {}
        for i, length in enumerate(lengths):
            sees = np.zeros(width, np.bool_)
            sees[width - length :] = True
            self._nodes[i] = _Node(i, length, sees)

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """See `Tree.extend`: logits [n, V] on the model's device."""
        model, first = self._host.model, self._size
        places, width = self._append(parents, tokens)
        columns = self._columns
        ids = np.zeros((self._count, width), np.int64)
        positions = np.zeros((self._count, width), np.int64)
        sees = np.zeros((self._count, 1, width, columns), np.bool_)
        # What pads a row attends to itself: a row of a mask without any column gives NaN.
        sees[:, 0, range(width), range(columns - width, columns)] = True
        for i, (row, at) in enumerate(places):
            node = self._nodes[first + i]
            ids[row, at], positions[row, at] = tokens[i], node.depth - 1
            sees[row, 0, at, : node.sees.size] = node.sees
        device = model.device
        hidden = torch.from_numpy(~sees).to(device)
        mask = torch.zeros(hidden.shape, dtype=model.dtype, device=device)
        mask.masked_fill_(hidden, torch.finfo(model.dtype).min)
        self._host.forwarded_tokens += ids.size
        with torch.inference_mode():
            logits: Tensor = model(
                input_ids=torch.from_numpy(ids).to(device),
                attention_mask=mask,
                position_ids=torch.from_numpy(positions).to(device),
                past_key_values=self._cache,
                use_cache=True,
                return_dict=True,
            ).logits
        if self._count == 1:
            found = logits[0]
        else:
            index = torch.tensor(places, device=device)
            found = logits[index[:, 0], index[:, 1]]
        return found if found.dtype.itemsize >= 4 else found.float()

    def keep(self, nodes: Sequence[int]) -> None:
        """See `Tree.keep`."""
        self._nodes = {node: self._nodes[node] for node in nodes if node in self._nodes}
        live = np.zeros((self._count, self._columns), np.bool_)
        for node in self._nodes.values():
            live[node.row, : node.sees.size] |= node.sees
        columns = int(live.sum(axis=1).max())
        if 2 * columns < self._columns and columns:
            self._compact(live, columns)

    def _append(
        self, parents: Sequence[int], tokens: Sequence[int]
    ) -> tuple[list[tuple[int, int]], int]:
        """Make nodes: of each the row and its place among the row's new ones, and how many these
        are at most.
        """
        host, before = self._host, self._columns
        taken = [0] * self._count
        places: list[tuple[int, int]] = []
        for parent, token in zip(parents, tokens, strict=True):
            above = self._nodes.get(parent)
            if above is None:
                raise InputError("parents", parent, "nodes that were kept")
            if not 0 <= token < host.row_size:
                raise InputError("tokens", token, f"ids from 0 to {host.row_size - 1}")
            at = before + taken[above.row]
            sees = np.zeros(at + 1, np.bool_)
            sees[: above.sees.size] = above.sees
            sees[at] = True
            places.append((above.row, taken[above.row]))
            taken[above.row] += 1
            self._nodes[self._size] = _Node(above.row, above.depth + 1, sees)
            self._size += 1
        host.check_length(max(self._nodes[self._size - 1 - i].depth for i in range(len(places))))
        self._columns += max(taken)
        return places, max(taken)

    def _compact(self, live: Flags, columns: int) -> None:
        """Take the columns out of the cache that no row's live nodes attend to."""
        index = np.zeros((self._count, columns), np.int64)
        for row in range(self._count):
            found = np.flatnonzero(live[row])
            index[row, : found.size] = found
        where = torch.from_numpy(index).to(self._host.model.device)[:, None, :, None]
        for layer in self._cache.layers:
            shape = (-1, layer.keys.shape[1], -1, layer.keys.shape[3])
            layer.keys = layer.keys.gather(2, where.expand(shape))
            shape = (-1, layer.values.shape[1], -1, layer.values.shape[3])
            layer.values = layer.values.gather(2, where.expand(shape))
        for node in self._nodes.values():
            kept = live[node.row, : node.sees.size]
            node.sees = node.sees[kept]
        self._columns = columns
