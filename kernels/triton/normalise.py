"""Fused rows made to sum to 1 on the device, in place, by the sums of their blocks.

Oracle: `midstream.kernels.fusion.fuse`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from midstream.kernels.blocks import BLOCK, NO_MASS
from midstream.kernels.triton.launch import FP_FUSION, Tensor, Variant, on_device_of

_LN2 = tl.constexpr(0.6931471805599453)
_NO_MASS = tl.constexpr(NO_MASS)


@triton.jit
def row_log_mass(
    masses_ptr: tl.tensor,  # fp64 [2, NB]
    count: tl.tensor,
    padded: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Of the blocks of a row the largest logarithm, to base 2, and the sum relative to it."""
    index = tl.arange(0, padded)
    m = tl.load(masses_ptr + index, mask=index < count, other=_NO_MASS)
    s = tl.load(masses_ptr + count + index, mask=index < count, other=0.0)
    top = tl.max(m, 0)
    return top, tl.sum(s * tl.exp2(m - top), 0)


@triton.jit
def _normalise(
    out_ptr: tl.tensor,  # fp32 [B, V]
    size: tl.tensor,
    masses_ptr: tl.tensor,  # fp64 [B, 1 + K, 2, NB]
    normaliser_ptr: tl.tensor,  # fp64 [B]
    mapped_ptr: tl.tensor,  # fp64 [B, K]
    status_ptr: tl.tensor,  # int8 [B]
    models: tl.constexpr,
    padded: tl.constexpr,
    block_size: tl.constexpr,
) -> None:
    b = tl.program_id(0).to(tl.int64)
    block, count = tl.program_id(1), tl.num_programs(1)
    masses_ptr += b * (2 + 2 * models) * count
    top, total = row_log_mass(masses_ptr, count, padded)
    log_total = tl.log2(total)
    offsets = block * block_size + tl.arange(0, block_size)
    shift = (tl.load(masses_ptr + block) - top - log_total) * _LN2
    x = tl.load(out_ptr + b * size + offsets, mask=offsets < size, other=0.0).to(tl.float64)
    # Without mass all are -inf; a NaN is in the shift.
    x = tl.where(total == 0.0, float("-inf"), x + shift).to(tl.float32)
    tl.store(out_ptr + b * size + offsets, x, mask=offsets < size)
    if block == 0:
        finite = total < float("inf")  # not so for a NaN
        tl.store(normaliser_ptr + b, (top + log_total) * _LN2)
        tl.store(status_ptr + b, tl.where(finite, tl.where(total > 0.0, 0, 1), 2).to(tl.int8))
        for k in range(models):
            m, s = row_log_mass(masses_ptr + (2 + 2 * k) * count, count, padded)
            log_mapped = (m + tl.log2(s)) * _LN2
            tl.store(mapped_ptr + b * models + k, tl.where(finite, log_mapped, float("nan")))


def normalise(
    log_p: Tensor,  # fp32 [B, V], each block relative to its maximum
    masses: Tensor,  # fp64 [B, 1 + K, 2, NB]
) -> tuple[Tensor, Tensor, Tensor]:
    """Finish `log_p` and return log_normaliser fp64 [B], log_mapped fp64 [B, K], status int8 [B].

    masses: of each block the logarithm to base 2 that its sums are relative to, and the sum; first
    of the fused row, then of each model's part of it.
    """
    batch, size = log_p.shape
    models, count = masses.shape[1] - 1, masses.shape[3]
    normaliser = masses.new_empty(batch)
    mapped = masses.new_empty((batch, models))
    status = masses.new_empty(batch, dtype=torch.int8)
    if batch:
        with on_device_of(log_p):
            _normalise[(batch, count)](
                log_p,
                size,
                masses,
                normaliser,
                mapped,
                status,
                models=models,
                padded=triton.next_power_of_2(count),
                block_size=BLOCK,
                num_warps=4,
                enable_fp_fusion=FP_FUSION,
            )
    return normaliser, mapped, status


VARIANTS = (
    Variant(
        name="normalise",
        kernel=_normalise,
        signature={
            "out_ptr": "*fp32:16",
            "size": "i32:16",
            "masses_ptr": "*fp64:16",
            "normaliser_ptr": "*fp64:16",
            "mapped_ptr": "*fp64:16",
            "status_ptr": "*i8:16",
            "models": "constexpr",
            "padded": "constexpr",
            "block_size": "constexpr",
        },
        constexprs={"models": 2, "padded": 64, "block_size": BLOCK},
        num_warps=4,
        tokens=BLOCK,
        wide=True,
    ),
)
