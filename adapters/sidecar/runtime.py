"""What the services of one server share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.pool import Pool
from midstream.adapters.sidecar.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Runtime:
    """Bounds, threads and telemetry.

    compiling: threads for vocabularies and constraints. drawing: threads for steps, which a slow
    compilation does not hold up. reading: the thread for byte laws. allow_shared_memory: whether
    streams may register regions.
    """

    limits: Limits
    compiling: Pool
    drawing: Pool
    telemetry: Telemetry
    reading: Pool
    allow_shared_memory: bool = False

    def close(self) -> None:
        """Let go of the threads."""
        self.compiling.close()
        self.drawing.close()
        self.reading.close()


@dataclass(frozen=True, slots=True)
class Service:
    """A servicer and how it is registered.

    name: its full name, as health tells it. add: the generated function for it.
    """

    name: str
    add: Callable[[Any, Any], None]
    servicer: Any


def open_runtime(
    limits: Limits, telemetry: Telemetry, allow_shared_memory: bool = False
) -> Runtime:
    """A runtime with threads of its own, to be closed."""
    compiling = Pool("compile", limits.compile_workers, telemetry.metrics)
    drawing = Pool("draw", limits.workers, telemetry.metrics)
    reading = Pool("read", 1, telemetry.metrics)
    return Runtime(limits, compiling, drawing, telemetry, reading, allow_shared_memory)
