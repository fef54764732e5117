"""Deoxys' process for a Franka Hand: four commands, one at a time, and a state.

What arrives during a motion is lost, except a stop; a stop also homes; homing itself is not understood. Deoxys has it
so. Where the scene's fingers are frozen around a peg, nothing moves and the peg is held.
"""

import logging
from typing import Any

import zmq

from robot.backends.deoxys.config import Network
from robot.backends.deoxys.messages import (
    GarbledMessageError,
    HandCommand,
    HandGrasp,
    HandHoming,
    HandMove,
    HandState,
    HandStop,
    decode_hand_command,
    encode_hand_state,
)
from robot.backends.twin.fingers import Fingers
from robot.backends.twin.nuc_arm import subscribe_newest
from robot.geometry import PEG_RADIUS_M

_log = logging.getLogger(__name__)

STATE_RATE_HZ = 40.0
MAX_WIDTH_M = 0.08  # Franka Hand data sheet
_SPEED_M_S = (0.005, 0.1)  # of the width, least and most; the most as in the data sheet
_TEMPERATURE_C = 30


class GripperNode:
    """The process. It does not restart: nothing of the arm's ends it."""

    def __init__(self, fingers: Fingers | None, context: Any, network: Network) -> None:
        """fingers: what moves; None where they are frozen around a peg."""
        self._fingers = fingers
        self._queue: list[HandCommand] = []  # moves that one command is made of, the present one first
        self._is_grasped = False
        self._publisher = context.socket(zmq.PUB)
        self._publisher.linger = 0
        self._publisher.bind(f"tcp://*:{network.gripper_state_port}")
        self._commands = subscribe_newest(context, network.pc_ip, network.gripper_command_port)
        if fingers is not None:
            fingers.command(MAX_WIDTH_M)  # where homing leaves them

    @property
    def width(self) -> float:
        """The distance of the pads, m."""
        return self._fingers.width if self._fingers is not None else 2.0 * PEG_RADIUS_M

    def poll(self) -> None:
        """Look for a command and see whether the last one is done."""
        if self._queue and (self._fingers is None or not self._fingers.is_moving):
            self._finish(self._queue.pop(0))
        try:
            command, is_termination = decode_hand_command(self._commands.recv(zmq.NOBLOCK))
        except zmq.Again:
            return
        except GarbledMessageError as error:
            _log.warning("gripper command not understood: %s", error)
            return
        if is_termination:
            _log.info("gripper node told to terminate; it starts again at once")
        elif isinstance(command, HandStop):
            self._is_grasped = False
            speed = _SPEED_M_S[1]
            self._start([HandMove(width=0.0, speed=speed), HandMove(width=MAX_WIDTH_M, speed=speed)])
        elif isinstance(command, HandHoming) or command is None:
            _log.warning("gripper command not understood: Unpack failed")
        elif not self._queue and not (isinstance(command, HandGrasp) and self._is_grasped):
            self._start([command])

    def publish(self, now_s: float) -> None:
        """Publish the state. now_s: of the robot's clock."""
        state = HandState(
            width=self.width, max_width=MAX_WIDTH_M, is_grasped=self._is_grasped, temperature=_TEMPERATURE_C,
            robot_time_s=now_s,
        )  # fmt: skip
        self._publisher.send(encode_hand_state(state))

    def close(self) -> None:
        """Close both sockets. Safe to call twice."""
        self._publisher.close(0)
        self._commands.close(0)

    def _start(self, moves: list[HandCommand]) -> None:
        self._queue = moves
        move = moves[0]
        assert isinstance(move, HandMove | HandGrasp)
        if isinstance(move, HandMove):
            self._is_grasped = False
        if self._fingers is not None:
            speed = min(max(move.speed, _SPEED_M_S[0]), _SPEED_M_S[1])
            self._fingers.command(min(max(move.width, 0.0), MAX_WIDTH_M), speed)

    def _finish(self, move: HandCommand) -> None:
        if self._queue:
            self._start(self._queue)
        elif isinstance(move, HandGrasp):
            self._is_grasped = move.width - move.epsilon_inner < self.width < move.width + move.epsilon_outer
