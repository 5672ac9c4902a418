"""One law out of the next-token laws of K models, across their vocabularies.

The linear pool and the log-linear pool (Genest and Zidek, "Combining probability distributions: a
critique and an annotated bibliography", Statistical Science 1, 1986), with a weight for each token
besides that of each model, as CoRE filters assistants by token (arXiv 2510.13855, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from midstream.kernels.backend import Backend, choose, is_tensor, like, to_numpy
from midstream.kernels.blocks import NO_MASS, log_sum_exp
from midstream.kernels.masked_sampling import NOT_FINITE, NOTHING_ALLOWED, OK

Operator = Literal["mixture", "product"]

_CHUNK = 1 << 13
"""Tokens gone over at once. For speed alone: what they need stays near the processor."""

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fused:
    """The fused law of each row, in nats. Arrays of the kind of the main model's logits."""

    log_p: Any  # float32 [B, V]: log-probabilities, each row sums to 1
    log_normaliser: Any  # float64 [B]: log of the sum before it was made 1
    log_mapped: Any  # float64 [B, K]: log of sum_v p~_k(v), before any weight
    status: Any  # int8 [B]: OK, NOTHING_ALLOWED (no token has mass) or NOT_FINITE


def fuse(
    rows: Sequence[Any],  # K of [B, V_k], the main model first
    *,
    weights: Any,  # scalar, [K] or [B, K]
    token_weights: Sequence[Any] | None = None,  # K of None, [V] or [B, V]
    operator: Operator = "mixture",
    index_maps: Sequence[Any] | None = None,  # K of None or int32 [V]
    temperature: Any = 1.0,  # scalar, [K] or [B, K]
    backend: Backend = "auto",
) -> Fused:
    """Fuse the laws p_k = softmax(logits_k / T_k) into one over the main model's vocabulary.

    With p~_k(v) = p_k(map_k(v)) and w_k(v) = weights_k token_weights_k(v):
    mixture: p(v) proportional to sum_k w_k(v) p~_k(v). A token that a model lacks gets nothing from
        it, and the mass of a model's tokens that nothing is mapped to is lost.
    product: p(v) proportional to prod_k p~_k(v)^w_k(v). A zero in one model is a veto, and so is a
        token that the model lacks; with w_k(v) = 0 the model has no say about v at all (0^0 = 1).

    rows: float logits, each of its own type and stride. weights, token_weights: finite, not
        negative, of any sum.
    index_maps: the model's id for each id of main; an id outside the model's row (-1) is none. None
        for a model: the same ids, as far as both rows go. Several tokens may name one: all get its
        whole mass, so that `log_mapped` may be above 0 (a token weight of 1 / their number shares
        it out). Where no two name one, 1 - exp(log_mapped) is the mass that was lost.
    log_normaliser: of a mixture whose weights sum to 1, the log of the mass kept; of a product, the
        step's weight where the product of the models' whole-text laws is the target.
    A model's row without mass adds nothing to a mixture and vetoes all in a product. A row with a
    NaN or +inf in one model, whatever its weight, has NaN in all outputs; one that nothing is left
    of has -inf.
    Every model has its own maximum and all that goes beyond a block of tokens is float64: `log_p`
    is good to float32's rounding at any temperature, the others to 2e-6. A row is the same, bit for
    bit, in any batch.

    Raises ValueError for wrong shapes, types and operators, and for weights and temperatures that
    are not accepted; of arrays on a device the values are not read.
    """
    if operator not in get_args(Operator):
        raise ValueError(f"operator: got {operator!r}; accepted: {', '.join(get_args(Operator))}")
    maps, filters = _check(rows, index_maps, token_weights)
    shape = rows[0].shape[0], len(rows)
    model_weights = _by_model("weights", weights, shape)
    heats = _by_model("temperature", temperature, shape, positive=True)
    if choose(rows[0], backend) == "triton":
        from midstream.kernels.triton.fuse import fuse as on_device

        given = tuple(rows), model_weights, filters, operator == "product", maps, heats
        return Fused(*on_device(*given))
    return _fuse_rows(rows, model_weights, filters, operator, maps, heats)


def _fuse_rows(
    rows: Sequence[Any],
    weights: Any,
    token_weights: list[Any],
    operator: Operator,
    index_maps: list[Any],
    temperatures: Any,
) -> Fused:
    """In numpy, one row after another."""
    logits = [to_numpy(each) for each in rows]
    maps = [None if each is None else to_numpy(each) for each in index_maps]
    filters = [None if each is None else to_numpy(each) for each in token_weights]
    of_models, heats = to_numpy(weights), to_numpy(temperatures)
    log_p = np.empty(logits[0].shape, np.float32)
    sums = np.empty((len(log_p), 1 + len(rows)))
    with np.errstate(all="ignore"):
        for b in range(len(log_p)):
            laws = [_Law(x[b], t) for x, t in zip(logits, heats[b].tolist(), strict=True)]
            each = [x if x is None or x.ndim == 1 else x[b] for x in filters]
            sums[b] = _fuse_row(laws, of_models[b].tolist(), each, operator, maps, log_p[b])
    total = sums[:, 0]
    status = np.where(np.isnan(total), NOT_FINITE, np.where(total == -np.inf, NOTHING_ALLOWED, OK))
    results = log_p, total.copy(), sums[:, 1:].copy(), status.astype(np.int8)
    return Fused(*(like(rows[0], x) for x in results))


def _fuse_row(
    laws: list[_Law],
    weights: list[float],
    token_weights: list[Array | None],
    operator: Operator,
    index_maps: list[Array | None],
    out: Array,  # [V]
) -> list[float]:
    """Fills a row of log_p: log_normaliser, and log_mapped of each model."""
    if any(np.isnan(law.log_mass) for law in laws):
        out[:] = np.nan
        return [np.nan] * (1 + len(laws))
    combine = _mixture if operator == "mixture" else _product
    combined, parts = [], []
    for begin in range(0, out.size, _CHUNK):
        here = slice(begin, min(begin + _CHUNK, out.size))
        mapped = [law.mapped(index, here) for law, index in zip(laws, index_maps, strict=True)]
        some = [None if x is None else x[here].astype(np.float64) for x in token_weights]
        combined.append(combine(mapped, weights, some))
        parts.append([log_sum_exp(x) for x in (combined[-1], *mapped)])
    sums = [log_sum_exp(x) for x in np.array(parts).T]
    for i, part in enumerate(combined):
        out[i * _CHUNK : (i + 1) * _CHUNK] = part - sums[0] if sums[0] > -np.inf else part
    return sums


class _Law:
    """softmax(logits / T) of one model's row, by its maximum and the mass relative to it."""

    __slots__ = ("_logits", "_temperature", "_top", "log_mass")

    def __init__(self, logits: Array, temperature: float) -> None:
        self._logits = logits
        self._temperature = temperature
        self._top = max(float(np.maximum.reduce(logits)), NO_MASS)
        mass = 0.0
        for begin in range(0, logits.size, _CHUNK):
            part = logits[begin : begin + _CHUNK].astype(np.float64)
            mass += float(np.add.reduce(np.exp((part - self._top) / temperature)))
        self.log_mass = float(np.log(mass))  # NaN for a NaN or a +inf, -inf for a row without mass

    def mapped(self, index_map: Array | None, here: slice) -> Float:
        """Log-probabilities of some of main's tokens in this law, -inf where there is no twin."""
        values = np.full(here.stop - here.start, -np.inf)
        if self.log_mass == -np.inf:
            return values
        if index_map is None:
            known = self._logits[here]
            values[: known.size] = known
        else:
            ids = index_map[here]
            has_twin = (ids >= 0) & (ids < self._logits.size)
            values[has_twin] = self._logits[ids[has_twin]]
        values[values <= NO_MASS] = -np.inf
        values -= self._top
        values /= self._temperature
        values -= self.log_mass
        return values


def _mixture(
    log_laws: list[Float], weights: list[float], token_weights: list[Float | None]
) -> Float:
    terms = np.stack(log_laws)
    for term, weight, each in zip(terms, weights, token_weights, strict=True):
        term += np.log(weight if each is None else weight * each)
    tops = np.maximum(terms.max(axis=0), NO_MASS)  # of each token: no law's maximum hides another
    combined: Float = np.log(np.exp(terms - tops).sum(axis=0)) + tops
    return combined


def _product(
    log_laws: list[Float], weights: list[float], token_weights: list[Float | None]
) -> Float:
    combined = np.zeros(log_laws[0].size)
    for log_law, weight, each in zip(log_laws, weights, token_weights, strict=True):
        if each is not None:
            combined += np.where(each * weight == 0.0, 0.0, each * weight * log_law)
        elif weight > 0.0:
            combined += weight * log_law
    return combined


def _on_host(array: Any) -> bool:
    return not is_tensor(array) or array.device.type == "cpu"


def _by_model(name: str, value: Any, shape: tuple[int, int], *, positive: bool = False) -> Any:
    """One number for each row and model: [B, K], checked where it lies on the host."""
    given: Any = to_numpy(value).astype(np.float64) if _on_host(value) else value
    if tuple(given.shape) not in ((), shape[1:], shape):
        got, accepted = list(given.shape), f"a number, [{shape[1]}] or {list(shape)}"
        raise ValueError(f"{name}: got {got}; accepted: {accepted}")
    if is_tensor(given):
        return given.expand(shape)
    if not ((given >= (9.99e-7 if positive else 0.0)) & (given < np.inf)).all():
        bound = "from 1e-6 on" if positive else "at least 0"
        raise ValueError(f"{name}: got {value!r}; accepted: finite numbers, {bound}")
    return np.broadcast_to(given, shape)


def _check(
    rows: Sequence[Any], index_maps: Sequence[Any] | None, token_weights: Sequence[Any] | None
) -> tuple[list[Any], list[Any]]:
    """The maps and token weights, one or None for each model; kinds and shapes are right."""
    if not rows:
        raise ValueError("rows: got no models; accepted: at least one")
    count = tuple(rows[0].shape)[:1]
    for k, row in enumerate(rows):
        shape = tuple(row.shape)
        if len(shape) != 2 or shape[:1] != count or not shape[1] or "float" not in str(row.dtype):
            accepted = "float logits [B, V], of the same B for all models"
            raise ValueError(f"rows[{k}]: got {row.dtype} {list(shape)}; accepted: {accepted}")
    batch, size = tuple(rows[0].shape), tuple(rows[0].shape)[1:]
    maps = _each("index_maps", index_maps, len(rows), "int", (size,))
    filters = _each("token_weights", token_weights, len(rows), "float", (size, batch))
    for k, array in enumerate(filters):
        if array is not None and _on_host(array):
            values = to_numpy(array)
            if not ((values >= 0.0) & (values < np.inf)).all():
                raise ValueError(
                    f"token_weights[{k}]: got {values}; accepted: finite numbers, at least 0"
                )
    return maps, filters


def _each(
    name: str,
    given: Sequence[Any] | None,
    models: int,
    kind: str,
    shapes: Sequence[tuple[int, ...]],
) -> list[Any]:
    arrays = [None] * models if given is None else list(given)
    if len(arrays) != models:
        raise ValueError(f"{name}: got {len(arrays)}; accepted: {models}, one or None a model")
    for k, array in enumerate(arrays):
        if array is not None and (tuple(array.shape) not in shapes or kind not in str(array.dtype)):
            accepted = " or ".join(f"{kind} {list(shape)}" for shape in shapes)
            got = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"{name}[{k}]: got {got}; accepted: {accepted}")
    return arrays
