"""How a room and those in it talk: ZMQ messages of one part, a line of text and then raw numbers or pixels. No pickle.

The line is `TOPIC JSON`. One part, because only those can be conflated: who is late sees the newest and nothing else.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from robot.errors import RobotConfigError, RobotError
from robot.interface import Array, ScenePlacement

POSES_TOPIC = "poses"
DEFAULT_ADDRESS = "127.0.0.1:5560"
PROTOCOL = 1


class GarbledRoomMessageError(RobotError):
    """Bytes that are not what a room says."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a room looks like at one instant."""

    sequence: int
    robot_time_s: float
    episode: int  # grows whenever objects are placed
    q: Array  # (7,) rad
    gripper_width: float  # m
    O_T_EE: Array  # (4, 4)
    objects: Mapping[str, Array]  # name -> O_T_object
    placement: ScenePlacement  # the last one


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of "host:port". Raises RobotConfigError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise RobotConfigError(f"room address {address!r} is not host:port, such as {DEFAULT_ADDRESS}")
    return host, int(port)


def pack(header: Mapping[str, Any], raw: bytes = b"", topic: str = "") -> bytes:
    """Return one message."""
    return f"{topic} {json.dumps(header)}\n".encode() + raw


def unpack(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and raw part of one message. Raises GarbledRoomMessageError."""
    line, _, raw = message.partition(b"\n")
    try:
        header = json.loads(line.partition(b" ")[2])
    except ValueError as error:
        raise GarbledRoomMessageError(f"a room's message of {len(message)} bytes has no header: {error}") from error
    if not isinstance(header, dict):
        raise GarbledRoomMessageError(f"a room's message has {type(header).__name__} for a header")
    return header, raw


def pack_poses(poses: Mapping[str, Array]) -> bytes:
    """Return poses (4, 4) as raw numbers, in the order of the mapping."""
    return b"".join(np.asarray(pose, dtype="<f8").tobytes() for pose in poses.values())


def unpack_numbers(raw: bytes, count: int) -> Array:
    """Return exactly `count` finite numbers. Raises GarbledRoomMessageError."""
    if len(raw) != 8 * count:
        raise GarbledRoomMessageError(f"a room's message has {len(raw)} bytes of numbers, not {8 * count}")
    numbers = np.frombuffer(raw, dtype="<f8").astype(np.float64)
    if not math.isfinite(float(numbers.sum())):
        raise GarbledRoomMessageError("a room's message has numbers that are not finite")
    return numbers


def pack_placement(placement: ScenePlacement) -> tuple[list[str], bytes]:
    """Return the names of the objects and all poses of a placement."""
    return list(placement.objects), pack_poses({"": placement.O_T_EE, **placement.objects})


def unpack_placement(names: Any, raw: bytes) -> ScenePlacement:
    """Return the placement of the objects `names`. Raises GarbledRoomMessageError."""
    names = _names(names)
    start, *objects = unpack_numbers(raw, 16 * (1 + len(names))).reshape(-1, 4, 4)
    return ScenePlacement(O_T_EE=start, objects=dict(zip(names, objects, strict=True)))


def pack_snapshot(snapshot: Snapshot) -> bytes:
    """Return the message that tells what the room looks like."""
    header = {
        "sequence": snapshot.sequence,
        "time_s": snapshot.robot_time_s,
        "episode": snapshot.episode,
        "objects": list(snapshot.objects),
    }
    placed = {name: snapshot.placement.objects[name] for name in snapshot.objects}
    poses = {"EE": snapshot.O_T_EE, **snapshot.objects, "start": snapshot.placement.O_T_EE}
    arm = np.append(snapshot.q, snapshot.gripper_width).astype("<f8").tobytes()
    return pack(header, arm + pack_poses(poses) + pack_poses(placed), POSES_TOPIC)


def unpack_snapshot(message: bytes) -> Snapshot:
    """Return what `pack_snapshot` packed. Raises GarbledRoomMessageError."""
    header, raw = unpack(message)
    names = _names(header.get("objects"))
    count = len(names)
    numbers = unpack_numbers(raw, 8 + 16 * (2 + 2 * count))
    poses = numbers[8:].reshape(-1, 4, 4)
    try:
        sequence, episode, time_s = int(header["sequence"]), int(header["episode"]), float(header["time_s"])
    except (KeyError, TypeError, ValueError) as error:
        raise GarbledRoomMessageError(f"a room's message lacks a number: {error}") from error
    return Snapshot(
        sequence=sequence,
        robot_time_s=time_s,
        episode=episode,
        q=numbers[:7],
        gripper_width=float(numbers[7]),
        O_T_EE=poses[0],
        objects=dict(zip(names, poses[1 : 1 + count], strict=True)),
        placement=ScenePlacement(
            O_T_EE=poses[1 + count], objects=dict(zip(names, poses[2 + count :], strict=True))
        ),
    )  # fmt: skip


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise GarbledRoomMessageError(f"a room's message names its objects as {value!r}")
    return value
