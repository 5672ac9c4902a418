"""Enumeration of every choice that verification makes, over laws that are small tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from midstream.kernels.bitmask import pack_mask
from midstream.kernels.verify_rows import DraftRow, TargetRow

Prefix = tuple[int, ...]
Joint = dict[Prefix, float]


class Branching:
    """A `Chance` that follows a given path of choices and notes what else could have come."""

    def __init__(self, path: list[int]) -> None:
        self._path = path
        self._at = 0
        self.options: list[int] = []
        self.probability = 1.0

    def _branch(self, probabilities: Sequence[float]) -> int:
        live = [i for i, p in enumerate(probabilities) if p > 0]
        if self._at >= len(self._path):
            self._path.append(0)
        chosen = live[self._path[self._at]]
        self.options.append(len(live))
        self._at += 1
        self.probability *= probabilities[chosen]
        return chosen

    def keeps(self, draft: int, probability: float) -> bool:
        assert 0 <= probability <= 1
        return self._branch([1 - probability, probability]) == 1

    def draw(self, row: Any, step: int) -> int:
        return self.choose(row.law())

    def choose(self, weights: np.ndarray) -> int:
        assert weights.sum() > 0
        return self._branch((weights / weights.sum()).tolist())


def runs(run: Callable[[Branching], Any]) -> Iterator[tuple[float, Any]]:
    """Every outcome of `run(chance)` with its probability."""
    path: list[int] = []
    while True:
        chance = Branching(path)
        result = run(chance)
        yield chance.probability, result
        while path and path[-1] + 1 >= chance.options[len(path) - 1]:
            path.pop()
        if not path:
            return
        path[-1] += 1


class World:
    """Random laws p (target) and q (draft) of the next token after each prefix, and what p allows.

    Logits carry constants that normalisation has to take away. sharpness: of the laws, one for
    each of p and q.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        *,
        masked: bool = False,
        sharpness: tuple[float, float] = (1.0, 1.0),
        temperature: float = 1.0,
        draft_temperature: float = 1.0,
    ) -> None:
        self.size = size
        self._key = seed
        self._masked = masked
        self._sharpness = sharpness
        self.temperature = temperature
        self.draft_temperature = draft_temperature

    def _logits(self, kind: int, prefix: Prefix) -> np.ndarray:
        rng = np.random.default_rng([self._key, kind, len(prefix), *prefix])
        logits: np.ndarray = rng.normal(size=self.size) * self._sharpness[kind] * 2 + rng.normal()
        return logits

    def target_logits(self, prefix: Prefix) -> np.ndarray:
        return self._logits(0, prefix)

    def draft_logits(self, prefix: Prefix) -> np.ndarray:
        return self._logits(1, prefix)

    def allowed(self, prefix: Prefix) -> np.ndarray:
        rng = np.random.default_rng([self._key, 2, len(prefix), *prefix])
        allowed = rng.random(self.size) < (0.6 if self._masked else 2.0)
        allowed[rng.integers(self.size)] = True
        return allowed

    def mask(self, prefix: Prefix) -> np.ndarray | None:
        return pack_mask(self.allowed(prefix)) if self._masked else None

    def target(self, prefix: Prefix) -> TargetRow:
        return TargetRow(self.target_logits(prefix), self.mask(prefix), self.temperature)

    def draft(self, prefix: Prefix) -> DraftRow:
        return DraftRow(self.draft_logits(prefix), self.draft_temperature)

    def p(self, prefix: Prefix) -> np.ndarray:
        """The target law, written apart from the library."""
        logits = np.where(self.allowed(prefix), self.target_logits(prefix), -np.inf)
        if self.temperature == 0:
            return np.eye(self.size)[int(logits.argmax())]
        return _softmax(logits / self.temperature)

    def q(self, prefix: Prefix) -> np.ndarray:
        """The law of drafted tokens."""
        return _softmax(self.draft_logits(prefix) / self.draft_temperature)

    def joint(self, length: int) -> Joint:
        """What every verifier must output."""
        return self.continued({(): 1.0}, length)

    def continued(self, texts: Joint, length: int) -> Joint:
        """Texts brought to one length by draws from p; longer ones are cut, their ends summed."""
        done: Joint = {}
        for text, mass in texts.items():
            tails = itertools.product(range(self.size), repeat=max(length - len(text), 0))
            for tail in tails:
                whole = (*text, *tail)
                share = mass
                for i in range(len(text), length):
                    share *= self.p(whole[:i])[whole[i]]
                if share > 0:
                    done[whole[:length]] = done.get(whole[:length], 0.0) + share
        return done


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    law: np.ndarray = weights / weights.sum()
    return law


def distance(one: Joint, other: Joint) -> float:
    """The largest difference of a probability."""
    return max(abs(one.get(text, 0.0) - other.get(text, 0.0)) for text in {*one, *other})


def chi_square_fails(tokens: np.ndarray, law: np.ndarray) -> bool:
    """Whether draws do not follow a law; a right one is called wrong once in 10,000 times."""
    expected = law * tokens.size
    seen = np.bincount(tokens, minlength=law.size)
    if seen[law == 0].any():
        return True
    rare = expected < 8
    cells = [*zip(seen[~rare], expected[~rare], strict=True)]
    if expected[rare].sum() > 0:
        cells.append((seen[rare].sum(), expected[rare].sum()))
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    return bool(statistic > chi2.isf(1e-4, len(cells) - 1))


def dead_row(size: int) -> TargetRow:
    """A row that allows nothing."""
    return TargetRow(np.zeros(size), np.zeros(1, np.uint32), 1.0)


class Verification:
    """What the tests of this folder share."""

    runs = staticmethod(runs)
    world = World
    dead_row = staticmethod(dead_row)
    distance = staticmethod(distance)
    chi_square_fails = staticmethod(chi_square_fails)


@pytest.fixture(scope="session")
def verification() -> Verification:
    """Enumeration and tables of laws."""
    return Verification()
