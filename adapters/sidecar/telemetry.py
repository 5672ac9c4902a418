"""What a server tells of its work: metrics and traces together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from midstream.adapters.sidecar.metrics import Metrics
from midstream.adapters.sidecar.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Metrics and traces of one server."""

    metrics: Metrics = field(default_factory=Metrics)
    tracing: Tracing = field(default_factory=Tracing)

    @contextmanager
    def phase(self, service: str, phase: str) -> Iterator[None]:
        """Time a phase of a step: compile, draw, forward, ..."""
        begin = time.perf_counter()
        with self.tracing.phase(phase):
            try:
                yield
            finally:
                self.metrics.step_seconds(service, phase, time.perf_counter() - begin)
