"""Prompts read together, a chunk at a time, so that a long one holds up nobody for long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from midstream.adapters.sidecar.forwards import Prompt
from midstream.adapters.transformers import TransformersHost

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_TOKENS = 512
"""Read at a time, padding among them."""


class PaddedReading:
    """Prompts on their way into a cache, padded on the left. Equal ones are read once.

    rows: of each prompt, its row of the cache. lengths: of each prompt. logits: [rows, V] after
        the last tokens, once `read` has said that all is read.
    """

    def __init__(self, host: TransformersHost, prompts: Sequence[Prompt]) -> None:
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        self.rows = [distinct[prompt] for prompt in prompts]
        self.lengths = [len(prompt) for prompt in prompts]
        self.cache = DynamicCache(config=host.model.config.get_text_config(decoder=True))
        self.logits: Tensor | None = None
        self._host = host
        self._begin = 0
        self._width = max(self.lengths)
        self._step = max(CHUNK_TOKENS // len(distinct), 1)
        device = host.model.device
        padded = [[0] * (self._width - len(prompt)) + [*prompt] for prompt in distinct]
        self._ids = torch.tensor(padded, device=device)
        lengths = torch.tensor([len(prompt) for prompt in distinct], device=device)
        columns = torch.arange(self._width, device=device)
        self._positions = columns - (self._width - lengths)[:, None]  # negative: padding

    def read(self) -> bool:
        """Read a chunk; whether it was the last."""
        begin, end = self._begin, min(self._begin + self._step, self._width)
        positions = self._positions[:, begin:end].clamp(min=0)
        mask = (self._positions[:, :end] >= 0).long() if len(self._ids) > 1 else None
        ids = self._ids[:, begin:end]
        logits = self._host.forward(ids, mask, positions, self.cache, first=not begin)
        self._begin = end
        if end == self._width:
            self.logits = logits
        return end == self._width


def together(waiting: Sequence[Prompt]) -> int:
    """How many of the first prompts to read at once: as many as one chunk holds, but one."""
    distinct: set[Prompt] = set()
    width = 0
    for count, prompt in enumerate(waiting):
        distinct.add(prompt)
        width = max(width, len(prompt))
        if count and len(distinct) * width > CHUNK_TOKENS:
            return count
    return len(waiting)
