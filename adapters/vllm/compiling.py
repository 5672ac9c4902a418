"""Constraints compiled beside the engine's steps, which never wait for one longer than a moment."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from midstream.middleware.budget import within_budget
from midstream.middleware.constraints import Constraint
from midstream.middleware.constraints.cache import BuiltOnce
from midstream.middleware.matcher import Matcher
from midstream.middleware.vocabulary import Vocabulary

PATIENCE_SECONDS = 0.05
"""How long a step waits for a constraint."""

FUTURES_KEPT = 256
THREADS = 4
"""Constraints that compile at a time; each is bounded in time and memory by its own kind."""


class StillCompilingError(Exception):
    """A constraint that needs longer than a step can wait. The next request may find it ready."""


class Compiler:
    """Compiles constraints for one vocabulary, each once, on a few threads of its own."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._threads = ThreadPoolExecutor(THREADS, "midstream-compile")
        self._futures: BuiltOnce[Constraint, Future[Matcher]] = BuiltOnce(FUTURES_KEPT)

    def start(self, constraint: Constraint) -> Future[Matcher]:
        """The matcher to be. A failure is kept, so that asking again does not compile again."""
        return self._futures.get(
            constraint, lambda: self._threads.submit(constraint.compile, self.vocabulary)
        )

    def matcher(self, constraint: Constraint, max_new_tokens: int) -> Matcher:
        """The matcher, within a budget of tokens.

        Raises ConstraintError where it does not compile, and StillCompilingError.
        """
        try:
            matcher = self.start(constraint).result(timeout=PATIENCE_SECONDS)
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
