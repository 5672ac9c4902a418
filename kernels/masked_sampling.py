"""Masked sampling over batches: token, its log probability and the masses that weights are made of.

Array in, array out. Rows are independent: a row's result is the same bit for bit in any batch and
at any place in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import Mask
from midstream.kernels.row import Row

OK = 0
NOTHING_ALLOWED = 1
NOT_FINITE = 2

_Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MaskedSample:
    """One draw for each row. Log-domain values are float64 [B], in nats."""

    token: npt.NDArray[np.int64]  # [B], -1 where nothing could be drawn
    log_p: _Float  # log p(token) under the whole row
    log_z_allowed: _Float  # -inf where nothing is allowed
    log_z_all: _Float
    entropy: _Float  # of the whole row
    status: npt.NDArray[np.int8]  # OK, NOTHING_ALLOWED or NOT_FINITE


@dataclass(frozen=True, slots=True)
class Draws:
    """k draws without replacement for each row, in order."""

    token: npt.NDArray[np.int64]  # [B, k], -1 once nothing is left
    log_p: _Float  # [B, k], under the whole row
    log_live: _Float  # [B, k], log mass left before each draw; less log_z_all: log(1 - r)
    log_z_all: _Float  # [B]


def _temperatures(temperature: npt.ArrayLike, rows: int) -> _Float:
    values = np.broadcast_to(np.asarray(temperature, np.float64), (rows,))
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"temperature: got {temperature!r}; accepted: finite numbers above 0")
    return values


def _check(logits: npt.NDArray[Any], mask: Mask | None) -> None:
    if logits.ndim != 2 or logits.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"logits: got {logits.dtype} {logits.shape}; accepted: float32 or float64 [B, V]"
        )
    if mask is None:
        return
    if mask.dtype != np.uint32 or mask.ndim != 2 or mask.shape[0] != logits.shape[0]:
        raise ValueError(
            f"mask: got {mask.dtype} {mask.shape}; accepted: uint32 [{logits.shape[0]}, W]"
        )


def masked_sample(
    logits: npt.NDArray[Any],  # [B, V]
    mask: Mask | None,  # [B, W]
    uniforms: _Float,  # [B, 2]
    *,
    temperature: npt.ArrayLike = 1.0,  # scalar or [B]
) -> MaskedSample:
    """Draw each row's token from softmax(logits / temperature) restricted to its mask.

    `log_z_allowed - log_z_all` is the exact log weight of the draw: with w = exp of it, E[w 1{x =
    t}] = p(t) allowed(t). A row with nothing allowed, a NaN or a +inf has token -1 and says so in
    `status`.
    """
    _check(logits, mask)
    rows = logits.shape[0]
    temperatures = _temperatures(temperature, rows)
    token = np.full(rows, -1, np.int64)
    values = np.full((4, rows), np.nan)
    status = np.full(rows, NOT_FINITE, np.int8)
    for i in range(rows):
        row = Row(logits[i], None if mask is None else mask[i], 1.0 / float(temperatures[i]))
        if not row.finite:
            continue
        values[:, i] = -np.inf, row.log_z_allowed, row.log_z_all, row.entropy()
        status[i] = NOTHING_ALLOWED
        if row.log_z_allowed > -np.inf:
            token[i] = row.take(uniforms[i : i + 1])[0]
            values[0, i] = row.log_p(int(token[i]))
            status[i] = OK
    log_p, log_z_allowed, log_z_all, entropy = values
    return MaskedSample(token, log_p, log_z_allowed, log_z_all, entropy, status)


def draw_without_replacement(
    logits: npt.NDArray[Any],  # [B, V]
    mask: Mask | None,  # [B, W]
    uniforms: _Float,  # [B, k, 2]
    *,
    temperature: npt.ArrayLike = 1.0,
    rejected: Sequence[Sequence[int]] | None = None,  # of each row, drawn and rejected before
) -> Draws:
    """Draw k tokens a row one after another, each from what the earlier ones left.

    The law of successive sampling: P(x_1, ..., x_k) = prod_j p(x_j) / (1 - p(x_1) - ... -
    p(x_{j-1})).
    """
    _check(logits, mask)
    rows, count = uniforms.shape[:2]
    temperatures = _temperatures(temperature, rows)
    token = np.full((rows, count), -1, np.int64)
    log_p = np.full((rows, count), -np.inf)
    log_live = np.full((rows, count), -np.inf)
    log_z_all = np.full(rows, np.nan)
    for i in range(rows):
        row = Row(logits[i], None if mask is None else mask[i], 1.0 / float(temperatures[i]))
        log_z_all[i] = row.log_z_all
        if not row.finite:
            continue
        row.remove(list(rejected[i]) if rejected is not None else [])
        for j in range(count):
            log_live[i, j] = row.log_live()
            if log_live[i, j] == -np.inf:
                break
            drawn = int(row.take(uniforms[i, j : j + 1])[0])
            token[i, j], log_p[i, j] = drawn, row.log_p(drawn)
            row.remove([drawn])
    return Draws(token, log_p, log_live, log_z_all)
