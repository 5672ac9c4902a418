"""Masses of the stretches of a byte-sorted vocabulary: one gather of the logits in that order.

Oracle: `midstream.kernels.next_byte`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from midstream.kernels.blocks import NO_MASS
from midstream.kernels.triton.block_stats import load_temperature
from midstream.kernels.triton.byte_tables import GROUP, ByteTables
from midstream.kernels.triton.launch import FP_FUSION, Temperature, Tensor, Variant, on_device_of

GATHER = 1024
"""Tokens gathered at once. Part of what a row's last bits are."""

_LOG2E = tl.constexpr(1.4426950408889634)
_NO_MASS = tl.constexpr(NO_MASS)


@triton.jit
def stretch_mass(
    row_ptr: tl.tensor,
    words_ptr: tl.tensor,  # or None
    words: tl.tensor,
    order_ptr: tl.tensor,  # int32 [known]
    known: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    step: tl.tensor,
    scale: tl.tensor,  # log2(e) / T, fp64
    block_size: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Of every `step`-th run of tokens of a stretch of the sorted order: the largest logit and the
    sum of 2^((x - largest) scale), fp64. Places from `known` on stand for the ids of that number.
    """
    m = tl.full([], _NO_MASS, tl.float64)
    s = tl.full([], 0.0, tl.float64)
    for first in range(begin, end, step):
        place = first + tl.arange(0, block_size)
        inside = place < end
        token = tl.load(order_ptr + place, mask=inside & (place < known), other=0)
        token = tl.where(place < known, token, place)
        x = tl.load(row_ptr + token, mask=inside, other=float("-inf")).to(tl.float32)
        if words_ptr is not None:
            word = tl.load(words_ptr + token // 32, mask=inside & (token // 32 < words), other=0)
            x = tl.where((word >> (token % 32)) & 1 != 0, x, float("-inf"))
        top = tl.maximum(tl.max(x, 0), _NO_MASS)
        part = tl.sum(tl.exp2((x - top) * scale.to(tl.float32)), 0).to(tl.float64)
        larger = tl.maximum(m, top.to(tl.float64))
        s = s * tl.exp2((m - larger) * scale) + part * tl.exp2((top - larger) * scale)
        m = larger
    return m, s


@triton.jit
def load_children(
    node_ptr: tl.tensor, first_child_ptr: tl.tensor, nodes: tl.tensor, p: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Node of token p, 0 for none; whether it is one; its first child and where they end."""
    node = tl.load(node_ptr + p).to(tl.int64)
    real = (node >= 0) & (node < nodes)
    node = tl.where(real, node, 0)
    first = tl.load(first_child_ptr + node)
    last = tl.load(first_child_ptr + node + 1)
    return node, real, first, tl.where(real, last, first)


@triton.jit
def _stretch_masses(
    logits_ptr: tl.tensor,  # [R, V]
    logits_stride: tl.tensor,
    size: tl.tensor,
    mask_ptr: tl.tensor,  # [R, W] or None
    mask_stride: tl.tensor,
    words: tl.tensor,
    temperature_ptr: tl.tensor,  # [R] or None
    inverse: tl.float64,
    index_ptr: tl.tensor,  # [P] or None
    node_ptr: tl.tensor,  # [P]
    nodes: tl.tensor,
    order_ptr: tl.tensor,  # this and the next four: see `ByteTables`
    known: tl.tensor,
    first_child_ptr: tl.tensor,
    low_ptr: tl.tensor,
    high_ptr: tl.tensor,
    ends_ptr: tl.tensor,
    out_ptr: tl.tensor,  # fp64 [P, 260]
    masses_ptr: tl.tensor,  # fp64 [P, splits, slots, 2]
    group: tl.constexpr,
    block_size: tl.constexpr,
) -> None:
    p = tl.program_id(0).to(tl.int64)
    split, splits = tl.program_id(2), tl.num_programs(2)
    slots = tl.num_programs(1) * group  # of which the last group is for what is no child
    row = p
    if index_ptr is not None:
        row = tl.load(index_ptr + p).to(tl.int64)
    inverse_t, _ = load_temperature(temperature_ptr, inverse, row)
    words_ptr = mask_ptr
    if mask_ptr is not None:
        words_ptr = mask_ptr + row * mask_stride
    column = tl.arange(
        0, 512
    )  # for the bytes that no child has; the rest comes with the next launch
    tl.store(out_ptr + p * 260 + column, float("-inf"), mask=column < 260)
    node, real, first, last = load_children(node_ptr, first_child_ptr, nodes, p)
    of_children = tl.program_id(1) + 1 < tl.num_programs(1)
    slot = tl.program_id(1) * group
    count = tl.where(of_children, tl.minimum(last - first - slot, group), 3)
    for i in range(0, count):
        if of_children:
            begin, end = tl.load(low_ptr + first + slot + i), tl.load(high_ptr + first + slot + i)
        else:  # the tokens that end here, end of sequence, other special ids
            which = tl.where(i == 0, node, nodes + i - 1)
            begin, end = tl.load(low_ptr + which), tl.minimum(tl.load(ends_ptr + which), size)
            end = tl.where((i > 0) | real, end, begin)
        m, s = stretch_mass(
            logits_ptr + row * logits_stride,
            words_ptr,
            words,
            order_ptr,
            known,
            begin + split * block_size,
            end,
            splits * block_size,
            inverse_t * _LOG2E,
            block_size,
        )
        place = masses_ptr + 2 * ((p * splits + split) * slots + slot + i)
        tl.store(place, m)
        tl.store(place + 1, s)


def stretch_masses(
    logits: Tensor,  # [R, V]
    mask: Tensor | None,  # [R, W]
    heat: Temperature,
    tables: ByteTables,
    node: Tensor,  # [P]
    index: Tensor | None,  # [P]
) -> tuple[Tensor, Tensor]:
    """The masses of the stretches of P nodes: fp64 [P, splits, slots, 2], the largest logit of some
    of a stretch and the sum relative to it; and what they go into, fp64 [P, 260], all -inf.

    Slots are the children of a node, and in the last group the tokens that end there, the end of
    sequence and the other special ids. Those that a node does not have are not written.
    """
    count = node.shape[0]
    shape = (count, tables.splits, tables.slots, 2)
    masses = torch.empty(shape, dtype=torch.float64, device=logits.device)
    out = torch.empty((count, 260), dtype=torch.float64, device=logits.device)
    with on_device_of(logits):
        _stretch_masses[(count, tables.groups + 1, tables.splits)](
            logits,
            logits.stride(0),
            logits.shape[1],
            mask,
            0 if mask is None else mask.stride(0),
            0 if mask is None else mask.shape[1],
            heat.of_row,
            heat.inverse,
            index,
            node,
            tables.byte.shape[0],
            tables.order,
            tables.order.shape[0],
            tables.first_child,
            tables.low,
            tables.high,
            tables.ends,
            out,
            masses,
            group=GROUP,
            block_size=GATHER,
            num_warps=4,
            enable_fp_fusion=FP_FUSION,
        )
    return masses, out


def _variant(dtype: str, mask: bool, indices: bool) -> Variant:
    told = [dtype, *["mask"] * mask, *["indices"] * indices]
    table, node = "*i32:16", "*i64:16"
    return Variant(
        name="stretch_masses " + ", ".join(told),
        kernel=_stretch_masses,
        signature={
            "logits_ptr": f"*{dtype}:16",
            "logits_stride": "i32:16",
            "size": "i32:16",
            "mask_ptr": "*i32:16" if mask else "constexpr",
            "mask_stride": "i32:16",
            "words": "i32:16",
            "temperature_ptr": "constexpr" if indices else "*fp32:16",
            "inverse": "fp64",
            "index_ptr": node if indices else "constexpr",
            "node_ptr": node,
            "nodes": "i32",
            "order_ptr": table,
            "known": "i32",
            "first_child_ptr": table,
            "low_ptr": table,
            "high_ptr": table,
            "ends_ptr": table,
            "out_ptr": "*fp64:16",
            "masses_ptr": "*fp64:16",
            "group": "constexpr",
            "block_size": "constexpr",
        },
        constexprs={"group": GROUP, "block_size": GATHER},
        num_warps=4,
    )


VARIANTS = (
    *(_variant(dtype, mask=True, indices=True) for dtype in ("bf16", "fp16", "fp32")),
    _variant("bf16", mask=False, indices=False),
)
