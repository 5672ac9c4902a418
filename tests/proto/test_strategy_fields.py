"""midstream.v1.Strategy is the pydantic model field for field, both ways."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from pydantic import BaseModel

from midstream.middleware.strategy import (
    AwrsData,
    HealingData,
    LawData,
    LimitsData,
    SmcData,
    Strategy,
)
from midstream.middleware.strategy_constraint import KINDS
from midstream.proto.v1 import strategy_pb2 as pb

PROTO = Path(__file__).resolve().parents[2] / "proto" / "midstream" / "v1" / "strategy.proto"

PAIRS: list[tuple[type[BaseModel], Descriptor]] = [
    (Strategy, pb.Strategy.DESCRIPTOR),
    (SmcData, pb.Smc.DESCRIPTOR),
    (LawData, pb.Law.DESCRIPTOR),
    (LimitsData, pb.Limits.DESCRIPTOR),
    (AwrsData, pb.Awrs.DESCRIPTOR),
    (HealingData, pb.Healing.DESCRIPTOR),
]
"""Parts that are an object on both sides. Constraints and samplers are told by their kind."""

SCALARS = {
    int: (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64),
    float: (FieldDescriptor.TYPE_DOUBLE,),
    str: (FieldDescriptor.TYPE_STRING,),
}


def _core(annotation: Any) -> set[Any]:
    """The types behind Annotated, Optional and Literal."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _core(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        parts = (_core(each) for each in get_args(annotation) if each is not type(None))
        return set().union(*parts)
    if origin is Literal:
        return {type(each) for each in get_args(annotation)}
    return {annotation}


@pytest.mark.parametrize(
    ("model", "message"), PAIRS, ids=lambda each: each.__name__ if isinstance(each, type) else ""
)
def test_names_kinds_and_presence_are_the_same(model: type[BaseModel], message: Descriptor) -> None:
    assert list(model.model_fields) == [field.name for field in message.fields]
    for field in message.fields:
        assert field.has_presence, f"{field.full_name} cannot be told from its default"
        annotation = model.model_fields[field.name].annotation
        kinds = _core(annotation)
        if field.message_type is not None:
            assert all(kind is str or issubclass(kind, BaseModel) for kind in kinds)
        else:
            (kind,) = kinds
            assert field.type in SCALARS[kind], field.full_name


def test_only_the_seed_is_wider_than_32_bits() -> None:
    wide = [
        field.full_name
        for _, message in PAIRS
        for field in message.fields
        if field.type == FieldDescriptor.TYPE_UINT64
    ]
    assert wide == ["midstream.v1.Strategy.seed"]


def test_every_message_of_the_file_is_walked() -> None:
    """A part that a later capability adds has to be added above, or it would go untested."""
    told_by_kind = {"Constraint", "JsonSchema", "Choice", "AllOf", "Sampler"}
    walked = {message.name for _, message in PAIRS} | told_by_kind
    assert set(pb.DESCRIPTOR.message_types_by_name) == walked


def test_constraints_have_the_same_kinds() -> None:
    kinds = pb.Constraint.DESCRIPTOR.oneofs_by_name["kind"].fields
    assert [field.name for field in kinds] == list(KINDS)
    for field in kinds:
        names = set(KINDS[field.name].model_fields) - {field.name}
        if field.message_type is None:
            assert names == set()
        else:  # the value of the key, and what may stand beside it
            beside = {each.name for each in field.message_type.fields if each.has_presence}
            assert beside == names


def test_samplers_have_the_same_kinds() -> None:
    assert [field.name for field in pb.Sampler.DESCRIPTOR.fields] == ["name", "awrs"]
    assert pb.Sampler.DESCRIPTOR.fields_by_name["awrs"].message_type.name == "Awrs"


def _documented() -> Iterator[tuple[str, str, str]]:
    """Message, field and default, where the comments of the .proto file tell one."""
    message, comment = "", ""
    for line in PROTO.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("message "):
            message = text.split()[1]
        if text.startswith("//"):
            comment += " " + text.removeprefix("//").strip()
            continue
        field = re.match(r"(?:optional )?[\w.]+ (\w+) = \d+;", text)
        default = re.search(r"Default: (.+?)\.(?: |$)|(\S+) \(default\)", comment)
        if field and default:
            yield message, field.group(1), (default.group(1) or default.group(2)).strip('"')
        comment = ""


def test_the_comments_tell_the_defaults() -> None:
    models = {message.name: model for model, message in PAIRS}
    models["JsonSchema"] = KINDS["json_schema"]
    expected = {
        (name, field): default if isinstance(default, str) else f"{default:g}"
        for name, model in models.items()
        for field, default in ((field, info.default) for field, info in model.model_fields.items())
        if isinstance(default, int | float | str)
    }
    assert {(message, field): default for message, field, default in _documented()} == expected
