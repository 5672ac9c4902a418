"""The protos keep what the committed descriptor set promises, and a breach of it is seen."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

from midstream.proto.breaking import breaking_changes
from midstream.proto.generate import BASELINE, FOLDER


@pytest.fixture
def promised() -> FileDescriptorSet:
    """The committed descriptor set."""
    return FileDescriptorSet.FromString((FOLDER / BASELINE).read_bytes())


def _current() -> FileDescriptorSet:
    """What the generated code holds."""
    found = FileDescriptorSet()
    for path in sorted((FOLDER / "v1").glob("*_pb2.py")):
        module = importlib.import_module(f"midstream.proto.v1.{path.stem}")
        module.DESCRIPTOR.CopyToProto(found.file.add())
    return found


def test_nothing_that_was_promised_is_gone(promised: FileDescriptorSet) -> None:
    assert breaking_changes(promised, _current()) == []


def test_what_was_added_is_promised_too(promised: FileDescriptorSet) -> None:
    assert breaking_changes(_current(), promised) == []


def _file(protos: FileDescriptorSet, name: str) -> FileDescriptorProto:
    return next(file for file in protos.file if file.name == f"midstream/v1/{name}.proto")


def _message(protos: FileDescriptorSet, file: str, name: str) -> DescriptorProto:
    return next(each for each in _file(protos, file).message_type if each.name == name)


def _field(protos: FileDescriptorSet, file: str, name: str, field: str) -> FieldDescriptorProto:
    return next(each for each in _message(protos, file, name).field if each.name == field)


def _remove_field(protos: FileDescriptorSet) -> None:
    del _message(protos, "models", "Model").field[2]


def _renumber(protos: FileDescriptorSet) -> None:
    _field(protos, "strategy", "Smc", "particles").number = 9


def _retype(protos: FileDescriptorSet) -> None:
    _field(protos, "strategy", "Strategy", "seed").type = FieldDescriptorProto.TYPE_UINT32


def _retype_message(protos: FileDescriptorSet) -> None:
    _field(protos, "decoding", "GenerateRequest", "strategy").type_name = ".midstream.v1.Smc"


def _rename(protos: FileDescriptorSet) -> None:
    _field(protos, "strategy", "Law", "top_k").name = "k"


def _repeat(protos: FileDescriptorSet) -> None:
    field = _field(protos, "models", "Model", "max_tokens")
    field.label = FieldDescriptorProto.LABEL_REPEATED


def _drop_presence(protos: FileDescriptorSet) -> None:
    _field(protos, "strategy", "Law", "temperature").ClearField("oneof_index")


def _leave_oneof(protos: FileDescriptorSet) -> None:
    _field(protos, "strategy", "Constraint", "regex").ClearField("oneof_index")


def _remove_message(protos: FileDescriptorSet) -> None:
    messages = _file(protos, "strategy").message_type
    del messages[[each.name for each in messages].index("Awrs")]


def _remove_enum(protos: FileDescriptorSet) -> None:
    del _file(protos, "tensor").enum_type[0]


def _remove_value(protos: FileDescriptorSet) -> None:
    del _file(protos, "status").enum_type[0].value[3]


def _rename_value(protos: FileDescriptorSet) -> None:
    _file(protos, "tensor").enum_type[0].value[1].name = "DTYPE_SINGLE"


def _remove_rpc(protos: FileDescriptorSet) -> None:
    del _file(protos, "decoding").service[0].method[0]


def _remove_service(protos: FileDescriptorSet) -> None:
    del _file(protos, "models").service[0]


def _stop_streaming(protos: FileDescriptorSet) -> None:
    _file(protos, "logits_processing").service[0].method[0].client_streaming = False


def _change_request(protos: FileDescriptorSet) -> None:
    _file(protos, "models").service[0].method[0].input_type = ".midstream.v1.Model"


def _rename_package(protos: FileDescriptorSet) -> None:
    _file(protos, "models").package = "midstream.v2"


def _remove_file(protos: FileDescriptorSet) -> None:
    del protos.file[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_remove_field, "midstream.v1.Model.vocabulary_size: field 3 is gone"),
        (_renumber, "midstream.v1.Smc.particles: field 1 is gone"),
        (_retype, "midstream.v1.Strategy.seed: its type was (4, '') and is (13, '')"),
        (_retype_message, "midstream.v1.GenerateRequest.strategy: its type was"),
        (_rename, "midstream.v1.Law.top_k: its name was top_k and is k"),
        (_repeat, "midstream.v1.Model.max_tokens: its label was 1 and is 3"),
        (_drop_presence, "midstream.v1.Law.temperature: its oneof was _temperature and is None"),
        (_leave_oneof, "midstream.v1.Constraint.regex: its oneof was kind and is None"),
        (_remove_message, "midstream.v1.Awrs: the message is gone"),
        (_remove_enum, "midstream.v1.Dtype: the enum is gone"),
        (_remove_value, "midstream.v1.SequenceStatus.SEQUENCE_STATUS_LENGTH: value 3 is gone"),
        (_rename_value, "midstream.v1.Dtype.DTYPE_FLOAT32: value 1 is gone or renamed"),
        (_remove_rpc, "midstream.v1.Decoding.Generate: the rpc is gone"),
        (_remove_service, "midstream.v1.Models: the service is gone"),
        (_stop_streaming, "midstream.v1.LogitsProcessing.Process: its client_streaming was True"),
        (_change_request, "midstream.v1.Models.Get: its input_type was"),
        (_rename_package, "midstream/v1/models.proto: package midstream.v1 is now midstream.v2"),
        (_remove_file, ": the file is gone"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_change_that_breaks_clients_is_told(
    promised: FileDescriptorSet, change: Callable[[FileDescriptorSet], None], told: str
) -> None:
    after = FileDescriptorSet()
    after.CopyFrom(promised)
    change(after)
    (line, *_) = breaking_changes(promised, after)
    assert told in line


def test_additions_break_nothing(promised: FileDescriptorSet) -> None:
    after = FileDescriptorSet()
    after.CopyFrom(promised)
    _message(after, "models", "Model").field.add(
        name="adapters", number=99, type=FieldDescriptorProto.TYPE_STRING
    )
    _file(after, "models").message_type.add(name="Adapter")
    _file(after, "models").service[0].method.add(name="Unload")
    _file(after, "status").enum_type[0].value.add(name="SEQUENCE_STATUS_PAUSED", number=99)
    after.file.add(name="midstream/v1/fusion.proto", package="midstream.v1")
    assert breaking_changes(promised, after) == []
    assert breaking_changes(after, promised) != []
