"""Philox4x32-10: random words that are a pure function of a key and a counter.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The same words
come out of Triton's `tl.philox` with 32-bit counter words, bit for bit, so that every backend draws
the same tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_ROUNDS = 10
_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_2 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_MASK32 = 0xFFFFFFFF
_SMALL = 8  # below this many blocks Python's integers beat numpy's fixed cost of 40 us a call


def philox_block(seed: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Four random 32-bit words for a 64-bit seed and four 32-bit counter words."""
    k0, k1 = seed & _MASK32, (seed >> 32) & _MASK32
    c0, c1, c2, c3 = counter
    for _ in range(_ROUNDS):
        p0 = _MULTIPLIER_0 * c0
        p2 = _MULTIPLIER_2 * c2
        c0, c1, c2, c3 = (
            (p2 >> 32) ^ c1 ^ k0,
            p2 & _MASK32,
            (p0 >> 32) ^ c3 ^ k1,
            p0 & _MASK32,
        )
        k0 = (k0 + _WEYL_0) & _MASK32
        k1 = (k1 + _WEYL_1) & _MASK32
    return c0, c1, c2, c3


def _philox_many(seed: int, c0: int, c1: int, third: npt.NDArray[Any], c3: int) -> Words:
    """`philox_block` for many values of the third counter word: uint32 [n, 4]."""
    mask, shift = np.uint64(_MASK32), np.uint64(32)
    k0, k1 = seed & _MASK32, (seed >> 32) & _MASK32
    a = np.full(third.shape, c0, np.uint64)
    b = np.full(third.shape, c1, np.uint64)
    c = third.astype(np.uint64)
    d = np.full(third.shape, c3, np.uint64)
    for _ in range(_ROUNDS):
        p0 = np.uint64(_MULTIPLIER_0) * a
        p2 = np.uint64(_MULTIPLIER_2) * c
        a, b, c, d = (
            (p2 >> shift) ^ b ^ np.uint64(k0),
            p2 & mask,
            (p0 >> shift) ^ d ^ np.uint64(k1),
            p0 & mask,
        )
        k0 = (k0 + _WEYL_0) & _MASK32
        k1 = (k1 + _WEYL_1) & _MASK32
    return np.stack([a, b, c, d], axis=1).astype(np.uint32)


def philox_words(
    seed: int, position: int, sequence: int, purpose: int, count: int, start: int = 0
) -> Words:
    """Words `start` to `start + count` of one stream: uint32 [count].

    Word i is word i & 3 of the block whose counter is (position, sequence, i >> 2, purpose), so
    asking for more words never changes the first ones.
    """
    first, last = start >> 2, (start + count + 3) >> 2
    if last - first <= _SMALL:
        words: list[int] = []
        for index in range(first, last):
            words.extend(philox_block(seed, (position, sequence, index, purpose)))
        flat = np.array(words, np.uint32)
    else:
        flat = _philox_many(seed, position, sequence, np.arange(first, last), purpose).reshape(-1)
    offset = start - 4 * first
    return flat[offset : offset + count]


# The float32 constant with which Triton's `tl.rand` scales an int32: just under 2^-31, so that the
# largest uniform is 0.99999994 and never 1.
_SCALE = np.float32(4.6566127342e-10)


def half_open_uniforms(words: Words) -> npt.NDArray[np.float64]:
    """Uniforms in [0, 1) with 31 random bits, bit-equal to `tl.rand`: float64 [n]."""
    signed = words.view(np.int32)
    folded = np.where(signed < 0, -signed - 1, signed)
    return (folded.astype(np.float32) * _SCALE).astype(np.float64)


def open_uniforms(words: Words) -> npt.NDArray[np.float64]:
    """Uniforms in (0, 1), (word + 0.5) / 2^32, for use under a logarithm: float64 [n]."""
    return (words.astype(np.float64) + 0.5) * 2.0**-32
