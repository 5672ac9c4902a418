from typing import Any

import grpc
import grpc.aio

from midstream.proto.v1 import logits_processing_pb2 as pb

class LogitsProcessingStub:
    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ...
    Process: Any

class LogitsProcessingServicer:
    def Process(self, request: Any, context: Any) -> Any: ...

def add_LogitsProcessingServicer_to_server(
    servicer: LogitsProcessingServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...
