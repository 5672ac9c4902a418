"""OpenTelemetry traces: a span for each call and for the phases of it. No text of any request."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

NAME = "midstream.sidecar"

PHASE_SPANS = 64
"""Of one call. A long one has thousands of phases: all of them are counted on the call's span."""

_NOTHING = nullcontext()


@dataclass(frozen=True, slots=True)
class _Call:
    """The span of a call, and how many phases of each name took how long."""

    span: Span
    counts: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def end(self) -> None:
        for name, count in self.counts.items():
            self.span.set_attribute(f"midstream.{name}.count", count)
            self.span.set_attribute(f"midstream.{name}.seconds", self.seconds[name])
        self.span.end()


_call: ContextVar[_Call | None] = ContextVar("call", default=None)
"""The call that the current task answers."""


class Tracing:
    """Spans, to an exporter; none where there is no exporter."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        self._tracer = None
        if exporter is None:
            return
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # A provider of its own: the process's global one may be somebody else's.
        resource = Resource.create({"service.name": NAME})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(NAME)

    @contextmanager
    def call(self, method: str, metadata: Mapping[str, str]) -> Iterator[None]:
        """The span of a call, in the trace that its metadata names (`traceparent`)."""
        if self._tracer is None:
            yield
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(metadata)
        name = method.removeprefix("/")
        service, _, rpc = name.partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": rpc}
        call = _Call(self._tracer.start_span(name, parent, SpanKind.SERVER, attributes))
        token = _call.set(call)
        try:
            yield
        finally:
            _call.reset(token)
            call.end()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """A phase of the current call; nothing outside of one."""
        if self._tracer is None or (call := _call.get()) is None:
            return _NOTHING
        return self._phase(self._tracer, call, name)

    @contextmanager
    def _phase(self, tracer: Tracer, call: _Call, name: str) -> Iterator[None]:
        from opentelemetry.trace import set_span_in_context

        call.counts[name] += 1
        few = call.counts.total() <= PHASE_SPANS
        span = tracer.start_span(name, set_span_in_context(call.span)) if few else None
        begin = time.perf_counter()
        try:
            yield
        finally:
            call.seconds[name] += time.perf_counter() - begin
            if span is not None:
                span.end()

    def close(self) -> None:
        """Export what is left."""
        if self._tracer is not None:
            self._provider.shutdown()


def otlp_exporter(endpoint: str) -> SpanExporter:
    """An exporter to an endpoint of OTLP over HTTP, as http://127.0.0.1:4318/v1/traces."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint)
