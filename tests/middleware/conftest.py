"""Matchers by table, for samplers and SMC over vocabularies too large to enumerate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from midstream.kernels.bitmask import pack_mask
from midstream.middleware.vocabulary import Vocabulary


@dataclass
class OneStep:
    """A matcher of a single state, by a table of allowed tokens; a black box unless `masked`."""

    vocabulary: Vocabulary
    allowed: np.ndarray  # bool [V]
    masked: bool = False
    fault: Exception | None = None
    asked: list[int] = field(default_factory=list)
    mask_cost: float = 1.0

    @property
    def has_mask(self) -> bool:
        return self.masked

    def start(self) -> int:
        return 0

    def allows(self, state: Any, token_ids: Sequence[int]) -> np.ndarray:
        if self.fault is not None:
            raise self.fault
        self.asked.extend(token_ids)
        return self.allowed[np.asarray(token_ids)]

    def advance(self, state: int, token_id: int) -> int | None:
        return state + 1 if self.allowed[token_id] else None

    def mask(self, state: Any, out: np.ndarray) -> None:
        if self.fault is not None:
            raise self.fault
        pack_mask(self.allowed, out)

    def superset(self, state: Any, out: np.ndarray) -> bool:
        return False

    def accepts(self, state: Any) -> bool:
        return bool(self.allowed[list(self.vocabulary.eos_ids)].all())

    def tokens_to_finish(self, state: Any) -> int | None:
        return None


def _one_step(allowed: np.ndarray, *, eos: Sequence[int] = (), **options: Any) -> OneStep:
    spellings = [str(i).encode() for i in range(allowed.size)]
    return OneStep(Vocabulary(spellings, eos_ids=list(eos)), allowed, **options)


@pytest.fixture(scope="session")
def one_step() -> Callable[..., OneStep]:
    """Make a matcher of a single state from bool [V]."""
    return _one_step
