"""Streams of an engine that owns its sampling loop, for code that blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from midstream.adapters.sidecar.client.calls import BlockingCall
from midstream.adapters.sidecar.client.session import (
    ProcessOptions,
    ReadyInfo,
    RowOfStep,
    Session,
    StepResult,
    close,
    fork,
)
from midstream.adapters.sidecar.wire.results import Outcome, ResamplingEvent
from midstream.middleware.errors import InputError, VocabularyError
from midstream.middleware.smc import Growth
from midstream.middleware.vocabulary import Vocabulary
from midstream.proto.v1 import logits_processing_pb2 as pb

Open = Callable[[], BlockingCall[pb.ProcessRequest, pb.ProcessResponse]]


class _Stream:
    """A call after its handshake. ready: what the server made of it."""

    def __init__(self, open_call: Open, options: ProcessOptions) -> None:
        self._session = Session(options)
        try:
            self._begin(open_call)
        except BaseException:
            self._session.close()
            raise

    def _begin(self, open_call: Open) -> None:
        upload = False
        while True:
            self._call = open_call()
            try:
                self._call.send(self._session.handshake(upload=upload))
                self.ready: ReadyInfo = self._session.ready(self._call.receive())
                return
            except InputError as error:
                self._call.close()
                known = isinstance(self._session.options.vocabulary, Vocabulary)
                if upload or not known or not asks_for_upload(error):
                    raise
                upload = True
            except BaseException:
                self._call.close()
                raise

    @property
    def buffer(self) -> npt.NDArray[Any]:
        """The shared memory, [shared_rows, row_size]: logits written there are not copied again.

        Of the stream's type; bfloat16 as uint16. Raises InputError for a stream without one.
        """
        if self._session.region is None:
            raise InputError("shared_rows", 0, "at least 1, for a stream with shared memory")
        return self._session.region.array

    def _ask(self, request: pb.ProcessRequest) -> pb.ProcessResponse:
        self._call.send(request)
        return self._call.receive()

    def end(self) -> None:
        """End the call and give the shared memory up. Doing so twice does no harm."""
        self._call.close()
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


class SequenceStream(_Stream):
    """Sequences side by side, each by itself."""

    def step(self, logits: Any | None, rows: Sequence[RowOfStep]) -> StepResult:
        """Answer each row of logits, [R, row_size].

        A row of an id that was not seen before opens a sequence. logits may be None where
        answer="mask". Raises what the server says of the step; the stream is then at its end.
        """
        return self._session.result(self._ask(self._session.step(logits, rows)))

    def fork(self, parent: int, to: int, sequence: int = 0) -> None:
        """Open `to` where `parent` stands, with random numbers of its own from here on.

        What is wrong with it is told by the next step.
        """
        self._call.send(fork(parent, to, sequence))

    def close(self, id: int) -> None:
        """Close a sequence. What is wrong with it is told by the next step."""
        self._call.send(close(id))


class ParticleStream(_Stream):
    """One sequential Monte Carlo run over the engine's model.

        growth = run.step(logits_of_the_prompt)
        while growth is not None:
            growth = run.step(advance(growth.parents, growth.tokens))
        run.outcome().log_evidence

    resamplings: those that have happened.
    """

    def __init__(self, open_call: Open, options: ProcessOptions) -> None:
        self.resamplings: list[ResamplingEvent] = []
        self._outcome: Outcome | None = None
        super().__init__(open_call, options)

    def step(self, logits: Any) -> Growth | None:
        """How the rows go on; None where none does.

        logits: [R, row_size], of the prompt at first, then row i of what row parents[i] became
        with tokens[i].
        """
        answer = self._ask(self._session.step(logits, ()))
        growth, resampling = self._session.growth(answer)
        if resampling is not None:
            self.resamplings.append(resampling)
        if growth is None:
            self._outcome = self._session.outcome(self._call.receive())
        return growth

    def outcome(self) -> Outcome:
        """What the run came to. Called before its end, it ends it: what runs is cancelled."""
        if self._outcome is None:
            self._call.half_close()
            self._outcome = self._session.outcome(self._call.receive())
        return self._outcome


def asks_for_upload(error: InputError) -> bool:
    """Whether a server does not know a fingerprint."""
    return isinstance(error, VocabularyError) and error.argument == "vocabulary"
