"""The prompts that healing has read: their keys and values, for what goes on from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from midstream.adapters.transformers.host import TransformersHost, TransformersRows
from midstream.middleware.bytes.healing import Healed
from midstream.middleware.bytes.tree import Tree
from midstream.middleware.vocabulary import Vocabulary

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class _Trunk:
    """Prompts, and of each layer the keys and values [P, H, L, D], padded on the left."""

    prompts: tuple[tuple[int, ...], ...]
    layers: tuple[tuple[Tensor, Tensor], ...]


class TrunkHost:
    """A host that keeps what it read of the latest prompts, under the trees that grow from them.

    Keys and values are kept of caches that hold all positions of every layer, of no other.
    """

    def __init__(self, host: TransformersHost) -> None:
        self._host = host
        self._trunk: _Trunk | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary."""
        return self._host.vocabulary

    @property
    def context_length(self) -> int | None:
        """How many tokens the model takes; None where its configuration does not say."""
        return self._host.context_length

    def start(self, prompts: Sequence[Ids]) -> TransformersRows:
        """See `TransformersHost.start`. Nothing is kept of these."""
        return self._host.start(prompts)

    def tree(self, prompts: Sequence[Ids]) -> tuple[Tree, Tensor]:
        """See `TransformersHost.tree`."""
        rows = self._host.start(prompts)
        cache = rows.read_cache()
        if all(type(layer) is DynamicLayer and layer.is_initialized for layer in cache.layers):
            # A cache makes new tensors when it grows, so that these stay as they are.
            layers = tuple((layer.keys, layer.values) for layer in cache.layers)
            self._trunk = _Trunk(tuple(map(tuple, prompts)), layers)
        return self._host.tree_behind(rows, prompts)

    def take_cache(self, healed: Sequence[Healed]) -> DynamicCache | None:
        """A cache of the first ids of healed prompts, for all of them padded on the left to one
        width, so that equally many ids of each are left to be read, at least one. None where none
        is known.

        What was kept is given away: a second call has nothing.
        """
        trunk, self._trunk = self._trunk, None
        if trunk is None:
            return None
        rows, known = _known(trunk, healed)
        lengths = [len(each.token_ids) for each in healed]
        fresh = max(1, *(n - k for n, k in zip(lengths, known, strict=True)))
        kept = [max(length - fresh, 0) for length in lengths]
        width = max(kept)
        if not width:
            return None
        offsets = []
        for row, count in zip(rows, kept, strict=True):
            pad = trunk.layers[0][0].shape[2] - len(trunk.prompts[row])
            offsets.append(pad - (width - count))
        columns = torch.arange(width) + torch.tensor(offsets)[:, None]
        index = torch.tensor(rows)[:, None], columns.clamp(min=0)  # what pads is any column
        cache = DynamicCache(config=self._host.model.config.get_text_config(decoder=True))
        for layer, (keys, values) in enumerate(trunk.layers):
            cache.update(_moved(keys, *index), _moved(values, *index), layer)
        return cache


def _known(trunk: _Trunk, healed: Sequence[Healed]) -> tuple[list[int], list[int]]:
    """Of each healed prompt its row of the trunk, and how many of its ids are there."""
    rows, known, following = [], [], 0
    for each in healed:
        if each.method in ("off", "whole"):  # was not read
            rows.append(0)
            known.append(0)
            continue
        rows.append(following)
        known.append(_shared(trunk.prompts[following], each.token_ids))
        following += 1
    return rows, known


def _shared(first: Ids, second: Ids) -> int:
    """How many ids two strings begin with alike: those of a dead draw may be others."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count


def _moved(
    states: Tensor,  # [P, H, L, D]
    rows: Tensor,  # [R, 1]
    columns: Tensor,  # [R, W]
) -> Tensor:  # [R, H, W, D]
    device: Any = states.device
    return states.transpose(1, 2)[rows.to(device), columns.to(device)].transpose(1, 2)
