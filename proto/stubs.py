"""Types for the generated service code, which the generator leaves without any."""

from __future__ import annotations

from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodDescriptorProto

HEAD = """\
from typing import Any

import grpc
import grpc.aio

from midstream.proto.v1 import {module}_pb2 as pb
"""


def service_types(file: FileDescriptorProto, module: str) -> str:
    """The text of MODULE_pb2_grpc.pyi.

    Calls of a stub are Any: they differ between the channels of grpc and of grpc.aio.
    """
    parts = [HEAD.format(module=module)]
    for service in file.service:
        name = service.name
        calls = "".join(f"    {method.name}: Any\n" for method in service.method)
        methods = "".join(map(_method, service.method))
        parts.append(
            f"class {name}Stub:\n"
            "    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ...\n"
            f"{calls}"
        )
        parts.append(f"class {name}Servicer:\n{methods}")
        parts.append(
            f"def add_{name}Servicer_to_server(\n"
            f"    servicer: {name}Servicer, server: grpc.Server | grpc.aio.Server\n"
            ") -> None: ...\n"
        )
    return "\n".join(parts)


def _method(method: MethodDescriptorProto) -> str:
    request = "Any" if method.client_streaming else "pb." + method.input_type.rpartition(".")[2]
    return f"    def {method.name}(self, request: {request}, context: Any) -> Any: ...\n"
