"""`masked_sample` on the device: one read of the logits, and a second one of a block a draw.

Oracle: `midstream.kernels.masked_sampling`.
"""

from __future__ import annotations

from typing import Any

from midstream.kernels.filters import Filters
from midstream.kernels.masked_sampling import MaskedSample
from midstream.kernels.triton.block_stats import block_stats
from midstream.kernels.triton.launch import (
    Tensor,
    as_noise,
    as_temperature,
    check_logits,
    check_mask,
    to_device,
)
from midstream.kernels.triton.pick import pick


def masked_sample(
    logits: Tensor,  # [R, V]
    mask: Tensor | None,  # [R, W]
    noise: Any,  # [P, 2], or Keys
    temperature: Any,  # scalar or [R]
    indices: Any,  # [P] or None
    filters: Filters,
) -> MaskedSample:
    """See `kernels.masked_sampling.masked_sample`. Two launches, more where a filter acts; values
    of `indices` are not checked.

    A row has the same bits in any batch and at any place in it. Calls of another kind, with and
    without a mask, with one temperature or many, or with rows that begin at multiples of 16 bytes
    or not, are compiled apart and may differ in the last bits.
    """
    check_logits(logits)
    check_mask(mask, logits)
    of_rows = as_temperature(temperature, logits)
    index = None if indices is None else to_device(indices, logits)
    draws = as_noise(noise, logits, len(logits) if index is None else len(index), 1)
    partials = block_stats(logits, mask, of_rows)
    threshold, tie = None, None
    if filters.act:
        from midstream.kernels.triton.truncation import truncate

        cut = truncate(logits, mask, partials, of_rows, filters)
        threshold, tie, partials = cut.threshold, cut.tie, cut.partials
    found = pick(
        logits, mask, partials, of_rows, draws, indices=index, threshold=threshold, tie=tie
    )
    log_p, log_weight, log_z_allowed, log_z_all, entropy = found.values
    return MaskedSample(
        found.token, log_p, log_weight, log_z_allowed, log_z_all, entropy, found.status
    )
