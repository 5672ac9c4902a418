"""From the law of the next token to the masses of the next byte, by the byte-sorted vocabulary.

Vieira et al., "From Language Models over Tokens to Language Models over Characters"
(arXiv 2412.03719) define what is summed here. Each sum is formed apart, relative to its own
maximum where it would vanish beside that of the row. A difference of two cumulative sums would lose
every byte that is rarer than the rounding of the sum before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.backend import Backend, choose, is_tensor, like, to_numpy
from midstream.kernels.byte_sorted import ByteSortedVocabulary
from midstream.kernels.masked_sampling import NOT_FINITE, NOTHING_ALLOWED, OK
from midstream.kernels.numpy_inputs import numpy_mask, numpy_temperatures
from midstream.kernels.sorted_row import SortedRow

__all__ = ["ENDS", "ByteSortedVocabulary", "NextByte", "next_byte"]

ENDS = 256
"""The bin of a token that ends where it stands."""

Float = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NextByte:
    """Where the mass of each of P tokens being written goes, in nats. Arrays of the logits' kind.

    All masses are of the law softmax(logits / temperature) of a whole row, before its mask. Those
    of the root without a mask, with `log_eos` and `log_special`, sum to 1.
    """

    log_mass: Any  # float64 [P, 257]: the next byte; in bin 256 that the token ends here
    log_eos: Any  # float64 [P]: that the sequence ends instead of a token
    log_special: Any  # float64 [P]: other special ids, and ids beyond the vocabulary
    log_z_all: Any  # float64 [P]: of the row
    status: Any  # int8 [P]: OK, NOTHING_ALLOWED (a row without mass) or NOT_FINITE


def next_byte(
    logits: Any,  # [R, V]
    vocabulary: ByteSortedVocabulary,
    nodes: Any,  # [P]
    *,
    indices: Any = None,  # [P]
    mask: Any = None,  # [R, W]
    temperature: Any = 1.0,  # scalar or [R]
    backend: Backend = "auto",
) -> NextByte:
    """The mass of each way to go on with a token of which some bytes are written already.

    With q = softmax(logits / temperature) of the row that token p is drawn from, s the bytes of
    node p and b(t) those of token t: log_mass[p, c] = log sum {q(t): allowed t, b(t) begins with
    s + c} and log_mass[p, 256] = log sum {q(t): allowed t, b(t) = s}. At the root the latter is
    -inf, since no token spells nothing; there the sequence may end instead (`log_eos`). Masses are
    not divided by that of s: a cover adds up q of whole tokens. Equal bytes of two ids add up.

    logits: float, any stride; V at least that of the vocabulary, ids beyond it are special.
    nodes: of `vocabulary.node(prefix)`, int32 or int64; of -1 all masses are -inf.
    indices: the row of each of the P tokens; None: token p is of row p.
    mask: tokens beyond its words are not allowed. It takes tokens from all masses, and none from q:
        what is left out is missing in the sums, not shared among the others.
    In numpy a mass is good to 1e-12 relative, however small it is (below e^-1000 to the rounding of
    its log in float64). In Triton terms are float32, sums across them float64: 1e-6 relative. A row
    is the same, bit for bit, in any batch.
    A row with a NaN or +inf has NaN in all outputs, a row without mass -inf.

    Raises ValueError for wrong shapes and types, and for temperatures that are not finite numbers
    from 1e-6 on; of arrays on a device the values are not read.
    """
    _check(logits, vocabulary, nodes, indices)
    if choose(logits, backend) == "triton":
        if not is_tensor(temperature):
            _temperatures(temperature, logits.shape[0])
        from midstream.kernels.triton.next_byte import next_byte as on_device

        return NextByte(*on_device(logits, vocabulary, nodes, indices, mask, temperature))
    return _next_bytes(logits, vocabulary, nodes, indices, mask, temperature)


def _next_bytes(
    logits: Any,
    vocabulary: ByteSortedVocabulary,
    nodes: Any,
    indices: Any,
    mask: Any,
    temperature: Any,
) -> NextByte:
    """In numpy, one row after another."""
    rows = to_numpy(logits)
    masks = numpy_mask(mask, len(rows))
    inverse = (1.0 / _temperatures(temperature, len(rows))).tolist()
    node_ids = to_numpy(nodes).tolist()
    where = range(len(node_ids)) if indices is None else to_numpy(indices).tolist()
    logs = np.empty((len(node_ids), ENDS + 4))
    status = np.empty(len(node_ids), np.int8)
    read, row = -1, None
    with np.errstate(all="ignore"):
        for p in sorted(range(len(node_ids)), key=where.__getitem__):
            if row is None or read != where[p]:
                read = where[p]
                words = None if masks is None else masks[read]
                row = SortedRow(rows[read], vocabulary, words, inverse[read])
            logs[p], status[p] = _ways_on(row, vocabulary, node_ids[p])
    parts = logs[:, : ENDS + 1], logs[:, -3], logs[:, -2], logs[:, -1], status
    return NextByte(*(like(logits, np.ascontiguousarray(part)) for part in parts))


def _ways_on(row: SortedRow, known: ByteSortedVocabulary, node: int) -> tuple[Float, int]:
    """Log masses [257], of end of sequence, of other special ids and of the row; the status."""
    logs = np.full(ENDS + 4, -np.inf)
    if math.isnan(row.log_z):
        logs[:] = np.nan
        return logs, NOT_FINITE
    logs[-1] = row.log_z
    if not row.finite:
        return logs, NOTHING_ALLOWED
    if node >= 0:
        row.log_bytes(node, logs)
        logs[ENDS] = row.log_sum(int(known.low[node]), int(known.ends[node]))
    logs[-3] = row.log_end()
    logs[-2] = row.log_sum(known.spelled + known.ending, row.logits.size)
    return logs, OK


def _check(logits: Any, vocabulary: ByteSortedVocabulary, nodes: Any, indices: Any) -> None:
    """Kinds and shapes, and of ids on the host the values."""
    shape = tuple(logits.shape)
    if len(shape) != 2 or shape[1] < len(vocabulary) or not _is_kind(logits, "f"):
        accepted = f"floats [R, V] with V at least {len(vocabulary)}"
        raise ValueError(f"logits: got {logits.dtype} {list(shape)}; accepted: {accepted}")
    count = shape[0] if indices is None else len(indices)
    _check_ids("nodes", nodes, count, -1, vocabulary.low.size)
    if indices is not None:
        _check_ids("indices", indices, count, 0, shape[0])


def _is_kind(array: Any, kind: str) -> bool:
    if is_tensor(array):
        return bool(array.dtype.is_floating_point) == (kind == "f")
    return bool(array.dtype.kind == kind)


def _check_ids(name: str, ids: Any, count: int, least: int, end: int) -> None:
    if tuple(ids.shape) != (count,) or not _is_kind(ids, "i"):
        got = f"{ids.dtype} {list(ids.shape)}"
        raise ValueError(f"{name}: got {got}; accepted: integers [{count}]")
    on_host = not is_tensor(ids) or ids.device.type == "cpu"
    if on_host and count and not least <= int(ids.min()) <= int(ids.max()) < end:
        got = f"{int(ids.min())} to {int(ids.max())}"
        raise ValueError(f"{name}: got {got}; accepted: {least} to {end - 1}")


def _temperatures(temperature: Any, rows: int) -> Float:
    values = numpy_temperatures(temperature, rows)
    if not values.all():  # which stands for greedy draws elsewhere: no law
        raise ValueError(f"temperature: got {temperature!r}; accepted: numbers above 0")
    return values
