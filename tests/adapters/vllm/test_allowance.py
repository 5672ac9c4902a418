"""A constraint that is dear ends its requests; one that is dear only while it is new does not."""

from __future__ import annotations

import time

from midstream.adapters.vllm.allowance import ROW_SECONDS, SECONDS_AT_ONCE, SHARE, Allowance
from midstream.adapters.vllm.compiling import Compiler, Unread
from midstream.adapters.vllm.request import RequestPlan
from midstream.adapters.vllm.slots import Asking, Nothing, Slot
from midstream.middleware.law import PLAIN
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary

VOCABULARY = Vocabulary([*(bytes([i]) for i in range(256)), b""], eos_ids=(256,))
AMBIGUOUS = "start: e\ne: e e | /[a-z]/"
"""Every text has as many readings as there are trees over it."""


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_every_row_takes_is_never_counted() -> None:
    allowance = Allowance(Clock())
    for _ in range(10_000):
        allowance.spend(ROW_SECONDS)
    assert not allowance.refusal()


def test_dear_rows_are_refused_until_the_clock_has_paid_for_them() -> None:
    clock = Clock()
    allowance = Allowance(clock)
    allowance.spend(ROW_SECONDS + 0.9 * SECONDS_AT_ONCE)
    assert not allowance.refusal()
    allowance.spend(ROW_SECONDS + 1.1 * SECONDS_AT_ONCE)
    assert "holds up" in allowance.refusal()
    clock.now += SECONDS_AT_ONCE / SHARE - 0.01
    assert allowance.refusal()
    clock.now += 0.02
    assert not allowance.refusal()


def test_time_that_is_not_used_is_not_saved_up() -> None:
    clock = Clock()
    allowance = Allowance(clock)
    clock.now += 1000.0
    allowance.spend(ROW_SECONDS + 1.01 * SECONDS_AT_ONCE)
    assert allowance.refusal()


def _slot(compiler: Compiler, grammar: str) -> Slot:
    strategy = Strategy(constraint={"grammar": grammar})
    compiler.start(Unread.of(strategy)).result(10)
    return Slot(RequestPlan("", strategy, PLAIN, 4000, 0, None, None), (), compiler)


def _rows(slot: Slot, seconds: float) -> tuple[int, Asking | Nothing, float]:
    """Rows of one text until it ends; how many, the last of them, and their processor time."""
    output: list[int] = []
    began = time.thread_time()
    while True:
        asked = slot.asking(output, 257)
        spent = time.thread_time() - began
        if isinstance(asked, Nothing) or spent > seconds or len(output) == 300:
            return len(output), asked, spent
        output.append(ord("a"))


def test_an_ambiguous_grammar_ends_before_it_holds_up_the_engine() -> None:
    compiler = Compiler(VOCABULARY)
    rows, last, spent = _rows(_slot(compiler, AMBIGUOUS), 20.0)
    assert isinstance(last, Nothing)
    assert "holds up" in last.reason
    assert rows > 10
    assert spent < 20 * SECONDS_AT_ONCE
    rows, last, _ = _rows(_slot(compiler, "start: /[a-z]/+"), 20.0)
    assert isinstance(last, Asking)
    assert rows == 300


def test_requests_of_one_constraint_share_its_time() -> None:
    compiler = Compiler(VOCABULARY)
    first, other = (Unread(f'{{"regex": "{letter}+"}}') for letter in "ab")
    for unread in (first, other):
        compiler.start(unread).result(10)
    assert compiler.matcher(first, 8)[1] is compiler.matcher(first, 8)[1]
    assert compiler.matcher(first, 8)[1] is not compiler.matcher(other, 8)[1]
