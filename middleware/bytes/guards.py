"""What a text may not hold if its tokens are to be BPE's own, told token by token."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]


class Guard(Protocol):
    """Watches the bytes of a token string. States are values; None: the string is refused."""

    def start(self) -> Hashable:
        """The state at the beginning of a text."""

    def step(self, state: Hashable, token: int) -> Hashable | None:
        """The state behind a token, or None."""

    def refused(self, state: Hashable) -> Bools:
        """bool [V]: the tokens for which `step` is None."""
