"""The laws of the rows that verification compares, one program a row, from the partials of
`block_stats`.

Oracle: `midstream.kernels.verify_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from midstream.kernels.backend import is_tensor
from midstream.kernels.blocks import BLOCK
from midstream.kernels.triton.block_stats import block_stats, load_temperature
from midstream.kernels.triton.launch import (
    FP_FUSION,
    Noise,
    Temperature,
    Tensor,
    Variant,
    as_noise,
    as_temperature,
    check_mask,
    on_device_of,
)
from midstream.kernels.triton.pick import block_masses, load_kept
from midstream.kernels.triton.verify_parts import (
    LAW,
    POINT,
    log_draft,
    log_target,
    signature,
    variant,
)

_NO_DRAFT: tuple[Any, ...] = (None, 0)
_NOTHING_READ: tuple[Any, ...] = (None, 1.0, None)
_LOGITS = (torch.bfloat16, torch.float16, torch.float32)
_LOG2E = tl.constexpr(1.4426950408889634)
_POINT = tl.constexpr(POINT)


@triton.jit
def greedy_token(
    row_ptr: tl.tensor,
    size: tl.tensor,
    words_ptr: tl.tensor,  # or None
    words: tl.tensor,
    block: tl.tensor,  # the first that holds `top`
    top: tl.tensor,
    greedy: tl.tensor,
    block_size: tl.constexpr,
) -> tl.tensor:
    """The first allowed token whose logit is the largest, -1 unless greedy. Reads nothing then."""
    begin = block * block_size
    some = tl.where(greedy, size, 0)
    y = load_kept(row_ptr, some, words_ptr, words, None, None, begin, block_size)
    ids = tl.arange(0, block_size)
    best = tl.min(tl.where(y == top.to(tl.float32), ids, block_size - 1), 0)
    return tl.where(greedy, begin + best, -1)


@triton.jit
def draft_law(
    partials_ptr: tl.tensor,  # or None
    blocks: tl.tensor,
    temperature_ptr: tl.tensor,  # or None
    inverse: tl.tensor,
    row: tl.tensor,
    padded: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Of a draft row its largest logit and its mass as in `LAW`, and 1 / T: fp64."""
    top = tl.full([], 0.0, tl.float64)
    s = tl.full([], _POINT, tl.float64)
    inverse_t = tl.full([], 1.0, tl.float64)
    if partials_ptr is not None:
        inverse_t, point = load_temperature(temperature_ptr, inverse, row)
        top, _, mass = block_masses(
            partials_ptr + row * 5 * blocks, blocks, inverse_t * _LOG2E, padded
        )
        s = tl.sum(mass, 0)
        s = tl.where(point, _POINT, tl.where(s < float("inf"), s, 0.0))
    return top, s, inverse_t


@triton.jit(do_not_specialize=["draft_rows", "rows"])
def _row_laws(
    target_ptr: tl.tensor,  # [B R, V]
    target_stride: tl.tensor,
    size: tl.tensor,
    mask_ptr: tl.tensor,  # [B R, W] or None
    mask_stride: tl.tensor,
    words: tl.tensor,
    temperature_ptr: tl.tensor,  # [B R] or None
    inverse: tl.float64,
    partials_ptr: tl.tensor,  # [B R, 5, NB]
    blocks: tl.tensor,
    draft_ptr: tl.tensor,  # [B D, V] or None
    draft_stride: tl.tensor,
    draft_temperature_ptr: tl.tensor,  # [B D] or None
    draft_inverse: tl.float64,
    draft_partials_ptr: tl.tensor,  # [B D, 5, NB] or None
    draft_rows: tl.tensor,  # D
    token_ptr: tl.tensor,  # int64 [B, R - 1] of a chain, None for a tree
    laws_ptr: tl.tensor,  # fp64 [B R, 10]
    log_weight_ptr: tl.tensor,  # fp64 [B R]
    status_ptr: tl.tensor,  # int8 [B R]
    rows: tl.tensor,  # R
    block_size: tl.constexpr,
    padded: tl.constexpr,  # blocks, up to a power of 2
) -> None:
    r = tl.program_id(0).to(tl.int64)
    request, i = r // rows, r % rows
    row_ptr, words_ptr = target_ptr + r * target_stride, mask_ptr
    if mask_ptr is not None:
        words_ptr = mask_ptr + r * mask_stride
    inverse_t, greedy = load_temperature(temperature_ptr, inverse, r)
    scale = inverse_t * _LOG2E
    partials_ptr += r * 5 * blocks
    top, _, mass = block_masses(partials_ptr, blocks, scale, padded)
    top_o, above_o, mass_o = block_masses(partials_ptr + 2 * blocks, blocks, scale, padded)
    s, s_o = tl.sum(mass, 0), tl.sum(mass_o, 0)
    finite = s < float("inf")  # not so for a NaN either
    alive = finite & (s_o > 0.0)
    log_s, log_s_o = tl.log(s), tl.log(s_o)
    log_weight = (top_o - top) * inverse_t + (log_s_o - log_s)
    tl.store(log_weight_ptr + r, tl.where(alive, log_weight, float("-inf")))
    tl.store(status_ptr + r, tl.where(alive, 0, tl.where(finite, 1, 2)).to(tl.int8))

    index = tl.arange(0, padded)
    block = tl.min(tl.where((above_o == 0.0) & (mass_o > 0.0), index, blocks - 1), 0)
    best = greedy_token(row_ptr, size, words_ptr, words, block, top_o, greedy, block_size)
    # The last row of a chain has no draft: another is read in its stead, and not used.
    d = request * draft_rows + tl.minimum(i, draft_rows - 1)
    draft_top, draft_s, draft_t = draft_law(
        draft_partials_ptr, blocks, draft_temperature_ptr, draft_inverse, d, padded
    )
    law_ptr = laws_ptr + r * 10
    tl.store(law_ptr, top)
    tl.store(law_ptr + 1, log_s)
    tl.store(law_ptr + 2, top_o)
    tl.store(law_ptr + 3, s_o)
    tl.store(law_ptr + 4, best.to(tl.float64))
    tl.store(law_ptr + 5, draft_top)
    tl.store(law_ptr + 6, draft_s)
    tl.store(law_ptr + 8, inverse_t)
    tl.store(law_ptr + 9, draft_t)
    if token_ptr is not None:
        token = tl.load(token_ptr + request * (rows - 1) + i, mask=i < rows - 1, other=-1)
        log_p = log_target(row_ptr, size, words_ptr, words, top_o, s_o, best, inverse_t, token)
        row_q = draft_ptr
        if draft_ptr is not None:
            row_q = draft_ptr + d * draft_stride
        log_q = log_draft(row_q, size, draft_top, draft_s, draft_t, token)
        ratio = tl.where(log_p == float("-inf"), log_p, log_p - log_q)
        drafted = (token >= 0) & alive & (draft_s != 0.0)
        tl.store(law_ptr + 7, tl.where(drafted, ratio, float("nan")))


@dataclass(frozen=True, slots=True)
class Laws:
    """What the kernels that decide are given, and the rows that it is about."""

    laws: Tensor  # fp64 [B R, 10]
    log_weight: Tensor  # fp64 [B R]
    status: Tensor  # int8 [B R]
    target: tuple[Any, ...]  # the arguments of a kernel: logits, stride, size, mask, stride, words
    draft: tuple[Any, ...]  # logits, stride
    noise: tuple[Any, ...]  # uniforms, three words of keys, purpose, first
    partials: Tensor  # fp32 [B R, 5, NB]
    draft_partials: Tensor | None
    blocks: int
    padded: int


def row_laws(
    target_logits: Tensor,  # [B, R, V]
    tokens: Tensor | None,  # int64 [B, R - 1] of a chain
    draft_logits: Tensor | None,  # [B, D, V]
    noise: Any,  # [B, R, 2] or Keys
    mask: Tensor | None,  # [B, R, W]
    temperature: Any,
    draft_temperature: Any,
) -> Laws:
    """Read all rows: two launches, three where there are draft rows."""
    requests, rows = target_logits.shape[:2]
    drawn = as_noise(noise, target_logits, requests, rows)
    target, target_read = _read("target_logits", target_logits, mask, temperature)
    draft, draft_read, draft_rows = _NO_DRAFT, _NOTHING_READ, 1
    if draft_logits is not None and draft_logits.shape[1] > 0:
        if not is_tensor(draft_logits) or draft_logits.device != target_logits.device:
            where = getattr(draft_logits, "device", type(draft_logits).__name__)
            accepted = f"a tensor on {target_logits.device}, as target_logits is"
            raise ValueError(f"draft_logits: got {where}; accepted: {accepted}")
        arguments, draft_read = _read("draft_logits", draft_logits, None, draft_temperature)
        draft, draft_rows = arguments[:2], draft_logits.shape[1]
    read = _blank(requests * rows, target, target_read[2], draft, draft_read[2], drawn)
    if requests == 0:
        return read
    with on_device_of(target_logits):
        _row_laws[(requests * rows,)](
            *target,
            *target_read,
            read.blocks,
            *draft,
            *draft_read,
            draft_rows,
            tokens,
            read.laws,
            read.log_weight,
            read.status,
            rows,
            block_size=BLOCK,
            padded=read.padded,
            num_warps=4,
            enable_fp_fusion=FP_FUSION,
        )
    return read


def _read(
    name: str,
    logits: Tensor,  # [B, R, V]
    mask: Tensor | None,  # [B, R, W]
    temperature: Any,  # scalar or [B]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Rows one after another as arguments of a kernel; their temperatures and their partials."""
    if logits.dtype not in _LOGITS or (logits.shape[2] > 1 and logits.stride(2) != 1):
        raise ValueError(
            f"{name}: got {logits.dtype} of strides {logits.stride()}; accepted: bfloat16, float16 "
            "or float32, tokens next to each other"
        )
    of_request = as_temperature(temperature, logits)
    each = of_request.of_row
    if each is not None:
        each = each[:, None].expand(-1, logits.shape[1]).reshape(-1)
    rows = logits.flatten(0, 1)
    words: tuple[Any, ...] = (None, 0, 0)
    if mask is not None:
        masks = mask.flatten(0, 1)
        check_mask(masks, rows)
        words = masks, masks.stride(0), masks.shape[1]
    partials = block_stats(rows, words[0], Temperature(of_request.inverse, each))
    return (rows, rows.stride(0), rows.shape[1], *words), (each, of_request.inverse, partials)


def _blank(
    count: int,
    target: tuple[Any, ...],
    partials: Tensor,
    draft: tuple[Any, ...],
    draft_partials: Tensor | None,
    noise: Noise,
) -> Laws:
    device, blocks = partials.device, partials.shape[2]
    return Laws(
        torch.empty((count, LAW), dtype=torch.float64, device=device),
        torch.empty(count, dtype=torch.float64, device=device),
        torch.empty(count, dtype=torch.int8, device=device),
        target,
        draft,
        (noise.uniforms, noise.seed, noise.sequence, noise.position, noise.purpose, noise.first),
        partials,
        draft_partials,
        blocks,
        triton.next_power_of_2(blocks),
    )


def _variant(dtype: str, drafts: str, chain: bool, blocks: int) -> Variant:
    types = {
        **signature(dtype, drafts, keys=True),
        "temperature_ptr": "*fp64:16",
        "inverse": "fp64",
        "partials_ptr": "*fp32:16",
        "blocks": "i32",
        "draft_temperature_ptr": "*fp64:16" if drafts else "constexpr",
        "draft_inverse": "fp64",
        "draft_partials_ptr": "*fp32:16" if drafts else "constexpr",
        "draft_rows": "i32",
        "token_ptr": "*i64:16" if chain else "constexpr",
        "laws_ptr": "*fp64:16",
        "log_weight_ptr": "*fp64:16",
        "status_ptr": "*i8:16",
        "rows": "i32",
    }
    told = f"{dtype}, drafts {drafts or 'given'}, {'chain' if chain else 'tree'}, {blocks} blocks"
    sizes = {"block_size": BLOCK, "padded": triton.next_power_of_2(blocks)}
    return variant(f"row_laws {told}", _row_laws, types, sizes)


VARIANTS = (
    _variant("bf16", "bf16", True, 63),
    _variant("fp32", "fp32", True, 75),
    _variant("bf16", "", False, 63),
)
