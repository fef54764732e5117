"""Draws what the cameras of a twin's room see: a process of its own, so that the physics never wait for a picture.

It hears from the room where everything is, and publishes a camera's images as long as anybody wants them. Started by
nuc.py, whose end it does not outlive.
"""

import argparse
import ctypes
import json
import logging
import math
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from robot.backends.twin.pictures import Pictures
from robot.backends.twin.room_wire import POSES_TOPIC, Snapshot, pack, unpack, unpack_snapshot
from robot.cameras.optics import MOUNTS
from robot.errors import RobotConfigError, RobotError

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_FIRST_POSES_S = 10.0
_WAITING_FRAMES = 2  # per subscriber, before new ones are dropped


def end_with_parent(parent: int) -> None:
    """Have the kernel send this process SIGTERM when its parent, the process `parent`, dies, however it dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before
        sys.exit(f"the parent process {parent} is gone")


class RoomCameras:
    """Draws one scene for whoever subscribes or asks. One thread."""

    def __init__(self, scene: str, poses: str, host: str, ports: tuple[int, int], fps: float, looks: float) -> None:
        """poses: ZMQ address of the room's poses. ports: to publish images at, and to answer at; 0 for a free one.

        Raises RobotError where the machine cannot draw or no poses come.
        """
        self._fps = fps
        self._context = zmq.Context()
        self._poses = self._context.socket(zmq.SUB)
        self._poses.conflate = True
        self._poses.subscribe(POSES_TOPIC)
        self._poses.connect(poses)
        self._frames = self._context.socket(zmq.XPUB)
        self._frames.sndhwm = _WAITING_FRAMES
        self._questions = self._context.socket(zmq.REP)
        self.ports = [
            _bind(socket, host, port) for socket, port in zip((self._frames, self._questions), ports, strict=True)
        ]
        self._pictures = Pictures(scene, looks)
        if not self._poses.poll(int(_FIRST_POSES_S * 1e3)):
            raise RobotError(f"the room at {poses} says nothing")
        self._snapshot = unpack_snapshot(self._poses.recv())
        self._wanted: set[str] = set()
        self._sequences = dict.fromkeys(MOUNTS, 0)
        self._pose()
        self._pictures.photograph(next(iter(MOUNTS)))  # whether this works shows only now

    def run(self) -> None:
        """Draw for ever. The cameras take turns, evenly spaced."""
        period_s = 1.0 / (self._fps * len(MOUNTS))
        due_s = time.monotonic()
        while True:
            for camera in MOUNTS:
                due_s = max(due_s + period_s, time.monotonic())  # what is late is not made up for
                self._attend_until(due_s)
                if camera in self._wanted:
                    self._publish(camera)

    def _attend_until(self, end_s: float) -> None:
        """Answer questions and notice subscriptions until then."""
        poller = zmq.Poller()
        poller.register(self._frames, zmq.POLLIN)
        poller.register(self._questions, zmq.POLLIN)
        while True:
            left_ms = math.ceil((end_s - time.monotonic()) * 1e3)
            ready = dict(poller.poll(max(left_ms, 0)))
            if self._frames in ready:
                event = self._frames.recv()
                topic = event[1:].decode(errors="replace").strip()
                (self._wanted.add if event[:1] == b"\1" else self._wanted.discard)(topic)
            if self._questions in ready:
                self._questions.send(self._answer(self._questions.recv()))
            if time.monotonic() >= end_s:
                return

    def _publish(self, camera: str) -> None:
        snapshot = self._pose()
        image = self._pictures.photograph(camera)
        self._sequences[camera] += 1
        header = {"sequence": self._sequences[camera], "time_s": snapshot.robot_time_s}
        self._frames.send(_pack_image(image, header, camera))

    def _answer(self, message: bytes) -> bytes:
        try:
            question, _ = unpack(message)
            width, height, view = (question.get(name) for name in ("width", "height", "camera"))
            if not isinstance(width, int) or not isinstance(height, int) or not isinstance(view, str):
                raise RobotConfigError(f"a picture needs whole width and height and a camera, not {question}")
            self._pose()
            return _pack_image(self._pictures.look(view, width, height), {}, "")
        except RobotError as error:
            kind = RobotConfigError if isinstance(error, RobotConfigError) else RobotError
            return pack({"error": str(error), "kind": kind.__name__})

    def _pose(self) -> Snapshot:
        """Bring the pictures to the newest that the room has said, and return that."""
        try:
            self._snapshot = unpack_snapshot(self._poses.recv(zmq.NOBLOCK))
        except zmq.Again:
            pass  # nothing has changed since
        snapshot = self._snapshot
        self._pictures.begin_episode(snapshot.episode, snapshot.placement)
        self._pictures.pose(snapshot.q, snapshot.gripper_width, snapshot.O_T_EE, snapshot.objects)
        return snapshot


def _pack_image(image: NDArray[np.uint8], header: dict[str, Any], topic: str) -> bytes:
    height, width, _ = image.shape
    return pack({**header, "width": width, "height": height}, image.tobytes(), topic)


def _bind(socket: Any, host: str, port: int) -> int:
    socket.linger = 0
    try:
        socket.bind(f"tcp://{host}:{port or '*'}")
    except zmq.ZMQError as error:
        raise RobotError(f"cannot listen at {host}:{port}: {error}") from error
    return int(socket.last_endpoint.rpartition(b":")[2])


def main() -> None:
    """Say in one line of JSON at which ports, or why not, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scene", required=True)
    parser.add_argument("--poses", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--ports", type=int, nargs=2, required=True)
    parser.add_argument("--fps", type=float, required=True)
    parser.add_argument("--looks-variation", type=float, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal, and meant for the parent
    signal.signal(signal.SIGTERM, _end)
    end_with_parent(options.parent)
    os.setpriority(os.PRIO_PROCESS, 0, 0)  # the parent goes first, not its pictures
    try:
        cameras = RoomCameras(
            options.scene, options.poses, options.host, tuple(options.ports), options.fps, options.looks_variation
        )
    except RobotError as error:
        sys.stdout.write(json.dumps({"cameras_error": str(error)}) + "\n")
        return
    frames_port, render_port = cameras.ports
    sys.stdout.write(json.dumps({"frames_port": frames_port, "render_port": render_port, "cameras_error": ""}) + "\n")
    sys.stdout.flush()
    cameras.run()


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(number, signal.SIG_IGN)  # the parent and the terminal may both say it
    sys.exit(0)


if __name__ == "__main__":
    main()
