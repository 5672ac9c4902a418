"""Rows of logits read under the law that is sampled: temperature, truncation and mask, in numpy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask, mask_words, pack_mask, unpack_mask
from midstream.kernels.blocks import Array
from midstream.kernels.filters import Filters, Truncation
from midstream.kernels.row import Row, read_rows
from midstream.kernels.truncation import truncated_set

Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

_TOGETHER = 1 << 16  # logits of short rows that are read at once


def inverse_temperature(temperature: float) -> float:
    """1 / T; 1 where T is 0, whose masses are reported at T = 1."""
    return 1.0 / float(temperature) if temperature > 0 else 1.0


def live_logits(logits: Array, mask: Mask | None) -> Array:
    """Logits [V], -inf where the mask does not allow."""
    if mask is None:
        return logits.copy()
    return np.where(unpack_mask(mask, logits.size), logits, logits.dtype.type(-np.inf))


def read_law(
    logits: Array, mask: Mask | None, index: Ids | None, temperatures: Float, filters: Filters
) -> Iterator[tuple[int, Ids, tuple[Row, Array]]]:
    """Of each row that is drawn from: its number, its draws, the row as read, and the logits of the
    law that it was read under.
    """
    wanted, draws_of = _draws_of_rows(index, len(logits))
    if filters.act:
        each = filters.of_rows(len(logits))
        for i, draws in zip(wanted.tolist(), draws_of, strict=True):
            words = None if mask is None else mask[i]
            options = (float(temperatures[i]), *each[i], filters.truncation)
            yield i, draws, read_truncated(logits[i], words, *options, with_entropy=True)
        return
    step = max(_TOGETHER // max(logits.shape[1], 1), 1)
    for begin in range(0, len(wanted), step):
        part = wanted[begin : begin + step]
        rows = _rows(logits, mask, part, temperatures)
        for i, draws, row in zip(part.tolist(), draws_of[begin : begin + step], rows, strict=True):
            yield i, draws, (row, logits[i])


def _draws_of_rows(index: Ids | None, rows: int) -> tuple[Ids, list[Ids]]:
    """Rows that are drawn from, ascending, and the numbers of the draws of each."""
    if index is None:
        wanted = np.arange(rows)
        return wanted, [wanted[i : i + 1] for i in range(rows)]
    order = np.argsort(index, kind="stable")
    wanted, begins = np.unique(index[order], return_index=True)
    return wanted, np.split(order, begins[1:]) if len(wanted) else []


def _rows(logits: Array, mask: Mask | None, part: Ids, temperatures: Float) -> list[Row]:
    """Rows `part`, together where they have one temperature: bit for bit as one by one."""
    inverse = [inverse_temperature(temperatures[i]) for i in part]
    if len(part) > 1 and min(inverse) == max(inverse):
        masks = None if mask is None else mask[part]
        groups = read_rows(logits[part], masks, inverse[0], with_entropy=True)
        return [row for rows in groups for row in rows]
    words = [None if mask is None else mask[i] for i in part]
    each = zip(part, words, inverse, strict=True)
    return [Row(logits[i], own, t, with_entropy=True) for i, own, t in each]


def survivors(
    logits: Array,  # [V]
    mask: Mask | None,  # [W]
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    truncation: Truncation | None,
) -> npt.NDArray[np.bool_]:
    """Which tokens truncation keeps: bool [V]. The mask counts where it comes before."""
    return truncated_set(
        live_logits(logits, mask) if truncation == "after_mask" else logits,
        inverse_temperature=inverse_temperature(temperature),
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
    )


def read_truncated(
    logits: Array,  # [V]
    mask: Mask | None,  # [W]
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    truncation: Truncation | None,
    *,
    with_entropy: bool = False,
) -> tuple[Row, Array]:
    """One row under the truncated law, and the logits of that law: see `masked_sample`."""
    law, words = truncated(logits, mask, temperature, top_k, top_p, min_p, truncation)
    return Row(law, words, inverse_temperature(temperature), with_entropy=with_entropy), law


def truncated(
    logits: Array,  # [V]
    mask: Mask | None,  # [W]
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    truncation: Truncation | None,
) -> tuple[Array, Mask | None]:
    """The logits and the mask that a row under the truncated law is read from."""
    # A row with NaN or +inf says so itself; truncation would hide it.
    if temperature == 0 or not logits.max(initial=-np.inf) < np.inf:
        return logits, mask
    kept = survivors(logits, mask, temperature, top_k, top_p, min_p, truncation)
    if truncation == "after_mask":
        return logits, pack_mask(kept, np.zeros(mask_words(logits.size), np.uint32))
    return np.where(kept, logits, logits.dtype.type(-np.inf)), mask
