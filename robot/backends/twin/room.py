"""A room as seen from outside: where its objects are, putting them in place, looking at it. MuJoCo stays in the room.

One thread keeps the newest poses that the room publishes; `object_poses` never waits. Everything else asks the room and
waits for its answer, at most `timeout_s`.
"""

import logging
import threading
import time
from types import TracebackType
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from robot.backends.twin.room_wire import (
    DEFAULT_ADDRESS,
    POSES_TOPIC,
    PROTOCOL,
    GarbledRoomMessageError,
    Snapshot,
    pack,
    pack_placement,
    parse_address,
    unpack,
    unpack_snapshot,
)
from robot.errors import RobotConfigError, RobotError
from robot.interface import Array, ScenePlacement
from robot.scenes import check_placement

_log = logging.getLogger(__name__)

_STALE_AFTER_S = 1.0
_WAKE_S = 0.1  # how long the thread takes to notice that it shall end
_ERRORS = {"RobotConfigError": RobotConfigError}


class Asker:
    """Asks a room questions, from any thread, one at a time."""

    def __init__(self, address: str, timeout_s: float) -> None:
        """address: "host:port" of the room. timeout_s: longest wait for an answer. RobotConfigError for no address."""
        self.host, self.port = parse_address(address)
        self.address = address
        self.timeout_s = timeout_s
        self.context: Any = zmq.Context()
        self._asking = threading.Lock()  # a question and its answer belong together
        self._sockets: dict[int, Any] = {}  # port -> socket

    def ask(self, header: dict[str, Any], raw: bytes = b"", *, port: int = 0) -> tuple[dict[str, Any], bytes]:
        """Return the answer; port: whom to ask, else the room. Raises what the room does, RobotError for no answer."""
        port = port or self.port
        with self._asking:
            if self.context is None:
                raise RobotError("the room is not connected (or was closed); call connect() first")
            socket = self._sockets.get(port)
            if socket is None:
                socket = self._sockets[port] = self.context.socket(zmq.REQ)
                socket.linger = 0
                socket.connect(f"tcp://{self.host}:{port}")
            try:
                socket.send(pack(header, raw))
                if not socket.poll(self.timeout_s * 1e3):
                    raise RobotError(
                        f"nothing answers at {self.host}:{port} within {self.timeout_s:g} s. Start the twin behind "
                        f"Deoxys' door: python -m robot.backends.twin.nuc --room {self.address}"
                    )
                answer, raw = unpack(socket.recv())
            except BaseException:
                self._sockets.pop(port).close(0)  # it waits for an answer that would no longer fit
                raise
        if "error" in answer:
            raise _ERRORS.get(answer.get("kind", ""), RobotError)(answer["error"])
        return answer, raw

    def info(self) -> dict[str, Any]:
        """Return what the room says about itself. Raises RobotError when nothing answers or its version differs."""
        info = self.ask({"request": "info"})[0]
        if info.get("protocol") != PROTOCOL:
            raise RobotConfigError(
                f"the room at {self.address} speaks version {info.get('protocol')} of its protocol, this side "
                f"{PROTOCOL}. Run both from the same checkout."
            )
        return info

    def close(self) -> None:
        """Close all sockets; those that others made of the context have to be closed before. Safe to call twice."""
        with self._asking:
            for socket in self._sockets.values():
                socket.close(0)
            self._sockets.clear()
            if self.context is not None:
                self.context.term()
                self.context = None


class RoomClient:
    """The room of a twin behind Deoxys' door (robot/backends/twin/nuc.py). Satisfies Room."""

    def __init__(self, address: str = DEFAULT_ADDRESS, *, scene: str = "", timeout_s: float = 5.0) -> None:
        """address: "host:port" of the room. scene: which one is expected; empty for any.

        timeout_s: longest wait for an answer. Raises RobotConfigError for an address that is none.
        """
        parse_address(address)
        self._address, self._timeout_s = address, timeout_s
        self._scene = scene
        self._asker: Asker | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._arrived = threading.Condition()
        self._newest: tuple[Snapshot, float] | None = None  # and its arrival, monotonic s
        self._fault = ""

    def __enter__(self) -> "RoomClient":
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def scene(self) -> str:
        """The scene that the room simulates; empty before `connect` unless one is expected."""
        return self._scene

    def connect(self) -> None:
        """Find the room and wait for its first poses.

        Raises RobotError when nothing answers, RobotConfigError when it simulates another scene.
        """
        if self._thread is not None:
            return
        self._asker = Asker(self._address, self._timeout_s)
        try:
            info = self.info()
            if self._scene not in ("", info["scene"]):
                raise RobotConfigError(
                    f"the room at {self._address} simulates the scene {info['scene']!r}, the task needs "
                    f"{self._scene!r}. Start it with --scene {self._scene}"
                )
            self._scene = info["scene"]
            self._stopping = threading.Event()
            self._thread = threading.Thread(
                target=self._drain,
                args=(self._asker, int(info["poses_port"]), self._stopping),
                name="room",
                daemon=True,
            )
            self._thread.start()
            self._wait_for(0)
        except BaseException:
            self.close()
            raise

    def place(self, placement: ScenePlacement) -> None:
        """Put the objects in place and wait until they are seen there. The arm stays where it is.

        The arm has to stand at the placement's start pose, within 3 cm. Raises RobotConfigError for a placement that
        does not fit the scene, and RobotError when the room refuses it: it then has changed nothing.
        """
        check_placement(self._scene, placement)
        names, raw = pack_placement(placement)
        answer, _ = self._require_asker().ask({"request": "place", "objects": names}, raw)
        self._wait_for(int(answer["sequence"]))

    def object_poses(self) -> dict[str, Array]:
        """Return name -> O_T_object (4, 4), newest received. Never blocks; RobotError when it is over 1 s old."""
        snapshot, arrival_s = self._require_newest()
        age_s = time.monotonic() - arrival_s
        if age_s > _STALE_AFTER_S:
            raise RobotError(
                f"the room at {self._address} has not said for {age_s:.1f} s where its objects are (limit "
                f"{_STALE_AFTER_S:g} s). {self._fault or 'Is its process running? python -m robot.backends.twin.nuc'}"
            )
        return {name: pose.copy() for name, pose in snapshot.objects.items()}

    def snapshot(self) -> Snapshot:
        """Return all that the room last told about itself, however old. Never blocks."""
        return self._require_newest()[0]

    def render(self, width: int, height: int, camera: str = "overview") -> NDArray[np.uint8]:
        """Return an RGB image (height, width, 3) from the view "overview" or "close".

        Blocks while the room draws, some tens of ms. Raises RobotError where it cannot draw.
        """
        info = self.info()
        if not info["render_port"]:
            raise RobotError(f"the room at {self._address} draws nothing: {info['cameras_error']}")
        question = {"request": "render", "width": width, "height": height, "camera": camera}
        answer, raw = self._require_asker().ask(question, port=int(info["render_port"]))
        return np.frombuffer(raw, dtype=np.uint8).reshape(answer["height"], answer["width"], 3)

    def knob(self, name: str, value: float | bool | str) -> None:
        """Turn a fault on or off: see docs/twin.md. Raises RobotConfigError for one that does not exist."""
        self._require_asker().ask({"request": "knob", "name": name, "value": value})

    def info(self) -> dict[str, Any]:
        """Return what the room says about itself: scene, ports, and the process's own measurements."""
        return self._require_asker().info()

    def close(self) -> None:
        """End the thread and close all sockets. Safe to call twice."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._newest = None
        if self._asker is not None:
            self._asker.close()
            self._asker = None

    def _require_asker(self) -> Asker:
        if self._asker is None:
            raise RobotError("the room is not connected (or was closed); call connect() first")
        return self._asker

    def _require_newest(self) -> tuple[Snapshot, float]:
        if self._newest is None:
            raise RobotError("the room is not connected (or was closed); call connect() first")
        return self._newest

    def _wait_for(self, sequence: int) -> None:
        with self._arrived:
            has_come = self._arrived.wait_for(
                lambda: self._newest is not None and self._newest[0].sequence >= sequence, self._timeout_s
            )
        if not has_come:
            raise RobotError(
                f"the room at {self._address} answers but does not say where its objects are within "
                f"{self._timeout_s:g} s. Does a firewall hold back the three ports after it? {self._fault}"
            )

    def _drain(self, asker: Asker, port: int, stopping: threading.Event) -> None:
        with asker.context.socket(zmq.SUB) as socket:
            socket.linger = 0
            socket.conflate = True
            socket.subscribe(POSES_TOPIC)
            socket.connect(f"tcp://{asker.host}:{port}")
            while not stopping.is_set():
                if not socket.poll(_WAKE_S * 1e3):
                    continue
                try:
                    snapshot = unpack_snapshot(socket.recv())
                except GarbledRoomMessageError as error:
                    self._fault = str(error)
                    continue
                with self._arrived:
                    self._newest = snapshot, time.monotonic()
                    self._fault = ""
                    self._arrived.notify_all()
