"""What a strategy needs of whatever owns the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from midstream.middleware.vocabulary import Vocabulary


class Rows(Protocol):
    """The live sequences of a host that shows its logits."""

    @property
    def logits(self) -> Any:
        """The next-token logits of each sequence:
        numpy or torch [R, V], at least float32, on the model's device.
        """

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> Rows:
        """Row i of the result continues row parents[i] with tokens[i]; one forward row each.

        Growth, resampling, dropping and forking are this one call. It consumes the receiver, whose
        logits stay readable.
        """


class Host(Protocol):
    """Whatever owns a model."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary."""

    def start(self, prompts: Sequence[Sequence[int]]) -> Rows:
        """Read prompts, one row each."""


def logits_on_host(logits: Any) -> npt.NDArray[Any]:
    """Logits [R, V] as float32 or float64 numpy; a CPU tensor is viewed, not copied."""
    if hasattr(logits, "detach"):
        logits = logits.detach().cpu()
        if not logits.dtype.is_floating_point or logits.dtype.itemsize < 4:
            logits = logits.float()
        logits = logits.numpy()
    array = np.asarray(logits)
    return array.astype(np.float32) if array.dtype == np.float16 else array
