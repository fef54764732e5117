"""The cameras of a twin behind Deoxys' door, seen through its room (robot/backends/twin/room.py)."""

import numpy as np
import zmq

from robot.backends.twin.room import Asker
from robot.backends.twin.room_wire import DEFAULT_ADDRESS, unpack
from robot.cameras.capture import CapturingCamera, Image
from robot.cameras.optics import find_mount
from robot.errors import RobotError
from robot.interface import RobotBackend

_ANSWER_S = 2.0
_NEXT_IMAGE_S = 1.0


class RoomSource:
    """Images of one camera, as the room publishes them; those that nobody waited for are dropped."""

    def __init__(self, name: str, address: str) -> None:
        self._name, self._address = name, address
        self._optics = find_mount(name).optics
        self._asker: Asker | None = None
        self._socket: zmq.Socket[bytes] | None = None

    def open(self) -> tuple[int, int]:
        """Find the room and subscribe. Raises RobotError when nothing answers, and where it cannot draw."""
        self._asker = Asker(self._address, _ANSWER_S)
        info = self._asker.info()
        if not info["frames_port"]:
            raise RobotError(f"the room at {self._address} has no cameras: {info['cameras_error']}")
        self._socket = self._asker.context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.conflate = True
        self._socket.subscribe(f"{self._name} ")
        self._socket.connect(f"tcp://{self._asker.host}:{info['frames_port']}")
        return self._optics.width, self._optics.height

    def grab(self) -> Image:
        """Wait for the next image."""
        assert self._socket is not None
        if not self._socket.poll(int(_NEXT_IMAGE_S * 1e3)):
            raise RobotError(
                f"no image from the room at {self._address} for {_NEXT_IMAGE_S:g} s. Is its process running? "
                "python -m robot.backends.twin.nuc"
            )
        header, raw = unpack(self._socket.recv())
        shape = (int(header.get("height", 0)), int(header.get("width", 0)), 3)
        if len(raw) != shape[0] * shape[1] * shape[2]:
            raise RobotError(f"an image of {shape[1]} x {shape[0]} px came with {len(raw)} bytes")
        return np.frombuffer(raw, dtype=np.uint8).reshape(shape)

    def close(self) -> None:
        """Close the sockets. Safe to call twice."""
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None
        if self._asker is not None:
            self._asker.close()
            self._asker = None


class RoomCamera(CapturingCamera):
    """One of the workplace's cameras, "wrist" or "third_person", in a room that runs by itself."""

    def __init__(self, name: str, *, device: str = "", backend: RobotBackend | None = None) -> None:
        """device: the room's address, "host:port"; backend: not looked at."""
        del backend
        optics = find_mount(name).optics
        source = RoomSource(name, device or DEFAULT_ADDRESS)
        super().__init__(name, source, width=optics.width, height=optics.height)
