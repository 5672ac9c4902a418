"""Packed masks: bit t & 31 of word t >> 5 stands for token t, 1 = allowed.

A mask may be shorter than the row it applies to: tokens beyond its last word are not allowed.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.uint32]

if sys.byteorder != "little":  # bits are read through a byte view of the words
    raise ImportError("midstream.kernels.bitmask needs a little-endian machine")


def mask_words(size: int) -> int:
    """Number of 32-bit words that hold `size` bits."""
    return (size + 31) >> 5


def pack_mask(allowed: npt.NDArray[np.bool_], out: Mask | None = None) -> Mask:
    """Pack bool [V] into uint32 [W]; the bits past V are 0.
    `out` may be longer and is zeroed there.
    """
    if out is None:
        out = np.zeros(mask_words(allowed.size), np.uint32)
    packed = np.packbits(allowed, bitorder="little")
    as_bytes = out.view(np.uint8)
    as_bytes[: packed.size] = packed
    as_bytes[packed.size :] = 0
    return out


def unpack_mask(mask: Mask, size: int) -> npt.NDArray[np.bool_]:
    """Bits 0 to `size` of a mask as bool [size]; tokens beyond the mask are False."""
    words = np.ascontiguousarray(mask[: mask_words(size)])
    bits = np.unpackbits(words.view(np.uint8), bitorder="little", count=min(size, 32 * words.size))
    if bits.size < size:
        bits = np.concatenate([bits, np.zeros(size - bits.size, np.uint8)])
    return bits.view(np.bool_)


def mask_of_tokens(tokens: npt.ArrayLike, out: Mask) -> None:
    """Write the mask that allows exactly `tokens` (ids below 32 W) into `out`."""
    ids = np.asarray(tokens, np.int64)
    out[:] = 0
    np.bitwise_or.at(out, ids >> 5, np.left_shift(np.uint32(1), (ids & 31).astype(np.uint32)))


def apply_bitmask(logits: npt.NDArray[Any], mask: Mask) -> None:
    """Set what the mask does not allow to -inf, in place.
    `logits` float [B, V], `mask` uint32 [B, W].
    """
    for row, words in zip(logits, mask, strict=True):
        row[~unpack_mask(words, row.size)] = -np.inf
