"""Constraints compiled beside the steps: waited for once, and read on their own thread."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest

from midstream.adapters.vllm.compiling import Compiler, StillCompilingError, Unread
from midstream.middleware.constraints import Regex
from midstream.middleware.errors import ConstraintError
from midstream.middleware.matcher import Matcher
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary

VOCABULARY = Vocabulary([b"a", b"b", b""], eos_ids=(2,))


@dataclass(frozen=True)
class Slow:
    """Compiles when it is let."""

    go: threading.Event = field(default_factory=threading.Event, compare=False)

    def compile(self, vocabulary: Vocabulary) -> Matcher:
        self.go.wait(10)
        return Regex("a+").compile(vocabulary)


def test_requests_of_one_constraint_wait_for_it_once_together() -> None:
    compiler, slow = Compiler(VOCABULARY), Slow()
    begin = time.monotonic()
    for _ in range(20):
        with pytest.raises(StillCompilingError, match="prepare"):
            compiler.matcher(slow, 8)
    assert 0.05 <= time.monotonic() - begin < 0.5
    slow.go.set()
    compiler.start(slow).result(10)
    assert compiler.matcher(slow, 8)[0].start() is not None


def test_equal_strategies_share_what_is_compiled() -> None:
    compiler = Compiler(VOCABULARY)
    strategies = [Strategy(constraint={"regex": "a+"}, seed=seed) for seed in range(2)]
    futures = [compiler.start(Unread.of(strategy)) for strategy in strategies]
    assert futures[0] is futures[1]
    other = compiler.start(Unread.of(Strategy(constraint={"regex": "b+"})))
    assert other is not futures[0]
    assert compiler.start(Unread.of(Strategy())).result(10).has_mask is False


def test_what_is_wrong_is_told_where_it_is_read() -> None:
    future = Compiler(VOCABULARY).start(Unread('{"regex": "("}'))
    with pytest.raises(ConstraintError, match="group"):
        future.result(10)
