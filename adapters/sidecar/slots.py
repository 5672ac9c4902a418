"""Keys and values of many rows, a slot each, in one rectangle of memory for each layer of a model.

Row i of a forward pass is slot i. A row's tokens lie in the first columns of its slot, one after
another; columns beyond are zero, so that a pass over rows of unequal length reads nothing of a row
that left, not even through a weight of zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

if TYPE_CHECKING:
    from torch import Tensor

ROW_STEP = 8
COLUMN_STEP = 32
"""Memory grows by whole steps, and by a quarter more than is needed."""


class Window:
    """What a forward pass sees: the first `rows` slots and `columns` columns.

    ends: int64 [rows], the column that each row's next token is written to.
    """

    __slots__ = ("columns", "ends", "index", "rows")

    def __init__(self) -> None:
        self.rows = self.columns = 0
        self.ends = self.index = torch.empty(0, dtype=torch.long)

    def move(self, ends: Tensor, columns: int) -> None:
        """Look at other rows."""
        if self.rows != len(ends) or self.index.device != ends.device:
            self.index = torch.arange(len(ends), device=ends.device)
        self.rows, self.columns, self.ends = len(ends), columns, ends


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values: [slots, H, columns, D]."""

    is_sliding = False

    def __init__(self, window: Window, like: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window = window
        self.keys = like.keys.new_zeros(0, like.keys.shape[1], 0, like.keys.shape[3])
        self.values = like.values.new_zeros(0, like.values.shape[1], 0, like.values.shape[3])
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: it is made from a layer that has been initialized."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token of each row, [R, H, 1, D]; what the rows attend to, [R, H, L, D]."""
        seen = self.window
        assert self.keys is not None and self.values is not None
        self.keys[seen.index, :, seen.ends] = key_states[:, :, 0]
        self.values[seen.index, :, seen.ends] = value_states[:, :, 0]
        keys = self.keys[: seen.rows, :, : seen.columns]
        return keys, self.values[: seen.rows, :, : seen.columns]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All columns of the window; the attention mask says which of them are a row's own."""
        return self.window.columns, 0

    def get_seq_length(self) -> int:
        """The tokens before the longest row's next one."""
        return self.window.columns - 1

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class Slots:
    """The slots of all layers.

    rows, columns: how many there is memory for.
    """

    def __init__(self) -> None:
        self.window = Window()
        self.rows = self.columns = 0
        self._layers: list[Any] = []  # of SlotLayer, whose tensors are there

    @property
    def bytes(self) -> int:
        """What the slots take."""
        return sum(each.numel() * each.element_size() for each in self._tensors())

    def cache(self) -> Cache:
        """What a forward pass over the window reads and writes, one token a row."""
        return Cache(layers=self._layers)

    def fit(self, rows: int, columns: int, like: Any = None) -> None:
        """Have room for so many, and not much more. No rows: nothing is kept.

        like: the DynamicCache that the first rows are put from.
        """
        if not rows:
            self._layers, self.rows, self.columns = [], 0, 0
            return
        if not self._layers:
            self._layers = [SlotLayer(self.window, layer) for layer in like.layers]
        wanted = _room(self.rows, rows, ROW_STEP), _room(self.columns, columns, COLUMN_STEP)
        if wanted == (self.rows, self.columns):
            return
        kept = min(self.rows, wanted[0]), min(self.columns, wanted[1])
        for layer in self._layers:  # one after another, so that little exists twice
            layer.keys = _resized(layer.keys, wanted, kept)
            layer.values = _resized(layer.values, wanted, kept)
        self.rows, self.columns = wanted

    def put(self, slots: Sequence[int], source: Any, rows: Sequence[int], n: int) -> None:
        """Copy the last n tokens of some rows of a DynamicCache into empty slots."""
        device = source.layers[0].keys.device
        to, of = torch.tensor(slots, device=device), torch.tensor(rows, device=device)
        for layer, read in zip(self._layers, source.layers, strict=True):
            layer.keys[to, :, :n] = read.keys[of, :, -n:]
            layer.values[to, :, :n] = read.values[of, :, -n:]

    def rearrange(self, sources: Sequence[int], before: int, columns: int) -> None:
        """Slot i takes what slot sources[i] holds, all at once.

        before: slots that were in use; those that no longer are become zero.
        columns: no row is longer.
        """
        moved = [i for i, source in enumerate(sources) if source != i]
        if moved:
            device = self._layers[0].keys.device
            to = torch.tensor(moved, device=device)
            of = torch.tensor([sources[i] for i in moved], device=device)
            for each in self._tensors():
                each[to, :, :columns] = each[of, :, :columns]
        if before > len(sources):
            for each in self._tensors():
                each[len(sources) : before, :, :columns] = 0

    def _tensors(self) -> list[Any]:
        return [each for layer in self._layers for each in (layer.keys, layer.values)]


def _room(have: int, need: int, step: int) -> int:
    """What to have where so much is needed: unchanged while it is neither too little nor a lot."""
    if need <= have <= max(4 * need, step):
        return have
    return -(-max(need + need // 4, 1) // step) * step


def _resized(tensor: Any, wanted: tuple[int, int], kept: tuple[int, int]) -> Tensor:
    rows, columns = kept
    resized: Tensor = tensor.new_zeros(wanted[0], tensor.shape[1], wanted[1], tensor.shape[3])
    resized[:rows, :, :columns] = tensor[:rows, :, :columns]
    return resized
