"""Which calls are let in: not before the server is ready, not while it drains, not too many."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from midstream.adapters.sidecar.wire.errors import Refusal, exhausted, unavailable

Phase = Literal["loading", "ready", "draining"]

LOADING_RETRY_SECONDS = 1.0
BUSY_RETRY_SECONDS = 0.5


class Gate:
    """Counts the calls that run. Belongs to one event loop.

    streams: how many may run at a time. client_streams: of one client.
    """

    def __init__(self, streams: int, client_streams: int, phase: Phase = "loading") -> None:
        self.phase: Phase = phase
        self._streams = streams
        self._client_streams = client_streams
        self._by_client: Counter[str] = Counter()
        self._running: set[asyncio.Task[Any]] = set()
        self._cut_off: set[asyncio.Task[Any]] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def running(self) -> int:
        """How many calls run."""
        return len(self._running)

    @contextmanager
    def admitted(self, client: str | None) -> Iterator[None]:
        """Let the call of the current task in for as long as the context is open.

        client: whose calls are counted together; None: those are bounded by the whole alone.
        Raises Refusal for a call that is not let in, or that `cut_off` ended.
        """
        self._check(client)
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        self._empty.clear()
        if client is not None:
            self._by_client[client] += 1
        try:
            yield
        except asyncio.CancelledError:
            if task in self._cut_off and not task.uncancel():
                raise _ended() from None
            raise
        finally:
            self._running.discard(task)
            self._cut_off.discard(task)
            if not self._running:
                self._empty.set()
            if client is not None:
                self._by_client[client] -= 1
                if not self._by_client[client]:
                    del self._by_client[client]

    def _check(self, client: str | None) -> None:
        if self.phase == "loading":
            raise unavailable("the models are being loaded", LOADING_RETRY_SECONDS)
        if self.phase == "draining":
            raise _ended()
        most = self._streams
        if len(self._running) >= most:
            message = f"{most} calls run, which is all this server takes at a time"
            raise exhausted(message, BUSY_RETRY_SECONDS)
        most = self._client_streams
        if client is not None and self._by_client[client] >= most:
            message = f"{most} calls of this client run, which is all it may at a time"
            raise exhausted(message, BUSY_RETRY_SECONDS)

    async def wait_empty(self, seconds: float) -> bool:
        """Wait until no call runs. False where some still do after that time."""
        try:
            async with asyncio.timeout(seconds if self._running else None):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def cut_off(self) -> None:
        """Cancel what runs: these calls end as UNAVAILABLE."""
        for task in self._running - self._cut_off:
            self._cut_off.add(task)
            task.cancel()


def _ended() -> Refusal:
    return unavailable("the server is ending: call another one, or come again")
