"""What a server tells of its work: metrics and traces together."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType

from midstream.adapters.sidecar.metrics import Metrics
from midstream.adapters.sidecar.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Metrics and traces of one server."""

    metrics: Metrics = field(default_factory=Metrics)
    tracing: Tracing = field(default_factory=Tracing)

    def phase(self, service: str, phase: str) -> Phase:
        """Time a phase of a step: compile, draw, forward, ..."""
        return Phase(self, service, phase)


class Phase:
    """A context whose time is told. A class: a generator would cost each step some microseconds."""

    __slots__ = ("_begin", "_metrics", "_phase", "_service", "_span")

    def __init__(self, telemetry: Telemetry, service: str, phase: str) -> None:
        self._metrics = telemetry.metrics
        self._service = service
        self._phase = phase
        self._span = telemetry.tracing.phase(phase)

    def __enter__(self) -> None:
        self._span.__enter__()
        self._begin = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._metrics.step_seconds(self._service, self._phase, time.perf_counter() - self._begin)
        self._span.__exit__(kind, error, trace)
