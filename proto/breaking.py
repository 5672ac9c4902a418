"""What a change of the protos breaks for clients that were built before it.

Additions (fields, values, messages, rpcs, files) break nothing. What goes away, or keeps its number
and changes its name, type, presence or direction, does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)


def breaking_changes(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """One line for each thing of `old` that `new` does not have as it was; [] where none is."""
    files = {file.name: file for file in new.file}
    changes: list[str] = []
    for file in old.file:
        if file.name not in files:
            changes.append(f"{file.name}: the file is gone")
        else:
            changes += _file(file, files[file.name])
    return changes


def _file(old: FileDescriptorProto, new: FileDescriptorProto) -> list[str]:
    if old.package != new.package:
        return [f"{old.name}: package {old.package} is now {new.package}"]
    prefix = old.package
    changes = _messages(prefix, old.message_type, new.message_type)
    changes += _enums(prefix, old.enum_type, new.enum_type)
    services = {service.name: service for service in new.service}
    for service in old.service:
        changes += _service(f"{prefix}.{service.name}", service, services.get(service.name))
    return changes


def _messages(
    prefix: str, old: Iterable[DescriptorProto], new: Iterable[DescriptorProto]
) -> list[str]:
    messages = {message.name: message for message in new}
    changes: list[str] = []
    for message in old:
        name = f"{prefix}.{message.name}"
        if message.name not in messages:
            changes.append(f"{name}: the message is gone")
            continue
        other = messages[message.name]
        fields = {field.number: field for field in other.field}
        oneofs = _oneofs(message), _oneofs(other)
        for field in message.field:
            changes += _field(name, field, fields.get(field.number), oneofs)
        changes += _messages(name, message.nested_type, other.nested_type)
        changes += _enums(name, message.enum_type, other.enum_type)
    return changes


def _oneofs(message: DescriptorProto) -> Mapping[int, str]:
    """By a field's number, the oneof that it is in. `optional` counts as one of its own."""
    return {
        field.number: message.oneof_decl[field.oneof_index].name
        for field in message.field
        if field.HasField("oneof_index")
    }


def _field(
    message: str,
    old: FieldDescriptorProto,
    new: FieldDescriptorProto | None,
    oneofs: tuple[Mapping[int, str], Mapping[int, str]],
) -> list[str]:
    name = f"{message}.{old.name}"
    if new is None:
        return [f"{name}: field {old.number} is gone"]
    before, after = (each.get(old.number) for each in oneofs)
    pairs = (
        ("name", old.name, new.name),
        ("type", (old.type, old.type_name), (new.type, new.type_name)),
        ("label", old.label, new.label),
        ("oneof", before, after),
    )
    return [f"{name}: its {what} was {a} and is {b}" for what, a, b in pairs if a != b]


def _enums(
    prefix: str, old: Iterable[EnumDescriptorProto], new: Iterable[EnumDescriptorProto]
) -> list[str]:
    enums = {enum.name: enum for enum in new}
    changes: list[str] = []
    for enum in old:
        name = f"{prefix}.{enum.name}"
        if enum.name not in enums:
            changes.append(f"{name}: the enum is gone")
            continue
        values = {value.number: value.name for value in enums[enum.name].value}
        for value in enum.value:
            if values.get(value.number) != value.name:
                changes.append(f"{name}.{value.name}: value {value.number} is gone or renamed")
    return changes


def _service(
    name: str, old: ServiceDescriptorProto, new: ServiceDescriptorProto | None
) -> list[str]:
    if new is None:
        return [f"{name}: the service is gone"]
    methods = {method.name: method for method in new.method}
    changes: list[str] = []
    for method in old.method:
        other = methods.get(method.name)
        if other is None:
            changes.append(f"{name}.{method.name}: the rpc is gone")
            continue
        for what in ("input_type", "output_type", "client_streaming", "server_streaming"):
            a, b = getattr(method, what), getattr(other, what)
            if a != b:
                changes.append(f"{name}.{method.name}: its {what} was {a} and is {b}")
    return changes
