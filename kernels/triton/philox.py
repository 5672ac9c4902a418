"""Philox4x32-10 on the device, from 32-bit words. Oracle: `midstream.kernels.philox`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox_words(
    seed_lo: tl.tensor,
    seed_hi: tl.tensor,
    c0: tl.tensor,
    c1: tl.tensor,
    c2: tl.tensor,
    c3: tl.tensor,
) -> tl.tensor:
    """Four uint32 words of one block: `kernels.philox.philox_block`. Six uint32 values go in."""
    # Written out, since `tl.philox` turns to other constants when a word has 64 bits.
    for _ in tl.static_range(10):
        previous_0 = c0
        previous_2 = c2
        c0 = tl.umulhi(0xCD9E8D57, previous_2) ^ c1 ^ seed_lo
        c2 = tl.umulhi(0xD2511F53, previous_0) ^ c3 ^ seed_hi
        c1 = tl.mul(0xCD9E8D57, previous_2, sanitize_overflow=False)
        c3 = tl.mul(0xD2511F53, previous_0, sanitize_overflow=False)
        seed_lo = tl.add(seed_lo, 0x9E3779B9, sanitize_overflow=False)
        seed_hi = tl.add(seed_hi, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def half_open(word: tl.tensor) -> tl.tensor:
    """A uniform in [0, 1) from a uint32 word, fp32: `kernels.philox.half_open_uniforms`."""
    signed = word.to(tl.int32, bitcast=True)
    folded = tl.where(signed < 0, -signed - 1, signed)
    return folded.to(tl.float32) * 4.6566127342e-10


@triton.jit
def draw_uniforms(
    seed_ptr: tl.tensor,  # int64 [P]
    sequence_ptr: tl.tensor,  # int64 [P]
    position_ptr: tl.tensor,  # int64 [P]
    purpose: tl.tensor,
    draw: tl.tensor,  # number of the draw, first + j
    p: tl.tensor,
) -> tl.tensor:
    """The two uniforms of a draw of key p, fp32: `kernels.keys.Keys`."""
    seed = tl.load(seed_ptr + p)
    c0 = tl.load(position_ptr + p).to(tl.uint32)
    c1 = tl.load(sequence_ptr + p).to(tl.uint32)
    c2 = (draw // 2).to(tl.uint32)
    c3 = purpose.to(tl.uint32)
    low = seed.to(tl.uint32)
    high = (seed >> 32).to(tl.uint32)
    w0, w1, w2, w3 = philox_words(low, high, c0, c1, c2, c3)
    odd = draw % 2 == 1
    return half_open(tl.where(odd, w2, w0)), half_open(tl.where(odd, w3, w1))


@triton.jit
def load_uniforms(
    uniform_ptr: tl.tensor,  # [P, k, 2], None with keys
    seed_ptr: tl.tensor,
    sequence_ptr: tl.tensor,
    position_ptr: tl.tensor,
    purpose: tl.tensor,
    first: tl.tensor,
    p: tl.tensor,
    j: tl.tensor,
    count: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """The two uniforms of draw j of `count` of sequence p, given or made, fp64."""
    if uniform_ptr is not None:
        at = uniform_ptr + 2 * (p * count + j)
        u0, u1 = tl.load(at).to(tl.float64), tl.load(at + 1).to(tl.float64)
    else:
        v0, v1 = draw_uniforms(seed_ptr, sequence_ptr, position_ptr, purpose, first + j, p)
        u0, u1 = v0.to(tl.float64), v1.to(tl.float64)
    return u0, u1
