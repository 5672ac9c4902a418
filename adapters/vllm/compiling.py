"""Constraints compiled beside the engine's steps, which never wait for one longer than a moment."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from midstream.adapters.vllm.allowance import Allowance
from midstream.middleware.budget import within_budget
from midstream.middleware.constraints import Constraint, JsonSchema, Regex
from midstream.middleware.constraints.cache import BuiltOnce
from midstream.middleware.matcher import Matcher
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary

PATIENCE_SECONDS = 0.05
"""How long steps wait for a constraint that compiles, all those together that ask for it."""

QUEUE_SECONDS = 0.25
"""How long steps wait for a constraint whose turn to compile has not come."""

FUTURES_KEPT = 256
THREADS = 2
"""Constraints that compile at a time; each is bounded in time and memory by its own kind. More of
them would only take longer each: most of the work holds the interpreter's lock.
"""
_LOOK_SECONDS = 0.005  # between two looks at whether a turn has come


class StillCompilingError(Exception):
    """A constraint that needs longer than a step can wait. The next request may find it ready."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A strategy's constraint, read where it is compiled: a long pattern takes its time to parse.

    text: the constraint of a strategy as JSON, null for none.
    """

    text: str

    @classmethod
    def of(cls, strategy: Strategy) -> Unread:
        """That of a strategy."""
        data = strategy.constraint
        return cls("null" if data is None else data.model_dump_json())

    def compile(self, vocabulary: Vocabulary) -> Matcher:
        """See `Constraint.compile`."""
        return Strategy(constraint=json.loads(self.text)).build_constraint().compile(vocabulary)


@dataclass(slots=True)
class _Work:
    """One constraint's compilation, and the time that its requests may take.

    begun: when its turn came, by the monotonic clock.
    """

    asked: float
    begun: float | None = None
    allowance: Allowance = field(default_factory=Allowance)
    matcher: Future[Matcher] = field(init=False)

    def patience(self) -> float:
        """How many seconds it is still worth to wait for."""
        if self.begun is None:
            return self.asked + QUEUE_SECONDS - time.monotonic()
        return self.begun + PATIENCE_SECONDS - time.monotonic()


class Compiler:
    """Compiles constraints for one vocabulary, each once, on a few threads of its own."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._threads = ThreadPoolExecutor(THREADS, "midstream-compile")
        self._works: BuiltOnce[Constraint, _Work] = BuiltOnce(FUTURES_KEPT)

    def warm(self) -> None:
        """Import and build what the first constraint of each kind needs, before any step."""
        for constraint in (Regex("a|b"), JsonSchema({"type": "null"})):
            constraint.compile(self.vocabulary)

    def start(self, constraint: Constraint) -> Future[Matcher]:
        """The matcher to be. A failure is kept, so that asking again does not compile again."""
        return self._work(constraint).matcher

    def _work(self, constraint: Constraint) -> _Work:
        def begin() -> _Work:
            work = _Work(time.monotonic())

            def compile() -> Matcher:
                work.begun = time.monotonic()
                return constraint.compile(self.vocabulary)

            work.matcher = self._threads.submit(compile)
            return work

        return self._works.get(constraint, begin)

    def matcher(self, constraint: Constraint, max_new_tokens: int) -> tuple[Matcher, Allowance]:
        """The matcher, within a budget of tokens, and the time that its rows may take.

        Raises ConstraintError where it does not compile, and StillCompilingError.
        """
        work = self._work(constraint)
        # One that takes longer is not waited for again by each request that asks for it.
        while not work.matcher.done():
            patience = work.patience()
            if patience <= 0.0:
                what = (
                    f"the constraint is still compiling after {PATIENCE_SECONDS * 1000:.0f} ms; "
                    "ask again, or prepare it before (VllmHost.prepare, POST /v1/midstream/prepare)"
                )
                raise StillCompilingError(what)
            turn = patience if work.begun is not None else min(patience, _LOOK_SECONDS)
            wait([work.matcher], timeout=turn)
        return within_budget(work.matcher.result(), max_new_tokens), work.allowance


_here: list[Compiler] = []


def serve_here(compiler: Compiler) -> None:
    """Make a compiler the one of this process: the processor's, which the workers are asked for."""
    _here[:] = [compiler]


def compiler_here() -> Compiler:
    """The compiler of this process. RuntimeError in an engine without the processor."""
    if not _here:
        raise RuntimeError(
            "no midstream processor in this engine: start it with "
            "--logits-processors midstream.adapters.vllm:ConstrainedSampling"
        )
    return _here[0]
