"""Timing on a machine that is not quiet: candidates take turns, so that a slow spell hits all."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

Work = Callable[[int], object]
"""One repetition. Its argument is the number of the repetition, to be used as a seed."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Microseconds a repetition: one number for each round, which is the mean over a block."""

    us: tuple[float, ...]

    @property
    def median_us(self) -> float:
        """The middle round."""
        return statistics.median(self.us)

    @property
    def mean_us(self) -> float:
        """Over all rounds."""
        return statistics.fmean(self.us)


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
"""Seconds by name. "cpu" leaves out what other processes took; for work in one thread."""


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out of a measurement."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def take_turns(
    candidates: Mapping[str, Work],
    *,
    rounds: int,
    block: int = 1,
    warm_up: int = 2,
    clock: str = "wall",
) -> dict[str, Samples]:
    """Time several candidates, one block each a round, the order reversed every other round."""
    names, now = list(candidates), CLOCKS[clock]
    for name in names:
        for repetition in range(warm_up):
            candidates[name](repetition)
    taken: dict[str, list[float]] = {name: [] for name in names}
    with no_collection():
        for turn in range(rounds):
            for name in names if turn % 2 == 0 else reversed(names):
                work = candidates[name]
                begin = now()
                for repetition in range(turn * block, (turn + 1) * block):
                    work(repetition)
                taken[name].append(1e6 * (now() - begin) / block)
    return {name: Samples(tuple(us)) for name, us in taken.items()}


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times slower than ours, by pairs of rounds: the median pair, the middle half."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.1f}x ({self.low:.1f} to {self.high:.1f})"


def ratio(theirs: Samples, ours: Samples) -> Ratio:
    """Pairs are rounds, whose two halves ran next to each other."""
    pairs = [t / o for t, o in zip(theirs.us, ours.us, strict=True)]
    low, median, high = statistics.quantiles(pairs, n=4)
    return Ratio(median, low, high)
