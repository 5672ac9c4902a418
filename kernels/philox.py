"""Philox4x32-10: random words that are a pure function of a key and a counter.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The same words
come out of Triton's `tl.philox` with 32-bit counter words, bit for bit, so that every backend draws
the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Words64 = npt.NDArray[np.uint64]

_ROUNDS = 10
_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_2 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_MASK32 = 0xFFFFFFFF


@lru_cache(maxsize=32)
def _lanes(count: int) -> tuple[int, int]:
    """A 1 in each of `count` lanes of 64 bits, and the number of each lane in it."""
    ones = ((1 << 64 * count) - 1) // ((1 << 64) - 1)
    numbers = np.arange(count, dtype="<u8").tobytes()
    return ones, int.from_bytes(numbers, "little")


def _rounds(
    key: tuple[int, int], counter: tuple[int, int, int, int], ones: int
) -> tuple[int, int, int, int]:
    """The four words of many blocks at once, each word in the low half of a lane of 64 bits.

    A product of two 32-bit words fits a lane, so that one product of Python's long integers is the
    product in every lane: for the few blocks of a draw a fifth of numpy's fixed cost a call.
    """
    low = ones * _MASK32
    weyl_0, weyl_1 = _WEYL_0 * ones, _WEYL_1 * ones
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(_ROUNDS):
        p0 = _MULTIPLIER_0 * c0
        p2 = _MULTIPLIER_2 * c2
        c0, c1, c2, c3 = (
            (p2 >> 32 & low) ^ c1 ^ k0,
            p2 & low,
            (p0 >> 32 & low) ^ c3 ^ k1,
            p0 & low,
        )
        k0 = (k0 + weyl_0) & low
        k1 = (k1 + weyl_1) & low
    return c0, c1, c2, c3


def _key(seed: int, ones: int) -> tuple[int, int]:
    """The same 64-bit seed in every lane."""
    return (seed & _MASK32) * ones, (seed >> 32 & _MASK32) * ones


def philox_block(seed: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Four random 32-bit words for a 64-bit seed and four 32-bit counter words."""
    return _rounds(_key(seed, 1), counter, 1)


def philox_words(
    seed: int, position: int, sequence: int, purpose: int, count: int, start: int = 0
) -> Words:
    """Words `start` to `start + count` of one stream: uint32 [count].

    Word i is word i & 3 of the block whose counter is (position, sequence, i >> 2, purpose), so
    asking for more words never changes the first ones.
    """
    first, last = start >> 2, (start + count + 3) >> 2
    ones, numbers = _lanes(last - first)
    counter = position * ones, sequence * ones, first * ones + numbers, purpose * ones
    words = _interleaved(_rounds(_key(seed, ones), counter, ones), last - first).reshape(-1)
    offset = start - 4 * first
    return words[offset : offset + count]


def philox_first_words(seed: int, position: int, sequences: Sequence[int], purpose: int) -> Words:
    """The first four words of many streams, which differ in their sequence: uint32 [n, 4]."""
    ones, _ = _lanes(len(sequences))
    lanes = int.from_bytes(np.array(sequences, "<u8").tobytes(), "little")
    counter = position * ones, lanes, 0, purpose * ones
    return _interleaved(_rounds(_key(seed, ones), counter, ones), len(sequences))


def philox_keyed_words(
    seeds: Words64,  # [n]
    positions: Words64,  # [n]
    sequences: Words64,  # [n]
    purpose: int,
    count: int,
    start: int = 0,
) -> Words:
    """`philox_words` of many streams, each with a seed, position and sequence of its own: uint32
    [n, count].
    """
    first, last = start >> 2, (start + count + 3) >> 2
    blocks = last - first
    ones, _ = _lanes(blocks * seeds.size)
    index = np.tile(np.arange(first, last, dtype=np.uint64), seeds.size)
    seed, position, sequence = (np.repeat(each, blocks) for each in (seeds, positions, sequences))
    key = _integer(seed & np.uint64(_MASK32)), _integer(seed >> np.uint64(32))
    counter = _integer(position), _integer(sequence), _integer(index), purpose * ones
    words = _interleaved(_rounds(key, counter, ones), blocks * seeds.size)
    offset = start - 4 * first
    return words.reshape(seeds.size, 4 * blocks)[:, offset : offset + count]


def _integer(lanes: Words64) -> int:
    return int.from_bytes(lanes.astype("<u8").tobytes(), "little")


def _interleaved(lanes: tuple[int, int, int, int], blocks: int) -> Words:
    """The words of each block in a row: uint32 [blocks, 4]."""
    c0, c1, c2, c3 = lanes
    size = 8 * blocks
    pairs = (c0 | c1 << 32).to_bytes(size, "little") + (c2 | c3 << 32).to_bytes(size, "little")
    by_block = np.ascontiguousarray(np.frombuffer(pairs, "<u8").reshape(2, blocks).T)
    return by_block.view(np.uint32)


# The float32 constant with which Triton's `tl.rand` scales an int32: just under 2^-31, so that the
# largest uniform is 0.99999994 and never 1.
_SCALE = np.float32(4.6566127342e-10)


def half_open_uniforms(words: Words) -> npt.NDArray[np.float64]:
    """Uniforms in [0, 1), bit-equal to `tl.rand`, 31 bits rounded to float32: float64 [n]."""
    signed = words.view(np.int32)
    folded = signed ^ (signed >> 31)  # -x - 1 for a negative x
    return (folded.astype(np.float32) * _SCALE).astype(np.float64)


def open_uniforms(words: Words) -> npt.NDArray[np.float64]:
    """Uniforms in (0, 1), (word + 0.5) / 2^32, for use under a logarithm: float64 [n]."""
    return (words.astype(np.float64) + 0.5) * 2.0**-32
