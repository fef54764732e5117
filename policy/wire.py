"""Transitions and marks <-> protobuf: the only codec of link, spool and log. Pure functions."""

import math
import zlib
from collections.abc import Iterable

import numpy as np
from cgpo_proto import link_pb2
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from policy.errors import DamagedRecordError, WireError
from policy.grpc_options import MAX_TRANSITION_BYTES
from policy.image_codec import CodedImage, ImageCodec, decode_image
from policy.spec import Observation, ObservationSpec, Specs
from policy.text import clean
from policy.transition import ActionSource, EpisodeMark, MarkKind, Recordable, RecordId, Transition

_FLOAT32 = np.dtype("<f4")
_MAX_NAME_LENGTH = 128
_MAX_INTEGER = (1 << 63) - 1  # SQLite's
_SOURCES: dict[int, ActionSource] = {int(source): source for source in ActionSource}
_MARKS: dict[int, MarkKind] = {int(kind): kind for kind in MarkKind}
_MAX_NOTE_LENGTH = 1000
_CODEC_NUMBERS: dict[ImageCodec, link_pb2.ImageCodec] = {
    "raw": link_pb2.IMAGE_CODEC_RAW,
    "jpeg": link_pb2.IMAGE_CODEC_JPEG,
    "png": link_pb2.IMAGE_CODEC_PNG,
}
_CODEC_NAMES = {int(number): name for name, number in _CODEC_NUMBERS.items()}
_ACTION_TOLERANCE = 1e-5  # float32 rounding around -1 and 1


def encode_body(body: Recordable) -> bytes:
    """Return a record's body as spool, wire and log keep it. Raises WireError beyond MAX_TRANSITION_BYTES."""
    if isinstance(body, Transition):
        data = link_pb2.Body(transition=_transition_to_message(body)).SerializeToString()
    else:
        data = link_pb2.Body(mark=_mark_to_message(body)).SerializeToString()
    _check_size(data)
    return data


def decode_body(data: bytes, specs: Specs) -> Recordable:
    """Undo `encode_body`. Arrays are read-only.

    Raises WireError unless every field, size and value is one of `specs`; sizes are checked before anything is decoded.
    """
    _check_size(data)
    try:
        message = link_pb2.Body.FromString(data)
    except DecodeError as error:
        raise WireError(f"{len(data)} bytes are not a record's body: {error}") from error
    kind = message.WhichOneof("body")
    if kind is None:
        raise WireError("the record is empty: neither a transition nor a mark")
    if kind == "transition":
        return _transition_from_message(message.transition, specs)
    return _mark_from_message(message.mark)


def position_crc32(position: RecordId) -> int:
    """Return the checksum of an acknowledgement: everything below the position's sequence may be deleted."""
    return record_crc32(position, b"")


def record_crc32(record_id: RecordId, body: bytes) -> int:
    """Return the checksum that goes with a record from its making to the learner's log.

    It covers the name too: a step must not arrive undamaged under another one's.
    """
    name = f"{record_id.actor_id}\0{record_id.incarnation}\0{record_id.sequence}\0".encode()
    return zlib.crc32(body, zlib.crc32(name))


def make_record(record_id: RecordId, body: bytes, crc32: int) -> link_pb2.Record:
    """Return the message of one record; crc32 as `record_crc32` gave it when the body was made."""
    return link_pb2.Record(
        actor_id=record_id.actor_id,
        incarnation=record_id.incarnation,
        sequence=record_id.sequence,
        body=body,
        crc32=crc32,
    )


def record_id_of(message: link_pb2.Record) -> RecordId:
    """Return whose record a received message is.

    Raises DamagedRecordError when its checksum is not that of its content, WireError for a name that cannot be one.
    """
    record_id = RecordId(message.actor_id, message.incarnation, message.sequence)
    crc32 = record_crc32(record_id, message.body)
    if crc32 != message.crc32:
        raise DamagedRecordError(
            f"a record of {len(message.body)} bytes, which calls itself number {message.sequence} of "
            f"{message.actor_id[:_MAX_NAME_LENGTH]!r}, has the checksum {crc32:08x} and was made with "
            f"{message.crc32:08x}: it was damaged on its way, and has to be sent again"
        )
    check_name("actor_id", record_id.actor_id)
    check_name("incarnation", record_id.incarnation)
    if record_id.sequence > _MAX_INTEGER:
        raise WireError(f"sequence {record_id.sequence} is above {_MAX_INTEGER}")
    return record_id


def check_name(kind: str, name: str) -> None:
    """Raise WireError unless `name` can name an actor or incarnation."""
    if not 0 < len(name) <= _MAX_NAME_LENGTH or not name.isprintable():
        raise WireError(f"{kind} {name[:_MAX_NAME_LENGTH]!r} is not 1 to {_MAX_NAME_LENGTH} printable characters")


def _mark_to_message(mark: EpisodeMark) -> link_pb2.EpisodeMark:
    return link_pb2.EpisodeMark(
        episode=mark.episode,
        step=mark.step,
        kind=int(mark.kind),  # type: ignore[arg-type]  # the stub knows the enum by its own type only
        wall_time_s=mark.wall_time_s,
        note=clean(mark.note, _MAX_NOTE_LENGTH),
    )


def _mark_from_message(mark: link_pb2.EpisodeMark) -> EpisodeMark:
    if mark.kind not in _MARKS:
        raise WireError(f"mark kind {mark.kind} is none of {', '.join(kind.name for kind in MarkKind)}")
    if mark.episode > _MAX_INTEGER or not math.isfinite(mark.wall_time_s):
        raise WireError(f"mark of episode {mark.episode} at {mark.wall_time_s} s is not valid")
    return EpisodeMark(
        episode=mark.episode,
        step=mark.step,
        kind=_MARKS[mark.kind],
        wall_time_s=mark.wall_time_s,
        note=clean(mark.note, _MAX_NOTE_LENGTH),
    )


def _transition_to_message(transition: Transition) -> link_pb2.Transition:
    final = transition.final_observation
    return link_pb2.Transition(
        episode=transition.episode,
        step=transition.step,
        observation=_observation_to_message(transition.observation),
        policy_action=transition.policy_action.tolist(),
        executed_action=transition.executed_action.tolist(),
        source=int(transition.source),  # type: ignore[arg-type]  # the stub knows the enum by its own type only
        reward=transition.reward,
        terminated=transition.terminated,
        truncated=transition.truncated,
        weights_version=transition.weights_version,
        weights_age_s=transition.weights_age_s,
        wall_time_s=transition.wall_time_s,
        monotonic_time_s=transition.monotonic_time_s,
        reward_source=transition.reward_source,
        final_observation=None if final is None else _observation_to_message(final),
        gripper_toggled=transition.gripper_toggled,
        weights_lag_steps=transition.weights_lag_steps,
    )


def _transition_from_message(message: link_pb2.Transition, specs: Specs) -> Transition:
    source = _SOURCES.get(message.source)
    if source is None:
        raise WireError(f"source {message.source} is none of {', '.join(source.name for source in ActionSource)}")
    for name in ("episode", "weights_version", "weights_lag_steps"):
        if getattr(message, name) > _MAX_INTEGER:
            raise WireError(f"{name} = {getattr(message, name)} is above {_MAX_INTEGER}")
    for name in ("reward", "weights_age_s", "wall_time_s", "monotonic_time_s"):
        if not math.isfinite(getattr(message, name)):
            raise WireError(f"{name} = {getattr(message, name)} is not finite")
    _check_text("reward_source", message.reward_source)
    is_last = message.terminated or message.truncated
    has_final = message.HasField("final_observation")
    if is_last != has_final:
        raise WireError(
            f"episode {message.episode}, step {message.step}: terminated or truncated is {is_last}, but there is "
            f"{'a' if has_final else 'no'} final observation; exactly the last step carries one"
        )
    return Transition(
        episode=message.episode,
        step=message.step,
        observation=_observation_from_message(message.observation, specs.observation),
        policy_action=_action("policy_action", message.policy_action, specs.action.dim),
        executed_action=_action("executed_action", message.executed_action, specs.action.dim),
        source=source,
        reward=message.reward,
        terminated=message.terminated,
        truncated=message.truncated,
        weights_version=message.weights_version,
        weights_age_s=message.weights_age_s,
        wall_time_s=message.wall_time_s,
        monotonic_time_s=message.monotonic_time_s,
        reward_source=message.reward_source,
        final_observation=(
            _observation_from_message(message.final_observation, specs.observation) if has_final else None
        ),
        gripper_toggled=message.gripper_toggled,
        weights_lag_steps=message.weights_lag_steps,
    )


def _check_size(data: bytes) -> None:
    if len(data) > MAX_TRANSITION_BYTES:
        raise WireError(f"a transition of {len(data)} bytes is above the limit of {MAX_TRANSITION_BYTES}")


def _check_text(what: str, text: str) -> None:
    """Refuse a text that would flood or garble whatever log or message repeats it."""
    if len(text) > _MAX_NAME_LENGTH:
        raise WireError(f"{what} has {len(text)} characters, at most {_MAX_NAME_LENGTH} are allowed")
    if not text.isprintable():
        raise WireError(f"{what} {text!r} has characters that do not print")


def _observation_to_message(observation: Observation) -> link_pb2.Observation:
    message = link_pb2.Observation()
    for name, value in observation.items():
        if isinstance(value, CodedImage):
            height, width = value.pixels.shape[:2]
            message.images.add(
                name=name, codec=_CODEC_NUMBERS[value.codec], height=height, width=width, data=value.data
            )
        elif value.dtype == np.uint8:
            raise WireError(f"image {name} is not encoded; see policy.image_codec.code_images")
        else:
            message.fields.add(
                name=name,
                dtype=link_pb2.DTYPE_FLOAT32,
                shape=value.shape,
                data=value.astype(_FLOAT32, copy=False).tobytes(),
            )
    return message


def _observation_from_message(message: link_pb2.Observation, spec: ObservationSpec) -> Observation:
    """Return the observation with its fields, then its images, in the spec's order."""
    if len(message.fields) > len(spec.fields) or len(message.images) > len(spec.images):  # before any is decoded
        raise WireError(
            f"observation has {len(message.fields)} fields and {len(message.images)} images, the spec "
            f"{len(spec.fields)} and {len(spec.images)}"
        )
    for name in (*(tensor.name for tensor in message.fields), *(image.name for image in message.images)):
        _check_text("a field's or image's name", name)
    values: dict[str, NDArray[np.float32] | CodedImage] = {tensor.name: _array(tensor) for tensor in message.fields}
    sizes = {image.name: (image.height, image.width) for image in spec.images}
    for image in message.images:
        if (image.height, image.width) != sizes.get(image.name):  # before any pixel is decoded
            raise WireError(
                f"image {image.name} of {image.width} x {image.height} pixels is not in the spec, which has {sizes} "
                "(H, W)"
            )
        values[image.name] = decode_image(
            image.data, _CODEC_NAMES.get(image.codec, f"number {image.codec}"), image.height, image.width
        )
    if len(values) != len(message.fields) + len(message.images):
        raise WireError(f"observation names a field twice: {[*(tensor.name for tensor in message.fields), *sizes]}")
    spec.check(values)
    return {name: values[name] for name in spec.names}


def _array(tensor: link_pb2.NamedTensor) -> NDArray[np.float32]:
    if tensor.dtype != link_pb2.DTYPE_FLOAT32:
        raise WireError(
            f"observation {tensor.name} has dtype {tensor.dtype}, expected {link_pb2.DTYPE_FLOAT32}, float32"
        )
    if len(tensor.shape) != 1:  # before their product is formed: that of 200 000 large ones takes 20 s
        raise WireError(f"observation {tensor.name} has {len(tensor.shape)} dimensions, expected 1")
    num_bytes = tensor.shape[0] * _FLOAT32.itemsize
    if len(tensor.data) != num_bytes:
        raise WireError(
            f"observation {tensor.name} has {len(tensor.data)} bytes, shape {list(tensor.shape)} needs {num_bytes}"
        )
    return np.frombuffer(tensor.data, _FLOAT32)


def _action(name: str, values: Iterable[float], dim: int) -> NDArray[np.float32]:
    action = np.fromiter(values, np.float32)
    if action.shape != (dim,):
        raise WireError(f"{name} has {len(action)} values, expected {dim}")
    if not (np.abs(action) <= 1 + _ACTION_TOLERANCE).all():  # also catches NaN
        raise WireError(f"{name} = {action.tolist()} is not within [-1, 1]")
    return action
