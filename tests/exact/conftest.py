"""Enumeration of every random choice that production code makes,
and small models that can be enumerated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mpmath
import numpy as np
import pytest

from midstream.kernels.bitmask import mask_of_tokens
from midstream.kernels.row import Row
from midstream.middleware.vocabulary import Vocabulary


@functools.cache
def mean_inverse(constant: int, lives: tuple[float, ...]) -> float:
    """E[1 / (constant + sum of G_i)], G_i geometric with P(k) = l_i (1 - l_i)^k, constant >= 1.

    1 / s = int_0^1 t^(s-1) dt, and E[t^G] = l / (1 - (1 - l) t).
    """
    with mpmath.workdps(40):
        exact = [mpmath.mpf(live) for live in lives]

        def integrand(u: Any) -> Any:  # t = 1 - u: the poles lie near u = 0
            value = (1 - u) ** (constant - 1)
            for live in exact:
                value *= live / (live + (1 - live) * u)
            return value

        marks = sorted(
            {
                mpmath.mpf(0),
                mpmath.mpf(1),
                *(x * s for x in exact for s in (0.1, 1, 10, 1000) if x * s < 1),
            }
        )
        return float(mpmath.quad(integrand, marks))


@dataclass(frozen=True)
class Phantoms:
    """A sum of geometric counts plus an integer, kept symbolic:
    production code only adds to it and divides by it.
    """

    lives: tuple[float, ...] = ()
    constant: float = 0.0

    def __add__(self, other: Any) -> Phantoms:
        if isinstance(other, Phantoms):
            return Phantoms(self.lives + other.lives, self.constant + other.constant)
        return Phantoms(self.lives, self.constant + other)

    __radd__ = __add__

    def __sub__(self, other: float) -> Phantoms:
        return self + (-other)

    def __lt__(self, other: float) -> bool:
        assert other == float("inf"), "symbolic counts know no limit"
        return True

    def __ge__(self, other: float) -> bool:
        return not self < other

    def __rtruediv__(self, numerator: float) -> float:
        return numerator * mean_inverse(round(self.constant), tuple(sorted(self.lives)))


class Branching:
    """A `Source` that follows a given path of choices and notes what else could have been
    chosen.
    """

    def __init__(self, path: list[int], limit: int | None) -> None:
        self._path = path
        self._limit = limit
        self._at = 0
        self.options: list[int] = []
        self.probability = 1.0

    def _branch(self, probabilities: Sequence[float]) -> int:
        live = [i for i, p in enumerate(probabilities) if p > 0]
        chosen = self._path[self._at] if self._at < len(self._path) else 0
        self.options.append(len(live))
        if self._at >= len(self._path):
            self._path.append(0)
        self._at += 1
        self.probability *= probabilities[live[chosen]]
        return live[chosen]

    def choose(self, weights: np.ndarray) -> int:
        return self._branch((weights / weights.sum()).tolist())

    def tokens(self, row: Row, count: int) -> np.ndarray:
        law = row.law().tolist()
        return np.array([self._branch(law) for _ in range(count)], np.int64)

    def phantoms(self, live: float, count: int) -> list[Any]:
        if live >= 1.0:
            return [0.0] * count
        if self._limit is None:
            return [Phantoms((live,))] * count
        # Everything from the limit on is one outcome: the run stops there.
        shares = [live * (1 - live) ** k for k in range(self._limit)]
        return [float(self._branch([*shares, (1 - live) ** self._limit])) for _ in range(count)]


def enumerate_runs(
    run: Callable[[Branching], Any], limit: int | None = None
) -> Iterator[tuple[float, Any]]:
    """Every outcome of `run(source)` with its probability."""
    path: list[int] = []
    while True:
        source = Branching(path, limit)
        result = run(source)
        yield source.probability, result
        while path and path[-1] + 1 >= source.options[len(path) - 1]:
            path.pop()
        if not path:
            return
        path[-1] += 1


@dataclass(frozen=True)
class TableMatcher:
    """A matcher by listing: the token strings that are complete; every prefix of one is allowed."""

    vocabulary: Vocabulary
    complete: frozenset[tuple[int, ...]]
    has_mask: bool = True
    mask_cost: float = 1.0
    pruned: frozenset[int] | None = None  # what the superset leaves out, None for no superset
    calls: list[int] = field(default_factory=list)

    def start(self) -> tuple[int, ...]:
        return ()

    def _next(self, state: tuple[int, ...]) -> set[int]:
        if state and state[-1] in self.vocabulary.eos_ids:
            return set()
        n = len(state)
        tokens = {c[n] for c in self.complete if len(c) > n and c[:n] == state}
        return tokens | (set(self.vocabulary.eos_ids) if state in self.complete else set())

    def allows(self, state: tuple[int, ...], token_ids: Iterable[int]) -> np.ndarray:
        allowed = self._next(state)
        ids = [int(t) for t in token_ids]
        self.calls.append(len(ids))
        return np.array([t in allowed for t in ids], np.bool_)

    def advance(self, state: tuple[int, ...], token_id: int) -> tuple[int, ...] | None:
        return (*state, token_id) if token_id in self._next(state) else None

    def mask(self, state: tuple[int, ...], out: np.ndarray) -> None:
        mask_of_tokens(sorted(self._next(state)), out)

    def superset(self, state: tuple[int, ...], out: np.ndarray) -> bool:
        if self.pruned is None:
            return False
        mask_of_tokens(sorted(set(range(len(self.vocabulary))) - self.pruned), out)
        return True

    def accepts(self, state: tuple[int, ...]) -> bool:
        return state in self.complete

    def tokens_to_finish(self, state: tuple[int, ...]) -> int | None:
        n = len(state)
        return min((len(c) - n for c in self.complete if c[:n] == state), default=None)


class TableRows:
    """Live sequences of a table model: a function from a token prefix to probabilities."""

    def __init__(
        self, table: Callable[[tuple[int, ...]], Sequence[float]], prefixes: list[tuple[int, ...]]
    ) -> None:
        self.table = table
        self.prefixes = prefixes
        with np.errstate(divide="ignore"):
            self.logits = np.log(np.array([table(prefix) for prefix in prefixes], np.float64))

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> TableRows:
        assert len(set(zip(parents, tokens, strict=True))) == len(parents), (
            "equal prefixes share a row"
        )
        return TableRows(
            self.table, [(*self.prefixes[p], t) for p, t in zip(parents, tokens, strict=True)]
        )


class Exact:
    """What the tests of this folder share."""

    runs = staticmethod(enumerate_runs)
    mean_inverse = staticmethod(mean_inverse)
    matcher = TableMatcher
    rows = TableRows

    @staticmethod
    def vocabulary(size: int, eos: Sequence[int]) -> Vocabulary:
        letters = [b"abcdefgh"[i : i + 1] for i in range(size)]
        return Vocabulary(letters, eos_ids=list(eos))

    @staticmethod
    def logits(probabilities: Sequence[float]) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(np.asarray(probabilities, np.float64))

    @staticmethod
    def totals(draws: Iterator[tuple[float, Any]], size: int) -> tuple[np.ndarray, float]:
        """E[w 1{x = t}] for each token, and the total probability of all paths."""
        sums, probability = np.zeros(size), 0.0
        for p, draw in draws:
            probability += p
            if draw.token >= 0:
                sums[draw.token] += p * np.exp(draw.log_weight)
        return sums, probability


@pytest.fixture(scope="session")
def exact() -> Exact:
    """Enumeration and the table model."""
    return Exact()
