"""Bytes and messages that nobody meant to send, for whatever decodes what comes from outside."""

import random
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import settings
from hypothesis import strategies as st

FUZZ = settings(max_examples=5 * settings().max_examples, deadline=None)
"""Five times as much as a property; `pytest --hypothesis-profile=long` does fifty times as much of either."""

MessageType = TypeVar("MessageType", bound=Message)
_EXTREME_INTEGERS = st.sampled_from([0, 1, 2, 255, 2**31, 2**32 - 1])
_EXTREME_FLOATS = st.sampled_from([0.0, -1.0, 1.0, 1.5, float("nan"), float("inf"), -1e30])


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """Draw one of `originals` with a few bytes overwritten, inserted, doubled or missing."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 1, 1, 2, 8, 1000])))
        match draw(st.integers(0, 4)):
            case 0:
                data[start:end] = draw(st.binary(min_size=end - start, max_size=end - start))
            case 1:
                data[start:start] = draw(st.binary(max_size=16))
            case 2:
                data[start:start] = data[start:end]
            case 3:
                del data[start:end]
            case _:
                data[start:end] = draw(st.sampled_from([b"\xff", b"\0", b"\x7f", b"\x80"])) * (end - start)
    return bytes(data)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with a few bytes changed, inserted or missing, as `mutated` does, without hypothesis."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randint(0, len(changed))
        changed[start : start + rng.choice([0, 1, 1, 8])] = rng.randbytes(rng.choice([0, 1, 1, 8]))
    return bytes(changed)


@st.composite
def disturbed(draw: st.DrawFn, original: MessageType) -> MessageType:
    """Draw a copy of a valid message in which one to three fields, at any depth, hold something else or nothing."""
    message = type(original)()
    message.CopyFrom(original)
    for _ in range(draw(st.integers(1, 3))):
        _disturb(draw, message)
    return message


def _disturb(draw: st.DrawFn, message: Any) -> None:
    field = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
    if draw(st.integers(0, 9)) == 0:
        message.ClearField(field.name)
        return
    value = getattr(message, field.name)
    if field.message_type and field.is_repeated:
        match draw(st.integers(0, 3)) if value else 3:
            case 0:
                del value[draw(st.integers(0, len(value) - 1))]
            case 1:
                value.append(draw(st.sampled_from(list(value))))
            case 2:
                _disturb(draw, value[draw(st.integers(0, len(value) - 1))])
            case _:
                value.add()
    elif field.message_type:
        if not value.ByteSize():
            value.SetInParent()
        _disturb(draw, value)
    elif field.is_repeated:
        count = draw(st.sampled_from([0, 1, 2, 70]))
        value.extend(draw(st.lists(_values(field), min_size=count, max_size=count)))
        del value[: draw(st.integers(0, len(value)))]
    else:
        setattr(message, field.name, draw(_values(field)))


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return st.binary(max_size=40) if field.type == FieldDescriptor.TYPE_BYTES else st.text(max_size=200)
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_ENUM:
            return st.sampled_from([-1, 0, 1, 2, 3, 4, 5, 6, 2**31 - 1])  # enums are open: any int32 arrives
        case FieldDescriptor.CPPTYPE_UINT64:
            return st.one_of(_EXTREME_INTEGERS, st.sampled_from([2**63 - 1, 2**63, 2**64 - 1]))
        case FieldDescriptor.CPPTYPE_UINT32:
            return _EXTREME_INTEGERS
    return _EXTREME_FLOATS
