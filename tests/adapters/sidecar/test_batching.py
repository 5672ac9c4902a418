"""When passes run, with whom, and how requests leave: over a model that only takes notes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from midstream.adapters.sidecar.batching import Batch, BatchedRows, Room
from midstream.adapters.sidecar.forwards import Advance, Logits, Prompt, Sequences
from midstream.adapters.sidecar.pacing import LEAST_WAIT_SECONDS, MOST_WAIT_SECONDS, Pace
from midstream.middleware.errors import InputError

ROOM = Room(rows=64, tokens=64 * 100)


@dataclass
class Notes:
    """A model whose logits are the tokens so far. passes: the prompts of who was in each.

    parts: in how many parts a prompt is read. gate: what every pass waits for.
    """

    parts: int = 1
    most_together: int = 100
    live: dict[Sequences, list[list[int]]] = field(default_factory=dict)
    passes: list[list[int]] = field(default_factory=list)
    read: list[list[int]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    fault: Exception | None = None

    def __post_init__(self) -> None:
        self.gate.set()

    def together(self, waiting: Sequence[Prompt]) -> int:
        return min(len(waiting), self.most_together)

    def begin(self, prompts: Sequence[Prompt]) -> Part:
        self.read.append([prompt[0] for prompt in prompts])
        return Part(self, prompts, self.parts)

    def join(self, reading: Part) -> list[tuple[Sequences, Logits]]:
        joined = []
        for prompt in reading.prompts:
            sequences = Sequences(0, len(prompt))
            self.live[sequences] = [[*prompt]]
            joined.append((sequences, np.array([[*prompt]])))
        return joined

    def leave(self, sequences: Sequences) -> None:
        del self.live[sequences]

    def advance(self, advances: Sequence[Advance]) -> list[Logits]:
        self.gate.wait(10)
        if self.fault is not None:
            raise self.fault
        if advances:
            self.passes.append([self.live[each.sequences][0][0] for each in advances])
        read = []
        for each in advances:
            rows = self.live[each.sequences]
            pairs = zip(each.parents, each.tokens, strict=True)
            self.live[each.sequences] = [[*rows[parent], token] for parent, token in pairs]
            read.append(np.array(self.live[each.sequences]))
        return read

    def reset(self) -> None:
        self.live.clear()


@dataclass
class Part:
    notes: Notes
    prompts: Sequence[Prompt]
    left: int

    def read(self) -> bool:
        self.notes.gate.wait(10)
        self.left -= 1
        return self.left == 0


Run = Callable[[Any], Any]


async def settled(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def request(
    batch: Batch, name: int, steps: int, think: Callable[[int], float] | float = 0.0
) -> list[Logits]:
    """A request of its own that draws for some time before each step."""
    rows = batch.open([name], rows=1, tokens=steps)
    try:
        seen = [await rows.first()]
        for step in range(steps):
            await asyncio.sleep(think if isinstance(think, float) else think(step))
            seen.append(await rows.advance([0], [step]))
        return seen
    finally:
        rows.close()


def test_patience_follows_what_is_usual_and_no_exception() -> None:
    pace: Pace[str] = Pace()
    assert pace.patience == LEAST_WAIT_SECONDS
    now = 0.0
    for _ in range(400):
        pace.tell("a", now)
        now += 0.02
        pace.ready("a", now)
    assert 0.039 < pace.patience < 0.041
    pace.tell("slow", now)
    pace.ready("slow", now + 60.0)
    assert pace.patience < 0.045
    pace.tell("a", now)
    pace.tell("b", now + 0.01)
    assert pace.due_at(now + 0.001) == pytest.approx(now + 0.001 + pace.patience)
    assert pace.due_at(now + 1.0) == pytest.approx(now + 0.01 + pace.patience)
    pace.leave("b")
    pace.ready("a", now + 0.02)
    assert pace.due_at(now + 1.0) < now  # nobody is waited for
    for _ in range(2000):
        pace.tell("a", now)
        pace.ready("a", now + 10.0)
    assert pace.patience == MOST_WAIT_SECONDS


def test_rows_grow_fork_and_leave(in_loop: Run) -> None:
    async def work() -> None:
        notes = Notes()
        batch = Batch(notes, ROOM)
        rows = batch.open([7, 8], rows=3, tokens=4)
        assert (await rows.first()).tolist() == [[7, 8]]
        assert (await rows.advance([0, 0, 0], [1, 2, 3])).tolist() == [
            [7, 8, 1],
            [7, 8, 2],
            [7, 8, 3],
        ]
        assert (await rows.advance([2, 0], [4, 5])).tolist() == [[7, 8, 3, 4], [7, 8, 1, 5]]
        assert batch.requests == 1 and len(notes.live) == 1
        rows.close()
        rows.close()
        await settled(lambda: not notes.live)
        assert batch.requests == 0

    in_loop(work())


def test_requests_share_passes(in_loop: Run) -> None:
    async def work() -> None:
        notes = Notes()
        batch = Batch(notes, ROOM)
        seen = await asyncio.gather(*[request(batch, name, 20, 0.001) for name in range(16)])
        for name, logits in enumerate(seen):
            assert logits[-1].tolist() == [[name, *range(20)]]
        assert len(notes.passes) < 3 * 20  # 320 alone
        await settled(lambda: batch.requests == 0)
        assert not notes.live

    in_loop(work())


def test_one_that_is_slow_does_not_hold_up_the_others(in_loop: Run) -> None:
    async def work() -> None:
        notes = Notes()
        batch = Batch(notes, ROOM)
        slow = asyncio.create_task(request(batch, 99, 3, 0.6))
        begin = time.monotonic()
        await asyncio.gather(*[request(batch, name, 100, 0.001) for name in range(8)])
        seconds = time.monotonic() - begin
        assert seconds < 100 * 0.01 + 4 * MOST_WAIT_SECONDS
        alone = [each for each in notes.passes if each == [99]]
        await slow
        assert len(alone) <= 1  # while the others went on it shared its passes
        assert [len(logits) for logits in slow.result()] == [1, 1, 1, 1]

    in_loop(work())


def test_one_that_never_comes_back_is_waited_for_once(in_loop: Run) -> None:
    async def work() -> None:
        notes = Notes()
        batch = Batch(notes, ROOM)
        stalled = batch.open([99], rows=1, tokens=5)
        await stalled.first()
        begin = time.monotonic()
        await request(batch, 1, 200)
        assert time.monotonic() - begin < 1.0
        stalled.close()
        await settled(lambda: not notes.live)

    in_loop(work())


def test_a_long_prompt_is_read_between_passes(in_loop: Run) -> None:
    async def work() -> None:
        notes = Notes()
        batch = Batch(notes, ROOM)
        first = batch.open([1], rows=1, tokens=50)
        await first.first()
        notes.parts = 30
        long = batch.open([2], rows=1, tokens=5)
        for step in range(10):
            await first.advance([0], [step])
        assert not long.first().done()
        assert (await long.first()).tolist() == [[2]]
        first.close()
        long.close()
        await settled(lambda: batch.requests == 0)

    in_loop(work())


def test_whoever_there_is_no_room_for_waits_in_turn(in_loop: Run) -> None:
    async def work() -> None:
        notes = Notes()
        batch = Batch(notes, Room(rows=10, tokens=200))
        big = batch.open([1], rows=8, tokens=10)
        await big.first()
        second = batch.open([2], rows=4, tokens=10)
        third = batch.open([3], rows=1, tokens=10)  # would fit, but came later
        await asyncio.sleep(0.02)
        assert notes.read == [[1]] and batch.requests == 3
        gone = batch.open([4], rows=1, tokens=10)
        gone.close()
        big.close()
        await asyncio.gather(second.first(), third.first())
        assert notes.read[1:] == [[2, 3]]
        second.close()
        third.close()
        for rows, tokens in ((11, 1), (2, 150)):
            with pytest.raises(InputError, match="at most 10 rows, and 200 tokens"):
                batch.open([5], rows=rows, tokens=tokens)
        await settled(lambda: batch.requests == 0)
        assert not notes.live

    in_loop(work())


@pytest.mark.parametrize("stage", ["unread", "reading", "drawing", "ready", "in the pass"])
def test_leaving_at_any_stage(in_loop: Run, stage: str) -> None:
    async def work() -> None:
        notes = Notes()
        batch = Batch(notes, ROOM)
        other = asyncio.create_task(request(batch, 1, 30, 0.002))
        await settled(lambda: len(notes.passes) > 2)
        if stage in ("unread", "reading"):
            notes.gate.clear()
            if stage == "unread":
                await settled(lambda: batch._running)
        rows = batch.open([2], rows=1, tokens=5)
        if stage == "reading":
            await settled(lambda: [2] in notes.read)
        if stage not in ("unread", "reading"):
            await rows.first()
        if stage == "ready":
            notes.gate.clear()
            await settled(lambda: batch._running)
            rows.advance([0], [1])
        elif stage == "in the pass":
            notes.gate.clear()
            rows.advance([0], [1])
            await settled(lambda: rows not in batch._ready)
        before = len(notes.passes)
        rows.close()
        notes.gate.set()
        await other
        await settled(lambda: batch.requests == 0)
        assert not notes.live
        with_it = sum(2 in each for each in notes.passes[before:])
        assert with_it == (1 if stage == "in the pass" else 0)

    in_loop(work())


def test_a_cancelled_request_is_in_no_further_pass(in_loop: Run) -> None:
    async def work() -> None:
        notes = Notes()
        batch = Batch(notes, ROOM)
        tasks = [asyncio.create_task(request(batch, name, 1000)) for name in range(6)]
        await settled(lambda: len(notes.passes) > 5)
        for task in tasks[:3]:
            task.cancel()
        await asyncio.sleep(0)
        seen = len(notes.passes)
        await settled(lambda: len(notes.passes) > seen + 5)
        assert all(set(each) <= {3, 4, 5} for each in notes.passes[seen + 1 :])
        for task in tasks[3:]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await settled(lambda: batch.requests == 0)
        assert not notes.live

    in_loop(work())


def test_a_fault_of_the_model_ends_who_is_in_it_and_nobody_else(in_loop: Run) -> None:
    async def work() -> None:
        notes = Notes()
        batch = Batch(notes, ROOM)
        drawing: BatchedRows = batch.open([1], rows=1, tokens=5)
        going = batch.open([2], rows=1, tokens=5)
        await asyncio.gather(drawing.first(), going.first())
        notes.fault = MemoryError("no more")
        with pytest.raises(MemoryError):
            await going.advance([0], [1])
        with pytest.raises(RuntimeError, match="pass of other requests"):
            drawing.advance([0], [1])
        drawing.close()
        going.close()
        assert batch.requests == 0 and not notes.live
        notes.fault = None
        assert len(await request(batch, 3, 5)) == 6

    in_loop(work())
