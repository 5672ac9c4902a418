"""Logits masked in place: writes -inf where the mask refuses, reads no logits.

Oracle: `midstream.kernels.bitmask.apply_bitmask`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from midstream.kernels.backend import is_tensor
from midstream.kernels.blocks import BLOCK
from midstream.kernels.triton.block_stats import load_allowed
from midstream.kernels.triton.launch import (
    FP_FUSION,
    Tensor,
    Variant,
    block_count,
    on_device_of,
    to_device,
)


@triton.jit
def _apply_bitmask(
    logits_ptr: tl.tensor,  # [B, V]
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    size: tl.tensor,
    mask_ptr: tl.tensor,  # [R, W]
    mask_stride: tl.tensor,
    words: tl.tensor,
    index_ptr: tl.tensor,  # [P] or None
    block_size: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    if index_ptr is not None:
        row = tl.load(index_ptr + row).to(tl.int64)
    begin = tl.program_id(1) * block_size
    allowed = load_allowed(mask_ptr + row * mask_stride, begin, words, block_size)
    offsets = begin + tl.arange(0, block_size)
    refused = (offsets < size) & (allowed == 0)
    target = logits_ptr + row * row_stride + offsets.to(tl.int64) * column_stride
    tl.store(target, float("-inf"), mask=refused)


def apply_bitmask(
    logits: Tensor,  # [B, V]
    mask: Any,  # int32 [R, W], or uint32 on the host
    indices: Any,  # [P] or None
) -> None:
    """See `kernels.bitmask.apply_bitmask`. One launch; values of `indices` are not checked."""
    if logits.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        accepted = "bfloat16, float16 or float32"
        raise ValueError(f"logits: got {logits.dtype}; accepted: {accepted}")
    if not is_tensor(mask):
        mask = torch.from_numpy(np.ascontiguousarray(mask).view(np.int32))
    words = to_device(mask, logits)
    index = None if indices is None else to_device(indices, logits)
    count = logits.shape[0] if index is None else index.shape[0]
    if count == 0 or logits.shape[1] == 0:
        return
    with on_device_of(logits):
        _apply_bitmask[(count, block_count(logits.shape[1]))](
            logits,
            logits.stride(0),
            logits.stride(1),
            logits.shape[1],
            words,
            words.stride(0),
            words.shape[1],
            index,
            block_size=BLOCK,
            num_warps=4,
            enable_fp_fusion=FP_FUSION,
        )


def _variant(dtype: str, indices: bool, transposed: bool = False) -> Variant:
    told = [dtype, *["indices"] * indices, *["any stride"] * transposed]
    return Variant(
        name="apply_bitmask " + ", ".join(told),
        kernel=_apply_bitmask,
        signature={
            "logits_ptr": f"*{dtype}:16",
            "row_stride": "i32:16",
            "column_stride": "i32" if transposed else "constexpr",
            "size": "i32:16",
            "mask_ptr": "*i32:16",
            "mask_stride": "i32:16",
            "words": "i32:16",
            "index_ptr": "*i64:16" if indices else "constexpr",
            "block_size": "constexpr",
        },
        constexprs={"block_size": BLOCK, **({} if transposed else {"column_stride": 1})},
        num_warps=4,
        tokens=BLOCK,
    )


VARIANTS = (
    *(_variant(dtype, indices=False) for dtype in ("bf16", "fp16", "fp32")),
    _variant("bf16", indices=True),
    _variant("fp32", indices=True, transposed=True),
)
