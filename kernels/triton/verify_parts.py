"""What the kernels of verification share: uniforms, log probabilities, the rest of a row once a
drafted token was not kept, the token that comes out.

Oracle: `midstream.kernels.verify_rows` and `midstream.kernels.acceptance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from midstream.kernels.triton.block_stats import load_logits
from midstream.kernels.triton.launch import Variant
from midstream.kernels.triton.philox import draw_uniforms
from midstream.kernels.triton.pick import load_kept

LAW = 10
"""Numbers kept of a row, fp64, in this order: the largest logit of the whole row and the log of the
mass relative to it; the largest allowed logit and the mass relative to it; the greedy token, -1
above T = 0; of the draft row its largest logit and its mass, 0 where it has no law and -1 where its
tokens are point masses; log(p/q) of the drafted token of a chain, NaN where the chain ends; 1 / T
of the target and of the draft, 1 for T = 0.
"""

POINT = -1.0

_LOG2E = tl.constexpr(1.4426950408889634)
_POINT = tl.constexpr(POINT)


@triton.jit
def load_pair(
    uniform_ptr: tl.tensor,  # [B, R, 2], None with keys
    seed_ptr: tl.tensor,  # [B], as are the next two
    sequence_ptr: tl.tensor,
    position_ptr: tl.tensor,
    purpose: tl.tensor,
    first: tl.tensor,
    request: tl.tensor,
    pair: tl.tensor,
    rows: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """A pair of uniforms of a request, fp64."""
    if uniform_ptr is not None:
        at = uniform_ptr + 2 * (request * rows + pair)
        u0, u1 = tl.load(at).to(tl.float64), tl.load(at + 1).to(tl.float64)
    else:
        v0, v1 = draw_uniforms(seed_ptr, sequence_ptr, position_ptr, purpose, first + pair, request)
        u0, u1 = v0.to(tl.float64), v1.to(tl.float64)
    return u0, u1


@triton.jit
def log_target(
    row_ptr: tl.tensor,
    size: tl.tensor,
    words_ptr: tl.tensor,  # or None
    words: tl.tensor,
    top: tl.tensor,  # the largest allowed logit
    s: tl.tensor,  # the allowed mass relative to it
    best: tl.tensor,  # the greedy token, below 0 for none
    inverse: tl.tensor,
    token: tl.tensor,
) -> tl.tensor:
    """Log probability of a token under the target law, fp64; -inf for one that is not allowed."""
    allowed = (token >= 0) & (token < size)
    at = tl.where(allowed, token, 0)
    if words_ptr is not None:
        word = tl.load(words_ptr + at // 32, mask=at // 32 < words, other=0)
        allowed = allowed & (((word >> (at % 32).to(tl.int32)) & 1) != 0)
    log_p = (tl.load(row_ptr + at).to(tl.float64) - top) * inverse - tl.log(s)
    log_p = tl.where(best < 0, log_p, tl.where(best == token, 0.0, float("-inf")))
    return tl.where(allowed, log_p, float("-inf"))


@triton.jit
def log_draft(
    row_ptr: tl.tensor,  # or None
    size: tl.tensor,
    top: tl.tensor,
    s: tl.tensor,
    inverse: tl.tensor,
    token: tl.tensor,
) -> tl.tensor:
    """Log probability of having drafted a token, fp64; 0 of a point mass."""
    log_q = tl.full([], 0.0, tl.float64)
    if row_ptr is not None:
        inside = (token >= 0) & (token < size)
        x = tl.load(row_ptr + tl.where(inside, token, 0)).to(tl.float64)
        log_q = (x - top) * inverse - tl.log(tl.where(s > 0.0, s, 1.0))
        log_q = tl.where(inside, log_q, float("-inf"))
        log_q = tl.where(s == _POINT, 0.0, log_q)
    return log_q


@triton.jit
def load_rest(
    row_ptr: tl.tensor,
    size: tl.tensor,
    words_ptr: tl.tensor,  # or None
    words: tl.tensor,
    law_ptr: tl.tensor,
    factor: tl.tensor,  # of p
    draft_ptr: tl.tensor,  # or None
    reference: tl.tensor,
    draft_factor: tl.tensor,
    gone: tl.tensor,  # bool [block_size], the tokens that are point masses of the draft
    begin: tl.tensor,
    block_size: tl.constexpr,
) -> tl.tensor:
    """[factor p - draft_factor 2^((z - reference) / T')]+ over a block, z the draft's logits and
    1 / T' in base 2; of point masses factor p without what is gone: fp32 [block_size].
    """
    y = load_kept(row_ptr, size, words_ptr, words, None, None, begin, block_size)
    y = tl.where(gone, float("-inf"), y)
    d = (y - tl.load(law_ptr + 2).to(tl.float32)) * (tl.load(law_ptr + 8) * _LOG2E).to(tl.float32)
    rest = (factor / tl.load(law_ptr + 3)).to(tl.float32) * tl.exp2(d)
    if draft_ptr is not None:
        sampled = tl.load(law_ptr + 6) > 0.0
        z = load_logits(draft_ptr, begin, tl.where(sampled, size, 0), block_size)
        draft_scale = (tl.load(law_ptr + 9) * _LOG2E).to(tl.float32)
        q = draft_factor.to(tl.float32) * tl.exp2((z - reference.to(tl.float32)) * draft_scale)
        rest = tl.where(sampled, tl.maximum(rest - q, 0.0), rest)
    return rest


@triton.jit
def settled(
    row_ptr: tl.tensor,
    size: tl.tensor,
    law_ptr: tl.tensor,
    token: tl.tensor,
    alive: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """The token that comes out, int64, and its log probability under the whole row, fp64: the
    greedy one at T = 0, -1 and -inf of a dead row.
    """
    best = tl.load(law_ptr + 4)
    token = tl.where(best < 0.0, token.to(tl.int64), best.to(tl.int64))
    x = tl.load(row_ptr + token, mask=alive & (token < size), other=0.0).to(tl.float64)
    log_p = (x - tl.load(law_ptr)) * tl.load(law_ptr + 8) - tl.load(law_ptr + 1)
    return tl.where(alive, token, -1), tl.where(alive, log_p, float("-inf"))


def signature(dtype: str, drafts: str, keys: bool) -> dict[str, str]:
    """Of the arguments that the kernels that decide share. drafts: their type, "" for none."""
    key = "*i64:16" if keys else "constexpr"
    return {
        "target_ptr": f"*{dtype}:16",
        "target_stride": "i32:16",
        "size": "i32:16",
        "mask_ptr": "*i32:16",
        "mask_stride": "i32:16",
        "words": "i32:16",
        "draft_ptr": f"*{drafts}:16" if drafts else "constexpr",
        "draft_stride": "i32:16",
        "uniform_ptr": "constexpr" if keys else "*fp64:16",
        "seed_ptr": key,
        "sequence_ptr": key,
        "position_ptr": key,
        "purpose": "i32",
        "first": "i32",
    }


def variant(
    name: str,
    kernel: Any,
    types: Mapping[str, str],
    constexprs: Mapping[str, Any],
    num_warps: int = 4,
) -> Variant:
    """A variant whose arguments, of the types given by name, stand in the order of the kernel's."""
    constant = {each: "constexpr" for each in constexprs}
    order = {each: {**types, **constant}[each] for each in kernel.arg_names}
    return Variant(name, kernel, order, constexprs, num_warps, wide=True)
