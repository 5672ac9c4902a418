"""A server with every service and its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from midstream.adapters.sidecar.bytes_service import bytes_service
from midstream.adapters.sidecar.decoding_service import decoding
from midstream.adapters.sidecar.logits_processing_service import logits_processing
from midstream.adapters.sidecar.models import Models, Source
from midstream.adapters.sidecar.models_service import models_service
from midstream.adapters.sidecar.runtime import Runtime, Service
from midstream.adapters.sidecar.server import Sidecar
from midstream.adapters.sidecar.settings import ServerSettings


def sidecar(settings: ServerSettings, sources: Mapping[str, Source]) -> Sidecar:
    """The server, to be started.

    sources: the models by alias (see `Models`); they are loaded once it listens. Raises InputError
    for an alias that is none.
    """
    models = Models(sources, settings.limits)

    def services(runtime: Runtime) -> Sequence[Service]:
        return [
            decoding(runtime, models),
            logits_processing(runtime, models.vocabularies),
            models_service(models),
            bytes_service(runtime, models),
        ]

    return Sidecar(settings, services, models.load)
