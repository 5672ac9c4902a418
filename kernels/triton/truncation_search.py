"""The exact cut of a row among its candidates, by digits of the order of their logits.

Third of the kernels of `truncation`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from midstream.kernels.blocks import NO_MASS
from midstream.kernels.triton.block_stats import load_temperature
from midstream.kernels.triton.launch import Variant
from midstream.kernels.triton.pick import block_masses
from midstream.kernels.triton.truncation_bounds import key_of, value_of
from midstream.kernels.truncation import ALL_TIES

TILE = 512
"""Candidates looked at at once."""

_LOG2E = tl.constexpr(1.4426950408889634)
_NO_MASS = tl.constexpr(NO_MASS)
_ALL_TIES = tl.constexpr(ALL_TIES)
_UNIT = tl.constexpr(41)
_ONE = tl.constexpr(1 << 41)  # masses are integers; what top-p may take away is this one
_DIGIT = tl.constexpr(3)  # bits of a key that a round finds
_DIGITS = tl.constexpr(8)
_COUNT = tl.constexpr(0)  # weigh every token 1, in the order of logits
_MASS = tl.constexpr(1)  # weigh it by its mass
_TIES = tl.constexpr(2)  # weigh those of one logit 1, in the order of ids


@triton.jit
def _units(x: tl.tensor, top: tl.tensor, scale: tl.tensor, shift: tl.tensor) -> tl.tensor:
    """2^((x - top) scale + shift) rounded to an integer, at most 2^(_UNIT + 1): int64.

    Sums of integers are the same in any order.
    """
    exponent = tl.minimum((x.to(tl.float64) - top) * scale + shift, _UNIT + 1.0)
    exponent = tl.maximum(exponent, -2.0)
    whole = tl.floor(exponent)
    mantissa = tl.exp2((exponent - whole).to(tl.float32)).to(tl.float64)
    power = ((whole.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    return (mantissa * power + 0.5).to(tl.int64)


@triton.jit
def _load(
    list_ptr: tl.tensor, begin: tl.tensor, count: tl.tensor, row_ptr: tl.tensor, tile: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Candidates `begin` to `begin + tile`: ids, and their logits in fp32, -inf past the last."""
    offsets = begin + tl.arange(0, tile)
    ids = tl.load(list_ptr + offsets, mask=offsets < count, other=0)
    x = tl.load(row_ptr + ids, mask=offsets < count, other=float("-inf"))
    return ids, x.to(tl.float32)


@triton.jit
def _above(key: tl.tensor, low: tl.tensor) -> tl.tensor:
    """How far a key lies above another: uint32, which holds the distance of any two."""
    return key.to(tl.uint32, bitcast=True) - low.to(tl.uint32, bitcast=True)


@triton.jit
def _narrow(
    list_ptr: tl.tensor,
    count: tl.tensor,
    row_ptr: tl.tensor,
    low: tl.tensor,
    step: tl.tensor,
    all_above: tl.constexpr,
    grain: tl.constexpr,
    tile: tl.constexpr,
) -> tl.tensor:
    """Keep in the list the candidates whose keys are from `low` on, and less than `low + 2^step`
    unless `all_above`: how many. In place, in order.
    """
    kept = count * 0
    for begin in range(0, count, tile):
        ids, x = _load(list_ptr, begin, count, row_ptr, tile)
        key = key_of(x) >> grain
        stays = (key >= low) & (x > _NO_MASS)
        if not all_above:
            stays &= _above(key, low) >> step == 0
        place = list_ptr + kept + tl.cumsum(stays.to(tl.int32), 0) - 1
        tl.debug_barrier()  # the tile is read; no store goes behind its end
        tl.store(place, ids, mask=stays)
        kept += tl.sum(stays.to(tl.int32), 0)
    tl.debug_barrier()
    return kept


@triton.jit
def _find(
    list_ptr: tl.tensor,
    count: tl.tensor,
    row_ptr: tl.tensor,
    low: tl.tensor,  # the least key
    high: tl.tensor,  # the largest
    room: tl.tensor,  # int64
    top: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    value: tl.tensor,  # the logit of the ties
    kind: tl.constexpr,
    grain: tl.constexpr,
    tile: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The first key at which the weight of all candidates up to it is more than `room`, the last at
    the latest: that key, the weight of those of this key, how much of it there is room for, and how
    many are left in the list. A digit of the key a round.
    """
    digit = tl.arange(0, _DIGITS)
    bits = tl.sum((_above(high, low) >> tl.arange(0, 32) > 0).to(tl.int32), 0)
    here = room * 0
    while bits >= 0:
        step = tl.maximum(bits - _DIGIT, 0)
        bins = tl.zeros([_DIGITS], tl.int64)
        for begin in range(0, count, tile):
            ids, x = _load(list_ptr, begin, count, row_ptr, tile)
            key, live = key_of(x) >> grain, x > _NO_MASS
            if kind == _TIES:
                key, live = ids, live & (x == value)
            part = _above(key, low) >> step
            part = tl.where(live & (key >= low), part, _DIGITS).to(tl.int32, bitcast=True)
            weight = tl.full([tile], 1, tl.int64)
            if kind == _MASS:
                weight = _units(x, top, scale, shift)
            hit = part[:, None] == digit[None, :]
            bins += tl.sum(tl.where(hit, weight[:, None], 0), 0)
        room = tl.minimum(room, tl.sum(bins, 0) - 1)  # the last one stays in any case
        under = tl.cumsum(bins, 0) <= room
        room -= tl.sum(tl.where(under, bins, 0), 0)
        edge = tl.sum(under.to(tl.int32), 0)
        here = tl.sum(tl.where(digit == edge, bins, 0), 0)
        low += edge << step
        bits = tl.where(step > 0, step, -1)
        if (kind != _TIES) and (count > tile):
            count = _narrow(list_ptr, count, row_ptr, low, step, kind == _COUNT, grain, tile)
    return low, here, room, count


@triton.jit
def _value_of_digits(key: tl.tensor, grain: tl.constexpr) -> tl.tensor:
    """The logit of a key without its last `grain` bits, which are the same for all of a sign."""
    whole = key << grain
    return value_of(tl.where(whole < 0, whole | ((1 << grain) - 1), whole))


@triton.jit
def _masses(
    list_ptr: tl.tensor,
    count: tl.tensor,
    row_ptr: tl.tensor,
    threshold: tl.tensor,
    top: tl.tensor,
    scale: tl.tensor,
    tile: tl.constexpr,
) -> tl.tensor:
    """The mass, relative to `top`, of the candidates from a logit on: fp64."""
    total = tl.zeros([], tl.int64)
    for begin in range(0, count, tile):
        _, x = _load(list_ptr, begin, count, row_ptr, tile)
        units = _units(x, top, scale, tl.full([], _UNIT, tl.float64))
        total += tl.sum(tl.where((x >= threshold) & (x > _NO_MASS), units, 0), 0)
    return total.to(tl.float64) / _ONE


@triton.jit
def _rest(
    partials_ptr: tl.tensor,
    rest_ptr: tl.tensor,
    mass: tl.tensor,
    low: tl.tensor,
    top: tl.tensor,
    scale: tl.tensor,
    blocks: tl.tensor,
    padded: tl.constexpr,
) -> tl.tensor:
    """The mass, relative to `top`, of all below `low`: of blocks that were read and were not."""
    index = tl.arange(0, padded)
    m = tl.load(partials_ptr + index, mask=index < blocks, other=_NO_MASS)
    read = (m >= low) & (m > _NO_MASS)
    rest = tl.load(rest_ptr + index, mask=read, other=0.0).to(tl.float64)
    return tl.sum(tl.where(read, rest * tl.exp2((low - top) * scale), mass), 0)


@triton.jit
def _search(
    logits_ptr: tl.tensor,  # [R, V]
    logits_stride: tl.tensor,
    size: tl.tensor,
    temperature_ptr: tl.tensor,  # [R] or None
    inverse: tl.float64,  # 1 / T where temperature_ptr is None, 0 for T = 0
    partials_ptr: tl.tensor,  # m and s, or mo and so, of the first row
    blocks: tl.tensor,
    low_ptr: tl.tensor,  # fp32 [R]
    spare_ptr: tl.tensor,  # fp64 [R]
    plan_ptr: tl.tensor,  # int32 [2, R]
    list_ptr: tl.tensor,  # int32 [R, V]
    rest_ptr: tl.tensor,  # fp32 [R, NB]
    threshold_ptr: tl.tensor,  # fp32 [R]
    tie_ptr: tl.tensor,  # int32 [R]
    padded: tl.constexpr,
    grain: tl.constexpr,  # last bits of fp32 that the logits never use
    tile: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    low = tl.load(low_ptr + row)
    if low < float("inf"):
        inverse_t, _greedy = load_temperature(temperature_ptr, inverse, row)
        scale = _LOG2E * inverse_t
        row_ptr, list_ptr = logits_ptr + row * logits_stride, list_ptr + row * size
        k, spare = tl.load(plan_ptr + row), tl.load(spare_ptr + row)
        count = tl.load(plan_ptr + tl.num_programs(0) + row)
        top, _distance, mass = block_masses(partials_ptr + row * 5 * blocks, blocks, scale, padded)
        cut, tie, shift = low, tl.full([], _ALL_TIES, tl.int32), tl.zeros([], tl.float64)
        key = key_of(tl.maximum(low, _NO_MASS)) >> grain
        high = key_of(top.to(tl.float32)) >> grain
        total, rest = tl.sum(mass, 0), shift
        if k == 0:
            rest = _rest(
                partials_ptr + row * 5 * blocks, rest_ptr + row * blocks,
                mass, low, top, scale, blocks, padded,
            )  # fmt: skip
        elif count >= k:
            room = (count - k).to(tl.int64)
            key, here, room, count = _find(
                list_ptr, count, row_ptr, key, high, room,
                top, scale, shift, low, _COUNT, grain, tile,
            )  # fmt: skip
            cut = _value_of_digits(key, grain)
        if spare > 0.0:
            if k > 0:
                total = _masses(list_ptr, count, row_ptr, cut, top, scale, tile)
            spare *= total
            shift = _UNIT - tl.log2(spare)
            room = _ONE - (tl.minimum(rest / spare, 2.0) * _ONE + 0.5).to(tl.int64)
            if room >= 0:  # else min-p cuts above
                key, here, room, count = _find(
                    list_ptr, count, row_ptr, key, high, room,
                    top, scale, shift, low, _MASS, grain, tile,
                )  # fmt: skip
                cut = _value_of_digits(key, grain)
                each = _units(cut, top, scale, shift)
                stay = here // each - room // each
                if stay * each < here:
                    first, last = tl.full([], 0, tl.int32), tl.full([], size - 1, tl.int32)
                    tie, here, room, count = _find(
                        list_ptr, count, row_ptr, first, last, stay - 1,
                        top, scale, shift, cut, _TIES, grain, tile,
                    )  # fmt: skip
        least = tl.load(threshold_ptr + row)  # of min-p
        cut = tl.where(cut > _NO_MASS, cut, float("-inf"))  # where k is more than there are tokens
        tl.store(threshold_ptr + row, tl.maximum(cut, least))
        tl.store(tie_ptr + row, tl.where(cut >= least, tie, _ALL_TIES))


def _variant(dtype: str, grain: int, blocks: int) -> Variant:
    return Variant(
        name=f"truncation_search {dtype}, {blocks} blocks",
        kernel=_search,
        signature={
            "logits_ptr": f"*{dtype}:16",
            "logits_stride": "i32:16",
            "size": "i32:16",
            "temperature_ptr": "*fp32:16",
            "inverse": "fp64",
            "partials_ptr": "*fp32:16",
            "blocks": "i32",
            "low_ptr": "*fp32:16",
            "spare_ptr": "*fp64:16",
            "plan_ptr": "*i32:16",
            "list_ptr": "*i32:16",
            "rest_ptr": "*fp32:16",
            "threshold_ptr": "*fp32:16",
            "tie_ptr": "*i32:16",
            "padded": "constexpr",
            "grain": "constexpr",
            "tile": "constexpr",
        },
        constexprs={"padded": triton.next_power_of_2(blocks), "grain": grain, "tile": TILE},
        num_warps=8,
    )


VARIANTS = (_variant("bf16", 16, 63), _variant("fp16", 13, 63), _variant("fp32", 0, 75))
