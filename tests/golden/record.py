"""python -m tests.golden.record: keep bytes of each message as this revision writes them, for all later ones to read.

It only ever adds: numbers to descriptor.json, and a message or body that holds what no file here holds yet. Files that
are here are never written again; they stand for what is on the disks of labs. (Where a field is dropped and its number
reserved, its lines leave the .json by hand; the .bin stays.)
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cgpo_proto import link_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from policy.wire import encode_body
from tests.golden.expected import BODIES
from tests.schema_history import REMEDY, Schema, broken_promises, describe, with_additions

FOLDER = Path(__file__).parent
DESCRIPTOR_PATH = FOLDER / "descriptor.json"
MESSAGES: dict[str, Descriptor] = dict(link_pb2.DESCRIPTOR.message_types_by_name)


def schema() -> Schema:
    """Return what the schema of this revision promises."""
    file = FileDescriptorProto()
    link_pb2.DESCRIPTOR.CopyToProto(file)
    return describe(file)


def message_paths(name: str) -> list[Path]:
    """Return the recorded bytes of one message, oldest first."""
    return sorted((FOLDER / "messages").glob(f"{name}.*.bin"))


def parse(name: str, data: bytes) -> Message:
    message: Message = getattr(link_pb2, name)()
    message.ParseFromString(data)
    return message


def as_dict(message: Message) -> dict[str, Any]:
    """Return every field that is set, by name."""
    result: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return result


def fields_without_bytes(name: str) -> set[str]:
    """Return the fields of a message that no recorded bytes of it hold."""
    held = {field.name for path in message_paths(name) for field, _ in parse(name, path.read_bytes()).ListFields()}
    return {field.name for field in MESSAGES[name].fields} - held


def full_messages(name: str) -> Iterator[Message]:
    """Yield messages with every field set, to a value that tells it from the others; several where a oneof chooses."""
    alternatives = [field for oneof in _choices(MESSAGES[name]) for field in oneof.fields]
    for chosen in alternatives or [None]:
        yield _fill(getattr(link_pb2, name)(), chosen)


def _choices(descriptor: Descriptor) -> list[Any]:
    return [oneof for oneof in descriptor.oneofs if not oneof.name.startswith("_")]  # protoc's name for `optional`


def _fill(message: Any, chosen: FieldDescriptor | None) -> Any:
    for field in message.DESCRIPTOR.fields:
        if chosen is not None and field is not chosen and field.containing_oneof is chosen.containing_oneof:
            continue
        if field.message_type:
            targets = [getattr(message, field.name)]
            if field.is_repeated:
                targets = [targets[0].add(), targets[0].add()]
            for target in targets:
                _fill(target, next((oneof.fields[0] for oneof in _choices(field.message_type)), None))
                target.SetInParent()
        elif field.is_repeated:
            getattr(message, field.name).extend([_value(field, 0), _value(field, 1)])
        else:
            setattr(message, field.name, _value(field, 0))
    return message


def _value(field: FieldDescriptor, index: int) -> Any:
    number = 1000 * field.number + index
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return (
                f"{field.name} {number}" if field.type == FieldDescriptor.TYPE_STRING else bytes([field.number, 0, 255])
            )
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_ENUM:
            assert field.enum_type is not None
            return field.enum_type.values[1 + index].number
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return number + 0.25
        case FieldDescriptor.CPPTYPE_UINT64:
            return (1 << 40) + number
        case FieldDescriptor.CPPTYPE_UINT32:
            return (1 << 24) + number
    raise TypeError(f"{field.full_name}: this kind of field has no value here yet")


def main() -> None:
    recorded: Schema = json.loads(DESCRIPTOR_PATH.read_text()) if DESCRIPTOR_PATH.exists() else {}
    if broken := broken_promises(recorded, schema()):
        sys.exit("\n".join([*broken, REMEDY]))
    DESCRIPTOR_PATH.write_text(json.dumps(with_additions(recorded, schema()), indent=1) + "\n")
    for name in MESSAGES:
        for message in full_messages(name):
            if fields_without_bytes(name) & {field.name for field, _ in message.ListFields()}:
                path = FOLDER / "messages" / f"{name}.{len(message_paths(name)) + 1}.bin"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(message.SerializeToString(deterministic=True))
                path.with_suffix(".json").write_text(json.dumps(as_dict(message), indent=1) + "\n")
    for name, body in BODIES.items():
        path = FOLDER / "bodies" / f"{name}.bin"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_bytes(encode_body(body))


if __name__ == "__main__":
    main()
