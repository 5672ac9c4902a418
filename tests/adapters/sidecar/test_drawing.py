"""Steps of many requests in few pieces of work; one that is slow holds up nobody for long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from midstream.adapters.sidecar.drawing import Draws
from midstream.adapters.sidecar.metrics import Metrics
from midstream.adapters.sidecar.pool import Pool

Run = Callable[[Any], Any]


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool("draw", 4, Metrics())
    yield pool
    pool.close()


def test_what_comes_together_is_one_piece_of_work(in_loop: Run, pool: Pool) -> None:
    async def work() -> None:
        draws = Draws(pool)
        for _ in range(3):
            threads = await asyncio.gather(*[draws.run(threading.get_ident) for _ in range(50)])
            assert len(set(threads)) == 1 and threads[0] != threading.get_ident()
        values = [draws.run(lambda i=i: i * i) for i in range(20)]  # type: ignore[misc]
        assert await asyncio.gather(*values) == [i * i for i in range(20)]

    in_loop(work())


def test_a_fault_is_told_to_its_own_request(in_loop: Run, pool: Pool) -> None:
    async def work() -> None:
        draws = Draws(pool)
        told = await asyncio.gather(
            draws.run(lambda: 1), draws.run(lambda: 1 // 0), draws.run(lambda: 3),
            return_exceptions=True,
        )  # fmt: skip
        assert told[::2] == [1, 3] and isinstance(told[1], ZeroDivisionError)

    in_loop(work())


def test_slow_steps_let_the_others_pass(in_loop: Run, pool: Pool) -> None:
    async def work() -> None:
        draws = Draws(pool, slow_seconds=0.01)
        release = threading.Event()
        begin = time.monotonic()
        before = draws.run(lambda: "before")
        slow = [draws.run(lambda: release.wait(10)) for _ in range(2)]
        after = [draws.run(lambda: "after") for _ in range(10)]
        assert await before == "before"
        assert await asyncio.gather(*after) == ["after"] * 10
        assert time.monotonic() - begin < 2 and not any(each.done() for each in slow)
        assert await draws.run(lambda: "later") == "later"
        release.set()
        assert await asyncio.gather(*slow) == [True, True]

    in_loop(work())


def test_what_nobody_waits_for_is_not_done(in_loop: Run, pool: Pool) -> None:
    async def work() -> None:
        draws = Draws(pool)
        done = []
        first = draws.run(lambda: time.sleep(0.05))
        given_up = draws.run(lambda: done.append(1))
        last = draws.run(lambda: done.append(2))
        await asyncio.sleep(0.01)
        given_up.cancel()
        await asyncio.gather(first, last)
        assert done == [2]

    in_loop(work())


def test_closed_threads_are_told(in_loop: Run) -> None:
    async def work() -> None:
        pool = Pool("draw", 1, Metrics())
        draws = Draws(pool)
        pool.close()
        with pytest.raises(RuntimeError, match="closed"):
            await draws.run(lambda: 1)

    in_loop(work())
