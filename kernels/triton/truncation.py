"""Top-k, top-p and min-p of rows of logits: thresholds, and block masses of what they keep.

Oracle: `midstream.kernels.truncation.truncation_edge`.

Four kernels, of which each after the first reads the logits of some blocks, once:

1. `truncation_bounds` bounds the cut from below by the partials of `block_stats` alone: the k-th
   largest block maximum, the edge of min-p, and the level below which all tokens together hold
   less than top-p may take away. One program a row.
2. `truncation_candidates` reads the blocks whose maximum reaches the bound, and brings together the
   ids of the tokens that do. One program a block.
3. `truncation_search` finds the exact cut among those, three bits a round of the order of fp32
   numbers: at most 11 rounds for top-k and 11 for top-p (6 each of bf16), and of top-p up to 6 for
   the ids of ties. Masses are integers, whose sums are the same in any order. One program a row.
4. `truncation_partials` reads the blocks that keep a token, and sums them again. One program a
   block.

min-p alone needs the first and the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton

from midstream.kernels.backend import is_tensor
from midstream.kernels.blocks import BLOCK
from midstream.kernels.filters import Filters
from midstream.kernels.triton.launch import FP_FUSION, Temperature, Tensor, on_device_of
from midstream.kernels.triton.truncation_bounds import _bounds
from midstream.kernels.triton.truncation_candidates import CHUNKS, _candidates
from midstream.kernels.triton.truncation_partials import _partials
from midstream.kernels.triton.truncation_search import TILE, _search

_LOG2E = 1.4426950408889634
_GRAIN = {torch.bfloat16: 16, torch.float16: 13, torch.float32: 0}
"""Last bits of fp32 that are 0 in every logit of a type: fewer digits to search."""


@dataclass(frozen=True, slots=True)
class Truncated:
    """What truncation keeps of each row: logits above `threshold`, and of those equal to it ids up
    to `tie`; fp32 and int32 [R]. -inf where nothing is cut, NaN where a filter is out of range.

    partials: fp32 [R, 5, NB], of 'target' the sums s, so and t of what is kept, of 'after_mask' so
    alone. Maxima stay as they are: where a sum is not 0, its maximum is kept.
    """

    threshold: Tensor
    tie: Tensor
    partials: Tensor


def truncate(
    logits: Tensor,  # bf16, fp16 or fp32 [R, V]
    mask: Tensor | None,  # int32 [R, W]
    partials: Tensor,  # fp32 [R, 5, NB] of `block_stats`
    temperature: Temperature,
    filters: Filters,
) -> Truncated:
    """Cut each row by its top-k, then top-p, then min-p; rows at T = 0 are not cut.

    'target': what is kept is found on the whole row; 'after_mask': among the allowed. Ties as the
    oracle has them. The edge of top-k is exact, that of min-p to rounding of fp64, and that of
    top-p where no tail of the row comes within 1e-6 of its share, 1 - top_p, of the mass. Scratch:
    4 bytes a token where top-k or top-p may act. What goes in is checked by the callers.
    """
    rows, blocks = partials.shape[0], partials.shape[2]
    threshold = torch.empty(rows, dtype=torch.float32, device=logits.device)
    tie = torch.empty(rows, dtype=torch.int32, device=logits.device)
    result = torch.empty_like(partials)
    if rows == 0:
        return Truncated(threshold, tie, result)
    after_mask = filters.truncation == "after_mask"
    of_logits = logits, logits.stride(0), logits.shape[1]
    scale = temperature.of_row, _LOG2E * (temperature.inverse or 1.0)
    with on_device_of(logits):
        if after_mask:
            law = of_logits, _mask(mask), partials[:, 2:]  # mo and so
        else:
            law = of_logits, _mask(None), partials
        _cut(*law, temperature, scale, filters, threshold, tie)
        _partials[(rows, blocks)](
            *of_logits, *_mask(mask), *scale, threshold, tie, partials, result,
            after_mask=after_mask, block_size=BLOCK, num_warps=4, enable_fp_fusion=FP_FUSION,
        )  # fmt: skip
    return Truncated(threshold, tie, result)


def _cut(
    of_logits: tuple[Tensor, int, int],
    of_mask: tuple[Tensor | None, int, int],
    partials: Tensor,
    temperature: Temperature,
    scale: tuple[Tensor | None, float],
    filters: Filters,
    threshold: Tensor,
    tie: Tensor,
) -> None:
    """Write the threshold and the tie of each row of what a mask allows and partials tell of."""
    logits, (rows, _, blocks) = of_logits[0], partials.shape
    inverse = temperature.of_row, temperature.inverse
    top_k = _filter(filters.top_k, int, logits)
    top_p, min_p = (_filter(each, float, logits) for each in (filters.top_p, filters.min_p))
    low = torch.empty(rows, dtype=torch.float32, device=logits.device)
    spare = torch.empty(rows, dtype=torch.float64, device=logits.device)
    plan = torch.empty((2, rows), dtype=torch.int32, device=logits.device)
    padded = triton.next_power_of_2(blocks)
    _bounds[(rows,)](
        partials, blocks, *inverse, *top_k, *top_p, *min_p, low, spare, plan, threshold, tie,
        block_size=BLOCK, padded=padded, num_warps=4, enable_fp_fusion=FP_FUSION,
    )  # fmt: skip
    if top_k[0] is None and top_k[1] == 0 and top_p[0] is None and top_p[1] == 1:
        return  # min-p alone
    ids = torch.empty(logits.shape, dtype=torch.int32, device=logits.device)
    rest = torch.empty((rows, blocks), dtype=torch.float32, device=logits.device)
    _candidates[(rows, blocks)](
        *of_logits, *of_mask, *scale, partials, low, plan, ids, rest,
        block_size=BLOCK, chunks=CHUNKS, num_warps=4, enable_fp_fusion=FP_FUSION,
    )  # fmt: skip
    _search[(rows,)](
        *of_logits, *inverse, partials, blocks, low, spare, plan, ids, rest, threshold, tie,
        padded=padded, grain=_GRAIN[logits.dtype], tile=TILE,
        num_warps=8, enable_fp_fusion=FP_FUSION,
    )  # fmt: skip


def _mask(mask: Tensor | None) -> tuple[Tensor | None, int, int]:
    """The mask, its stride and its words."""
    return (None, 0, 0) if mask is None else (mask, mask.stride(0), mask.shape[1])


def _filter(
    value: Any, kind: type[int] | type[float], logits: Tensor
) -> tuple[Tensor | None, int | float]:
    """One of: a value for each row where the logits are, one number for all of them."""
    if not is_tensor(value):
        value = np.asarray(value)
        if value.ndim == 0:
            return None, kind(value)
        value = torch.from_numpy(value.copy())
    return value.to(logits.device).expand(logits.shape[0]).contiguous(), kind(0)
