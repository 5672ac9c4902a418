"""Messages as they are sent: good, changed in some fields, of any content, cut, or noise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from fuzzing.rules import EOS, TOKENS, Rule
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from midstream.adapters.sidecar.wire.strategy import strategy_message
from midstream.middleware.strategy import Strategy
from midstream.proto.v1 import decoding_pb2, strategy_pb2, tensor_pb2
from midstream.proto.v1 import logits_processing_pb2 as pb

ROW = 14
REGION = f"midstream-fuzz-{os.getpid()}"
REGION_BYTES = 4 * 8 * ROW * 8

TRUNCATIONS = st.sampled_from(
    [{}, {"top_k": 4, "truncation": "target"}, {"top_p": 0.9, "truncation": "target"}]
)


def strategies(draw: Any, rule: Rule) -> strategy_pb2.Strategy:
    """A strategy that says something."""
    masked = rule.constraint is not None and "all_of" not in rule.constraint
    samplers: list[Any] = ["auto", {"awrs": {"rejects": 64}}, *(["mask"] if masked else [])]
    data: dict[str, Any] = {
        "sampler": draw(st.sampled_from(samplers)),
        "seed": draw(st.integers(0, 3)),
        "limits": {"max_new_tokens": draw(st.integers(2, 9))},
        "law": {"temperature": draw(st.sampled_from([0.5, 1.0, 2.0])), **draw(TRUNCATIONS)},
    }
    if rule.constraint is not None:
        data["constraint"] = rule.constraint
    if draw(st.booleans()):
        data["smc"] = {
            "particles": draw(st.integers(1, 4)),
            "ess_threshold": draw(st.sampled_from([0.0, 0.5, 1.0])),
            "resampling": draw(st.sampled_from(["systematic", "residual", "multinomial"])),
            "finished": draw(st.sampled_from(["aside", "together"])),
        }
    return strategy_message(Strategy(**data))


def a_generate(draw: Any, rule: Rule) -> decoding_pb2.GenerateRequest:
    """A good request."""
    return decoding_pb2.GenerateRequest(
        text=draw(st.sampled_from(["Once", "1 + 1 = ", "\u00e9\u4e16"])),
        strategy=strategies(draw, rule),
        events=draw(st.sampled_from([[], [decoding_pb2.EVENT_KIND_NONE]])),
        occurrence=draw(st.integers(0, 2)),
    )


def a_handshake(draw: Any, rule: Rule) -> pb.Handshake:
    """A good one, for the tokens above."""
    region = pb.Region(name="r", key=REGION, size_bytes=REGION_BYTES)
    answers = [pb.ANSWER_TOKEN, pb.ANSWER_MASK, pb.ANSWER_LOGITS]
    return pb.Handshake(
        protocol_version=1,
        tokens=pb.TokenTable(tokens=TOKENS),
        eos_ids=EOS,
        row_size=ROW,
        dtype=draw(st.sampled_from([tensor_pb2.DTYPE_FLOAT32, tensor_pb2.DTYPE_BFLOAT16])),
        strategy=strategies(draw, rule),
        answer=draw(st.sampled_from(answers)),
        regions=draw(st.sampled_from([[], [region]])),
    )


NUMBERS: Mapping[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(1 << 31), (1 << 31) - 1),
}
TEXTS = ("", "mask", "(", "[a-b]{2,9}", "(a|b)*", "\0\n", "start: /a+/", '{"type":"object"}', "[[[")


def a_value(draw: Any, field: FieldDescriptor, depth: int) -> Any:
    """Anything that a field can hold."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        value = GetMessageClass(field.message_type)()
        for inner in field.message_type.fields if depth else ():
            if draw(st.booleans()):
                put(draw, value, inner, depth - 1)
        return value
    if field.cpp_type in NUMBERS:
        least, most = NUMBERS[field.cpp_type]
        return draw(st.one_of(st.integers(0, 8), st.integers(least, most)))
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return draw(st.one_of(st.floats(0, 1), st.floats()))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return draw(st.booleans())
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw(st.binary(max_size=64))
    no_surrogates = st.characters(exclude_categories=["Cs"])
    return draw(st.one_of(st.sampled_from(TEXTS), st.text(no_surrogates, max_size=40)))


def put(draw: Any, message: Message, field: FieldDescriptor, depth: int = 3) -> None:
    """Give a field some value."""
    old = getattr(message, field.name)
    repeated = hasattr(old, "extend")
    value = a_value(draw, field, depth)
    if repeated:
        old.extend([value] * draw(st.sampled_from([1, 1, 2, 40])))
    elif isinstance(value, Message):
        old.CopyFrom(value)
    else:
        setattr(message, field.name, value)


def change(draw: Any, message: Message) -> None:
    """Change one field of a message, or of one that it holds."""
    field = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
    value = getattr(message, field.name)
    held = [value] if isinstance(value, Message) else list(value) if hasattr(value, "add") else []
    if held and draw(st.integers(0, 3)):
        change(draw, draw(st.sampled_from(held)))
    elif draw(st.booleans()):
        message.ClearField(field.name)
    else:
        put(draw, message, field)


def sent(draw: Any, message: Message) -> bytes:
    """A message as it goes: mostly as it is, else changed, anything of its type, or noise."""
    how = draw(st.sampled_from(["as it is"] * 6 + ["changed"] * 3 + ["any", "cut", "noise"]))
    if how == "changed":
        for _ in range(draw(st.integers(1, 3))):
            change(draw, message)
    elif how == "any":
        message = type(message)()
        for each in message.DESCRIPTOR.fields:
            if draw(st.booleans()):
                put(draw, message, each)
    data = message.SerializeToString()
    if how == "cut":
        return data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=8))
    return draw(st.binary(max_size=64)) if how == "noise" else data
