"""What verification is given: types and shapes checked for every backend, and the numpy form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.backend import is_tensor, mask_to_numpy, to_numpy
from midstream.kernels.keys import Keys
from midstream.kernels.verify_rows import Array, DraftRow, Float, TargetRow

_FLOATS = ("bfloat16", "float16", "float32", "float64")
_IDS = ("int32", "int64")


@dataclass(frozen=True, slots=True)
class Inputs:
    """The numpy form: B requests, R target rows each (the first, and one after each draft)."""

    target: Array  # float32 or float64 [B, R, V]
    tokens: npt.NDArray[np.int64]  # [B, R - 1], below 0 for no draft
    draft: Array | None  # float32 or float64 [B, D, V]
    mask: npt.NDArray[np.uint32] | None  # [B, R, W]
    pairs: Float  # [B, R, 2]
    temperature: Float  # [B]
    draft_temperature: Float  # [B]

    def target_row(self, request: int, row: int) -> TargetRow:
        """Read one target row."""
        mask = None if self.mask is None else self.mask[request, row]
        return TargetRow(self.target[request, row], mask, float(self.temperature[request]))

    def draft_row(self, request: int, row: int) -> DraftRow:
        """Read one draft row."""
        logits = None if self.draft is None else self.draft[request, row]
        return DraftRow(logits, float(self.draft_temperature[request]))


def check_inputs(
    target_logits: Any,  # [B, R, V]
    draft_tokens: Any,  # [B, R - 1]
    draft_logits: Any,  # [B, D, V] | None
    noise: Any,  # [B, R, 2] | Keys
    mask: Any,  # [B, R, W] | None
    *,
    last_is_drafted: bool,  # D = R, else R - 1
) -> None:
    """Raise ValueError for an argument whose type or shape does not fit the others."""
    _check("target_logits", target_logits, _FLOATS, (None, None, None))
    requests, rows, size = target_logits.shape
    if rows == 0 or size == 0:
        raise ValueError(
            f"target_logits: got shape {[requests, rows, size]}; accepted: at least one row of at "
            "least one token for each request"
        )
    _check("draft_tokens", draft_tokens, _IDS, (requests, rows - 1))
    if draft_logits is not None:
        drafted = rows if last_is_drafted else rows - 1
        _check("draft_logits", draft_logits, _FLOATS, (requests, drafted, size))
    if mask is not None:
        words = ("int32",) if is_tensor(mask) else ("uint32",)
        _check("mask", mask, words, (requests, rows, None))
    if not isinstance(noise, Keys):
        _check("noise", noise, ("float32", "float64"), (requests, rows, 2))
    elif len(noise) != requests:
        raise ValueError(f"noise: got {len(noise)} keys; accepted: {requests}, one each request")


def check_parents(
    parents: Any,  # [B, N]
    tokens: Any,  # [B, N]
) -> None:
    """Raise ValueError unless there is one parent for each node."""
    _check("parents", parents, _IDS, tuple(tokens.shape))


def earlier_parents(
    parents: Any,  # [B, N]
    tokens: Any,  # [B, N]
) -> npt.NDArray[np.int64]:
    """Parents as numpy, each -1 or an earlier node where there is a token: int64 [B, N]."""
    values = to_numpy(parents).astype(np.int64)
    earlier = (values >= -1) & (values < np.arange(values.shape[1]))
    if not (earlier | (to_numpy(tokens) < 0)).all():
        raise ValueError(
            f"parents: got {values.tolist()}; accepted: -1 (the root) or the index of an earlier "
            "node"
        )
    return values


def _check(name: str, array: Any, kinds: tuple[str, ...], shape: tuple[int | None, ...]) -> None:
    got = str(getattr(array, "dtype", type(array).__name__)).removeprefix("torch.")
    sizes = tuple(getattr(array, "shape", ()))
    fits = len(sizes) == len(shape) and all(
        want in (None, size) for want, size in zip(shape, sizes, strict=True)
    )
    if got not in kinds or not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(
            f"{name}: got {got} {list(sizes)}; accepted: {' or '.join(kinds)} [{wanted}]"
        )


def temperatures(name: str, values: Any, requests: int) -> Float:
    """A temperature for each request, 0 or from 1e-6 on: float64 [B]."""
    array = to_numpy(values).astype(np.float64)
    # A float32 of 1e-6 is a little less than that.
    accepted = (array == 0) | (array >= 9.99e-7) & (array < np.inf)
    if array.shape not in ((), (requests,)) or not accepted.all():
        raise ValueError(
            f"{name}: got {values!r}; accepted: 0 (greedy) or a finite number from 1e-6 on, or "
            f"{requests} of them"
        )
    return np.broadcast_to(array, (requests,))


def numpy_inputs(
    target_logits: Any,
    draft_tokens: Any,
    draft_logits: Any,
    noise: Any,
    mask: Any,
    temperature: Any,
    draft_temperature: Any,
) -> Inputs:
    """Checked arguments as numpy arrays: views where their type allows it."""
    requests, rows = target_logits.shape[:2]
    pairs = noise.uniforms(rows) if isinstance(noise, Keys) else to_numpy(noise)
    return Inputs(
        _logits(target_logits),
        to_numpy(draft_tokens).astype(np.int64),
        None if draft_logits is None else _logits(draft_logits),
        None if mask is None else mask_to_numpy(mask),
        pairs.astype(np.float64),
        temperatures("temperature", temperature, requests),
        temperatures("draft_temperature", draft_temperature, requests),
    )


def _logits(array: Any) -> Array:
    values = to_numpy(array)
    return values.astype(np.float32) if values.dtype == np.float16 else values
