from typing import Any

import grpc
import grpc.aio

from midstream.proto.v1 import bytes_pb2 as pb

class BytesStub:
    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ...
    NextByte: Any
    Score: Any
    Cover: Any
    Heal: Any

class BytesServicer:
    def NextByte(self, request: pb.NextByteRequest, context: Any) -> Any: ...
    def Score(self, request: pb.ScoreRequest, context: Any) -> Any: ...
    def Cover(self, request: pb.CoverRequest, context: Any) -> Any: ...
    def Heal(self, request: pb.HealRequest, context: Any) -> Any: ...

def add_BytesServicer_to_server(
    servicer: BytesServicer, server: grpc.Server | grpc.aio.Server
) -> None: ...
