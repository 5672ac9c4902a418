"""Where truncation of a row can cut, from the partials of its blocks alone.

First of the kernels of `truncation`; it reads no logits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from midstream.kernels.blocks import BLOCK, NO_MASS
from midstream.kernels.triton.block_stats import load_temperature
from midstream.kernels.triton.launch import Variant
from midstream.kernels.triton.pick import block_masses
from midstream.kernels.truncation import ALL_TIES

_LOG2E = tl.constexpr(1.4426950408889634)
_NO_MASS = tl.constexpr(NO_MASS)
_ALL_TIES = tl.constexpr(ALL_TIES)


@triton.jit
def key_of(x: tl.tensor) -> tl.tensor:
    """Integers in the order of fp32 numbers; both zeros are one."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(key: tl.tensor) -> tl.tensor:
    """The fp32 number of a key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _nucleus_bound(
    top: tl.tensor,
    mass: tl.tensor,  # [padded]
    scale: tl.tensor,
    spare: tl.tensor,
    blocks: tl.tensor,
    block_size: tl.constexpr,
) -> tl.tensor:
    """A logit below which all tokens together hold at most `spare`, wherever in the blocks their
    masses lie: tokens of at most 2^y each hold at most min(mass, block_size 2^y) of a block's mass.
    """
    low = tl.log2(spare / (blocks * block_size))
    high = tl.zeros_like(low)
    for _ in range(10):
        middle = (low + high) * 0.5
        bound = tl.sum(tl.minimum(mass, block_size * tl.exp2(middle)), 0)
        low = tl.where(bound <= spare, middle, low)
        high = tl.where(bound <= spare, high, middle)
    return value_of(key_of(tl.maximum(top + low / scale, _NO_MASS).to(tl.float32)) - 1)


@triton.jit
def load_filters(
    top_k_ptr: tl.tensor,
    top_k: tl.tensor,
    top_p_ptr: tl.tensor,
    top_p: tl.tensor,
    min_p_ptr: tl.tensor,
    min_p: tl.tensor,
    row: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """top_k, top_p and min_p of a row: of the row's own where there is a pointer."""
    if top_k_ptr is not None:
        top_k = tl.load(top_k_ptr + row)
    if top_p_ptr is not None:
        p = tl.load(top_p_ptr + row).to(tl.float64)
    else:
        p = tl.full([], top_p, tl.float64)
    if min_p_ptr is not None:
        least = tl.load(min_p_ptr + row).to(tl.float64)
    else:
        least = tl.full([], min_p, tl.float64)
    return tl.maximum(tl.minimum(top_k, 0x7FFFFFFF), -1).to(tl.int32), p, least


@triton.jit(do_not_specialize=["top_k"])
def _bounds(
    partials_ptr: tl.tensor,  # m and s, or mo and so, of the first row
    blocks: tl.tensor,
    temperature_ptr: tl.tensor,  # [R] or None
    inverse: tl.float64,  # 1 / T where temperature_ptr is None, 0 for T = 0
    top_k_ptr: tl.tensor,  # [R] or None, as are the next two pointers
    top_k: tl.tensor,
    top_p_ptr: tl.tensor,
    top_p: tl.float64,
    min_p_ptr: tl.tensor,
    min_p: tl.float64,
    low_ptr: tl.tensor,  # fp32 [R]
    spare_ptr: tl.tensor,  # fp64 [R]
    plan_ptr: tl.tensor,  # int32 [2, R]
    threshold_ptr: tl.tensor,  # fp32 [R]
    tie_ptr: tl.tensor,  # int32 [R]
    block_size: tl.constexpr,
    padded: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0)
    inverse_t, greedy = load_temperature(temperature_ptr, inverse, row)
    scale = _LOG2E * inverse_t
    k, p, least_p = load_filters(top_k_ptr, top_k, top_p_ptr, top_p, min_p_ptr, min_p, row)
    accepted = (k >= 0) & (p > 0.0) & (p <= 1.0) & (least_p >= 0.0) & (least_p < 1.0)
    partials_ptr += row * 5 * blocks
    top, _above, mass = block_masses(partials_ptr, blocks, scale, padded)
    total = tl.sum(mass, 0)
    live = (total > 0.0) & (total < float("inf")) & (greedy == 0) & accepted
    k = tl.where(live, k, 0)
    spare = tl.where(live, 1.0 - p, 0.0)

    # min-p: the least fp32 number that is not below its edge.
    log_least = tl.log(tl.where(least_p > 0.0, least_p, 1.0))
    exact = tl.maximum(top + log_least / inverse_t, _NO_MASS)
    least = exact.to(tl.float32)
    least = tl.where(least < exact, value_of(key_of(least) + 1), least)
    least = tl.where(live & (least_p > 0.0), least, float("-inf"))
    # top-k: the k-th largest maximum of a block is a token.
    index = tl.arange(0, padded)
    m = tl.load(partials_ptr + index, mask=index < blocks, other=_NO_MASS)
    low = tl.max(tl.where(index == padded - k, tl.sort(m), _NO_MASS), 0)
    # Where top-p follows, all that top-k keeps counts, below the edge of min-p too.
    low = tl.where(spare > 0.0, low, tl.maximum(low, least))
    if k == 0:
        low = tl.full([], float("inf"), tl.float32)  # min-p alone has its edge: nothing to read
        if spare > 0.0:
            room = spare * total * 0.99999  # for what the masses are off
            low = tl.maximum(_nucleus_bound(top, mass, scale, room, blocks, block_size), least)
    tl.store(low_ptr + row, low)
    tl.store(spare_ptr + row, spare)
    tl.store(plan_ptr + row, k)
    tl.store(plan_ptr + rows + row, 0)  # candidates found so far
    tl.store(threshold_ptr + row, tl.where(accepted | greedy, least, float("nan")))
    tl.store(tie_ptr + row, _ALL_TIES)


def _variant(blocks: int, of_rows: bool) -> Variant:
    def given(kind: str) -> str:
        return f"*{kind}:16" if of_rows else "constexpr"

    return Variant(
        name=f"truncation_bounds {blocks} blocks" + ", filters of row" * of_rows,
        kernel=_bounds,
        signature={
            "partials_ptr": "*fp32:16",
            "blocks": "i32",
            "temperature_ptr": given("fp32"),
            "inverse": "fp64",
            "top_k_ptr": given("i32"),
            "top_k": "i32",
            "top_p_ptr": given("fp64"),
            "top_p": "fp64",
            "min_p_ptr": given("fp64"),
            "min_p": "fp64",
            "low_ptr": "*fp32:16",
            "spare_ptr": "*fp64:16",
            "plan_ptr": "*i32:16",
            "threshold_ptr": "*fp32:16",
            "tie_ptr": "*i32:16",
            "block_size": "constexpr",
            "padded": "constexpr",
        },
        constexprs={"block_size": BLOCK, "padded": triton.next_power_of_2(blocks)},
        num_warps=4,
    )


VARIANTS = (_variant(63, True), _variant(75, True), _variant(63, False))
