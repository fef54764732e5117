"""What a wire schema promises for ever, as text that a person can read, and what a later schema breaks of it.

Spools and logs on the disks of labs hold what earlier releases wrote, so a number keeps its meaning for good: a field
may be added under a new number, or be dropped and its number reserved. Nothing else.
"""

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)

Schema = dict[str, dict[str, str]]
"""Message, enum or service -> number (or method) -> what it means; "reserved" lists numbers, comma-separated."""

_RESERVED = "reserved"
REMEDY = (
    "What is on disks and in older programs keeps its meaning: leave the old number as it was, give what is new a "
    "number that was never used, and write `reserved N;` for one that is dropped."
)


def describe(file: FileDescriptorProto) -> Schema:
    """Return every promise of a schema."""
    schema: Schema = {}
    for message in file.message_type:
        _describe_message(schema, f"message {message.name}", message)
    for enum in file.enum_type:
        schema[f"enum {enum.name}"] = _enum(enum)
    for service in file.service:
        schema[f"service {file.package}.{service.name}"] = _methods(service)
    return schema


def broken_promises(recorded: Schema, current: Schema) -> list[str]:
    """Return what of `recorded` no longer holds in `current`, one line each."""
    broken = []
    for name, promises in recorded.items():
        if name not in current:
            broken.append(f"{name} is gone")
            continue
        now = current[name]
        reserved_now = _numbers(now)
        for number, meaning in promises.items():
            if number == _RESERVED or now.get(number) == meaning:
                continue
            if number in now:
                broken.append(f"{name}, {number}: was {meaning!r}, is {now[number]!r}")
            elif number not in reserved_now:
                broken.append(f"{name}, {number}: {meaning!r} is gone and the number is not reserved")
        for number in sorted(_numbers(promises) - reserved_now):
            broken.append(f"{name}, {number}: was reserved and is not")
    return broken


def unrecorded(recorded: Schema, current: Schema) -> list[str]:
    """Return what `current` promises beyond `recorded`, one line each."""
    new = []
    for name, promises in current.items():
        before = recorded.get(name, {})
        added = promises.keys() - before.keys() - {_RESERVED}
        new += [f"{name}, {number}: {promises[number]!r}" for number in sorted(added)]
        new += [f"{name}, {number}: reserved" for number in sorted(_numbers(promises) - _numbers(before))]
    return new


def with_additions(recorded: Schema, current: Schema) -> Schema:
    """Return both together: old promises stay as they are, also those of numbers that were dropped and reserved."""
    merged: Schema = {}
    for name in [*recorded, *(name for name in current if name not in recorded)]:
        before, now = recorded.get(name, {}), current.get(name, {})
        merged[name] = {**now, **before}
        reserved = _numbers(before) | _numbers(now)
        if reserved:
            merged[name][_RESERVED] = ", ".join(sorted(reserved, key=int))
    return merged


def _describe_message(schema: Schema, name: str, message: DescriptorProto) -> None:
    fields = {str(field.number): _field(field, message) for field in message.field}
    reserved = {number for span in message.reserved_range for number in range(span.start, span.end)}
    schema[name] = _with_reserved(fields, reserved)
    for nested in message.nested_type:
        _describe_message(schema, f"{name}.{nested.name}", nested)
    for enum in message.enum_type:
        schema[f"{name}.{enum.name} (enum)"] = _enum(enum)


def _field(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    kind = field.type_name or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.proto3_optional:
        label = "optional "
    elif field.HasField("oneof_index"):
        label = f"oneof {message.oneof_decl[field.oneof_index].name}: "
    elif field.label == FieldDescriptorProto.LABEL_REPEATED:
        label = "repeated "
    else:
        label = ""
    return f"{label}{kind} {field.name}"


def _enum(enum: EnumDescriptorProto) -> dict[str, str]:
    values = {str(value.number): value.name for value in enum.value}
    return _with_reserved(values, {n for span in enum.reserved_range for n in range(span.start, span.end + 1)})


def _methods(service: ServiceDescriptorProto) -> dict[str, str]:
    def side(type_name: str, is_stream: bool) -> str:
        return f"{'stream ' if is_stream else ''}{type_name}"

    return {
        method.name: f"({side(method.input_type, method.client_streaming)}) returns "
        f"({side(method.output_type, method.server_streaming)})"
        for method in service.method
    }


def _with_reserved(promises: dict[str, str], reserved: set[int]) -> dict[str, str]:
    return promises | ({_RESERVED: ", ".join(map(str, sorted(reserved)))} if reserved else {})


def _numbers(promises: dict[str, str]) -> set[str]:
    return set(filter(None, promises.get(_RESERVED, "").split(", ")))
