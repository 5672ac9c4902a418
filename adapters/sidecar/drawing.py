"""Steps of many requests, drawn by few threads in few pieces of work."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from midstream.adapters.sidecar.pool import Pool

T = TypeVar("T")

SLOW_SECONDS = 0.01
"""A step that takes longer no longer holds up the steps behind it."""


class Draws:
    """Runs what is handed in at the same time one after another in one thread of a pool.

    So what a forward pass yields for many requests costs one change of threads, and comes back at
    once, ready for the next pass. Where a step is slow, what was done before it is told, and
    another thread goes on with the rest.

    Belongs to one event loop.
    """

    def __init__(self, pool: Pool, *, slow_seconds: float = SLOW_SECONDS) -> None:
        self._pool = pool
        self._slow_seconds = slow_seconds
        self._gathered: list[_Step] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """What `work` returns or raises, from a thread. Cancelled before a thread took it, it is
        never done.
        """
        loop = asyncio.get_running_loop()
        if not self._gathered:
            loop.call_soon(self._begin)
        future: asyncio.Future[T] = loop.create_future()
        self._gathered.append(_Step(work, future))
        return future

    def _begin(self) -> None:
        steps, self._gathered = _Steps(self._gathered), []
        self._start(steps)
        self._watch(steps)

    def _start(self, steps: _Steps) -> None:
        """Put another thread to the steps."""
        task = asyncio.create_task(self._pool.run(steps.work_off))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            steps.tell()
            if task.cancelled() or task.exception() is not None:
                steps.give_up()

        task.add_done_callback(ended)

    def _watch(self, steps: _Steps) -> None:
        asyncio.get_running_loop().call_later(self._slow_seconds, self._look, steps)

    def _look(self, steps: _Steps) -> None:
        if not steps.unfinished:
            return
        if steps.waiting and time.monotonic() - steps.begun > self._slow_seconds:
            steps.tell()
            self._start(steps)
        self._watch(steps)


class _Step:
    """A piece of work and who waits for it. outcome: what it returned, or what it raised."""

    __slots__ = ("failed", "future", "outcome", "work")

    def __init__(self, work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        self.work = work
        self.future = future
        self.failed = False
        self.outcome: Any = None

    def tell(self) -> None:
        if self.future.done():
            return
        if self.failed:
            self.future.set_exception(self.outcome)
        else:
            self.future.set_result(self.outcome)


class _Steps:
    """Steps that threads take one by one. begun: when the last one was taken."""

    def __init__(self, steps: Sequence[_Step]) -> None:
        self.waiting = deque(steps)
        self.unfinished = set(steps)  # of the event loop alone
        self.begun = time.monotonic()
        self._finished: deque[_Step] = deque()

    def work_off(self) -> None:
        """In a thread: take steps until there are none."""
        while self.waiting:
            try:
                step = self.waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            self.begun = time.monotonic()
            if not step.future.cancelled():
                try:
                    step.outcome = step.work()
                except Exception as error:
                    step.outcome, step.failed = error, True
            self._finished.append(step)

    def tell(self) -> None:
        """In the event loop: hand out what is finished."""
        while self._finished:
            step = self._finished.popleft()
            self.unfinished.discard(step)
            step.tell()

    def give_up(self) -> None:
        """No thread takes what is left: the pool has been closed."""
        self.waiting.clear()
        for step in self.unfinished:
            step.failed, step.outcome = True, RuntimeError("the threads were closed")
            step.tell()
        self.unfinished.clear()
