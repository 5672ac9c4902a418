"""Masked sampling by one kernel for each step, the way vLLM 0.33 goes about it.

Its order of work: an fp32 copy of the logits, the grammar's bits and the temperature in place, each
by a kernel of its own (blocks of 8192), Gumbel noise for every token and the argmax of each block
of 1024, and the best block by torch. The kernels here are written anew for the comparison; what
surrounds them in a server (index maps, penalties) is left out. vLLM gives the token alone; the two
logsumexp and the gather that our results take are added where `masses` is asked for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.kernel_cases import Case

WIDE, NARROW = 8192, 1024


@triton.jit  # type: ignore[untyped-decorator]
def _forbid(
    logits_ptr: tl.tensor,
    stride: tl.tensor,
    size: tl.tensor,
    mask_ptr: tl.tensor,
    mask_stride: tl.tensor,
    words: tl.tensor,
    block_size: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * block_size
    which = begin // 32 + tl.arange(0, block_size // 32)
    word = tl.load(mask_ptr + row * mask_stride + which, mask=which < words, other=0)
    bits = tl.reshape((word[:, None] >> tl.arange(0, 32)[None, :]) & 1, [block_size])
    offsets = begin + tl.arange(0, block_size)
    outside = (bits == 0) & (offsets < size)
    tl.store(logits_ptr + row * stride + offsets, float("-inf"), mask=outside)


@triton.jit  # type: ignore[untyped-decorator]
def _scale(
    logits_ptr: tl.tensor,
    stride: tl.tensor,
    size: tl.tensor,
    temperature_ptr: tl.tensor,
    block_size: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * block_size + tl.arange(0, block_size)
    place = logits_ptr + row * stride + offsets
    x = tl.load(place, mask=offsets < size, other=0.0)
    tl.store(place, x / tl.load(temperature_ptr + row), mask=offsets < size)


@triton.jit  # type: ignore[untyped-decorator]
def _race(
    logits_ptr: tl.tensor,
    stride: tl.tensor,
    size: tl.tensor,
    seed_ptr: tl.tensor,
    position_ptr: tl.tensor,
    best_ptr: tl.tensor,
    token_ptr: tl.tensor,
    block_size: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * block_size
    offsets = begin + tl.arange(0, block_size)
    x = tl.load(logits_ptr + row * stride + offsets, mask=offsets < size, other=float("-inf"))
    seed = tl.randint(tl.load(seed_ptr + row), tl.load(position_ptr + row))
    uniform = tl.maximum(tl.rand(seed, offsets), 4.6566127342e-10)
    best, index = tl.max(x - tl.log(-tl.log(uniform)), 0, return_indices=True)
    out = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(best_ptr + out, best)
    tl.store(token_ptr + out, begin + index)


def split_pipeline(case: Case, *, masses: bool) -> tuple[Tensor, ...]:
    """The token of each row; with `masses` also log p(token), log Z allowed and log Z all."""
    logits = torch.empty_like(case.logits, dtype=torch.float32).copy_(case.logits)
    rows, size = logits.shape
    wide = (rows, triton.cdiv(size, WIDE))
    _scale[wide](logits, logits.stride(0), size, case.temperature, block_size=WIDE)
    log_z_all = logits.logsumexp(dim=1) if masses else None
    _forbid[wide](
        logits,
        logits.stride(0),
        size,
        case.mask,
        case.mask.stride(0),
        case.mask.shape[1],
        block_size=WIDE,
    )
    blocks = triton.cdiv(size, NARROW)
    best = logits.new_empty((rows, blocks))
    tokens = logits.new_empty((rows, blocks), dtype=torch.int64)
    _race[(rows, blocks)](
        logits,
        logits.stride(0),
        size,
        case.seed,
        case.position,
        best,
        tokens,
        block_size=NARROW,
    )
    token = tokens.gather(1, best.argmax(dim=1, keepdim=True))
    if log_z_all is None:
        return (token[:, 0],)
    log_z_allowed = logits.logsumexp(dim=1)
    return token[:, 0], logits.gather(1, token)[:, 0] - log_z_all, log_z_allowed, log_z_all
