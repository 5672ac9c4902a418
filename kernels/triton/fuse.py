"""Mixture and product of K rows on the device: their statistics, then one read that fuses them.

Oracle: `midstream.kernels.fusion.fuse`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from midstream.kernels.backend import is_tensor
from midstream.kernels.blocks import BLOCK, NO_MASS
from midstream.kernels.triton.block_stats import block_stats, load_logits, load_temperature
from midstream.kernels.triton.launch import (
    FP_FUSION,
    Temperature,
    Tensor,
    Variant,
    block_count,
    check_logits,
    on_device_of,
    to_device,
)
from midstream.kernels.triton.normalise import normalise
from midstream.kernels.triton.pick import block_masses

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_NO_MASS = tl.constexpr(NO_MASS)


@triton.jit
def load_twins(
    row_ptr: tl.tensor,
    size: tl.tensor,
    map_ptr: tl.tensor,  # int32 or int64 [V], or None
    begin: tl.tensor,
    end: tl.tensor,
    block_size: tl.constexpr,
) -> tl.tensor:
    """A model's logits for some of main's tokens: fp32, -inf where there is no twin."""
    if map_ptr is not None:
        offsets = begin + tl.arange(0, block_size)
        twin = tl.load(map_ptr + offsets, mask=offsets < end, other=-1)
        known = (twin >= 0) & (twin < size)
        x = tl.load(row_ptr + twin, mask=known, other=float("-inf")).to(tl.float32)
    else:
        x = load_logits(row_ptr, begin, tl.minimum(size, end), block_size)
    return tl.where(x > _NO_MASS, x, float("-inf"))


@triton.jit
def _fuse(
    rows: tl.tuple,  # K of [B, V_k]
    strides: tl.tuple,
    sizes: tl.tuple,
    partials: tl.tuple,  # K of [B, 5, NB_k]
    blocks: tl.tuple,
    maps: tl.tuple,  # K of [V] or None
    filters: tl.tuple,  # K of [V], [B, V] or None
    filter_strides: tl.tuple,
    weight_ptr: tl.tensor,  # fp64 [B, K]
    temperature_ptr: tl.tensor,  # fp64 [B, K]
    size: tl.tensor,
    out_ptr: tl.tensor,  # fp32 [B, V]
    masses_ptr: tl.tensor,  # fp64 [B, 1 + K, 2, NB], logs to base 2
    product: tl.constexpr,
    kind: tl.constexpr,  # the type that a token's logarithms are added up in
    models: tl.constexpr,
    padded: tl.constexpr,  # the most blocks, up to a power of 2
    block_size: tl.constexpr,
) -> None:
    b = tl.program_id(0).to(tl.int64)
    begin, count = tl.program_id(1) * block_size, tl.num_programs(1)
    offsets = begin + tl.arange(0, block_size)
    masses_ptr += b * (2 + 2 * models) * count + tl.program_id(1)
    broken = tl.full([], 0.0, tl.float64)
    reference = tl.full([], _NO_MASS, tl.float64)  # of a product 0
    log_sum = tl.zeros([block_size], kind)  # of a mixture the largest term, beside the reference
    share = tl.zeros([block_size], tl.float32)  # of a mixture the sum, beside the largest term
    if product:
        reference = tl.full([], 0.0, tl.float64)
    else:
        log_sum += _NO_MASS
    for k in tl.static_range(models):
        weight = tl.load(weight_ptr + b * models + k)
        inverse_t, _ = load_temperature(temperature_ptr, 1.0, b * models + k)
        scale = inverse_t * _LOG2E
        top, _, mass = block_masses(partials[k] + b * 5 * blocks[k], blocks[k], scale, padded)
        total = tl.sum(mass, 0)
        log_total = tl.where(total > 0.0, tl.log2(total), -_NO_MASS)  # a law of nothing
        broken += total * 0.0  # NaN where a logit is one
        x = load_twins(rows[k] + b * strides[k], sizes[k], maps[k], begin, size, block_size)
        m = tl.maximum(tl.max(x, 0), _NO_MASS)
        mass = tl.sum(tl.exp2((x - m) * scale.to(tl.float32)), 0)
        log_m = (m.to(tl.float64) - top) * scale - log_total
        tl.store(masses_ptr + (2 + 2 * k) * count, log_m)
        tl.store(masses_ptr + (3 + 2 * k) * count, mass.to(tl.float64))
        each = tl.full([block_size], 1.0, tl.float32)
        if filters[k] is not None:
            filter_ptr = filters[k] + b * filter_strides[k] + offsets
            each = tl.load(filter_ptr, mask=offsets < size, other=0.0).to(tl.float32)
        d = (x.to(kind) - m) * scale.to(kind)
        if product:
            exponent = each.to(kind) * weight
            log_sum += tl.where(exponent == 0.0, 0.0, exponent * (d + log_m))
        else:
            log_m += tl.log2(weight)
            higher = tl.maximum(reference, log_m)
            term = d + (log_m - higher).to(kind)
            if filters[k] is not None:
                term += tl.log2(each)
            log_sum += (reference - higher).to(kind)
            larger = tl.maximum(log_sum, term)
            share *= tl.exp2((log_sum - larger).to(tl.float32))
            share += tl.exp2((term - larger).to(tl.float32))
            log_sum, reference = larger, higher
    if not product:
        log_sum = tl.where(share > 0.0, log_sum + tl.log2(share), float("-inf"))
    log_sum = tl.where(offsets < size, log_sum, float("-inf"))
    # What is stored is relative to the block's maximum, so that float32 rounds it at the far end.
    m = tl.maximum(tl.max(log_sum, 0), _NO_MASS)
    value = (log_sum - m).to(tl.float32)
    tl.store(masses_ptr, reference + m)
    tl.store(masses_ptr + count, tl.sum(tl.exp2(value), 0) + broken)
    tl.store(out_ptr + b * size + offsets, value * _LN2, mask=offsets < size)


def fuse(
    rows: Sequence[Tensor],  # K of [B, V_k]
    weights: Any,  # [B, K]
    token_weights: Sequence[Any],  # K of None, [V] or [B, V]
    product: bool,
    index_maps: Sequence[Any],  # K of None or [V]
    temperature: Any,  # [B, K]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `kernels.fusion.fuse`. K + 2 launches; token weights are read as float32."""
    main, models = rows[0], len(rows)
    for row in rows:
        check_logits(row)
        if row.device != main.device:
            raise ValueError(f"rows: got {row.device} beside {main.device}; accepted: one device")
    batch, size = main.shape
    count = block_count(size)
    out = torch.empty((batch, size), dtype=torch.float32, device=main.device)
    masses = main.new_empty((batch, 1 + models, 2, count), dtype=torch.float64)
    if batch == 0:
        return out, *normalise(out, masses)
    of_models, heats = (_float64(each, main) for each in (weights, temperature))
    maps = tuple(None if each is None else to_device(each, main) for each in index_maps)
    filters = tuple(None if each is None else to_device(each, main) for each in token_weights)
    partials = tuple(
        block_stats(row, None, Temperature(1.0, heats[:, k].contiguous()))
        for k, row in enumerate(rows)
    )
    blocks = tuple(each.shape[2] for each in partials)
    with on_device_of(main):
        _fuse[(batch, count)](
            tuple(rows),
            tuple(row.stride(0) for row in rows),
            tuple(row.shape[1] for row in rows),
            partials,
            blocks,
            maps,
            filters,
            tuple(0 if each is None or each.ndim == 1 else size for each in filters),
            of_models,
            heats,
            size,
            out,
            masses,
            product=product,
            # In a mixture the likeliest token lies near the maximum of some model, and float32 will
            # do. Where models veto or tokens are filtered it may lie far below all of them.
            kind=tl.float64 if product or any(x is not None for x in filters) else tl.float32,
            models=models,
            padded=triton.next_power_of_2(max(blocks)),
            block_size=BLOCK,
            num_warps=_warps(models),
            enable_fp_fusion=FP_FUSION,
        )
    return out, *normalise(out, masses)


def _warps(models: int) -> int:
    """So that no register spills with up to four models."""
    return 4 if models < 4 else 8


def _float64(array: Any, main: Tensor) -> Tensor:
    tensor = array if is_tensor(array) else torch.tensor(array)
    return tensor.to(main.device, torch.float64).contiguous()


def _fuse_variant(dtypes: tuple[str, ...], product: bool, mapped: bool, filtered: bool) -> Variant:
    """Of models whose vocabularies are of main's size; all but main may have a map and a filter."""
    models, others = len(dtypes), len(dtypes) - 1
    told = ["product" if product else "mixture", *dtypes, *["maps"] * mapped]
    integers = ("i32:16",) * models
    signature: dict[str, Any] = {
        "rows": tuple(f"*{dtype}:16" for dtype in dtypes),
        "strides": integers,
        "sizes": integers,
        "partials": ("*fp32:16",) * models,
        "blocks": ("i32",) * models,
        "maps": ("constexpr", *("*i32:16" if mapped else "constexpr",) * others),
        "filters": ("constexpr", *("*fp32:16" if filtered else "constexpr",) * others),
        "filter_strides": integers,
        "weight_ptr": "*fp64:16",
        "temperature_ptr": "*fp64:16",
        "size": "i32:16",
        "out_ptr": "*fp32:16",
        "masses_ptr": "*fp64:16",
        "product": "constexpr",
        "kind": "constexpr",
        "models": "constexpr",
        "padded": "constexpr",
        "block_size": "constexpr",
    }
    values = {
        "product": product,
        "kind": tl.float64 if product or filtered else tl.float32,
        "models": models,
        "padded": 64,
        "block_size": BLOCK,
    }
    return Variant(
        name="fuse " + ", ".join([*told, *["token weights"] * filtered]),
        kernel=_fuse,
        signature=signature,
        constexprs=values,
        num_warps=_warps(models),
        tokens=BLOCK,
        wide=True,
    )


VARIANTS = (
    _fuse_variant(("bf16", "bf16"), product=False, mapped=False, filtered=False),
    _fuse_variant(("bf16", "bf16"), product=True, mapped=False, filtered=False),
    _fuse_variant(("fp32", "bf16", "fp16"), product=False, mapped=True, filtered=True),
    _fuse_variant(("fp32", "fp32"), product=True, mapped=True, filtered=True),
    _fuse_variant(("fp32",) * 4, product=False, mapped=True, filtered=True),
)
