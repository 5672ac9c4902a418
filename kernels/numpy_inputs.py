"""Arguments of kernels as numpy arrays, checked: what every numpy form starts from."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.backend import mask_to_numpy, to_numpy
from midstream.kernels.bitmask import Mask
from midstream.kernels.keys import Keys

Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


def numpy_logits(logits: Any) -> npt.NDArray[Any]:
    """float32 or float64 [R, V]: a view, or bfloat16 and float16 converted to float32."""
    rows = to_numpy(logits)
    if rows.ndim != 2 or rows.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(
            f"logits: got {rows.dtype} {list(rows.shape)}; accepted: float32, float64, float16 or "
            "bfloat16 [R, V]"
        )
    return rows.astype(np.float32) if rows.dtype == np.float16 else rows


def numpy_mask(mask: Any, rows: int) -> Mask | None:
    """uint32 [R, W], a view; None for None."""
    if mask is None:
        return None
    words = mask_to_numpy(mask)
    if words.dtype != np.uint32 or words.ndim != 2 or words.shape[0] != rows:
        raise ValueError(
            f"mask: got {words.dtype} {list(words.shape)}; accepted: uint32 (in torch int32) "
            f"[{rows}, W]"
        )
    return words


def numpy_temperatures(temperature: Any, rows: int) -> Float:
    """float64 [R] of one temperature or one a row: 0 is greedy."""
    values = to_numpy(temperature).astype(np.float64)
    if values.shape not in ((), (rows,)):
        raise ValueError(f"temperature: got {list(values.shape)}; accepted: a number or [{rows}]")
    if not ((values == 0) | (values >= 9.99e-7) & (values < np.inf)).all():
        accepted = "0 (greedy), or finite numbers from 1e-6 on"
        raise ValueError(f"temperature: got {temperature!r}; accepted: {accepted}")
    return np.broadcast_to(values, (rows,))


def numpy_uniforms(noise: Any, count: int | None) -> Float:
    """float64 [P, k, 2] of uniforms, or of `Keys` for `count` draws each. [P, 2] where k is 1."""
    if isinstance(noise, Keys):
        if count is None:
            raise ValueError("count: got None with Keys; accepted: how many draws to make")
        return noise.uniforms(count)
    uniforms = to_numpy(noise)
    if uniforms.ndim == 2 and count == 1:
        uniforms = uniforms[:, None]
    wrong = uniforms.ndim != 3 or uniforms.shape[2] != 2 or count not in (None, uniforms.shape[1])
    if wrong or uniforms.dtype not in (np.float32, np.float64):
        wanted = "[P, 2]" if count == 1 else f"[P, {'k' if count is None else count}, 2]"
        raise ValueError(
            f"noise: got {uniforms.dtype} {list(uniforms.shape)}; accepted: Keys, or float {wanted}"
        )
    return uniforms.astype(np.float64, copy=False)


def numpy_indices(indices: Any, draws: int, rows: int) -> Ids | None:
    """int64 [P], the row of each draw; None where draw i is from row i."""
    if indices is None:
        if draws != rows:
            raise ValueError(f"noise: got {draws} draws; accepted: {rows}, one for each row")
        return None
    index = to_numpy(indices)
    if index.shape != (draws,) or index.dtype.kind not in "iu":
        raise ValueError(
            f"indices: got {index.dtype} {list(index.shape)}; accepted: integers [{draws}]"
        )
    if index.size and not (0 <= int(index.min()) and int(index.max()) < rows):
        raise ValueError(f"indices: got {index.tolist()}; accepted: rows from 0 to {rows - 1}")
    return index.astype(np.int64, copy=False)


def numpy_rejected(rejected: Any, rows: int, size: int) -> Ids:
    """int64 [R, r] of tokens below `size`, -1 for none; [R, 0] where None is given."""
    if rejected is None:
        return np.empty((rows, 0), np.int64)
    tokens = to_numpy(rejected)
    if tokens.ndim != 2 or len(tokens) != rows or tokens.dtype.kind not in "iu":
        raise ValueError(
            f"rejected: got {tokens.dtype} {list(tokens.shape)}; accepted: integers [{rows}, r]"
        )
    if tokens.size and not (-1 <= int(tokens.min()) and int(tokens.max()) < size):
        accepted = f"tokens below {size}, or -1"
        raise ValueError(f"rejected: got {tokens.tolist()}; accepted: {accepted}")
    return tokens.astype(np.int64, copy=False)
