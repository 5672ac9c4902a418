"""`verify_chain` on the device: reads the rows, sums what may be drawn instead, then decides, one
program a request, and reads one block again.

Oracle: `midstream.kernels.verify_chain`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from midstream.kernels.blocks import BLOCK
from midstream.kernels.triton.chain_excess import (
    chain_excess,
    chain_types,
    kept_probability,
    load_chain_rest,
    next_log_scale,
)
from midstream.kernels.triton.launch import FP_FUSION, Tensor, Variant, on_device_of, to_device
from midstream.kernels.triton.pick import block_masses, first_above, load_kept
from midstream.kernels.triton.row_laws import Laws, row_laws
from midstream.kernels.triton.verify_parts import load_pair, settled, variant
from midstream.kernels.verify_chain import ChainVerdict, Method

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def chain_tests(
    laws_ptr: tl.tensor,  # fp64 [B R, 10]
    uniform_ptr: tl.tensor,
    seed_ptr: tl.tensor,
    sequence_ptr: tl.tensor,
    position_ptr: tl.tensor,
    purpose: tl.tensor,
    first: tl.tensor,
    excess_ptr: tl.tensor,  # fp32 [B, tests, NB]
    tests: tl.tensor,
    blocks: tl.tensor,
    accept_prob_ptr: tl.tensor,  # fp64 [B, R - 1]
    request: tl.tensor,
    rows: tl.tensor,
    whole: tl.constexpr,
    padded: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """How many drafted tokens are kept, and log P of that many; stores what each test keeps by."""
    index = tl.arange(0, padded)
    excess_ptr += request * tests * blocks
    law_ptr = laws_ptr + request * rows * 10
    kept = tl.full([], 0, tl.int32)
    log_scale = tl.full([], 0.0, tl.float64)
    log_kept = tl.full([], 0.0, tl.float64)
    going = rows > 0
    for i in range(0, rows - 1):
        log_ratio = tl.load(law_ptr + i * 10 + 7)
        going = going & (log_ratio == log_ratio)
        probability = kept_probability(log_ratio)
        if whole:
            log_scale = next_log_scale(log_scale, log_ratio)
            p = tl.exp(log_scale)
            following = tl.load(law_ptr + (i + 1) * 10 + 7)
            more = following == following
            at = (i + 1) * blocks + index
            z = tl.load(excess_ptr + at, mask=index < tl.where(more, blocks, 0), other=0.0)
            mass = tl.sum(z.to(tl.float64), 0)
            rest = mass + (1.0 - p)
            h = tl.where(rest > 0.0, mass / tl.where(rest > 0.0, rest, 1.0), 1.0)
            probability = tl.where(more, h, p)
        probability = tl.where(going, probability, 0.0)
        tl.store(accept_prob_ptr + request * (rows - 1) + i, probability)
        u, _ = load_pair(
            uniform_ptr, seed_ptr, sequence_ptr, position_ptr, purpose, first, request, 1 + i, rows
        )
        passed = u < probability
        if whole:
            kept = tl.where(passed, i + 1, kept)
            log_kept = tl.where(passed, log_scale, log_kept)
        else:
            kept += tl.where((kept == i) & passed, 1, 0)
    return kept, log_kept


@triton.jit(do_not_specialize=["purpose", "first", "rows", "tests"])
def _chain_verdict(
    target_ptr: tl.tensor,  # as of `_chain_excess` down to `tests`
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
    laws_ptr: tl.tensor,
    rows: tl.tensor,
    excess_ptr: tl.tensor,
    tests: tl.tensor,
    partials_ptr: tl.tensor,  # fp32 [B R, 5, NB]
    blocks: tl.tensor,
    row_status_ptr: tl.tensor,  # int8 [B R]
    accepted_ptr: tl.tensor,  # int64 [B], as is the next
    last_ptr: tl.tensor,
    log_p_ptr: tl.tensor,  # fp64 [B]
    accept_prob_ptr: tl.tensor,  # fp64 [B, R - 1]
    status_ptr: tl.tensor,  # int8 [B]
    whole: tl.constexpr,
    block_size: tl.constexpr,
    padded: tl.constexpr,  # blocks, up to a power of 2
) -> None:
    request = tl.program_id(0).to(tl.int64)
    kept, log_scale = chain_tests(
        laws_ptr, uniform_ptr, seed_ptr, sequence_ptr, position_ptr, purpose, first, excess_ptr,
        tests, blocks, accept_prob_ptr, request, rows, whole, padded,
    )  # fmt: skip
    r = request * rows + kept
    law_ptr = laws_ptr + r * 10
    log_ratio = tl.load(law_ptr + 7)
    replaced = (log_ratio == log_ratio) & (tl.load(law_ptr + 4) < 0.0)
    index = tl.arange(0, padded)
    at = (request * tests + (kept if whole else 0)) * blocks + index
    excess = tl.load(excess_ptr + at, mask=index < tl.where(replaced, blocks, 0), other=0.0)
    replaced = replaced & (tl.sum(excess, 0) > 0.0)  # else p = q up to rounding: p is as good
    u0, u1 = load_pair(
        uniform_ptr, seed_ptr, sequence_ptr, position_ptr, purpose, first, request, 0, rows
    )
    row_ptr, words_ptr = target_ptr + r * target_stride, mask_ptr
    if mask_ptr is not None:
        words_ptr = mask_ptr + r * mask_stride
    scale = tl.load(law_ptr + 8) * _LOG2E
    partials_ptr += (r * 5 + 2) * blocks
    _, _, masses = block_masses(partials_ptr, blocks, scale, padded)
    masses = tl.where(replaced, excess.to(tl.float64), masses)
    block = tl.maximum(first_above(masses, u0 * tl.sum(masses, 0), padded), 0)
    y = load_kept(row_ptr, size, words_ptr, words, None, None, block * block_size, block_size)
    e = tl.exp2((y - tl.load(partials_ptr + block)) * scale.to(tl.float32))
    rest = load_chain_rest(
        target_ptr, target_stride, size, mask_ptr, mask_stride, words, draft_ptr, draft_stride,
        token_ptr, laws_ptr, request, tl.where(replaced, kept, 0), rows, log_scale, block,
        replaced, block_size,
    )  # fmt: skip
    e = tl.where(replaced, rest, e).to(tl.float64)
    inside = tl.maximum(first_above(e, u1 * tl.sum(e, 0), block_size), 0)
    status = tl.load(row_status_ptr + r)
    token, log_p = settled(row_ptr, size, law_ptr, block * block_size + inside, status == 0)
    tl.store(accepted_ptr + request, kept.to(tl.int64))
    tl.store(last_ptr + request, token)
    tl.store(log_p_ptr + request, log_p)
    tl.store(status_ptr + request, status)


def verify_chain(
    target_logits: Tensor,  # [B, K + 1, V]
    draft_tokens: Any,  # [B, K]
    draft_logits: Tensor | None,  # [B, K, V]
    noise: Any,  # [B, K + 1, 2] or Keys
    mask: Tensor | None,  # [B, K + 1, W]
    temperature: Any,
    draft_temperature: Any,
    method: Method,
) -> ChainVerdict:
    """See `kernels.verify_chain.verify_chain`. Five launches, four where the drafts have no law,
    three where there are none.
    """
    requests, rows = target_logits.shape[:2]
    tokens = to_device(draft_tokens, target_logits).to(torch.int64)
    laws = target_logits, tokens, draft_logits, noise, mask, temperature, draft_temperature
    read = row_laws(*laws)
    whole = method == "block"
    tests = rows - 1 if whole else min(rows - 1, 1)
    shape, device = (requests, tests, read.blocks), target_logits.device
    excess = torch.empty(shape, dtype=torch.float32, device=device)
    both = (*read.target, *read.draft, *read.noise, tokens, read.laws, rows, excess, tests)
    chain_excess(both, excess, whole)
    verdict = _blank(requests, rows, read)
    if requests == 0:
        return verdict
    with on_device_of(target_logits):
        _chain_verdict[(requests,)](
            *both,
            read.partials,
            read.blocks,
            read.status,
            verdict.accepted,
            verdict.token,
            verdict.log_p,
            verdict.accept_prob,
            verdict.status,
            whole=whole,
            block_size=BLOCK,
            padded=read.padded,
            num_warps=4,
            enable_fp_fusion=FP_FUSION,
        )
    return verdict


def _blank(requests: int, rows: int, read: Laws) -> ChainVerdict:
    device = read.laws.device
    return ChainVerdict(
        torch.empty(requests, dtype=torch.int64, device=device),
        torch.empty(requests, dtype=torch.int64, device=device),
        torch.empty(requests, dtype=torch.float64, device=device),
        torch.empty((requests, rows - 1), dtype=torch.float64, device=device),
        read.log_weight.view(requests, rows),
        torch.empty(requests, dtype=torch.int8, device=device),
    )


def _variant(dtype: str, drafts: str, whole: bool, keys: bool, blocks: int) -> Variant:
    types = {
        **chain_types(dtype, drafts, keys),
        "partials_ptr": "*fp32:16",
        "blocks": "i32",
        "row_status_ptr": "*i8:16",
        "accepted_ptr": "*i64:16",
        "last_ptr": "*i64:16",
        "log_p_ptr": "*fp64:16",
        "accept_prob_ptr": "*fp64:16",
        "status_ptr": "*i8:16",
    }
    told = f"{dtype}, drafts {drafts or 'given'}, {'keys' if keys else 'uniforms'}"
    name = f"chain_verdict {'block' if whole else 'token'} {told}, {blocks} blocks"
    sizes = {"whole": whole, "block_size": BLOCK, "padded": triton.next_power_of_2(blocks)}
    return variant(name, _chain_verdict, types, sizes)


VARIANTS = (
    _variant("bf16", "bf16", True, True, 63),
    _variant("fp32", "fp32", True, False, 75),
    _variant("bf16", "bf16", False, True, 63),
    _variant("bf16", "", False, True, 63),
)
