"""Top-k, top-p and min-p of a batch, and which of two laws they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from midstream.kernels.backend import is_tensor, to_numpy

Truncation = Literal["target", "after_mask"]

_LAWS = (
    "'target' (the truncated law is the target, weights are proper for it) or 'after_mask' (mask "
    "first, then truncate, as servers do: lossy, weights not proper)"
)


@dataclass(frozen=True, slots=True)
class Filters:
    """Filters of the rows of a batch, in this order; see `kernels.truncation` for sets and ties.

    top_k: 0 is off. top_p: above 0, 1 is off. min_p: below 1, 0 is off. Each a number, or [R], the
        row's own; a tensor on a device is not read by the host, and counts as on.
    truncation: which law they mean; must be said where one of them is on.
    """

    top_k: Any = 0
    top_p: Any = 1.0
    min_p: Any = 0.0
    truncation: Truncation | None = None

    def __post_init__(self) -> None:
        for name, accepted in (
            ("top_k", "integers, at least 0 (0 is off)"),
            ("top_p", "numbers above 0, at most 1 (1 is off)"),
            ("min_p", "numbers at least 0, below 1 (0 is off)"),
        ):
            value = getattr(self, name)
            if not _unread(value) and not _fits(name, value):
                raise ValueError(f"{name}: got {value!r}; accepted: {accepted}")
        if self.truncation not in (None, "target", "after_mask"):
            raise ValueError(f"truncation: got {self.truncation!r}; accepted: {_LAWS}")
        if self.act and self.truncation is None:
            raise ValueError(f"truncation: got None with a filter; accepted: {_LAWS}")

    @property
    def act(self) -> bool:
        """Whether any filter is on in any row."""
        return _on(self.top_k, 0) or _on(self.top_p, 1.0) or _on(self.min_p, 0.0)

    def of_rows(self, rows: int) -> list[tuple[int, float, float]]:
        """top_k, top_p and min_p of each row."""
        columns = (
            np.broadcast_to(to_numpy(value), (rows,)).tolist()
            for value in (self.top_k, self.top_p, self.min_p)
        )
        return [*zip(*columns, strict=True)]


def _unread(value: Any) -> bool:
    return is_tensor(value) and value.device.type != "cpu"


def _on(value: Any, off: float) -> bool:
    if isinstance(value, int | float):
        return value != off
    return _unread(value) or bool((to_numpy(value) != off).any())


def _fits(name: str, value: Any) -> bool:
    values = value if isinstance(value, int | float) else to_numpy(value)
    if name == "top_k":
        whole = isinstance(value, int) or np.asarray(values).dtype.kind in "iu"
        return whole and bool(np.all(values >= 0))
    if name == "top_p":
        return bool(np.all((values > 0) & (values <= 1)))
    return bool(np.all((values >= 0) & (values < 1)))
