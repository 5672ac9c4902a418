"""The client for code that blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from midstream.adapters.sidecar.client.byte_calls import ByteCalls
from midstream.adapters.sidecar.client.calls import BlockingCall
from midstream.adapters.sidecar.client.connection import ClientTls, Connection, Retries
from midstream.adapters.sidecar.client.errors import SidecarError, failure_of
from midstream.adapters.sidecar.client.requests import (
    ModelInfo,
    OnEvent,
    Prompt,
    built_strategy,
    generate_request,
    model_info,
    read_event,
    with_particles,
    without_particles,
)
from midstream.adapters.sidecar.client.session import KnownVocabulary, ProcessOptions
from midstream.adapters.sidecar.client.streams import ParticleStream, SequenceStream
from midstream.adapters.sidecar.protocol import Answer, LogitsType
from midstream.adapters.sidecar.wire.results import Outcome, outcome
from midstream.middleware.strategy import Strategy
from midstream.proto.v1 import (
    bytes_pb2_grpc,
    decoding_pb2_grpc,
    logits_processing_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
)
from midstream.proto.v1 import decoding_pb2 as pb
from midstream.proto.v1 import logits_processing_pb2 as process_pb

T = TypeVar("T")


class Client:
    """Calls to one server. For any number of threads.

    target: "unix:PATH", "HOST:PORT" or "dns:///HOST:PORT". token: the server's bearer token. tls:
        for a server with TLS. timeout_seconds: of a call that says none itself, retries included.
        retries: of calls that may be made twice, which are those that ask for models, and for texts
        none of which has been told.
    bytes: the calls of the service Bytes.
    Bad input raises the InputError that the same call in process would raise, whose argument is
    the field of the request; all else SidecarError.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        tls: ClientTls | None = None,
        timeout_seconds: float = 300.0,
        retries: Retries | None = None,
    ) -> None:
        connection = Connection(target, token, tls)
        self._metadata = connection.metadata
        self._timeout_seconds = timeout_seconds
        self._retries = retries or Retries()
        self._channel = connection.channel()
        self._decoding: Any = decoding_pb2_grpc.DecodingStub(self._channel)
        self._models: Any = models_pb2_grpc.ModelsStub(self._channel)
        self._processing: Any = logits_processing_pb2_grpc.LogitsProcessingStub(self._channel)
        self.bytes = ByteCalls(bytes_pb2_grpc.BytesStub(self._channel), self._metadata, self._tried)

    def generate(
        self,
        prompt: Prompt,
        *,
        constraint: Any = None,
        strategy: Strategy | Mapping[str, Any] | None = None,
        on_event: OnEvent | None = None,
        model: str = "",
        occurrence: int = 0,
        timeout_seconds: float | None = None,
    ) -> Outcome:
        """Weighted texts that go on from a prompt, by a model of the server.

        prompt: a text, or token ids. constraint: whatever `as_constraint` takes, or its data.
        strategy: one, or its data. on_event: called with each event as it comes; what it raises
        ends the call. model: an alias, empty for the default. occurrence: which of several equal
        requests this is.
        """
        built = built_strategy(strategy, constraint)
        request = generate_request(
            prompt, built, model=model, occurrence=occurrence, events=on_event is not None
        )
        told = [False]

        def work(left: float) -> Outcome:
            result: Outcome | None = None
            call = self._decoding.Generate(request, timeout=left, metadata=self._metadata)
            try:
                for message in call:
                    event = read_event(message)
                    if isinstance(event, Outcome):
                        result = event
                    elif event is not None and on_event is not None:
                        told[0] = True
                        on_event(event)
            finally:
                call.cancel()
            if result is None:
                raise SidecarError("INTERNAL", "the stream ended without a summary")
            return result

        return self._tried(work, timeout_seconds, lambda: not told[0])

    def generate_once(
        self,
        prompt: Prompt,
        *,
        constraint: Any = None,
        strategy: Strategy | Mapping[str, Any] | None = None,
        model: str = "",
        occurrence: int = 0,
        timeout_seconds: float | None = None,
    ) -> Outcome:
        """As `generate`, by one message there and one back."""
        built = built_strategy(strategy, constraint)
        request = generate_request(prompt, built, model=model, occurrence=occurrence, events=False)

        def work(left: float) -> Outcome:
            response: pb.GenerateResponse = self._decoding.GenerateOnce(
                request, timeout=left, metadata=self._metadata
            )
            return outcome(response.summary)

        return self._tried(work, timeout_seconds)

    def models(self, timeout_seconds: float | None = None) -> list[ModelInfo]:
        """The models of the server."""
        request = models_pb2.ListModelsRequest()

        def work(left: float) -> list[ModelInfo]:
            told = self._models.List(request, timeout=left, metadata=self._metadata)
            return [model_info(each) for each in told.models]

        return self._tried(work, timeout_seconds)

    def process(
        self,
        vocabulary: KnownVocabulary,
        row_size: int,
        *,
        constraint: Any = None,
        strategy: Strategy | Mapping[str, Any] | None = None,
        answer: Answer = "token",
        dtype: LogitsType = "float32",
        eos_ids: Sequence[int] = (),
        shared_rows: int = 0,
    ) -> SequenceStream:
        """A stream for sequences whose logits the caller has.

        See `ProcessOptions`. A Vocabulary that the server does not know is sent to it.
        """
        options = ProcessOptions(
            vocabulary,
            row_size,
            without_particles(built_strategy(strategy, constraint)),
            answer,
            dtype,
            tuple(eos_ids),
            shared_rows=shared_rows,
        )
        return SequenceStream(self._open, options)

    def particles(
        self,
        vocabulary: KnownVocabulary,
        row_size: int,
        *,
        constraint: Any = None,
        strategy: Strategy | Mapping[str, Any] | None = None,
        dtype: LogitsType = "float32",
        eos_ids: Sequence[int] = (),
        sequence: int = 0,
        shared_rows: int = 0,
    ) -> ParticleStream:
        """A stream for one run of `strategy.smc` over logits that the caller has.

        See `ProcessOptions`. sequence: `sequence_of(prompt ids)` gives the particles that `run`
        has over the same logits in process.
        """
        options = ProcessOptions(
            vocabulary,
            row_size,
            with_particles(built_strategy(strategy, constraint)),
            "token",
            dtype,
            tuple(eos_ids),
            sequence,
            shared_rows,
        )
        return ParticleStream(self._open, options)

    def close(self) -> None:
        """End all calls."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> BlockingCall[process_pb.ProcessRequest, process_pb.ProcessResponse]:
        return BlockingCall(self._processing.Process, self._metadata)

    def _tried(
        self,
        work: Callable[[float], T],
        timeout_seconds: float | None,
        again: Callable[[], bool] = lambda: True,
    ) -> T:
        """Do it once, or more often where it may be."""
        end = time.monotonic() + (timeout_seconds or self._timeout_seconds)
        attempt = 0
        while True:
            attempt += 1
            try:
                return work(max(end - time.monotonic(), 0.001))
            except grpc.RpcError as error:
                failure = failure_of(error)
            wait = None
            if isinstance(failure, SidecarError) and failure.may_succeed_later and again():
                wait = self._retries.wait_seconds(attempt, failure.retry_seconds)
            if wait is None or time.monotonic() + wait >= end:
                raise failure
            time.sleep(wait)
