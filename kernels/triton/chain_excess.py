"""Masses of [P p - q]+ by blocks, for the rows of chains where a drafted token may have to be
replaced: one program a row and block.

Oracle: `midstream.kernels.verify_chain`.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from midstream.kernels.blocks import BLOCK
from midstream.kernels.triton.launch import FP_FUSION, Tensor, Variant, on_device_of
from midstream.kernels.triton.verify_parts import load_pair, load_rest, signature, variant


@triton.jit
def kept_probability(log_ratio: tl.tensor) -> tl.tensor:
    """min(1, p/q) from its log; 0 for a NaN, where the chain ends."""
    some = tl.exp(tl.where(log_ratio < 0.0, log_ratio, 0.0))
    return tl.where(log_ratio == log_ratio, some, 0.0)


@triton.jit
def next_log_scale(log_scale: tl.tensor, log_ratio: tl.tensor) -> tl.tensor:
    """log P_i from log P_{i-1} and log(p/q)."""
    zero = (log_scale == float("-inf")) | (log_ratio == float("-inf"))
    total = log_scale + log_ratio
    return tl.where(zero, float("-inf"), tl.where(total > 0.0, 0.0, total))


@triton.jit
def kept_by_token(
    laws_ptr: tl.tensor,
    uniform_ptr: tl.tensor,
    seed_ptr: tl.tensor,
    sequence_ptr: tl.tensor,
    position_ptr: tl.tensor,
    purpose: tl.tensor,
    first: tl.tensor,
    request: tl.tensor,
    rows: tl.tensor,
) -> tl.tensor:
    """How many drafted tokens are kept before the first that is not, or before the chain's end."""
    kept = tl.full([], 0, tl.int32)
    for i in range(0, rows - 1):
        probability = kept_probability(tl.load(laws_ptr + (request * rows + i) * 10 + 7))
        u, _ = load_pair(
            uniform_ptr, seed_ptr, sequence_ptr, position_ptr, purpose, first, request, 1 + i, rows
        )
        kept += tl.where((kept == i) & (u < probability), 1, 0)
    return kept


@triton.jit
def load_chain_rest(
    target_ptr: tl.tensor,
    target_stride: tl.tensor,
    size: tl.tensor,
    mask_ptr: tl.tensor,
    mask_stride: tl.tensor,
    words: tl.tensor,
    draft_ptr: tl.tensor,
    draft_stride: tl.tensor,
    token_ptr: tl.tensor,
    laws_ptr: tl.tensor,
    request: tl.tensor,
    i: tl.tensor,
    rows: tl.tensor,
    log_scale: tl.tensor,  # log P_i
    block: tl.tensor,
    wanted: tl.tensor,  # else nothing is read, and all is 0
    block_size: tl.constexpr,
) -> tl.tensor:
    """[P_i p - q]+ of row i < R - 1 of a request over a block: fp32 [block_size]."""
    r, d = request * rows + i, request * (rows - 1) + i
    words_ptr, row_q = mask_ptr, draft_ptr
    if mask_ptr is not None:
        words_ptr = mask_ptr + r * mask_stride
    if draft_ptr is not None:
        row_q = draft_ptr + d * draft_stride
    law_ptr = laws_ptr + r * 10
    draft_s = tl.load(law_ptr + 6)
    token = tl.load(token_ptr + d, mask=wanted & (draft_s < 0.0), other=-1)
    begin = block * block_size
    return load_rest(
        target_ptr + r * target_stride,
        tl.where(wanted, size, 0),
        words_ptr,
        words,
        law_ptr,
        tl.exp(log_scale),
        row_q,
        tl.load(law_ptr + 5),
        1.0 / draft_s,
        begin + tl.arange(0, block_size) == token,
        begin,
        block_size,
    )


@triton.jit(do_not_specialize=["purpose", "first", "rows", "tests"])
def _chain_excess(
    target_ptr: tl.tensor,  # [B R, V]
    target_stride: tl.tensor,
    size: tl.tensor,
    mask_ptr: tl.tensor,  # [B R, W] or None
    mask_stride: tl.tensor,
    words: tl.tensor,
    draft_ptr: tl.tensor,  # [B (R - 1), V] or None
    draft_stride: tl.tensor,
    uniform_ptr: tl.tensor,  # [B, R, 2], None with keys
    seed_ptr: tl.tensor,  # [B], as are the next two
    sequence_ptr: tl.tensor,
    position_ptr: tl.tensor,
    purpose: tl.tensor,
    first: tl.tensor,
    token_ptr: tl.tensor,  # int64 [B, R - 1]
    laws_ptr: tl.tensor,  # fp64 [B R, 10]
    rows: tl.tensor,  # R
    excess_ptr: tl.tensor,  # fp32 [B, tests, NB]
    tests: tl.tensor,  # 1, or R - 1 for a block
    whole: tl.constexpr,  # whether it is a block
    block_size: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    request = program // tests
    log_scale = tl.full([], 0.0, tl.float64)
    if whole:
        i = (program % tests).to(tl.int32)
        for j in range(0, i):
            log_ratio = tl.load(laws_ptr + (request * rows + j) * 10 + 7)
            log_scale = next_log_scale(log_scale, log_ratio)
    else:
        i = kept_by_token(
            laws_ptr, uniform_ptr, seed_ptr, sequence_ptr, position_ptr, purpose, first,
            request, rows,
        )  # fmt: skip
    law_ptr = laws_ptr + (request * rows + i) * 10
    log_ratio = tl.load(law_ptr + 7)
    known = (log_ratio == log_ratio) & (log_scale == log_scale)
    wanted = known & (tl.load(law_ptr + 4) < 0.0)
    e = load_chain_rest(
        target_ptr, target_stride, size, mask_ptr, mask_stride, words, draft_ptr, draft_stride,
        token_ptr, laws_ptr, request, tl.where(wanted, i, 0), rows,
        tl.where(wanted, log_scale, 0.0), tl.program_id(1), wanted, block_size,
    )  # fmt: skip
    total = tl.where(wanted, tl.sum(e, 0), 0.0)
    tl.store(excess_ptr + program * tl.num_programs(1) + tl.program_id(1), total)


def chain_excess(
    arguments: tuple[Any, ...],  # of the kernel, down to `tests`
    excess: Tensor,  # fp32 [B, tests, NB]
    whole: bool,
) -> None:
    """Fill `excess`: of a block for each row but the last, else for the row that token by token is
    the first whose drafted token is not kept. 0 where nothing is replaced.
    """
    requests, tests, blocks = excess.shape
    if excess.numel() == 0:
        return
    with on_device_of(excess):
        _chain_excess[(requests * tests, blocks)](
            *arguments,
            whole=whole,
            block_size=BLOCK,
            num_warps=4,
            enable_fp_fusion=FP_FUSION,
        )


def chain_types(dtype: str, drafts: str, keys: bool) -> dict[str, str]:
    """Of the arguments that the kernels of a chain share."""
    return {
        **signature(dtype, drafts, keys),
        "token_ptr": "*i64:16",
        "laws_ptr": "*fp64:16",
        "rows": "i32",
        "excess_ptr": "*fp32:16",
        "tests": "i32",
    }


def _variant(dtype: str, drafts: str, whole: bool, keys: bool) -> Variant:
    told = f"{dtype}, drafts {drafts or 'given'}, {'keys' if keys else 'uniforms'}"
    name = f"chain_excess {'block' if whole else 'token'} {told}"
    sizes = {"whole": whole, "block_size": BLOCK}
    return variant(name, _chain_excess, chain_types(dtype, drafts, keys), sizes)


VARIANTS = (
    _variant("bf16", "bf16", True, True),
    _variant("fp32", "fp32", True, False),
    _variant("bf16", "bf16", False, True),
    _variant("bf16", "", False, True),
)
