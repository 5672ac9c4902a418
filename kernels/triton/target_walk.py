"""The target walk on the device: one program a request draws from the target and goes down where a
child carries the token.

Oracle: `midstream.kernels.verify_tree`, method target_walk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from midstream.kernels.blocks import BLOCK
from midstream.kernels.triton.launch import FP_FUSION, Tensor, Variant, on_device_of
from midstream.kernels.triton.pick import block_masses, first_above, load_kept
from midstream.kernels.triton.row_laws import Laws
from midstream.kernels.triton.verify_parts import load_pair, settled, signature, variant
from midstream.kernels.verify_tree import TreeVerdict

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def draw_target(
    row_ptr: tl.tensor,
    size: tl.tensor,
    words_ptr: tl.tensor,
    words: tl.tensor,
    law_ptr: tl.tensor,
    partials_ptr: tl.tensor,  # mo and so of the row
    blocks: tl.tensor,
    status: tl.tensor,
    u0: tl.tensor,
    u1: tl.tensor,
    block_size: tl.constexpr,
    padded: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """A token of the target law, -1 of a dead row, and its log probability under the whole row."""
    scale = tl.load(law_ptr + 8) * _LOG2E
    _, _, masses = block_masses(partials_ptr, blocks, scale, padded)
    block = tl.maximum(first_above(masses, u0 * tl.sum(masses, 0), padded), 0)
    y = load_kept(row_ptr, size, words_ptr, words, None, None, block * block_size, block_size)
    d = y - tl.load(partials_ptr + block)
    e = tl.exp2(d * scale.to(tl.float32)).to(tl.float64)
    inside = tl.maximum(first_above(e, u1 * tl.sum(e, 0), block_size), 0)
    token, log_p = settled(row_ptr, size, law_ptr, block * block_size + inside, status == 0)
    return token, log_p


@triton.jit(do_not_specialize=["purpose", "first", "rows"])
def _target_walk(
    target_ptr: tl.tensor,  # [B R, V]
    target_stride: tl.tensor,
    size: tl.tensor,
    mask_ptr: tl.tensor,  # [B R, W] or None
    mask_stride: tl.tensor,
    words: tl.tensor,
    uniform_ptr: tl.tensor,  # [B, R, 2], None with keys
    seed_ptr: tl.tensor,  # [B], as are the next two
    sequence_ptr: tl.tensor,
    position_ptr: tl.tensor,
    purpose: tl.tensor,
    first: tl.tensor,
    token_ptr: tl.tensor,  # int64 [B, R - 1], as is the next
    parent_ptr: tl.tensor,
    laws_ptr: tl.tensor,  # fp64 [B R, 10]
    row_status_ptr: tl.tensor,  # int8 [B R]
    row_weight_ptr: tl.tensor,  # fp64 [B R]
    partials_ptr: tl.tensor,  # fp32 [B R, 5, NB]
    blocks: tl.tensor,
    rows: tl.tensor,  # R
    path_ptr: tl.tensor,  # int64 [B, R - 1], -1 everywhere
    accepted_ptr: tl.tensor,  # int64 [B], as is the next
    last_ptr: tl.tensor,
    log_p_ptr: tl.tensor,  # fp64 [B]
    log_weight_ptr: tl.tensor,  # fp64 [B, R], NaN everywhere
    status_ptr: tl.tensor,  # int8 [B]
    block_size: tl.constexpr,
    padded: tl.constexpr,  # blocks, up to a power of 2
) -> None:
    request = tl.program_id(0).to(tl.int64)
    own = request * (rows - 1)
    none = tl.full([], 0, tl.int32)
    at, depth = none - 1, none
    drawn, log_p = tl.full([], -1, tl.int64), tl.full([], 0.0, tl.float64)
    status = tl.full([], 0, tl.int8)
    # The root is drawn from before the first node, as if it were one that had been reached.
    for node in range(-1, rows - 1):
        token, parent = drawn, at
        if node >= 0:
            token = tl.load(token_ptr + own + node)
            parent = tl.load(parent_ptr + own + node).to(tl.int32)
        reached = (parent == at) & (token == drawn) & ((token >= 0) | (node < 0))
        if reached:
            at = none + node
            if node >= 0:
                tl.store(path_ptr + own + depth, node)
                depth += 1
            row = request * rows + node + 1
            row_ptr, words_ptr = target_ptr + row * target_stride, mask_ptr
            if mask_ptr is not None:
                words_ptr = mask_ptr + row * mask_stride
            status = tl.load(row_status_ptr + row)
            u0, u1 = load_pair(
                uniform_ptr, seed_ptr, sequence_ptr, position_ptr, purpose, first, request,
                depth, rows,
            )  # fmt: skip
            drawn, log_p = draw_target(
                row_ptr, size, words_ptr, words, laws_ptr + row * 10,
                partials_ptr + (row * 5 + 2) * blocks, blocks, status, u0, u1, block_size, padded,
            )  # fmt: skip
            tl.store(log_weight_ptr + row, tl.load(row_weight_ptr + row))
    tl.store(accepted_ptr + request, depth.to(tl.int64))
    tl.store(last_ptr + request, drawn)
    tl.store(log_p_ptr + request, log_p)
    tl.store(status_ptr + request, status)


def target_walk(read: Laws, tokens: Tensor, parents: Tensor, verdict: TreeVerdict) -> None:
    """Fill a blank verdict of at least one request."""
    with on_device_of(tokens):
        _target_walk[(len(tokens),)](
            *read.target,
            *read.noise,
            tokens,
            parents,
            read.laws,
            read.status,
            read.log_weight,
            read.partials,
            read.blocks,
            tokens.shape[1] + 1,
            verdict.path,
            verdict.accepted,
            verdict.token,
            verdict.log_p,
            verdict.log_weight,
            verdict.status,
            block_size=BLOCK,
            padded=read.padded,
            num_warps=4,
            enable_fp_fusion=FP_FUSION,
        )


def _variant(dtype: str, keys: bool, blocks: int) -> Variant:
    types = {
        **signature(dtype, "", keys),
        "token_ptr": "*i64:16",
        "parent_ptr": "*i64:16",
        "laws_ptr": "*fp64:16",
        "row_status_ptr": "*i8:16",
        "row_weight_ptr": "*fp64:16",
        "partials_ptr": "*fp32:16",
        "blocks": "i32",
        "rows": "i32",
        "path_ptr": "*i64:16",
        "accepted_ptr": "*i64:16",
        "last_ptr": "*i64:16",
        "log_p_ptr": "*fp64:16",
        "log_weight_ptr": "*fp64:16",
        "status_ptr": "*i8:16",
    }
    told = f"target_walk {dtype}, {'keys' if keys else 'uniforms'}, {blocks} blocks"
    sizes = {"block_size": BLOCK, "padded": triton.next_power_of_2(blocks)}
    return variant(told, _target_walk, types, sizes)


VARIANTS = (_variant("bf16", True, 63), _variant("fp32", False, 75))
