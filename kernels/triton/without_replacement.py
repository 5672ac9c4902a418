"""Successive draws from a row, each from what the earlier ones left: one program a row keeps the
masses of its blocks, and sums a block again when a token of it is gone.

Oracle: `midstream.kernels.masked_sampling.draw_without_replacement`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from midstream.kernels.blocks import BLOCK, NO_MASS
from midstream.kernels.masked_sampling import Draws
from midstream.kernels.triton.block_stats import block_stats, load_temperature
from midstream.kernels.triton.launch import (
    FP_FUSION,
    Tensor,
    Variant,
    as_noise,
    as_temperature,
    check_logits,
    check_mask,
    on_device_of,
    row_arguments,
    to_device,
)
from midstream.kernels.triton.philox import load_uniforms
from midstream.kernels.triton.pick import first_above, load_kept, pick_inside, row_mass

_LOG2E = tl.constexpr(1.4426950408889634)
_NO_MASS = tl.constexpr(NO_MASS)


@triton.jit
def load_left(
    row_ptr: tl.tensor,
    size: tl.tensor,
    words_ptr: tl.tensor,  # or None
    words: tl.tensor,
    rejected: tl.tensor,  # int32 [r], below 0 for none, as is the next
    drawn: tl.tensor,  # int32 [k]
    block: tl.tensor,
    block_size: tl.constexpr,
) -> tl.tensor:
    """Logits of a block, -inf for what is not allowed, rejected or drawn: fp32 [block_size]."""
    begin = block * block_size
    y = load_kept(row_ptr, size, words_ptr, words, None, None, begin, block_size)
    old = (rejected >= begin) & (rejected < begin + block_size)
    new = (drawn >= begin) & (drawn < begin + block_size)
    gone = tl.histogram(rejected - begin, block_size, mask=old)
    gone += tl.histogram(drawn - begin, block_size, mask=new)
    return tl.where(gone > 0, float("-inf"), y)


@triton.jit
def live_mass(y: tl.tensor, scale: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Maximum of a block and its sum relative to it, as `block_stats` forms mo and so."""
    m = tl.maximum(tl.max(y, 0), _NO_MASS)
    return m, tl.sum(tl.exp2((y - m) * scale), 0)


@triton.jit
def renewed(
    m: tl.tensor, mass: tl.tensor, here: tl.tensor, y: tl.tensor, scale: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Maxima and sums of the blocks, those of the one that is `here` from what is left of it."""
    top, total = live_mass(y, scale)
    return tl.where(here, top, m), tl.where(here, total, mass)


@triton.jit
def choose_block(
    m: tl.tensor,
    mass: tl.tensor,
    scale: tl.tensor,
    least: tl.tensor,
    uniform: tl.tensor,
    padded: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """A block by its mass, -1 where none has any; the largest maximum and the mass relative to it.

    least: 0 for the block of the largest maximum, of equals the first; else -inf.
    """
    top = tl.max(m, 0).to(tl.float64)
    above = (m.to(tl.float64) - top) * scale
    masses = mass.to(tl.float64) * tl.exp2(above)
    total = tl.sum(masses, 0)
    masses = tl.where(above < least, 0.0, masses)
    target = tl.where(least < 0.0, uniform * total, 0.0)
    return first_above(masses, target, padded), top, total


@triton.jit
def first_touch(
    rejected_ptr: tl.tensor,
    rejected: tl.tensor,
    q: tl.tensor,
    block_size: tl.constexpr,
    padded: tl.constexpr,
) -> tl.tensor:
    """The block of the q-th rejected token, -1 where there is no token or an earlier one is of the
    same block.
    """
    token = tl.load(rejected_ptr + q)
    block = tl.where(token < 0, -1, token // block_size)
    blocks = tl.where(rejected < 0, -1, rejected // block_size)
    earlier = tl.min(tl.where(blocks == block, tl.arange(0, padded), padded), 0)
    return tl.where(earlier == q, block, -1)


@triton.jit(do_not_specialize=["purpose", "first", "rejects", "count"])
def _draw(
    logits_ptr: tl.tensor,  # [R, V]
    logits_stride: tl.tensor,
    size: tl.tensor,
    mask_ptr: tl.tensor,  # [R, W] or None
    mask_stride: tl.tensor,
    words: tl.tensor,
    temperature_ptr: tl.tensor,  # [R] or None
    inverse: tl.float64,  # 1 / T where temperature_ptr is None, 0 for T = 0
    partials_ptr: tl.tensor,  # [R, 5, NB]
    blocks: tl.tensor,
    rejected_ptr: tl.tensor,  # [R, r]
    rejects: tl.tensor,
    uniform_ptr: tl.tensor,  # [R, k, 2], None with keys
    seed_ptr: tl.tensor,  # [R], as are the next two
    sequence_ptr: tl.tensor,
    position_ptr: tl.tensor,
    purpose: tl.tensor,
    first: tl.tensor,
    token_ptr: tl.tensor,  # int64 [R, k]
    log_p_ptr: tl.tensor,  # fp64 [R, k]
    log_live_ptr: tl.tensor,  # fp64 [R, k]
    log_z_ptr: tl.tensor,  # fp64 [R]
    count: tl.tensor,  # k
    block_size: tl.constexpr,
    padded: tl.constexpr,  # blocks, rejects and count, up to powers of 2
    padded_rejects: tl.constexpr,
    padded_count: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    words_ptr = mask_ptr
    if mask_ptr is not None:
        words_ptr = mask_ptr + row * mask_stride
    inverse_t, greedy = load_temperature(temperature_ptr, inverse, row)
    scale = _LOG2E * inverse_t
    scale32 = scale.to(tl.float32)
    least = tl.where(greedy, 0.0, float("-inf"))
    partials_ptr += row * 5 * blocks
    top, s, _ = row_mass(partials_ptr, blocks, scale, padded)
    finite = s < float("inf")
    log_s = tl.log(s)
    tl.store(log_z_ptr + row, tl.where(finite, top * inverse_t + log_s, float("nan")))

    index = tl.arange(0, padded)
    live = index < tl.where(finite, blocks, 0)
    m = tl.load(partials_ptr + 2 * blocks + index, mask=live, other=_NO_MASS)
    mass = tl.load(partials_ptr + 3 * blocks + index, mask=live, other=0.0)
    drawn = tl.full([padded_count], -1, tl.int32)
    rejected_ptr += row * rejects
    order = tl.arange(0, padded_rejects)
    rejected = tl.load(rejected_ptr + order, mask=order < rejects, other=-1)
    for q in range(0, rejects):
        block = first_touch(rejected_ptr, rejected, q, block_size, padded_rejects)
        if tl.where(finite, block, -1) >= 0:
            y = load_left(row_ptr, size, words_ptr, words, rejected, drawn, block, block_size)
            m, mass = renewed(m, mass, index == block, y, scale32)

    for j in range(0, count):
        u0, u1 = load_uniforms(
            uniform_ptr, seed_ptr, sequence_ptr, position_ptr, purpose, first, row, j, count
        )
        found, top_live, left = choose_block(m, mass, scale, least, u0, padded)
        block = tl.maximum(found, 0)
        y = load_left(row_ptr, size, words_ptr, words, rejected, drawn, block, block_size)
        reference = tl.max(tl.where(index == block, m, _NO_MASS), 0)
        inside = pick_inside(y, reference, scale32, least, u1, block_size)
        token = block * block_size + inside
        x = tl.load(row_ptr + token, mask=token < size, other=0.0).to(tl.float64)
        token = tl.where(found >= 0, token, -1)
        at = row * count + j
        tl.store(token_ptr + at, token.to(tl.int64))
        log_p = tl.where(found >= 0, (x - top) * inverse_t - log_s, float("-inf"))
        tl.store(log_p_ptr + at, log_p)
        tl.store(log_live_ptr + at, top_live * inverse_t + tl.log(left))

        # What is left of the block is summed again: a difference would cancel.
        y = tl.where(tl.arange(0, block_size) == inside, float("-inf"), y)
        m, mass = renewed(m, mass, index == found, y, scale32)
        drawn = tl.where(tl.arange(0, padded_count) == j, token, drawn)


def draw_without_replacement(
    logits: Tensor,  # [R, V]
    mask: Tensor | None,  # [R, W]
    noise: Any,  # [R, k, 2], or Keys
    count: int | None,
    temperature: Any,  # scalar or [R]
    rejected: Any,  # [R, r] or None
) -> Draws:
    """See the oracle; two launches. Values of `rejected` are not checked."""
    check_logits(logits)
    check_mask(mask, logits)
    of_rows = as_temperature(temperature, logits)
    rows = len(logits)
    draws = as_noise(noise, logits, rows, count)
    shape, device = (rows, draws.count), logits.device
    gone = _as_rejected(rejected, logits)
    token = torch.empty(shape, dtype=torch.int64, device=device)
    log_p = torch.empty(shape, dtype=torch.float64, device=device)
    log_live = torch.empty_like(log_p)
    log_z_all = torch.empty(rows, dtype=torch.float64, device=device)
    found = token, log_p, log_live, log_z_all
    partials = block_stats(logits, mask, of_rows)
    if not rows:
        return Draws(*found)
    with on_device_of(logits):
        _draw[(rows,)](
            *row_arguments(logits, mask, of_rows, partials),
            gone,
            gone.shape[1],
            *draws.arguments,
            *found,
            draws.count,
            block_size=BLOCK,
            padded=triton.next_power_of_2(partials.shape[2]),
            padded_rejects=triton.next_power_of_2(max(gone.shape[1], 32)),
            padded_count=triton.next_power_of_2(max(draws.count, 32)),
            num_warps=4,
            enable_fp_fusion=FP_FUSION,
        )
    return Draws(*found)


def _as_rejected(rejected: Any, logits: Tensor) -> Tensor:
    """int32 [R, r] on the device of the logits; [R, 0] of None."""
    rows = len(logits)
    if rejected is None:
        return torch.empty((rows, 0), dtype=torch.int32, device=logits.device)
    tokens = to_device(rejected, logits)
    if tokens.ndim != 2 or len(tokens) != rows or tokens.is_floating_point():
        got = f"{tokens.dtype} {list(tokens.shape)}"
        raise ValueError(f"rejected: got {got}; accepted: integers [{rows}, r]")
    return tokens.to(torch.int32)


def _variant(dtype: str, keys: bool, blocks: int) -> Variant:
    key = "*i64:16" if keys else "constexpr"
    padded = triton.next_power_of_2(blocks)
    sizes = {"block_size": BLOCK, "padded": padded, "padded_rejects": 32, "padded_count": 32}
    return Variant(
        name=f"draw_without_replacement {dtype}, {blocks} blocks, {'keys' if keys else 'uniforms'}",
        kernel=_draw,
        signature={
            "logits_ptr": f"*{dtype}:16",
            "logits_stride": "i32:16",
            "size": "i32:16",
            "mask_ptr": "*i32:16",
            "mask_stride": "i32:16",
            "words": "i32:16",
            "temperature_ptr": "*fp32:16",
            "inverse": "fp64",
            "partials_ptr": "*fp32:16",
            "blocks": "i32",
            "rejected_ptr": "*i32:16",
            "rejects": "i32",
            "uniform_ptr": "constexpr" if keys else "*fp64:16",
            "seed_ptr": key,
            "sequence_ptr": key,
            "position_ptr": key,
            "purpose": "i32",
            "first": "i32",
            "token_ptr": "*i64:16",
            "log_p_ptr": "*fp64:16",
            "log_live_ptr": "*fp64:16",
            "log_z_ptr": "*fp64:16",
            "count": "i32",
            **dict.fromkeys(sizes, "constexpr"),
        },
        constexprs=sizes,
        num_warps=4,
        wide=True,
    )


VARIANTS = (_variant("bf16", keys=True, blocks=63), _variant("fp32", keys=False, blocks=75))
