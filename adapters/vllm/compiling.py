"""Constraints compiled beside the engine's steps, which never wait for one longer than a moment."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from midstream.middleware.budget import within_budget
from midstream.middleware.constraints import Constraint
from midstream.middleware.constraints.cache import BuiltOnce
from midstream.middleware.matcher import Matcher
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary

PATIENCE_SECONDS = 0.05
"""How long steps wait for a constraint, all those together that ask for it."""

FUTURES_KEPT = 256
THREADS = 4
"""Constraints that compile at a time; each is bounded in time and memory by its own kind."""


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


class Compiler:
    """Compiles constraints for one vocabulary, each once, on a few threads of its own."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._threads = ThreadPoolExecutor(THREADS, "midstream-compile")
        self._begun: BuiltOnce[Constraint, tuple[Future[Matcher], float]]
        self._begun = BuiltOnce(FUTURES_KEPT)

    def start(self, constraint: Constraint) -> Future[Matcher]:
        """The matcher to be. A failure is kept, so that asking again does not compile again."""
        return self._start(constraint)[0]

    def _start(self, constraint: Constraint) -> tuple[Future[Matcher], float]:
        """The matcher to be, and when it was begun."""

        def begin() -> tuple[Future[Matcher], float]:
            return self._threads.submit(constraint.compile, self.vocabulary), time.monotonic()

        return self._begun.get(constraint, begin)

    def matcher(self, constraint: Constraint, max_new_tokens: int) -> Matcher:
        """The matcher, within a budget of tokens.

        Raises ConstraintError where it does not compile, and StillCompilingError.
        """
        future, begun = self._start(constraint)
        try:
            # One that takes longer is not waited for again by each request that asks for it.
            waited = time.monotonic() - begun
            matcher = future.result(timeout=max(0.0, PATIENCE_SECONDS - waited))
        except TimeoutError:
            what = (
                f"the constraint is still compiling after {PATIENCE_SECONDS * 1000:.0f} ms; "
                "ask again, or prepare it before (VllmHost.prepare, POST /v1/midstream/prepare)"
            )
            raise StillCompilingError(what) from None
        return within_budget(matcher, max_new_tokens)


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
