from typing import Any

import grpc
import grpc.aio

from midstream.proto.v1 import models_pb2 as pb

class ModelsStub:
    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ...
    Get: Any
    List: Any

class ModelsServicer:
    def Get(self, request: pb.GetModelRequest, context: Any) -> Any: ...
    def List(self, request: pb.ListModelsRequest, context: Any) -> Any: ...

def add_ModelsServicer_to_server(
    servicer: ModelsServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...
