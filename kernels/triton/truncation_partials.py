"""Partials of a truncated row: block masses of what is kept, of blocks alone that keep something.

Last of the kernels of `truncation`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from midstream.kernels.blocks import BLOCK
from midstream.kernels.triton.block_stats import load_allowed, load_scale
from midstream.kernels.triton.launch import Variant
from midstream.kernels.triton.pick import load_kept


@triton.jit
def _partials(
    logits_ptr: tl.tensor,  # [R, V]
    logits_stride: tl.tensor,
    size: tl.tensor,
    mask_ptr: tl.tensor,  # [R, W] or None
    mask_stride: tl.tensor,
    words: tl.tensor,
    temperature_ptr: tl.tensor,  # [R] or None
    scale: tl.tensor,  # log2(e) / T where temperature_ptr is None
    threshold_ptr: tl.tensor,  # fp32 [R]
    tie_ptr: tl.tensor,  # int32 [R]
    partials_ptr: tl.tensor,  # [R, 5, NB]
    result_ptr: tl.tensor,  # [R, 5, NB]
    after_mask: tl.constexpr,
    block_size: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    blocks = tl.num_programs(1)
    here = row * 5 * blocks + tl.program_id(1)
    threshold = tl.load(threshold_ptr + row)
    partials_ptr += here
    m, s = tl.load(partials_ptr), tl.load(partials_ptr + blocks)
    mo, so = tl.load(partials_ptr + 2 * blocks), tl.load(partials_ptr + 3 * blocks)
    t = tl.load(partials_ptr + 4 * blocks)
    if threshold > float("-inf"):
        reference = mo if after_mask else m
        read = reference >= threshold  # else nothing is kept
        so = tl.where(read, so, 0.0)
        if not after_mask:
            s, t = tl.where(read, s, 0.0), tl.where(read, t, 0.0)
        if read:
            if temperature_ptr is not None:
                scale = load_scale(temperature_ptr + row)
            begin = tl.program_id(1) * block_size
            row_ptr = logits_ptr + row * logits_stride
            tie = tl.load(tie_ptr + row)
            x = load_kept(row_ptr, size, None, 0, threshold, tie, begin, block_size)
            if not after_mask:
                d = (x - m) * scale
                e = tl.exp2(d)
                s = tl.sum(e, 0)
                t = tl.sum(e * tl.maximum(d, -1000.0), 0)
            y = x
            if mask_ptr is not None:
                words_ptr = mask_ptr + row * mask_stride
                y = tl.where(load_allowed(words_ptr, begin, words, block_size), x, float("-inf"))
            so = tl.sum(tl.exp2((y - mo) * scale), 0)
    result_ptr += here
    tl.store(result_ptr, m)
    tl.store(result_ptr + blocks, tl.where(threshold == threshold, s, float("nan")))
    tl.store(result_ptr + 2 * blocks, mo)
    tl.store(result_ptr + 3 * blocks, so)
    tl.store(result_ptr + 4 * blocks, t)


def _variant(dtype: str, mask: bool, after_mask: bool) -> Variant:
    law = "after_mask" if after_mask else "target"
    return Variant(
        name=f"truncation_partials {dtype}, {law}" + ", mask" * mask,
        kernel=_partials,
        signature={
            "logits_ptr": f"*{dtype}:16",
            "logits_stride": "i32:16",
            "size": "i32:16",
            "mask_ptr": "*i32:16" if mask else "constexpr",
            "mask_stride": "i32:16",
            "words": "i32:16",
            "temperature_ptr": "*fp32:16",
            "scale": "fp32",
            "threshold_ptr": "*fp32:16",
            "tie_ptr": "*i32:16",
            "partials_ptr": "*fp32:16",
            "result_ptr": "*fp32:16",
            "after_mask": "constexpr",
            "block_size": "constexpr",
        },
        constexprs={"after_mask": after_mask, "block_size": BLOCK},
        num_warps=4,
        tokens=BLOCK,
        wide=True,
    )


VARIANTS = (
    *(_variant(dtype, True, False) for dtype in ("bf16", "fp16", "fp32")),
    _variant("bf16", False, False),
    _variant("bf16", True, True),
    _variant("fp32", True, True),
)
