"""`verify_tree` on the device: reads the rows, walks down the tree, then draws the token where the
walk ended.

Oracle: `midstream.kernels.verify_tree`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from midstream.kernels.blocks import BLOCK
from midstream.kernels.triton.launch import FP_FUSION, Tensor, Variant, on_device_of, to_device
from midstream.kernels.triton.pick import block_masses, first_above, load_kept
from midstream.kernels.triton.row_laws import row_laws
from midstream.kernels.triton.target_walk import target_walk
from midstream.kernels.triton.tree_rest import children, marked
from midstream.kernels.triton.tree_walk import padded_nodes, tree_types, walk_tree
from midstream.kernels.triton.verify_parts import load_pair, load_rest, settled, variant
from midstream.kernels.verify_tree import Method, TreeVerdict

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["purpose", "first", "rows"])
def _tree_token(
    target_ptr: tl.tensor,  # as of `_tree_walk` down to `rows`
    target_stride: tl.tensor,
    size: tl.tensor,
    mask_ptr: tl.tensor,
    mask_stride: tl.tensor,
    words: tl.tensor,
    draft_ptr: tl.tensor,
    draft_stride: tl.tensor,
    uniform_ptr: tl.tensor,
    seed_ptr: tl.tensor,
    sequence_ptr: tl.tensor,
    position_ptr: tl.tensor,
    purpose: tl.tensor,
    first: tl.tensor,
    token_ptr: tl.tensor,
    parent_ptr: tl.tensor,
    laws_ptr: tl.tensor,
    row_status_ptr: tl.tensor,
    rows: tl.tensor,
    rest_ptr: tl.tensor,
    state_ptr: tl.tensor,
    partials_ptr: tl.tensor,  # fp32 [B R, 5, NB]
    blocks: tl.tensor,
    row_weight_ptr: tl.tensor,  # fp64 [B R]
    path_ptr: tl.tensor,
    accepted_ptr: tl.tensor,  # int64 [B], as is the next
    last_ptr: tl.tensor,
    log_p_ptr: tl.tensor,  # fp64 [B]
    log_weight_ptr: tl.tensor,  # fp64 [B, R], NaN everywhere
    status_ptr: tl.tensor,  # int8 [B]
    block_size: tl.constexpr,
    padded: tl.constexpr,
    padded_nodes: tl.constexpr,
) -> None:
    request = tl.program_id(0).to(tl.int64)
    own = request * (rows - 1)
    state_ptr += request * 5
    at, depth = tl.load(state_ptr).to(tl.int32), tl.load(state_ptr + 4).to(tl.int32)
    gone_end = tl.load(state_ptr + 3).to(tl.int32)
    step = tl.arange(0, padded_nodes)
    passed = tl.load(path_ptr + own + step, mask=step < depth, other=-1) + 1
    weight = tl.load(row_weight_ptr + request * rows + passed)
    tl.store(log_weight_ptr + request * rows + passed, weight)

    row = request * rows + at + 1
    law_ptr = laws_ptr + row * 10
    row_ptr, words_ptr, row_q = target_ptr + row * target_stride, mask_ptr, draft_ptr
    if mask_ptr is not None:
        words_ptr = mask_ptr + row * mask_stride
    if draft_ptr is not None:
        row_q = draft_ptr + row * draft_stride
    used = gone_end > 0  # a child was tested and not kept
    scale = tl.load(law_ptr + 8) * _LOG2E
    index = tl.arange(0, padded)
    partials_ptr += (row * 5 + 2) * blocks
    _, _, masses = block_masses(partials_ptr, blocks, scale, padded)
    some = tl.where(used, blocks, 0)
    rest = tl.load(rest_ptr + request * blocks + index, mask=index < some, other=0.0)
    masses = tl.where(used, rest.to(tl.float64), masses)
    u0, u1 = load_pair(
        uniform_ptr, seed_ptr, sequence_ptr, position_ptr, purpose, first, request, 0, rows
    )
    block = tl.maximum(first_above(masses, u0 * tl.sum(masses, 0), padded), 0)
    begin = block * block_size
    y = load_kept(row_ptr, size, words_ptr, words, None, None, begin, block_size)
    e = tl.exp2((y - tl.load(partials_ptr + block)) * scale.to(tl.float32))
    end = tl.where(tl.load(law_ptr + 6) < 0.0, gone_end, 0)
    gone = children(token_ptr + own, parent_ptr + own, at, end, padded_nodes)
    left = load_rest(
        row_ptr, tl.where(used, size, 0), words_ptr, words, law_ptr,
        tl.full([], 1.0, tl.float64), row_q, tl.load(state_ptr + 1), tl.load(state_ptr + 2),
        marked(gone, begin, block_size), begin, block_size,
    )  # fmt: skip
    e = tl.where(used, left, e).to(tl.float64)
    inside = tl.maximum(first_above(e, u1 * tl.sum(e, 0), block_size), 0)
    status = tl.load(row_status_ptr + row)
    token, log_p = settled(row_ptr, size, law_ptr, begin + inside, status == 0)
    tl.store(accepted_ptr + request, depth.to(tl.int64))
    tl.store(last_ptr + request, token)
    tl.store(log_p_ptr + request, log_p)
    tl.store(status_ptr + request, status)


def verify_tree(
    target_logits: Tensor,  # [B, N + 1, V]
    tokens: Any,  # [B, N]
    draft_logits: Tensor | None,  # [B, N + 1, V]
    noise: Any,  # [B, N + 1, 2] or Keys
    mask: Tensor | None,  # [B, N + 1, W]
    parents: Any,  # [B, N]
    temperature: Any,
    draft_temperature: Any,
    method: Method,
) -> TreeVerdict:
    """See `kernels.verify_tree.verify_tree`. Five launches, four where the drafts have no law,
    three for a target walk; and three that fill. A node whose parent does not come before it is
    never reached.
    """
    requests, rows = target_logits.shape[:2]
    ids = to_device(tokens, target_logits).to(torch.int64)
    above = to_device(parents, target_logits).to(torch.int64)
    read = row_laws(target_logits, None, draft_logits, noise, mask, temperature, draft_temperature)
    verdict = _blank(requests, rows, target_logits)
    if requests == 0:
        return verdict
    if method == "target_walk":
        target_walk(read, ids, above, verdict)
        return verdict
    tree = *read.noise, ids, above, read.laws, read.status, rows
    replaced = method == "rrs_with_replacement"
    rest, state = walk_tree(read, tree, verdict.path, verdict.accept_prob, replaced)
    with on_device_of(target_logits):
        _tree_token[(requests,)](
            *read.target,
            *read.draft,
            *tree,
            rest,
            state,
            read.partials,
            read.blocks,
            read.log_weight,
            verdict.path,
            verdict.accepted,
            verdict.token,
            verdict.log_p,
            verdict.log_weight,
            verdict.status,
            block_size=BLOCK,
            padded=read.padded,
            padded_nodes=padded_nodes(rows - 1),
            num_warps=4,
            enable_fp_fusion=FP_FUSION,
        )
    return verdict


def _blank(requests: int, rows: int, like: Tensor) -> TreeVerdict:
    """No path and no values yet, on the device of `like`."""
    device, nodes = like.device, rows - 1
    return TreeVerdict(
        torch.full((requests, nodes), -1, dtype=torch.int64, device=device),
        torch.empty(requests, dtype=torch.int64, device=device),
        torch.empty(requests, dtype=torch.int64, device=device),
        torch.empty(requests, dtype=torch.float64, device=device),
        torch.full((requests, nodes), float("nan"), dtype=torch.float64, device=device),
        torch.full((requests, rows), float("nan"), dtype=torch.float64, device=device),
        torch.empty(requests, dtype=torch.int8, device=device),
    )


def _variant(dtype: str, drafts: str, keys: bool, blocks: int) -> Variant:
    types = {
        **tree_types(dtype, drafts, keys),
        "partials_ptr": "*fp32:16",
        "row_weight_ptr": "*fp64:16",
        "accepted_ptr": "*i64:16",
        "last_ptr": "*i64:16",
        "log_p_ptr": "*fp64:16",
        "log_weight_ptr": "*fp64:16",
        "status_ptr": "*i8:16",
    }
    noise = "keys" if keys else "uniforms"
    told = f"tree_token {dtype}, drafts {drafts or 'given'}, {noise}, {blocks} blocks"
    padded = triton.next_power_of_2(blocks)
    sizes = {"block_size": BLOCK, "padded": padded, "padded_nodes": 128}
    return variant(told, _tree_token, types, sizes)


VARIANTS = (
    _variant("bf16", "bf16", True, 63),
    _variant("fp32", "fp32", False, 75),
    _variant("bf16", "", True, 63),
)
