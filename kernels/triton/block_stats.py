"""Masses of each block of 2048 tokens of each row: the one full read of the logits.

Oracle: `midstream.kernels.blocks.Blocks`, and float64 sums in the tests.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from midstream.kernels.blocks import BLOCK, NO_MASS
from midstream.kernels.triton.launch import (
    FP_FUSION,
    Temperature,
    Tensor,
    Variant,
    block_count,
    mask_arguments,
    on_device_of,
)

PARTIALS = 5
"""Numbers kept of a block: m, s, mo, so, t, in this order."""

_NO_MASS = tl.constexpr(NO_MASS)
_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_LEAST = tl.constexpr(9.99e-7)  # what is 1e-6 in fp32 lies below it


@triton.jit
def load_logits(
    row_ptr: tl.tensor, begin: tl.tensor, size: tl.tensor, block_size: tl.constexpr
) -> tl.tensor:
    """Logits `begin` to `begin + block_size` of a row of `size`: fp32, -inf past its end."""
    offsets = begin + tl.arange(0, block_size)
    if begin + block_size <= size:  # no bound on whole blocks: wide loads whatever the size
        x = tl.load(row_ptr + offsets).to(tl.float32)
    else:
        x = tl.load(row_ptr + offsets, mask=offsets < size, other=float("-inf")).to(tl.float32)
    return x


@triton.jit
def load_allowed(
    words_ptr: tl.tensor, begin: tl.tensor, words: tl.tensor, block_size: tl.constexpr
) -> tl.tensor:
    """Bits `begin` to `begin + block_size` of a mask of so many words: bool [block_size].

    A word is loaded once and its bits are spread; tokens past the last word are not allowed.
    """
    offsets = begin // 32 + tl.arange(0, block_size // 32)
    word = tl.load(words_ptr + offsets, mask=offsets < words, other=0)
    bits = (word[:, None] >> tl.arange(0, 32)[None, :]) & 1
    return tl.reshape(bits, [block_size]) != 0


@triton.jit
def load_temperature(
    temperature_ptr: tl.tensor, inverse: tl.tensor, row: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """1 / T of a row in fp64, and whether T is 0, where 1 / T is taken to be 1. NaN where T is no
    temperature. Without a pointer: of the number whose inverse is given, 0 standing for T = 0.
    """
    if temperature_ptr is not None:
        t = tl.load(temperature_ptr + row).to(tl.float64)
        greedy = t == 0.0
        accepted = (t >= _LEAST) & (t < float("inf"))
        result = tl.where(greedy, 1.0, tl.where(accepted, 1.0 / t, float("nan")))
    else:
        given = tl.full([], inverse, tl.float64)
        greedy = given == 0.0
        result = tl.where(greedy, 1.0, given)
    return result, greedy


@triton.jit
def load_scale(temperature_ptr: tl.tensor) -> tl.tensor:
    """log2(e) / T in fp32 to half a unit of the last place, as `load_temperature` reads T."""
    t = tl.load(temperature_ptr).to(tl.float32)
    t = tl.where((t >= _LEAST) & (t < float("inf")), t, tl.where(t == 0.0, 1.0, float("nan")))
    near = _LOG2E / t  # to two units on the device; what is missing is log2(e) - near t
    return tl.fma(tl.fma(-near, t, _LOG2E), near * _LN2, near)


@triton.jit
def _block_stats(
    logits_ptr: tl.tensor,  # [R, V]
    logits_stride: tl.tensor,
    size: tl.tensor,
    mask_ptr: tl.tensor,  # [R, W] or None
    mask_stride: tl.tensor,
    words: tl.tensor,
    temperature_ptr: tl.tensor,  # [R] or None
    scale: tl.tensor,  # log2(e) / T where temperature_ptr is None
    partials_ptr: tl.tensor,  # [R, 5, NB]
    block_size: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * block_size
    if temperature_ptr is not None:
        scale = load_scale(temperature_ptr + row)
    x = load_logits(logits_ptr + row * logits_stride, begin, size, block_size)
    # The reference is a raw logit, exact in fp32: temperature acts on differences alone.
    m = tl.maximum(tl.max(x, 0), _NO_MASS)
    d = (x - m) * scale
    e = tl.exp2(d)
    s = tl.sum(e, 0)
    t = tl.sum(e * tl.maximum(d, -1000.0), 0)  # the floor keeps 0 * -inf from becoming a NaN
    mo, so = m, s
    if mask_ptr is not None:
        allowed = load_allowed(mask_ptr + row * mask_stride, begin, words, block_size)
        y = tl.where(allowed, x, float("-inf"))
        # A maximum of its own: all that is allowed may lie where fp32 ends below the other.
        mo = tl.maximum(tl.max(y, 0), _NO_MASS)
        so = 0.0
        if mo > _NO_MASS:  # whole blocks of which nothing is allowed are common
            so = tl.sum(tl.exp2((y - mo) * scale), 0)
    blocks = tl.num_programs(1)
    out = partials_ptr + row * 5 * blocks + tl.program_id(1)
    tl.store(out, m)
    tl.store(out + blocks, s)
    tl.store(out + 2 * blocks, mo)
    tl.store(out + 3 * blocks, so)
    tl.store(out + 4 * blocks, t)


def block_stats(
    logits: Tensor,  # bf16, fp16 or fp32 [R, V]
    mask: Tensor | None,  # int32 [R, W]
    temperature: Temperature,
) -> Tensor:
    """Of each row and block k of `BLOCK` tokens the five numbers m, s, mo, so, t: fp32 [R, 5, NB].

    m: the largest raw logit, at least NO_MASS; s = sum 2^d with d = (x - m) log2(e) / T. mo, so:
    the same over what the mask allows, relative to its own maximum. t = sum 2^d d, the numerator of
    the entropy. Without a mask mo = m and so = s. NaN or +inf among the logits makes s a NaN. What
    goes in is checked by the callers.
    """
    rows, size = logits.shape
    blocks = block_count(size)
    partials = torch.empty((rows, PARTIALS, blocks), dtype=torch.float32, device=logits.device)
    if rows == 0:
        return partials
    with on_device_of(logits):
        _block_stats[(rows, blocks)](
            logits,
            logits.stride(0),
            size,
            *mask_arguments(mask),
            temperature.of_row,
            _LOG2E.value * (temperature.inverse or 1.0),
            partials,
            block_size=BLOCK,
            num_warps=4,
            enable_fp_fusion=FP_FUSION,
        )
    return partials


def _variant(dtype: str, mask: bool, temperatures: bool, aligned: bool) -> Variant:
    end = ":16" if aligned else ""
    told = [dtype, *["mask"] * mask, *["T of row"] * temperatures, *["odd size"] * (not aligned)]
    return Variant(
        name="block_stats " + ", ".join(told),
        kernel=_block_stats,
        signature={
            "logits_ptr": f"*{dtype}:16",
            "logits_stride": "i32:16",
            "size": f"i32{end}",
            "mask_ptr": "*i32:16" if mask else "constexpr",
            "mask_stride": f"i32{end}",
            "words": f"i32{end}",
            "temperature_ptr": "*fp32:16" if temperatures else "constexpr",
            "scale": "fp32",
            "partials_ptr": "*fp32:16",
            "block_size": "constexpr",
        },
        constexprs={"block_size": BLOCK},
        num_warps=4,
        tokens=BLOCK,
        wide=True,
    )


VARIANTS = (
    *(_variant(dtype, True, True, True) for dtype in ("bf16", "fp16", "fp32")),
    _variant("bf16", True, False, True),
    _variant("bf16", True, True, False),
    _variant("bf16", False, True, True),
    _variant("fp32", False, True, True),
)
