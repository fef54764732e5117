"""The room's side of the twin behind Deoxys' door: tells where things are, puts them in place, turns knobs.

It belongs to the one thread of nuc.py, and nothing in it waits. What draws is a process of its own (room_cameras.py).
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq

from robot.backends.twin.nuc_robot import Robot
from robot.backends.twin.room_wire import (
    PROTOCOL,
    GarbledRoomMessageError,
    Snapshot,
    pack,
    pack_snapshot,
    parse_address,
    unpack,
    unpack_placement,
)
from robot.errors import RobotConfigError, RobotError
from robot.interface import ScenePlacement
from robot.scenes import check_placement

_log = logging.getLogger(__name__)

PLACE_WITHIN_M = 0.03  # of the placement's start pose


class RoomServer:
    """One socket that answers questions at `address`, one that publishes at the port after it."""

    def __init__(self, context: Any, address: str, scene: str, robot: Robot, placement: ScenePlacement) -> None:
        """placement: the present one. A port of 0 takes free ones.

        Raises RobotError when a port is taken, RobotConfigError for an address that is none.
        """
        self.host, port = parse_address(address)
        self._scene, self._robot, self._placement = scene, robot, placement
        self._sequence = self._episode = 0
        self._answers = context.socket(zmq.REP)
        self._poses = context.socket(zmq.PUB)
        self.has_fixed_ports = port != 0
        self.port = self._bind(self._answers, port)
        self.poses_port = self._bind(self._poses, port + 1 if port else 0)

    @property
    def address(self) -> str:
        """Where to find it, "host:port"."""
        return f"{self.host}:{self.port}"

    def answer(
        self,
        gripper_width: float,
        tell: Callable[[], dict[str, Any]],
        turn_knob: Callable[[str, object], None],
    ) -> None:
        """Answer one question if there is any. tell: what else to say about this process."""
        try:
            message = self._answers.recv(zmq.NOBLOCK)
        except zmq.Again:
            return
        reply: dict[str, Any]
        try:
            header, raw = unpack(message)
            request = header.get("request")
            if request == "place":
                self._place(unpack_placement(header.get("objects"), raw))
                self.publish(gripper_width)
                reply = {"sequence": self._sequence}
            elif request == "knob":
                turn_knob(str(header.get("name")), header.get("value"))
                reply = {}
            elif request == "info":
                reply = {"protocol": PROTOCOL, "scene": self._scene, "poses_port": self.poses_port, **tell()}
            else:
                raise GarbledRoomMessageError(f"a room does not know the request {request!r}")
        except RobotError as error:
            kind = RobotConfigError if isinstance(error, RobotConfigError) else RobotError
            reply = {"error": str(error), "kind": kind.__name__}
        self._answers.send(pack(reply))

    def publish(self, gripper_width: float) -> None:
        """Tell everyone where everything is."""
        self._sequence += 1
        simulation = self._robot.simulation
        snapshot = Snapshot(
            sequence=self._sequence,
            robot_time_s=self._robot.time_s,
            episode=self._episode,
            q=simulation.q,
            gripper_width=gripper_width,
            O_T_EE=simulation.O_T_EE(),
            objects={name: simulation.object_pose(name) for name in self._placement.objects},
            placement=self._placement,
        )
        self._poses.send(pack_snapshot(snapshot))

    def close(self) -> None:
        """Close both sockets. Safe to call twice."""
        self._answers.close(0)
        self._poses.close(0)

    def _place(self, placement: ScenePlacement) -> None:
        check_placement(self._scene, placement)
        away = self._robot.simulation.O_T_EE()[:3, 3] - placement.O_T_EE[:3, 3]
        away_m = float(np.linalg.norm(away))
        if away_m > PLACE_WITHIN_M:
            raise RobotError(
                f"the hand is {away_m * 1e2:.1f} cm away from the placement's start pose (limit "
                f"{PLACE_WITHIN_M * 1e2:g} cm): what is put in place could end up inside it. Move the arm there first"
            )
        self._robot.simulation.place_objects(placement)
        self._placement = placement
        self._episode += 1

    def _bind(self, socket: Any, port: int) -> int:
        socket.linger = 0
        try:
            socket.bind(f"tcp://{self.host}:{port or '*'}")
        except zmq.ZMQError as error:
            self.close()
            raise RobotError(
                f"cannot listen at {self.host}:{port}: {error}. Is another twin running? Choose another port with "
                "--room"
            ) from error
        return int(socket.last_endpoint.rpartition(b":")[2])
