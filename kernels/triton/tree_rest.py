"""What a node of a tree has still to output, on the device: [p - C q]+, one number, formed from the
logits again for each child that is not kept.

Oracle: `midstream.kernels.verify_tree`, its `SampledRest` and `PointRest`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from midstream.kernels.blocks import NO_MASS
from midstream.kernels.triton.block_stats import load_logits
from midstream.kernels.triton.verify_parts import load_rest
from midstream.kernels.triton.without_replacement import live_mass

_LOG2E = tl.constexpr(1.4426950408889634)
_NO_MASS = tl.constexpr(NO_MASS)


@triton.jit
def children(
    token_ptr: tl.tensor,
    parent_ptr: tl.tensor,
    parent: tl.tensor,
    end: tl.tensor,
    count: tl.constexpr,
) -> tl.tensor:
    """Tokens of the nodes below `end` that hang from a node: int32 [count], -1 for the others."""
    node = tl.arange(0, count)
    parents = tl.load(parent_ptr + node, mask=node < end, other=-2)
    tokens = tl.load(token_ptr + node, mask=node < end, other=-1)
    return tl.where(parents == parent, tokens, -1).to(tl.int32)


@triton.jit
def marked(tokens: tl.tensor, begin: tl.tensor, block_size: tl.constexpr) -> tl.tensor:
    """Which tokens of a block are among some: bool [block_size]."""
    inside = (tokens >= begin) & (tokens < begin + block_size)
    return tl.histogram(tokens - begin, block_size, mask=inside) > 0


@triton.jit
def rest_masses(
    row_ptr: tl.tensor,
    size: tl.tensor,
    words_ptr: tl.tensor,
    words: tl.tensor,
    law_ptr: tl.tensor,
    draft_ptr: tl.tensor,
    reference: tl.tensor,
    factor: tl.tensor,
    gone: tl.tensor,  # int32 [n]
    blocks: tl.tensor,
    block_size: tl.constexpr,
    padded: tl.constexpr,
) -> tl.tensor:
    """Masses of the blocks of [p - C q]+: fp32 [padded]."""
    index = tl.arange(0, padded)
    masses = tl.zeros([padded], tl.float32)
    one = tl.full([], 1.0, tl.float64)
    some = tl.max(gone, 0) >= 0
    for block in range(0, blocks):
        begin = block * block_size
        here = tl.zeros([block_size], tl.int1)
        if some:  # of children drawn from q there are none: [p - C q]+ is 0 where they are
            here = marked(gone, begin, block_size)
        e = load_rest(
            row_ptr, size, words_ptr, words, law_ptr, one, draft_ptr, reference, factor,
            here, begin, block_size,
        )  # fmt: skip
        masses = tl.where(index == block, tl.sum(e, 0), masses)
    return masses


@triton.jit
def draft_blocks(
    partials_ptr: tl.tensor, blocks: tl.tensor, padded: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Maxima and sums of the blocks of a row: fp32 [padded]."""
    index = tl.arange(0, padded)
    m = tl.load(partials_ptr + index, mask=index < blocks, other=_NO_MASS)
    return m, tl.load(partials_ptr + blocks + index, mask=index < blocks, other=0.0)


@triton.jit
def without(
    draft_ptr: tl.tensor,
    size: tl.tensor,
    scale: tl.tensor,
    gone: tl.tensor,  # int32 [n], `token` among them
    token: tl.tensor,
    m: tl.tensor,  # fp32 [padded]
    s: tl.tensor,
    block_size: tl.constexpr,
    padded: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Maxima and sums of the blocks of q once a token more is gone: its block is summed again."""
    block = tl.where(token < size, token // block_size, 0).to(tl.int32)
    begin = block * block_size
    z = load_logits(draft_ptr, begin, size, block_size)
    z = tl.where(marked(gone, begin, block_size), float("-inf"), z)
    block_m, block_s = live_mass(z, scale.to(tl.float32))
    here = tl.arange(0, padded) == block
    return tl.where(here, block_m, m), tl.where(here, block_s, s)


@triton.jit
def child_probability(
    log_p: tl.tensor, log_q: tl.tensor, taken: tl.tensor, mass: tl.tensor, left: tl.tensor
) -> tl.tensor:
    """`kernels.acceptance.sibling_acceptance`."""
    log_ratio = tl.where(log_p > float("-inf"), log_p - log_q, float("-inf"))
    ratio = tl.exp(tl.where(log_ratio < 700.0, log_ratio, 700.0))
    probability = tl.where(ratio > taken, ratio - taken, 0.0) * left / mass
    return tl.where(probability < 1.0, probability, 1.0)


@triton.jit
def reject(
    row_ptr: tl.tensor,
    size: tl.tensor,
    words_ptr: tl.tensor,
    words: tl.tensor,
    law_ptr: tl.tensor,
    draft_ptr: tl.tensor,  # or None
    gone: tl.tensor,  # int32 [n], the children that were not kept, `token` among them
    token: tl.tensor,
    m: tl.tensor,  # of q without the earlier children: fp32 [padded]
    s: tl.tensor,
    taken: tl.tensor,  # C, A and L
    mass: tl.tensor,
    left: tl.tensor,
    blocks: tl.tensor,
    replace: tl.constexpr,
    block_size: tl.constexpr,
    padded: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """C, A, L, reference and factor of q, masses of the rest, and q without the child."""
    draft_top, draft_s = tl.load(law_ptr + 5), tl.load(law_ptr + 6)
    draft_scale = tl.load(law_ptr + 9) * _LOG2E
    point = draft_s < 0.0
    taken = tl.where(point, 0.0, taken + mass / left)
    # Relative to what is left of q: far below the whole, fp32 would end.
    reference = tl.max(tl.where(s > 0.0, m, _NO_MASS), 0).to(tl.float64)
    factor = taken * tl.exp2((reference - draft_top) * draft_scale) / draft_s
    rest = rest_masses(
        row_ptr, size, words_ptr, words, law_ptr, draft_ptr, reference, factor,
        tl.where(point, gone, -1), blocks, block_size, padded,
    )  # fmt: skip
    mass = tl.sum(rest.to(tl.float64), 0)
    if draft_ptr is not None:
        if not replace:
            some = tl.where(point, 0, size)
            m, s = without(draft_ptr, some, draft_scale, gone, token, m, s, block_size, padded)
            above = tl.where(s > 0.0, (m.to(tl.float64) - draft_top) * draft_scale, 0.0)
            share = tl.sum(s.to(tl.float64) * tl.exp2(above), 0) / draft_s
            left = tl.where(point, 1.0, share)
    return taken, mass, left, reference, factor, rest, m, s
