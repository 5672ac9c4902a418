"""Models: which there are."""

from __future__ import annotations

from typing import Any

from midstream.adapters.sidecar.models import Models, Served
from midstream.adapters.sidecar.runtime import Service
from midstream.proto.v1 import models_pb2 as pb
from midstream.proto.v1 import models_pb2_grpc as rpc

NAME = "midstream.v1.Models"


class ModelsServicer(rpc.ModelsServicer):
    """See proto/midstream/v1/models.proto."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def Get(  # noqa: N802  # the generated name
        self, request: pb.GetModelRequest, context: Any
    ) -> pb.Model:
        """One model."""
        return self._message(self._models.any(request.model))

    async def List(  # noqa: N802  # the generated name
        self, request: pb.ListModelsRequest, context: Any
    ) -> pb.ListModelsResponse:
        """All of them, the default one first."""
        return pb.ListModelsResponse(models=map(self._message, self._models))

    def _message(self, model: Served) -> pb.Model:
        vocabulary = model.vocabulary
        return pb.Model(
            model=model.alias,
            host=model.host,
            vocabulary_size=len(vocabulary),
            vocabulary_fingerprint=vocabulary.fingerprint,
            eos_ids=vocabulary.eos_ids,
            max_tokens=model.max_tokens,
            is_default=model.alias == self._models.default,
        )


def models_service(models: Models) -> Service:
    """The service."""
    return Service(NAME, rpc.add_ModelsServicer_to_server, ModelsServicer(models))
