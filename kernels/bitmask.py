"""Packed masks: bit t & 31 of word t >> 5 stands for token t, 1 = allowed.

A mask may be shorter than the row it applies to: tokens beyond its last word are not allowed.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.backend import Backend, choose, is_tensor, mask_to_numpy, to_numpy

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


def apply_bitmask(
    logits: Any,  # [B, V]
    mask: Any,  # [R, W]
    *,
    indices: Any = None,  # [P]
    backend: Backend = "auto",
) -> None:
    """Set what a row's mask does not allow to -inf, in place, and leave all else bit for bit.

    Row b of the mask is that of row b of the logits. A token beyond the mask is not allowed. What
    is refused becomes -inf whatever it was, a NaN too.

    logits: a floating type (a tensor: bfloat16 too), any strides.
    mask: uint32, or int32 as a tensor, whose bits count; R = B without `indices`.
    indices: the only rows that are changed, each below B and R; integers. None: all.

    Raises ValueError for wrong shapes and types.
    """
    chosen = choose(logits, backend)
    _check(logits, mask, indices)
    if chosen == "triton":
        from midstream.kernels.triton.apply_bitmask import apply_bitmask as on_device

        on_device(logits, mask, indices)
        return
    if is_tensor(logits) and logits.device.type != "cpu":
        host = logits.cpu()
        apply_bitmask(host, mask_to_numpy(mask), indices=indices)
        logits.copy_(host)
        return
    words, (bits, infinity) = mask_to_numpy(mask), _as_integers(logits)
    for b in range(len(bits)) if indices is None else to_numpy(indices).tolist():
        row = bits[b]
        allowed = unpack_mask(words[b], row.size).view(np.int8)
        refused = (allowed - np.int8(1)).astype(bits.dtype)  # all bits 1, or 0 where allowed
        refused &= row ^ infinity
        row ^= refused  # a third of the time of an assignment by a bool mask


def _as_integers(logits: Any) -> tuple[npt.NDArray[Any], Any]:
    """A view of floats as signed integers of their width, and -inf among these."""
    if not is_tensor(logits):
        kind = np.dtype(f"i{logits.dtype.itemsize}")
        return logits.view(kind), np.array(-np.inf, logits.dtype).view(kind)[()]
    import torch

    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    infinity = torch.tensor(-torch.inf, dtype=logits.dtype).view(kinds[logits.itemsize])
    return logits.detach().view(kinds[logits.itemsize]).numpy(), infinity.numpy()[()]


def _check(logits: Any, mask: Any, indices: Any) -> None:
    shape, words = tuple(logits.shape), tuple(mask.shape)
    if len(shape) != 2 or "float" not in str(logits.dtype):
        raise ValueError(f"logits: got {logits.dtype} {list(shape)}; accepted: floats [B, V]")
    kind = "torch.int32" if is_tensor(mask) else "uint32"
    if len(words) != 2 or str(mask.dtype) != kind or (indices is None and words[0] != shape[0]):
        rows = shape[0] if indices is None else "R"
        got = f"{mask.dtype} {list(words)}"
        raise ValueError(f"mask: got {got}; accepted: {kind} [{rows}, W]")
    if indices is None or (is_tensor(indices) and indices.device.type != "cpu"):
        return
    rows = to_numpy(indices)
    end = min(shape[0], words[0])
    if rows.ndim != 1 or (rows.size and (rows.dtype.kind not in "iu" or rows.min() < 0)):
        raise ValueError(f"indices: got {indices!r}; accepted: integers [P], at least 0")
    if rows.size and rows.max() >= end:
        raise ValueError(f"indices: got {int(rows.max())}; accepted: rows below {end}")
