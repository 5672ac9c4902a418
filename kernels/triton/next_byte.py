"""Masses of the next byte on the device: after `block_stats` and `stretch_masses` a sum of few
numbers.

Oracle: `midstream.kernels.next_byte`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from midstream.kernels.blocks import NO_MASS
from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.kernels.triton.block_stats import block_stats, load_temperature
from midstream.kernels.triton.byte_tables import GROUP, tables_of
from midstream.kernels.triton.launch import (
    FP_FUSION,
    Tensor,
    Variant,
    as_temperature,
    check_logits,
    check_mask,
    on_device_of,
    to_device,
)
from midstream.kernels.triton.pick import block_masses
from midstream.kernels.triton.stretch_masses import load_children, stretch_masses

_LOG2E = tl.constexpr(1.4426950408889634)
_NO_MASS = tl.constexpr(NO_MASS)


@triton.jit
def _next_byte(
    temperature_ptr: tl.tensor,  # [R] or None
    inverse: tl.float64,
    index_ptr: tl.tensor,  # [P] or None
    node_ptr: tl.tensor,  # [P]
    nodes: tl.tensor,
    first_child_ptr: tl.tensor,
    byte_ptr: tl.tensor,
    masses_ptr: tl.tensor,  # fp64 [P, splits, slots, 2]
    splits: tl.tensor,
    slots: tl.tensor,
    partials_ptr: tl.tensor,  # [R, 5, NB]
    blocks: tl.tensor,
    out_ptr: tl.tensor,  # fp64 [P, 260]
    status_ptr: tl.tensor,  # int8 [P]
    group: tl.constexpr,
    padded: tl.constexpr,  # blocks, up to a power of 2
    padded_slots: tl.constexpr,
) -> None:
    p = tl.program_id(0).to(tl.int64)
    row = p
    if index_ptr is not None:
        row = tl.load(index_ptr + p).to(tl.int64)
    inverse_t, _ = load_temperature(temperature_ptr, inverse, row)
    scale = inverse_t * _LOG2E
    top, _, mass = block_masses(partials_ptr + row * 5 * blocks, blocks, scale, padded)
    total = tl.sum(mass, 0)
    finite, log_total = total < float("inf"), tl.log(total)  # not finite for a NaN either
    alive = finite & (total > 0.0)

    _, _, first, last = load_children(node_ptr, first_child_ptr, nodes, p)
    slot = tl.arange(0, padded_slots)
    other = slot - (slots - group)
    live = (slot < tl.where(finite, last - first, 0)) | (
        (other >= 0) & (other < tl.where(finite, 3, 0))
    )
    m = tl.full([padded_slots], _NO_MASS, tl.float64)
    s = tl.zeros([padded_slots], tl.float64)
    for split in range(0, splits):
        place = masses_ptr + 2 * ((p * splits + split) * slots + slot)
        part_m = tl.load(place, mask=live, other=_NO_MASS)
        part_s = tl.load(place + 1, mask=live, other=0.0)
        larger = tl.maximum(m, part_m)
        s = s * tl.exp2((m - larger) * scale) + part_s * tl.exp2((part_m - larger) * scale)
        m = larger
    byte = tl.load(byte_ptr + first + slot, mask=live & (other < 0), other=0).to(tl.int32)
    log_mass = (m - top) * inverse_t + tl.log(s) - log_total
    log_mass = tl.where(s > 0.0, log_mass, float("-inf"))
    tl.store(out_ptr + p * 260 + tl.where(other < 0, byte, 256 + other), log_mass, mask=live)

    no_law = float("nan")
    tl.store(out_ptr + p * 260 + 259, tl.where(finite, top * inverse_t + log_total, no_law))
    column = tl.arange(0, 512)
    tl.store(out_ptr + p * 260 + column, no_law, mask=column < tl.where(finite, 0, 259))
    tl.store(status_ptr + p, tl.where(alive, 0, tl.where(finite, 1, 2)).to(tl.int8))


def next_byte(
    logits: Tensor,  # [R, V]
    vocabulary: ByteSortedVocabulary,
    nodes: Any,  # [P]
    indices: Any,  # [P] or None
    mask: Tensor | None,  # [R, W]
    temperature: Any,  # scalar or [R]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `kernels.next_byte.next_byte`. Three launches; a node that there is not is none."""
    check_logits(logits)
    check_mask(mask, logits)
    heat = as_temperature(temperature, logits)
    tables = tables_of(vocabulary, logits.device)
    node = to_device(nodes, logits)
    index = None if indices is None else to_device(indices, logits)
    status = torch.empty(node.shape[0], dtype=torch.int8, device=logits.device)
    if not len(status):
        none = torch.empty((0, 260), dtype=torch.float64, device=logits.device)
        return none[:, :257], none[:, 257], none[:, 258], none[:, 259], status
    partials = block_stats(logits, None, heat)
    masses, out = stretch_masses(logits, mask, heat, tables, node, index)
    blocks = partials.shape[2]
    with on_device_of(logits):
        _next_byte[(len(status),)](
            heat.of_row,
            heat.inverse,
            index,
            node,
            tables.byte.shape[0],
            tables.first_child,
            tables.byte,
            masses,
            tables.splits,
            tables.slots,
            partials,
            blocks,
            out,
            status,
            group=GROUP,
            padded=triton.next_power_of_2(blocks),
            padded_slots=triton.next_power_of_2(tables.slots),
            num_warps=4,
            enable_fp_fusion=FP_FUSION,
        )
    return out[:, :257], out[:, 257], out[:, 258], out[:, 259], status


def _variant(blocks: int, slots: int, indices: bool) -> Variant:
    node = "*i64:16"
    return Variant(
        name=f"next_byte {blocks} blocks, {slots} slots" + ", indices" * indices,
        kernel=_next_byte,
        signature={
            "temperature_ptr": "constexpr" if indices else "*fp32:16",
            "inverse": "fp64",
            "index_ptr": node if indices else "constexpr",
            "node_ptr": node,
            "nodes": "i32",
            "first_child_ptr": "*i32:16",
            "byte_ptr": "*u8:16",
            "masses_ptr": "*fp64:16",
            "splits": "i32",
            "slots": "i32",
            "partials_ptr": "*fp32:16",
            "blocks": "i32",
            "out_ptr": "*fp64:16",
            "status_ptr": "*i8:16",
            "group": "constexpr",
            "padded": "constexpr",
            "padded_slots": "constexpr",
        },
        constexprs={
            "group": GROUP,
            "padded": triton.next_power_of_2(blocks),
            "padded_slots": triton.next_power_of_2(slots),
        },
        num_warps=4,
    )


VARIANTS = (
    _variant(blocks=63, slots=264, indices=True),
    _variant(blocks=16, slots=264, indices=False),
)
