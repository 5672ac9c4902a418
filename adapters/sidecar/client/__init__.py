"""Typed clients of the sidecar, for code that blocks and for event loops."""

from __future__ import annotations

from midstream.adapters.sidecar.client.aio import AsyncClient
from midstream.adapters.sidecar.client.aio_streams import (
    AsyncParticleStream,
    AsyncSequenceStream,
)
from midstream.adapters.sidecar.client.blocking import Client
from midstream.adapters.sidecar.client.byte_calls import AsyncByteCalls, ByteCalls
from midstream.adapters.sidecar.client.byte_values import (
    HealedText,
    NextByteLaw,
    Reading,
    TextCover,
    TextScore,
)
from midstream.adapters.sidecar.client.connection import ClientTls, Retries
from midstream.adapters.sidecar.client.errors import SidecarError
from midstream.adapters.sidecar.client.requests import (
    DrawnToken,
    Event,
    ModelInfo,
    StartedEvent,
    TokensEvent,
)
from midstream.adapters.sidecar.client.session import (
    ProcessOptions,
    ReadyInfo,
    RowOfStep,
    SequenceStep,
    StepResult,
)
from midstream.adapters.sidecar.client.streams import ParticleStream, SequenceStream
from midstream.adapters.sidecar.wire.results import Outcome, ResamplingEvent, WeightedText

__all__ = [
    "AsyncByteCalls",
    "AsyncClient",
    "AsyncParticleStream",
    "AsyncSequenceStream",
    "ByteCalls",
    "Client",
    "ClientTls",
    "DrawnToken",
    "Event",
    "HealedText",
    "ModelInfo",
    "NextByteLaw",
    "Outcome",
    "ParticleStream",
    "ProcessOptions",
    "Reading",
    "ReadyInfo",
    "ResamplingEvent",
    "Retries",
    "RowOfStep",
    "SequenceStep",
    "SequenceStream",
    "SidecarError",
    "StartedEvent",
    "StepResult",
    "TextCover",
    "TextScore",
    "TokensEvent",
    "WeightedText",
]
