"""Recursive rejection on the device: one program a request walks down its tree.

Oracle: `midstream.kernels.verify_tree`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from midstream.kernels.blocks import BLOCK, NO_MASS
from midstream.kernels.triton.launch import FP_FUSION, Tensor, Variant, on_device_of
from midstream.kernels.triton.row_laws import Laws
from midstream.kernels.triton.tree_rest import child_probability, children, draft_blocks, reject
from midstream.kernels.triton.verify_parts import (
    load_pair,
    log_draft,
    log_target,
    signature,
    variant,
)
from midstream.kernels.verify_tree import NOTHING_LEFT

STATE = 5
"""Numbers kept of a walk, fp64: the last node kept, the reference and the factor of q in
[p - C q]+, the end of the nodes whose rejection the rest accounts for (0 for none), and how many
nodes are kept.
"""

_NO_MASS = tl.constexpr(NO_MASS)
_NOTHING_LEFT = tl.constexpr(NOTHING_LEFT)


@triton.jit
def goes_on(laws_ptr: tl.tensor, status_ptr: tl.tensor, row: tl.tensor) -> tl.tensor:
    """Whether children of a row may be tested: it is alive, and its draft has a law."""
    return (tl.load(status_ptr + row) == 0) & (tl.load(laws_ptr + row * 10 + 6) != 0.0)


@triton.jit(do_not_specialize=["purpose", "first", "rows"])
def _tree_walk(
    target_ptr: tl.tensor,  # [B R, V]
    target_stride: tl.tensor,
    size: tl.tensor,
    mask_ptr: tl.tensor,  # [B R, W] or None
    mask_stride: tl.tensor,
    words: tl.tensor,
    draft_ptr: tl.tensor,  # [B R, V] or None
    draft_stride: tl.tensor,
    draft_partials_ptr: tl.tensor,  # fp32 [B R, 5, NB] or None
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
    rows: tl.tensor,  # R
    path_ptr: tl.tensor,  # int64 [B, R - 1], -1 everywhere
    accept_prob_ptr: tl.tensor,  # fp64 [B, R - 1], NaN everywhere
    rest_ptr: tl.tensor,  # fp32 [B, NB]
    state_ptr: tl.tensor,  # fp64 [B, 5]
    blocks: tl.tensor,
    replace: tl.constexpr,
    block_size: tl.constexpr,
    padded: tl.constexpr,  # blocks, up to a power of 2, as is the next
    padded_nodes: tl.constexpr,
) -> None:
    request = tl.program_id(0).to(tl.int64)
    own = request * (rows - 1)
    row = request * rows
    zero, one = tl.full([], 0.0, tl.float64), tl.full([], 1.0, tl.float64)
    taken, mass, left, reference, factor = zero, one, one, zero, zero
    none = tl.full([], 0, tl.int32)
    at, depth, gone_end = none - 1, none, none
    m, s = tl.full([padded], _NO_MASS, tl.float32), tl.zeros([padded], tl.float32)
    rest = s
    going = goes_on(laws_ptr, row_status_ptr, row)
    for node in range(0, rows - 1):
        token = tl.load(token_ptr + own + node)
        parent = tl.load(parent_ptr + own + node)
        # A child has a larger index than its parent: one pass sees the whole path.
        if (parent == at) & (token >= 0) & going:
            row_ptr, words_ptr, row_q = target_ptr + row * target_stride, mask_ptr, draft_ptr
            if mask_ptr is not None:
                words_ptr = mask_ptr + row * mask_stride
            if draft_ptr is not None:
                row_q = draft_ptr + row * draft_stride
            law_ptr = laws_ptr + row * 10
            best, draft_s = tl.load(law_ptr + 4), tl.load(law_ptr + 6)
            log_p = log_target(
                row_ptr, size, words_ptr, words, tl.load(law_ptr + 2), tl.load(law_ptr + 3), best,
                tl.load(law_ptr + 8), token,
            )  # fmt: skip
            log_q = log_draft(
                row_q, size, tl.load(law_ptr + 5), draft_s, tl.load(law_ptr + 9), token
            )
            probability = child_probability(log_p, log_q, taken, mass, left)
            before = children(token_ptr + own, parent_ptr + own, at, node, padded_nodes)
            again = tl.max(tl.where(before == token, 1, 0), 0) > 0
            # Of point masses an equal one has left nothing.
            probability = tl.where(again & (draft_s < 0.0), 0.0, probability)
            tl.store(accept_prob_ptr + own + node, probability)
            u, _ = load_pair(
                uniform_ptr, seed_ptr, sequence_ptr, position_ptr, purpose, first, request,
                node + 1, rows,
            )  # fmt: skip
            if u < probability:
                tl.store(path_ptr + own + depth, node)
                at, depth, gone_end = none + node, depth + 1, none
                taken, mass, left = zero, one, one
                row = request * rows + node + 1
                going = goes_on(laws_ptr, row_status_ptr, row)
            elif best < 0.0:  # else a greedy target, whose rest stays what it was
                if draft_ptr is not None:
                    new_m, new_s = draft_blocks(
                        draft_partials_ptr + row * 5 * blocks, blocks, padded
                    )
                    m = tl.where(gone_end > 0, m, new_m)
                    s = tl.where(gone_end > 0, s, new_s)
                gone = children(token_ptr + own, parent_ptr + own, at, node + 1, padded_nodes)
                c, a, remaining, new_reference, new_factor, new_rest, m, s = reject(
                    row_ptr, size, words_ptr, words, law_ptr, row_q, gone, token, m, s,
                    taken, mass, left, blocks, replace, block_size, padded,
                )  # fmt: skip
                # Nothing where R = D up to rounding: R is as good as what would follow.
                some = a > 0.0
                going = some & (remaining > _NOTHING_LEFT)
                taken, mass, left = tl.where(some, c, taken), tl.where(some, a, mass), remaining
                reference = tl.where(some, new_reference, reference)
                factor = tl.where(some, new_factor, factor)
                rest = tl.where(some, new_rest, rest)
                gone_end = tl.where(some, node + 1, gone_end)
    index = tl.arange(0, padded)
    tl.store(rest_ptr + request * blocks + index, rest, mask=index < blocks)
    state_ptr += request * 5
    tl.store(state_ptr, at.to(tl.float64))
    tl.store(state_ptr + 1, reference)
    tl.store(state_ptr + 2, factor)
    tl.store(state_ptr + 3, gone_end.to(tl.float64))
    tl.store(state_ptr + 4, depth.to(tl.float64))


def walk_tree(
    read: Laws,
    tree: tuple[Any, ...],  # noise, tokens, parents, laws, status, rows
    path: Tensor,  # int64 [B, N], -1 everywhere
    accept_prob: Tensor,  # fp64 [B, N], NaN everywhere
    with_replacement: bool,
) -> tuple[Tensor, Tensor]:
    """Fill the path and the probabilities; the masses of the rest [B, NB] and the state [B, 5]."""
    requests, nodes = path.shape
    rest = torch.empty((requests, read.blocks), dtype=torch.float32, device=path.device)
    state = torch.empty((requests, STATE), dtype=torch.float64, device=path.device)
    with on_device_of(path):
        _tree_walk[(requests,)](
            *read.target,
            *read.draft,
            read.draft_partials,
            *tree,
            path,
            accept_prob,
            rest,
            state,
            read.blocks,
            replace=with_replacement,
            block_size=BLOCK,
            padded=read.padded,
            padded_nodes=padded_nodes(nodes),
            num_warps=_warps(read.draft_partials is not None),
            enable_fp_fusion=FP_FUSION,
        )
    return rest, state


def padded_nodes(nodes: int) -> int:
    """A power of 2, and no less than a histogram takes."""
    return int(triton.next_power_of_2(max(nodes, 32)))


def _warps(drafts: bool) -> int:
    """More than elsewhere, since one program reads whole rows, one block after another; without
    draft rows the compiler spills at that number for sm_80.
    """
    return 8 if drafts else 4


def tree_types(dtype: str, drafts: str, keys: bool) -> dict[str, str]:
    """Of the arguments that the kernels of a tree share."""
    return {
        **signature(dtype, drafts, keys),
        "token_ptr": "*i64:16",
        "parent_ptr": "*i64:16",
        "laws_ptr": "*fp64:16",
        "row_status_ptr": "*i8:16",
        "rows": "i32",
        "path_ptr": "*i64:16",
        "rest_ptr": "*fp32:16",
        "state_ptr": "*fp64:16",
        "blocks": "i32",
    }


def _variant(dtype: str, drafts: str, replace: bool, blocks: int) -> Variant:
    types = {
        **tree_types(dtype, drafts, keys=True),
        "draft_partials_ptr": "*fp32:16" if drafts else "constexpr",
        "accept_prob_ptr": "*fp64:16",
    }
    told = f"{dtype}, drafts {drafts or 'given'}{', replaced' * replace}, {blocks} blocks"
    sizes = {
        "replace": replace,
        "block_size": BLOCK,
        "padded": triton.next_power_of_2(blocks),
        "padded_nodes": 128,
    }
    return variant(f"tree_walk {told}", _tree_walk, types, sizes, _warps(drafts != ""))


VARIANTS = (
    _variant("bf16", "bf16", False, 63),
    _variant("fp32", "fp32", True, 75),
    _variant("bf16", "", False, 63),
)
