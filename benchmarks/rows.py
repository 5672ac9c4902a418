"""Rows of logits with a given valid mass, and a matcher that is a table of answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from midstream.kernels.bitmask import pack_mask
from midstream.middleware.matcher import TokenIds
from midstream.middleware.vocabulary import Vocabulary

Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TableMatcher:
    """One step of a black box: token t is allowed iff answers[t]. Also a mask, for who asks."""

    vocabulary: Vocabulary
    answers: Bool
    has_mask: bool = False
    mask_cost: float = 1.0

    def start(self) -> int:
        """The only state."""
        return 0

    def allows(self, state: int, token_ids: TokenIds) -> Bool:
        """Looked up."""
        found: Bool = self.answers[token_ids]
        return found

    def advance(self, state: int, token_id: int) -> int | None:
        """To the same state."""
        return state if self.answers[token_id] else None

    def mask(self, state: int, out: npt.NDArray[np.uint32]) -> None:
        """The whole table."""
        pack_mask(self.answers, out)

    def superset(self, state: int, out: npt.NDArray[np.uint32]) -> bool:
        """None: a black box."""
        return False

    def accepts(self, state: int) -> bool:
        """Whether the end, the last token, is allowed."""
        return bool(self.answers[-1])

    def tokens_to_finish(self, state: int) -> int | None:
        """Not known."""
        return None


def vocabulary_of(size: int) -> Vocabulary:
    """Ids spelled out; the last one ends a sequence."""
    spelled: list[Any] = [b"%d" % token for token in range(size)]
    return Vocabulary(spelled, eos_ids=[size - 1])


def row_with_mass(size: int, mass: float, *, spread: float, seed: int) -> tuple[Float32, Bool]:
    """Log probabilities float32 [V] and which tokens are valid, whose probabilities sum to `mass`.

    spread: standard deviation of the logits; 0 is flat, 1 nearly so, 4 a row with few probable
        tokens.
    A share `mass` of the tokens, at least one, is valid, by lot: what is valid is not what is
    probable.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, spread, size)
    valid = np.zeros(size, np.bool_)
    valid[rng.permutation(size)[: max(round(mass * size), 1)]] = True
    weights = np.exp(logits - logits.max())
    odds = mass / (1.0 - mass)
    logits[valid] += np.log(odds * weights[~valid].sum() / weights[valid].sum())
    logits -= np.logaddexp.reduce(logits)
    return logits.astype(np.float32), valid
