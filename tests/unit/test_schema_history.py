"""No number of the wire schema ever changes its meaning, and the test that says so can fail."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cgpo_proto import link_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from tests.schema_history import REMEDY, Schema, broken_promises, describe, unrecorded, with_additions

RECORDED: Schema = json.loads((Path(__file__).parents[1] / "golden" / "descriptor.json").read_text())


def current() -> FileDescriptorProto:
    file = FileDescriptorProto()
    link_pb2.DESCRIPTOR.CopyToProto(file)
    return file


def message(file: FileDescriptorProto, name: str) -> DescriptorProto:
    return next(message for message in file.message_type if message.name == name)


def enum(file: FileDescriptorProto, name: str) -> EnumDescriptorProto:
    return next(enum for enum in file.enum_type if enum.name == name)


def field(file: FileDescriptorProto, name: str, of: str) -> FieldDescriptorProto:
    return next(field for field in message(file, of).field if field.name == name)


def test_every_number_means_what_it_meant_when_it_was_recorded() -> None:
    broken = broken_promises(RECORDED, describe(current()))
    assert not broken, "\n".join([*broken, REMEDY])


def test_every_number_is_recorded() -> None:
    new = unrecorded(RECORDED, describe(current()))
    assert not new, "\n".join(
        [*new, "New numbers are recorded by `python -m tests.golden.record`; commit what it adds."]
    )


def drop(file: FileDescriptorProto, name: str, of: str, *, reserve: bool) -> None:
    fields = message(file, of).field
    gone = field(file, name, of)
    if reserve:
        message(file, of).reserved_range.add(start=gone.number, end=gone.number + 1)
    fields.remove(gone)


def swap_numbers(file: FileDescriptorProto) -> None:
    first, second = field(file, "terminated", "Transition"), field(file, "truncated", "Transition")
    first.number, second.number = second.number, first.number


def use_a_reserved_number(file: FileDescriptorProto) -> None:
    del message(file, "Record").reserved_range[:]
    message(file, "Record").field.add(name="note", number=4, type=FieldDescriptorProto.TYPE_STRING)


def leave_the_oneof(file: FileDescriptorProto) -> None:
    field(file, "mark", "Body").ClearField("oneof_index")


def drop_enum_value(file: FileDescriptorProto) -> None:
    del enum(file, "MarkKind").value[-1]


BREAKS: list[tuple[str, Callable[[FileDescriptorProto], object], str]] = [
    ("a field moves", lambda f: setattr(field(f, "reward", "Transition"), "number", 70), "7: 'float reward' is gone"),
    ("two swap", swap_numbers, "8: was 'bool terminated', is 'bool truncated'"),
    ("renamed", lambda f: setattr(field(f, "reward", "Transition"), "name", "score"), "is 'float score'"),
    (
        "another type",
        lambda f: setattr(field(f, "reward", "Transition"), "type", FieldDescriptorProto.TYPE_DOUBLE),
        "7: was 'float reward', is 'double reward'",
    ),
    (
        "another message type",
        lambda f: setattr(field(f, "observation", "Transition"), "type_name", ".cgpo.v1.EpisodeMark"),
        "is '.cgpo.v1.EpisodeMark observation'",
    ),
    (
        "repeated",
        lambda f: setattr(field(f, "actor_id", "Record"), "label", FieldDescriptorProto.LABEL_REPEATED),
        "is 'repeated string actor_id'",
    ),
    (
        "not optional any more",
        lambda f: setattr(field(f, "final_observation", "Transition"), "proto3_optional", False),
        "was 'optional .cgpo.v1.Observation final_observation'",
    ),
    ("out of its oneof", leave_the_oneof, "was 'oneof body: .cgpo.v1.EpisodeMark mark'"),
    ("dropped", lambda f: drop(f, "note", "EpisodeMark", reserve=False), "'string note' is gone and the number is not"),
    ("a reserved number used", use_a_reserved_number, "message Record, 4: was reserved and is not"),
    ("message dropped", lambda f: f.message_type.remove(message(f, "Ack")), "message Ack is gone"),
    ("enum value renamed", lambda f: setattr(enum(f, "MarkKind").value[1], "name", "OTHER"), "is 'OTHER'"),
    ("enum value dropped", drop_enum_value, "'MARK_KIND_ABORTED' is gone"),
    ("enum dropped", lambda f: f.enum_type.remove(enum(f, "DType")), "enum DType is gone"),
    ("call dropped", lambda f: f.service[0].method.pop(), "Ping: '(.cgpo.v1.PingRequest)"),
    (
        "call no stream any more",
        lambda f: setattr(f.service[0].method[1], "client_streaming", False),
        "is '(.cgpo.v1.Record) returns (stream .cgpo.v1.Ack)'",
    ),
    ("package renamed", lambda f: setattr(f, "package", "cgpo.v2"), "service cgpo.v1.Link is gone"),
]


@pytest.mark.parametrize(("change", "what"), [row[1:] for row in BREAKS], ids=[row[0] for row in BREAKS])
def test_a_changed_number_is_found(change: Callable[[FileDescriptorProto], object], what: str) -> None:
    recorded, file = describe(current()), current()
    change(file)
    assert [line for line in broken_promises(recorded, describe(file)) if what in line]


def test_what_is_added_or_dropped_in_order_breaks_nothing_but_must_be_recorded() -> None:
    recorded, file = describe(current()), current()
    message(file, "Transition").field.add(name="wrench", number=99, type=FieldDescriptorProto.TYPE_FLOAT)
    drop(file, "note", "EpisodeMark", reserve=True)
    changed = describe(file)
    assert broken_promises(recorded, changed) == []
    assert unrecorded(recorded, changed) == [
        "message Transition, 99: 'float wrench'",
        "message EpisodeMark, 5: reserved",
    ]
    merged = with_additions(recorded, changed)
    assert unrecorded(merged, changed) == broken_promises(merged, changed) == []
    assert merged["message EpisodeMark"]["5"] == "string note", "so that nothing else is ever meant by it"


def test_a_dropped_number_cannot_come_back_as_something_else() -> None:
    file = current()
    drop(file, "note", "EpisodeMark", reserve=True)
    recorded = with_additions(describe(current()), describe(file))
    returned = current()
    field(returned, "note", "EpisodeMark").name = "text"
    broken = broken_promises(recorded, describe(returned))
    assert "message EpisodeMark, 5: was 'string note', is 'string text'" in broken
    assert "message EpisodeMark, 5: was reserved and is not" in broken
