"""Requests that share a model: whose rows go into the next forward pass, and when it runs."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from midstream.adapters.sidecar.forwards import (
    Advance,
    Forwards,
    Logits,
    Prompt,
    Reading,
    Sequences,
)
from midstream.adapters.sidecar.pacing import Pace
from midstream.middleware.errors import InputError


@dataclass(frozen=True, slots=True)
class Room:
    """Rows side by side, and tokens in all: rows times those of the longest row."""

    rows: int
    tokens: int


class BatchedRows:
    """The rows of one request, to be closed.

    rows: the most there will ever be. tokens: the most that one of them will ever hold.
    """

    __slots__ = (
        "_batch",
        "error",
        "future",
        "growth",
        "open",
        "prompt",
        "rows",
        "sequences",
        "tokens",
    )

    def __init__(self, batch: Batch, prompt: Prompt, rows: int, tokens: int) -> None:
        self._batch = batch
        self.prompt = prompt
        self.rows = rows
        self.tokens = tokens
        self.open = True
        self.error: Exception | None = None
        self.sequences: Sequences | None = None
        self.growth: tuple[Sequence[int], Sequence[int]] | None = None
        self.future: asyncio.Future[Logits] = batch.loop.create_future()

    def first(self) -> asyncio.Future[Logits]:
        """The logits [1, V] after the prompt."""
        return self.future

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> asyncio.Future[Logits]:
        """The logits [R, V] of the next rows: row i continues row parents[i] with tokens[i].

        To be called when the logits before have arrived. Raises RuntimeError where the model failed
        since then.
        """
        if self.error is not None:
            raise RuntimeError("the model failed in a pass of other requests") from self.error
        self.growth = parents, tokens
        self.future = self._batch.loop.create_future()
        self._batch.is_ready(self)
        return self.future

    def close(self) -> None:
        """Leave, whatever goes on: the next pass is without these rows."""
        _forget(self.future)
        if self.open:
            self.open = False
            self._batch.left(self)


class Batch:
    """Gathers what is ready and runs one forward pass after another, in a thread of its own.

    A pass over many rows costs little more than one over few, so rows that are ready wait for the
    others; but none waits for one that takes much longer than usual. So a request that is slow to
    draw, or whose client is slow to read, holds the others up once for each of its own steps, and
    not for long. Prompts are read between passes, in parts; requests that there is no room for wait
    their turn.

    Belongs to one event loop.
    """

    def __init__(self, forwards: Forwards, room: Room) -> None:
        self.loop = asyncio.get_running_loop()
        self._forwards = forwards
        self._room = room
        self._thread = ThreadPoolExecutor(1, "midstream-model")
        self._waiting: deque[BatchedRows] = deque()  # for room
        self._unread: deque[BatchedRows] = deque()  # have room, prompt not yet read
        self._inside: set[BatchedRows] = set()  # have room
        self._reading: tuple[Reading, list[BatchedRows]] | None = None
        self._ready: dict[BatchedRows, None] = {}
        self._left: list[BatchedRows] = []
        self._since = 0.0  # when the first became ready, or left
        self._pace: Pace[BatchedRows] = Pace()
        self._timer: asyncio.TimerHandle | None = None
        self._running = False

    @property
    def requests(self) -> int:
        """How many requests have rows, or wait for them."""
        return len(self._inside) + len(self._waiting)

    def open(self, prompt: Sequence[int], *, rows: int, tokens: int) -> BatchedRows:
        """Take a request in; its prompt is read when its turn comes.

        rows: the most rows it will have. tokens: to be generated at most. Raises InputError for
        what there is no room for even when nothing else runs.
        """
        longest = len(prompt) + tokens
        if rows > self._room.rows or rows * longest > self._room.tokens:
            got = f"{rows} rows of {longest} tokens, prompt and particles together"
            accepted = f"at most {self._room.rows} rows, and {self._room.tokens} tokens in all"
            raise InputError("strategy.smc.particles", got, accepted)
        request = BatchedRows(self, tuple(prompt), rows, longest)
        self._waiting.append(request)
        self._let_in()
        self._go_on()
        return request

    def is_ready(self, request: BatchedRows) -> None:
        """A request has said how its rows go on."""
        self._note_time()
        self._ready[request] = None
        self._pace.ready(request, self.loop.time())
        self._go_on()

    def left(self, request: BatchedRows) -> None:
        """A request is over, or was given up. One that is being read leaves when it has been."""
        self._pace.leave(request)
        if request in self._waiting:
            self._waiting.remove(request)
        elif request in self._unread:
            self._unread.remove(request)
            self._inside.remove(request)
        elif request.sequences is not None:
            self._note_time()
            self._ready.pop(request, None)
            self._left.append(request)
        self._let_in()
        self._go_on()

    def _note_time(self) -> None:
        if not self._ready and not self._left:
            self._since = self.loop.time()

    def _go_on(self) -> None:
        """Begin whatever is due."""
        if self._running:
            return
        due_at = self._due_at()
        due = due_at <= self.loop.time()
        if due or self._unread or self._reading is not None:
            self._begin(due)
        elif due_at < math.inf and self._timer is None:
            self._timer = self.loop.call_at(due_at, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        self._go_on()

    def _due_at(self) -> float:
        """When to run a pass over what is ready now: infinity where nothing is."""
        if not self._ready and not self._left:
            return math.inf
        return self._pace.due_at(self._since)

    def _let_in(self) -> None:
        """Those that wait, in their order, while there is room for the first of them."""
        while self._waiting:
            everybody = [*self._inside, self._waiting[0]]
            rows = sum(each.rows for each in everybody)
            tokens = rows * max(each.tokens for each in everybody)
            if rows > self._room.rows or tokens > self._room.tokens:
                return
            request = self._waiting.popleft()
            self._inside.add(request)
            self._unread.append(request)

    def _begin(self, due: bool) -> None:
        """Run a pass over what is ready, where it is due, and read a part of what is unread."""
        self._running = True
        ready: list[BatchedRows] = []
        left: list[BatchedRows] = []
        if due:
            ready, self._ready = [*self._ready], {}
            left, self._left = self._left, []
        unread = [] if self._reading is not None else self._next_unread()
        work = self._thread.submit(self._run, left, ready, unread, self._reading)
        future = asyncio.wrap_future(work, loop=self.loop)
        future.add_done_callback(lambda done: self._done(done, left, ready))

    def _next_unread(self) -> list[BatchedRows]:
        if not self._unread:
            return []
        count = self._forwards.together([request.prompt for request in self._unread])
        return [self._unread.popleft() for _ in range(count)]

    def _run(
        self,
        left: Sequence[BatchedRows],
        ready: Sequence[BatchedRows],
        unread: list[BatchedRows],
        reading: tuple[Reading, list[BatchedRows]] | None,
    ) -> tuple[list[Logits], Any, list[tuple[Sequences, Logits]]]:
        """In the thread: the logits of those that go on, what is still being read, what was."""
        forwards = self._forwards
        for request in left:
            assert request.sequences is not None
            forwards.leave(request.sequences)
        logits: list[Logits] = []
        if left or ready:
            logits = forwards.advance([_advance(request) for request in ready])
        if unread:
            reading = forwards.begin([request.prompt for request in unread]), unread
        if reading is None or not reading[0].read():
            return logits, reading, []
        return logits, reading, forwards.join(reading[0])

    def _done(
        self,
        done: asyncio.Future[Any],
        left: Sequence[BatchedRows],
        ready: Sequence[BatchedRows],
    ) -> None:
        self._running = False
        try:
            logits, self._reading, joined = done.result()
        except Exception as error:
            self._fail(error)
            return
        self._inside.difference_update(left)
        self._let_in()
        for request, rows in zip(ready, logits, strict=True):
            self._tell(request, rows)
        if joined:
            assert self._reading is not None
            read, self._reading = self._reading[1], None
            for request, (sequences, rows) in zip(read, joined, strict=True):
                request.sequences = sequences
                self._tell(request, rows)
        self._go_on()

    def _tell(self, request: BatchedRows, logits: Logits) -> None:
        if request.open:
            if not request.future.done():  # else cancelled, and about to be closed
                self._pace.tell(request, self.loop.time())
                request.future.set_result(logits)
        elif request not in self._left:  # it was being read when it was given up
            self._note_time()
            self._left.append(request)

    def _fail(self, error: Exception) -> None:
        """What the model has in memory cannot be trusted after a fault: nobody goes on."""
        self._forwards.reset()
        failed, self._inside = self._inside, set()
        self._ready, self._left, self._reading = {}, [], None
        self._pace.clear()
        self._unread.clear()
        for request in failed:
            request.open = False
            request.error = error
            if not request.future.done():
                request.future.set_exception(error)
        self._let_in()
        self._go_on()


def _advance(request: BatchedRows) -> Advance:
    assert request.sequences is not None and request.growth is not None
    return Advance(request.sequences, *request.growth)


def _forget(future: asyncio.Future[Logits]) -> None:
    """Nobody will look at it."""
    if not future.cancel() and not future.cancelled():
        future.exception()
