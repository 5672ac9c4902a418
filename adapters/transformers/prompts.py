"""Prompts of a batch, out of the padding of `generate()` and into it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from midstream.middleware.errors import StrategyError


def unpadded(
    input_ids: Tensor,  # [B, L], padded on the left
    model_kwargs: Mapping[str, Any],
) -> list[list[int]]:
    """The prompts without padding. StrategyError for position ids that do not count them from 0."""
    rows: list[list[int]] = input_ids.tolist()
    mask = model_kwargs.get("attention_mask")
    flags = [[1] * len(row) for row in rows] if mask is None else mask.tolist()
    prompts = [
        [token for token, attended in zip(row, kept, strict=True) if attended]
        for row, kept in zip(rows, flags, strict=True)
    ]
    positions = model_kwargs.get("position_ids")
    if positions is not None:
        for kept, given in zip(flags, positions.expand(len(rows), -1).tolist(), strict=True):
            counted = [place for place, attended in zip(given, kept, strict=True) if attended]
            if counted != list(range(len(counted))):
                raise StrategyError("position_ids", counted, "None: positions count from 0")
    return prompts


def padded(prompts: Sequence[Sequence[int]], device: Any) -> dict[str, Tensor]:
    """The arguments of `generate()` for prompts, padded on the left."""
    width = max(map(len, prompts))
    ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
