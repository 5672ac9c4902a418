"""A token of a row by two uniforms, with its log probability and the masses of the row: reads the
partials of `block_stats` and then one block of logits again.

Oracle: `midstream.kernels.masked_sampling`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from midstream.kernels.blocks import BLOCK
from midstream.kernels.triton.block_stats import load_allowed, load_logits, load_temperature
from midstream.kernels.triton.launch import (
    FP_FUSION,
    Noise,
    Temperature,
    Tensor,
    Variant,
    on_device_of,
    row_arguments,
)
from midstream.kernels.triton.philox import load_uniforms

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_NO_MASS = tl.constexpr(-1e30)


@triton.jit
def first_above(mass: tl.tensor, target: tl.tensor, count: tl.constexpr) -> tl.tensor:
    """The first of `count` fp64 masses at which their cumulative sum passes `target`, else the last
    that has mass; -1 where none has.
    """
    index = tl.arange(0, count)
    live = mass > 0.0
    hit = tl.min(tl.where(live & (tl.cumsum(mass, 0) > target), index, count), 0)
    last = tl.max(tl.where(live, index, -1), 0)  # where rounding put the target past the sum
    return tl.where(hit < count, hit, last)


@triton.jit
def block_masses(
    partials_ptr: tl.tensor, blocks: tl.tensor, scale: tl.tensor, padded: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Maxima m and sums s of the blocks of a row, s after m at a distance of `blocks`: the largest
    maximum, (m - largest) * scale, and the masses relative to the largest, all fp64.
    """
    index = tl.arange(0, padded)
    m = tl.load(partials_ptr + index, mask=index < blocks, other=_NO_MASS)
    s = tl.load(partials_ptr + blocks + index, mask=index < blocks, other=0.0)
    top = tl.max(m, 0).to(tl.float64)
    above = (m.to(tl.float64) - top) * scale
    return top, above, s.to(tl.float64) * tl.exp2(above)


@triton.jit
def row_mass(
    partials_ptr: tl.tensor, blocks: tl.tensor, scale: tl.tensor, padded: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Of a whole row the largest maximum, the mass relative to it, and the entropy in nats."""
    top, above, mass = block_masses(partials_ptr, blocks, scale, padded)
    index = tl.arange(0, padded)
    t = tl.load(partials_ptr + 4 * blocks + index, mask=index < blocks, other=0.0).to(tl.float64)
    s = tl.sum(mass, 0)
    # A block without mass has a finite `above`: it adds 0 and no NaN.
    turned = tl.sum(t * tl.exp2(above) + mass * above, 0)
    return top, s, tl.log(s) - _LN2 * turned / s


@triton.jit
def load_kept(
    row_ptr: tl.tensor,
    size: tl.tensor,
    words_ptr: tl.tensor,  # or None
    words: tl.tensor,
    threshold: tl.tensor,  # fp32, or None
    tie: tl.tensor,  # int32
    begin: tl.tensor,
    block_size: tl.constexpr,
) -> tl.tensor:
    """Logits of a block, -inf where the mask or a threshold takes them out: fp32 [block_size]."""
    x = load_logits(row_ptr, begin, size, block_size)
    if words_ptr is not None:
        x = tl.where(load_allowed(words_ptr, begin, words, block_size), x, float("-inf"))
    if threshold is not None:
        first = (x == threshold) & (begin + tl.arange(0, block_size) <= tie)
        x = tl.where((x > threshold) | first, x, float("-inf"))
    return x


@triton.jit
def pick_inside(
    y: tl.tensor,
    reference: tl.tensor,
    scale: tl.tensor,
    least: tl.tensor,
    uniform: tl.tensor,
    block_size: tl.constexpr,
) -> tl.tensor:
    """A token of a block of logits by a uniform: its place in the block, 0 where nothing has mass.

    reference: the largest of them. least: 0 for the largest alone, of equals the first; else -inf.
    """
    d = y - reference
    # Sums in fp64: in fp32 a token below 6e-8 of the block could never be drawn.
    e = tl.where(d < least, 0.0, tl.exp2(d * scale)).to(tl.float64)
    target = tl.where(least < 0.0, uniform * tl.sum(e, 0), 0.0)
    return tl.maximum(first_above(e, target, block_size), 0)


@triton.jit(do_not_specialize=["purpose", "first"])
def _pick(
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
    threshold_ptr: tl.tensor,  # fp32 [R] or None
    tie_ptr: tl.tensor,  # int32 [R] or None
    index_ptr: tl.tensor,  # [P] or None
    uniform_ptr: tl.tensor,  # [P, 2], None with keys
    seed_ptr: tl.tensor,  # [P], as are the next two
    sequence_ptr: tl.tensor,
    position_ptr: tl.tensor,
    purpose: tl.tensor,
    first: tl.tensor,
    token_ptr: tl.tensor,  # int64 [P]
    values_ptr: tl.tensor,  # fp64 [5, P]
    status_ptr: tl.tensor,  # int8 [P]
    block_size: tl.constexpr,
    padded: tl.constexpr,  # blocks, up to a power of 2
) -> None:
    p = tl.program_id(0).to(tl.int64)
    row = p
    if index_ptr is not None:
        row = tl.load(index_ptr + p).to(tl.int64)
    u0, u1 = load_uniforms(
        uniform_ptr, seed_ptr, sequence_ptr, position_ptr, purpose, first, p, 0, 1
    )
    inverse_t, greedy = load_temperature(temperature_ptr, inverse, row)
    scale = _LOG2E * inverse_t
    partials_ptr += row * 5 * blocks
    top, s, entropy = row_mass(partials_ptr, blocks, scale, padded)
    top_o, above_o, mass_o = block_masses(partials_ptr + 2 * blocks, blocks, scale, padded)
    s_o = tl.sum(mass_o, 0)
    finite = s < float("inf")  # not so for a NaN either
    log_s, log_s_o = tl.log(s), tl.log(s_o)

    # Greedy: all mass on the blocks, and then on the tokens, that reach the maximum.
    least = tl.where(greedy, 0.0, float("-inf"))
    mass_o = tl.where(above_o < least, 0.0, mass_o)
    block = first_above(mass_o, tl.where(greedy, 0.0, u0 * s_o), padded)
    alive = finite & (block >= 0)
    block = tl.maximum(block, 0)
    row_ptr = logits_ptr + row * logits_stride
    words_ptr = mask_ptr
    if mask_ptr is not None:
        words_ptr = mask_ptr + row * mask_stride
    threshold, tie = None, None
    if threshold_ptr is not None:
        threshold, tie = tl.load(threshold_ptr + row), tl.load(tie_ptr + row)
    y = load_kept(row_ptr, size, words_ptr, words, threshold, tie, block * block_size, block_size)
    reference = tl.load(partials_ptr + 2 * blocks + block)
    inside = pick_inside(y, reference, scale.to(tl.float32), least, u1, block_size)
    token = block * block_size + inside
    x = tl.load(row_ptr + token, mask=token < size, other=0.0).to(tl.float64)

    draws = tl.num_programs(0)
    values_ptr += p
    nothing = float("-inf")
    no_law = float("nan")
    tl.store(token_ptr + p, tl.where(alive, token, -1).to(tl.int64))
    tl.store(values_ptr, tl.where(alive, (x - top) * inverse_t - log_s, nothing))
    log_weight = (top_o - top) * inverse_t + (log_s_o - log_s)
    tl.store(values_ptr + draws, tl.where(alive, log_weight, nothing))
    log_z_allowed = top_o * inverse_t + log_s_o
    tl.store(values_ptr + 2 * draws, tl.where(finite, log_z_allowed, no_law))
    tl.store(values_ptr + 3 * draws, tl.where(finite, top * inverse_t + log_s, no_law))
    tl.store(values_ptr + 4 * draws, tl.where(finite, entropy, no_law))
    tl.store(status_ptr + p, tl.where(alive, 0, tl.where(finite, 1, 2)).to(tl.int8))


@dataclass(frozen=True, slots=True)
class Picked:
    """What `pick` found: token int64 [P], values fp64 [5, P] (log_p, log_weight, log_z_allowed,
    log_z_all, entropy), status int8 [P].
    """

    token: Tensor
    values: Tensor
    status: Tensor


def pick(
    logits: Tensor,  # bf16, fp16 or fp32 [R, V]
    mask: Tensor | None,  # int32 [R, W]
    partials: Tensor,  # fp32 [R, 5, NB] of `block_stats`
    temperature: Temperature,
    noise: Noise,
    *,
    indices: Tensor | None = None,  # int32 or int64 [P], the row of each draw
    threshold: Tensor | None = None,  # fp32 [R]
    tie: Tensor | None = None,  # int32 [R]
) -> Picked:
    """Draw P tokens, each from what the mask and the threshold leave of its row.

    threshold, tie: of truncated rows the least logit that is kept, and the last id that is kept
    among those equal to it; the partials are then those of what is kept.
    """
    count = noise.rows
    token = torch.empty(count, dtype=torch.int64, device=logits.device)
    values = torch.empty((5, count), dtype=torch.float64, device=logits.device)
    status = torch.empty(count, dtype=torch.int8, device=logits.device)
    if count == 0:
        return Picked(token, values, status)
    with on_device_of(logits):
        _pick[(count,)](
            *row_arguments(logits, mask, temperature, partials),
            threshold,
            tie,
            indices,
            *noise.arguments,
            token,
            values,
            status,
            block_size=BLOCK,
            padded=triton.next_power_of_2(partials.shape[2]),
            num_warps=4,
            enable_fp_fusion=FP_FUSION,
        )
    return Picked(token, values, status)


def _variant(
    dtype: str, keys: bool, blocks: int, truncated: bool = False, shared: bool = False
) -> Variant:
    told = ["keys" if keys else "uniforms", *["truncated"] * truncated, *["indices"] * shared]
    absent = "constexpr"
    key = "*i64:16" if keys else absent
    return Variant(
        name=f"pick {dtype}, {blocks} blocks, " + ", ".join(told),
        kernel=_pick,
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
            "threshold_ptr": "*fp32:16" if truncated else absent,
            "tie_ptr": "*i32:16" if truncated else absent,
            "index_ptr": "*i64:16" if shared else absent,
            "uniform_ptr": absent if keys else "*fp64:16",
            "seed_ptr": key,
            "sequence_ptr": key,
            "position_ptr": key,
            "purpose": "i32",
            "first": "i32",
            "token_ptr": "*i64:16",
            "values_ptr": "*fp64:16",
            "status_ptr": "*i8:16",
            "block_size": "constexpr",
            "padded": "constexpr",
        },
        constexprs={"block_size": BLOCK, "padded": triton.next_power_of_2(blocks)},
        num_warps=4,
        wide=True,
    )


VARIANTS = (
    _variant("bf16", keys=True, blocks=63),
    _variant("fp32", keys=True, blocks=75),
    _variant("bf16", keys=False, blocks=63, truncated=True, shared=True),
)
