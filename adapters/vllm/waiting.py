"""Waiting for requests that a caller may cancel from outside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

_POLL_SECONDS = 0.02


async def finished_or_cancelled(
    tasks: Sequence[asyncio.Task[Any]], cancelled: Callable[[], bool] | None
) -> None:
    """Return when all tasks are done, or cancel them when `cancelled` turns true.

    It is asked every 20 ms; without it this returns at once.
    """
    if cancelled is None:
        return
    while not all(task.done() for task in tasks):
        if cancelled():
            for task in tasks:
                task.cancel()
            return
        await asyncio.wait(tasks, timeout=_POLL_SECONDS)
