"""The tokens among which truncation of a row cuts, brought together: the second read of the logits,
of blocks alone that can hold such tokens.

Second of the kernels of `truncation`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from midstream.kernels.blocks import BLOCK, NO_MASS
from midstream.kernels.triton.block_stats import load_scale
from midstream.kernels.triton.launch import Variant
from midstream.kernels.triton.pick import load_kept

CHUNKS = 256
"""Maxima of so many parts of a block bound what a top-k of at most that many takes of the block,
where a row has fewer blocks than k, or one that holds more than k candidates.
"""

_NO_MASS = tl.constexpr(NO_MASS)


@triton.jit
def _chunk_bound(x: tl.tensor, k: tl.tensor, chunks: tl.constexpr) -> tl.tensor:
    """The k-th largest maximum of parts of a block: k of its tokens are no smaller."""
    tops = tl.sort(tl.max(tl.reshape(x, [chunks, x.shape[0] // chunks]), 1))
    return tl.max(tl.where(tl.arange(0, chunks) == chunks - k, tops, _NO_MASS), 0)


@triton.jit
def _candidates(
    logits_ptr: tl.tensor,  # [R, V]
    logits_stride: tl.tensor,
    size: tl.tensor,
    mask_ptr: tl.tensor,  # [R, W] where survivors are found among the allowed, or None
    mask_stride: tl.tensor,
    words: tl.tensor,
    temperature_ptr: tl.tensor,  # [R] or None
    scale: tl.tensor,  # log2(e) / T where temperature_ptr is None
    maxima_ptr: tl.tensor,  # m or mo of the first row
    low_ptr: tl.tensor,  # fp32 [R]
    plan_ptr: tl.tensor,  # int32 [2, R]
    list_ptr: tl.tensor,  # int32 [R, V]
    rest_ptr: tl.tensor,  # fp32 [R, NB]
    block_size: tl.constexpr,
    chunks: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    blocks = tl.num_programs(1)
    low = tl.load(low_ptr + row)
    top = tl.load(maxima_ptr + row * 5 * blocks + tl.program_id(1))
    if (top >= low) & (top > _NO_MASS):
        begin = tl.program_id(1) * block_size
        words_ptr = mask_ptr
        if mask_ptr is not None:
            words_ptr = mask_ptr + row * mask_stride
        row_ptr = logits_ptr + row * logits_stride
        x = load_kept(row_ptr, size, words_ptr, words, None, None, begin, block_size)
        k = tl.load(plan_ptr + row)
        bound = tl.maximum(low, _NO_MASS)
        if (k > 0) & (k <= chunks):
            if tl.sum((x >= bound).to(tl.int32), 0) > k:
                bound = tl.maximum(low, _chunk_bound(x, k, chunks))
        found = ((x >= bound) & (x > _NO_MASS)).to(tl.int32)
        if k == 0:  # top-p alone: the mass of all that is not brought along, relative to `low`
            if temperature_ptr is not None:
                scale = load_scale(temperature_ptr + row)
            below = tl.where(found != 0, float("-inf"), (x - low) * scale)
            tl.store(rest_ptr + row * blocks + tl.program_id(1), tl.sum(tl.exp2(below), 0))
        # In which order blocks come here is chance: all that follows is sums of integers.
        count_ptr = plan_ptr + tl.num_programs(0) + row
        first = tl.atomic_add(count_ptr, tl.sum(found, 0), sem="relaxed")
        place = list_ptr + row * size + first + tl.cumsum(found, 0) - 1
        tl.store(place, begin + tl.arange(0, block_size), mask=found != 0)


def _variant(dtype: str, after_mask: bool, aligned: bool = True) -> Variant:
    end = ":16" if aligned else ""
    law = "after_mask" if after_mask else "target"
    return Variant(
        name=f"truncation_candidates {dtype}, {law}" + ", odd size" * (not aligned),
        kernel=_candidates,
        signature={
            "logits_ptr": f"*{dtype}:16",
            "logits_stride": "i32:16",
            "size": f"i32{end}",
            "mask_ptr": "*i32:16" if after_mask else "constexpr",
            "mask_stride": f"i32{end}",
            "words": f"i32{end}",
            "temperature_ptr": "*fp32:16",
            "scale": "fp32",
            "maxima_ptr": "*fp32:16",
            "low_ptr": "*fp32:16",
            "plan_ptr": "*i32:16",
            "list_ptr": "*i32:16",
            "rest_ptr": "*fp32:16",
            "block_size": "constexpr",
            "chunks": "constexpr",
        },
        constexprs={"block_size": BLOCK, "chunks": CHUNKS},
        num_warps=4,
        tokens=BLOCK,
        wide=True,
    )


VARIANTS = (
    *(_variant(dtype, after_mask=False) for dtype in ("bf16", "fp16", "fp32")),
    *(_variant(dtype, after_mask=True) for dtype in ("bf16", "fp32")),
    _variant("bf16", after_mask=True, aligned=False),
)
