"""Threads for work that would hold up the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from midstream.adapters.sidecar.metrics import Metrics

MANY_PROCESSORS = 3
"""Where there are fewer, and a client has one, a step gains nothing by another thread."""

P = ParamSpec("P")
T = TypeVar("T")


def processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Pool:
    """A bounded number of threads, and a queue before them.

    The queue is as long as there are calls: none has more than one piece of work in it.
    """

    def __init__(self, name: str, workers: int, metrics: Metrics) -> None:
        self._executor = ThreadPoolExecutor(workers, f"midstream-{name}")
        self._workers = workers
        self._unfinished = 0
        metrics.watch_queue(name, lambda: max(self._unfinished - self._workers, 0))

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns or raises, from a thread.

        Cancelled before a thread took it, it is never done; after that it is done in vain.
        """
        future = self._executor.submit(work, *args, **kwargs)
        self._unfinished += 1
        try:
            return await asyncio.wrap_future(future)
        finally:
            self._unfinished -= 1

    def close(self) -> None:
        """Let go of what waits, without waiting for what runs."""
        self._executor.shutdown(wait=False, cancel_futures=True)
