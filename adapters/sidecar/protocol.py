"""What both ends of a Process stream know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from midstream.proto.v1 import logits_processing_pb2 as pb
from midstream.proto.v1 import tensor_pb2

VERSION = 1

Answer: TypeAlias = Literal["token", "mask", "logits"]

ANSWERS: Mapping[pb.Answer, Answer] = {
    pb.ANSWER_TOKEN: "token",
    pb.ANSWER_MASK: "mask",
    pb.ANSWER_LOGITS: "logits",
}

LogitsType: TypeAlias = Literal["float32", "float64", "float16", "bfloat16"]

LOGITS_TYPES: Mapping[tensor_pb2.Dtype, LogitsType] = {
    tensor_pb2.DTYPE_FLOAT32: "float32",
    tensor_pb2.DTYPE_FLOAT64: "float64",
    tensor_pb2.DTYPE_FLOAT16: "float16",
    tensor_pb2.DTYPE_BFLOAT16: "bfloat16",
}
"""The types that logits may have."""
