"""Masked sampling over batches: token, its log probability and the masses that weights are made of.

Array in, array out. Rows are independent: a row's result is the same bit for bit in any batch and
at any place in it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.backend import Backend, choose, like
from midstream.kernels.bitmask import Mask
from midstream.kernels.filters import Filters, Truncation
from midstream.kernels.keys import Keys
from midstream.kernels.law_rows import inverse_temperature, live_logits, read_law
from midstream.kernels.numpy_inputs import (
    numpy_indices,
    numpy_logits,
    numpy_mask,
    numpy_rejected,
    numpy_temperatures,
    numpy_uniforms,
)
from midstream.kernels.row import Row

OK = 0
NOTHING_ALLOWED = 1
NOT_FINITE = 2

Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MaskedSample:
    """P draws. Log-domain values are float64 [P], in nats; arrays are of the kind of the logits."""

    token: Any  # int64 [P], -1 where nothing could be drawn
    log_p: Any  # log p(token) under the whole row; -inf where there is no token
    log_weight: Any  # log_z_allowed - log_z_all, formed from block masses; -inf without a token
    log_z_allowed: Any  # -inf where nothing is allowed, NaN where the row is not finite
    log_z_all: Any
    entropy: Any  # of the whole row; NaN where it has no mass
    status: Any  # int8 [P]: OK, NOTHING_ALLOWED or NOT_FINITE


@dataclass(frozen=True, slots=True)
class Draws:
    """k draws without replacement for each row, in order; arrays are of the kind of the logits."""

    token: Any  # int64 [R, k], -1 once nothing is left, and where the row is not finite
    log_p: Any  # float64 [R, k], under the whole row; -inf where there is no token
    log_live: Any  # float64 [R, k], log mass left before each draw; less log_z_all: log(1 - r)
    log_z_all: Any  # float64 [R], NaN where the row is not finite


def masked_sample(
    logits: Any,  # [R, V]
    mask: Any,  # [R, W], or None
    noise: Float | Keys | Any,  # [P, 2]
    *,
    temperature: Any = 1.0,  # scalar or [R]
    indices: Any = None,  # [P]
    top_k: Any = 0,  # scalar or [R], as are top_p and min_p
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    truncation: Truncation | None = None,
    backend: Backend = "auto",
) -> MaskedSample:
    """Draw tokens from softmax(logits / temperature) restricted to masks.

    logits: bfloat16, float16 or float32 rows without gaps, at any distance from each other; in
        numpy float64 too. On the way to numpy bfloat16 and float16 are converted.
    mask: bit t & 31 of word t >> 5 allows token t; uint32 in numpy, int32 in torch; tokens beyond
        its words are not allowed. None allows all.
    noise: two uniforms in [0, 1) a draw, for a block and for a token inside it, or `Keys`.
    temperature: 0 is greedy, the allowed token of largest logit (of equals the lowest id), with
        masses, log_p and log_weight at T = 1.
    indices: the row that each draw is from; None: draw i is from row i.
    top_k, top_p, min_p, truncation: see `Filters`; a row at T = 0 has nothing to truncate.
        'target': the truncated law stands for the whole row. 'after_mask': only what is drawn from
        is truncated, log_z_all is that of the whole row.

    With w = exp(log_weight), E[w 1{x = t}] = p(t) allowed(t), p the law of the whole row: weights
    are proper for it, but not at T = 0 and not for 'after_mask', where p is cut. A row with nothing
    allowed, a NaN or a +inf has token -1, weight 0, and says so in `status`. log_p and log_weight
    are within 2e-6 at any temperature. On a GPU nothing waits for the device as long as arrays are
    tensors there: what they hold is then not checked.
    """
    filters = Filters(top_k, top_p, min_p, truncation)
    if choose(logits, backend) == "triton":
        from midstream.kernels.triton.masked_sampling import masked_sample as on_device

        return on_device(logits, mask, noise, temperature, indices, filters)
    rows = numpy_logits(logits)
    uniforms = numpy_uniforms(noise, 1)[:, 0]
    index = numpy_indices(indices, len(uniforms), len(rows))
    temperatures = numpy_temperatures(temperature, len(rows))
    sample = _sample(rows, numpy_mask(mask, len(rows)), uniforms, index, temperatures, filters)
    return MaskedSample(*(like(logits, getattr(sample, each.name)) for each in fields(sample)))


def _sample(
    logits: npt.NDArray[Any],
    mask: Mask | None,
    uniforms: Float,
    index: Ids | None,
    temperatures: Float,
    filters: Filters,
) -> MaskedSample:
    count = len(uniforms)
    token = np.full(count, -1, np.int64)
    values = np.full((5, count), np.nan)
    values[:2] = -np.inf
    status = np.full(count, NOT_FINITE, np.int8)
    for i, draws, (row, read) in read_law(logits, mask, index, temperatures, filters):
        if not row.finite:
            continue
        inverse = inverse_temperature(temperatures[i])
        whole = row.log_z_allowed, row.log_z_all, row.entropy
        values[2:, draws] = np.array(whole)[:, None]
        status[draws] = NOTHING_ALLOWED
        if row.log_z_allowed == -np.inf:
            continue
        if temperatures[i] == 0:
            token[draws] = live_logits(read, None if mask is None else mask[i]).argmax()
        else:
            token[draws] = row.take(uniforms[draws])
        values[0, draws] = read[token[draws]].astype(np.float64) * inverse - row.log_z_all
        values[1, draws] = row.log_z_allowed - row.log_z_all
        status[draws] = OK
    log_p, log_weight, log_z_allowed, log_z_all, entropies = values
    return MaskedSample(token, log_p, log_weight, log_z_allowed, log_z_all, entropies, status)


def draw_without_replacement(
    logits: Any,  # [R, V]
    mask: Any,  # [R, W], or None
    noise: Float | Keys | Any,  # [R, k, 2]
    *,
    count: int | None = None,
    temperature: Any = 1.0,  # scalar or [R]
    rejected: Any = None,  # [R, r]
    backend: Backend = "auto",
) -> Draws:
    """Draw k tokens a row one after another, each from what the earlier ones left.

    The law of successive sampling: P(x_1, ..., x_k) = prod_j p(x_j) / (1 - p(x_1) - ... -
    p(x_{j-1})), p the masked law; at T = 0 the k largest, of equals the lower id first.

    count: k, where `noise` is `Keys`. rejected: integer tokens drawn before, out of the game from
    the start; -1 fills up. The rest as in `masked_sample`. What is left is summed again after each
    draw, never got by subtraction.
    """
    if choose(logits, backend) == "triton":
        from midstream.kernels.triton.without_replacement import draw_without_replacement as draw

        return draw(logits, mask, noise, count, temperature, rejected)
    rows = numpy_logits(logits)
    uniforms = numpy_uniforms(noise, count)
    numpy_indices(None, len(uniforms), len(rows))
    drawn = _draws(
        rows,
        numpy_mask(mask, len(rows)),
        uniforms,
        numpy_temperatures(temperature, len(rows)),
        numpy_rejected(rejected, *rows.shape),
    )
    return Draws(*(like(logits, getattr(drawn, each.name)) for each in fields(drawn)))


def _draws(
    logits: npt.NDArray[Any], mask: Mask | None, uniforms: Float, temperatures: Float, rejected: Ids
) -> Draws:
    rows, count = uniforms.shape[:2]
    token = np.full((rows, count), -1, np.int64)
    log_p = np.full((rows, count), -np.inf)
    log_live = np.full((rows, count), -np.inf)
    log_z_all = np.full(rows, np.nan)
    for i in range(rows):
        words = None if mask is None else mask[i]
        row = Row(logits[i], words, inverse_temperature(temperatures[i]))
        if not row.finite:
            continue
        log_z_all[i] = row.log_z_all
        gone = rejected[i][rejected[i] >= 0].tolist()
        row.remove(gone)
        live = live_logits(logits[i], words) if temperatures[i] == 0 else None
        for j in range(count):
            log_live[i, j] = row.log_live()
            if log_live[i, j] == -np.inf:
                break
            if live is None:
                drawn = int(row.take(uniforms[i, j : j + 1])[0])
            else:
                live[gone] = -np.inf
                drawn = int(live.argmax())
                gone = [drawn]
            token[i, j], log_p[i, j] = drawn, row.log_p(drawn)
            row.remove([drawn])
    return Draws(token, log_p, log_live, log_z_all)
