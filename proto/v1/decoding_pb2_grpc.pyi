from typing import Any

import grpc
import grpc.aio

from midstream.proto.v1 import decoding_pb2 as pb

class DecodingStub:
    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ...
    Generate: Any
    GenerateOnce: Any

class DecodingServicer:
    def Generate(self, request: pb.GenerateRequest, context: Any) -> Any: ...
    def GenerateOnce(self, request: pb.GenerateRequest, context: Any) -> Any: ...

def add_DecodingServicer_to_server(
    servicer: DecodingServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...
