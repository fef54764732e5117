"""Deoxys' control process for the arm, as it runs on a NUC: what it listens to, what it says, and when it exits.

What the real one does, odd or not, this does too (docs/twin.md). It belongs to the one thread of nuc.py, which calls
it at the rates of Deoxys' network file; nothing in it waits.
"""

import dataclasses
import logging
import math
from collections import Counter
from typing import Any

import numpy as np
import zmq

from robot.backends.deoxys.config import Network
from robot.backends.deoxys.messages import (
    ArmState,
    Controller,
    GarbledMessageError,
    JointPosition,
    OscPose,
    RobotMode,
    decode_arm_command,
    encode_arm_state,
)
from robot.backends.twin.nuc_faults import Faults, FaultyPublisher
from robot.backends.twin.nuc_motion import JointMotion, PoseMotion
from robot.backends.twin.nuc_robot import ControlRefusedError, Robot
from robot.interface import Array
from robot.pose import apply_delta, make_pose, rotation_from_rotvec

_log = logging.getLogger(__name__)

EMPTY_POLLS_TO_EXIT = 20
_LEAST_TIME_FRACTION = 0.1
_BIND_RETRY_S = 0.1  # the socket of the process before may not be gone yet
_FAULT_MODES = (RobotMode.REFLEX, RobotMode.USER_STOPPED)


class ArmNode:
    """The process and its restarts. Between two of them the robot holds by itself."""

    def __init__(self, robot: Robot, context: Any, network: Network, faults: Faults, restart_delay_s: float) -> None:
        """restart_delay_s: from an exit to the next start, as a shell loop on the NUC takes."""
        self.counts: Counter[str] = Counter()  # of commands, exits and their reasons
        self._robot = robot
        self._context = context
        self._network = network
        self._faults = faults
        self._restart_delay_s = restart_delay_s
        self._publisher: FaultyPublisher | None = None
        self._commands: Any = None
        self._start_s = -math.inf  # of the next start, while it is down
        self._frozen_until_s = -math.inf
        self._exit_s = math.inf  # of the exit, while a fault is announced
        self._begin()

    def _begin(self) -> None:
        """Forget everything, as a new process does."""
        self._controller = Controller.NO_CONTROL
        self._has_started = False  # a controller ran
        self._empty_polls = 0
        self._frame = 0
        self._goal: Array | None = None  # (4, 4), where the interpolator of poses is heading
        self._last_measured = self._robot.simulation.O_T_EE()  # when control last ended: what it next starts from
        self._published = _zeros()  # what the next message says: zeros, until the robot was read
        self._exit_s = math.inf

    @property
    def is_up(self) -> bool:
        """Whether the process runs."""
        return self._publisher is not None

    @property
    def _is_running(self) -> bool:
        return self._controller is not Controller.NO_CONTROL

    def publish(self) -> None:
        """Publish a state; start the process when it is time. To be called at the rate of the state publisher."""
        now_s = self._robot.time_s
        if self._publisher is None:
            if now_s < self._start_s or not self._start(now_s):
                return
        assert self._publisher is not None
        if now_s < self._frozen_until_s:
            return
        if self._is_running or self._exit_s < math.inf:
            self._published = self._robot.state(self._frame)
        elif self._frame == 1:  # read once, before there is any control
            self._published = self._robot.state(self._frame)
        self._publisher.send(encode_arm_state(dataclasses.replace(self._published, frame=self._frame)), now_s)
        self._frame += 1
        if self._is_running and self._robot.mode in _FAULT_MODES:
            self._exit_s = min(self._exit_s, now_s + self._faults.announce_s)
            if now_s >= self._exit_s:
                self.exit(f"the robot is in the mode {self._robot.mode.name}")

    def poll(self) -> None:
        """Look for a command. To be called at the policy rate."""
        if self._publisher is None or self._robot.time_s < self._frozen_until_s or self._exit_s < math.inf:
            return
        try:
            message = self._commands.recv(zmq.NOBLOCK)
        except zmq.Again:
            message = b""
        if not message:
            self._empty_polls += self._has_started
            if self._empty_polls >= EMPTY_POLLS_TO_EXIT:
                self.exit(f"{EMPTY_POLLS_TO_EXIT} polls without a command")
            return
        try:
            command = decode_arm_command(message)
        except GarbledMessageError as error:
            self.counts["garbled"] += 1
            _log.warning("arm command not understood: %s", error)
            return
        self._empty_polls = 0
        self.counts[command.controller.name] += 1
        if command.termination:
            self.exit("told to terminate")
        elif command.controller is Controller.NO_CONTROL:
            if self._is_running:
                self._last_measured = self._robot.simulation.O_T_EE()
            self._controller = Controller.NO_CONTROL
            self._robot.hold()
        elif command.goal is None:
            _log.warning("the controller %s is not part of the twin; ignored", command.controller.name)
        elif self._controller in (Controller.NO_CONTROL, command.controller):
            self._follow(command.controller, command.goal)
        else:
            _log.warning(
                "%s while %s runs: Deoxys needs NO_CONTROL in between; ignored",
                command.controller.name, self._controller.name,
            )  # fmt: skip

    def freeze(self, seconds: float) -> None:
        """Hang for so long. The robot stops by itself when its control process falls silent."""
        self._frozen_until_s = self._robot.time_s + seconds
        if self._is_running:
            self._robot.reflex("communication_constraints_violation")

    def exit(self, reason: str) -> None:
        """End the process; it starts again after the delay."""
        if self._publisher is None:
            return
        _log.info("arm node exits: %s", reason)
        self.counts["exits"] += 1
        self._robot.hold()
        self.close()
        self._start_s = self._robot.time_s + self._restart_delay_s

    def close(self) -> None:
        """Close both sockets. Safe to call twice."""
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None
        if self._commands is not None:
            self._commands.close(0)
            self._commands = None

    def _start(self, now_s: float) -> bool:
        """Start the process, which recovers the robot from errors by itself. False when it fails."""
        try:
            self._robot.recover()
        except ControlRefusedError as error:
            _log.info("arm node exits: %s", error)
            self._start_s = now_s + self._restart_delay_s
            return False
        try:
            self._publisher = FaultyPublisher(self._context, self._network.state_port, self._faults)
        except zmq.ZMQError as error:
            _log.warning("port %d: %s", self._network.state_port, error)
            self._start_s = now_s + _BIND_RETRY_S
            return False
        self._commands = subscribe_newest(self._context, self._network.pc_ip, self._network.command_port)
        self._frozen_until_s = -math.inf
        self._begin()
        self.counts["starts"] += 1
        return True

    def _follow(self, controller: Controller, goal: OscPose | JointPosition) -> None:
        """Head for a goal, from what is measured now."""
        now_s = self._robot.time_s
        try:
            if isinstance(goal, OscPose):
                self._robot.control(self._pose_motion(goal, now_s))
            elif (motion := self._joint_motion(goal, now_s)) is not None:
                self._robot.control(motion)
        except ControlRefusedError as error:
            self.exit(str(error))
            return
        self._controller, self._has_started = controller, True

    def _pose_motion(self, goal: OscPose, now_s: float) -> PoseMotion:
        simulation = self._robot.simulation
        measured = simulation.O_T_EE() if self._is_running else self._last_measured
        position, rotation = np.array(goal.position), np.array(goal.rotvec)
        if not (np.isfinite(position).all() and np.isfinite(rotation).all()):
            self._robot.reflex("controller_torque_discontinuity")  # as the robot does when it is told such torques
            raise ControlRefusedError(f"the goal {goal.position}, {goal.rotvec} is not finite")
        if goal.is_delta:
            pose = apply_delta(measured, position, rotation)
        else:
            pose = make_pose(rotation_from_rotvec(rotation), position)
        simulation.set_stiffness(goal.gains.translational_stiffness, goal.gains.rotational_stiffness)
        start, self._goal = (measured if self._goal is None else self._goal), pose
        fraction = max(goal.gains.time_fraction, _LEAST_TIME_FRACTION)
        return PoseMotion(start, pose, now_s, fraction / self._network.policy_rate_hz)

    def _joint_motion(self, goal: JointPosition, now_s: float) -> JointMotion | None:
        """Return the motion to a new goal, None for the one that it is already heading for."""
        self._goal = None
        q, q_desired = np.array(goal.q), self._robot.q_desired
        if not np.isfinite(q).all():
            self._robot.reflex("joint_motion_generator_position_limits_violation")
            raise ControlRefusedError(f"the goal {goal.q} is not finite")
        q = q_desired + q if goal.is_delta else q
        motion = self._robot.motion
        if isinstance(motion, JointMotion) and np.abs(q - motion.goal).max() < 1e-6:
            return None
        return JointMotion(q_desired, q, now_s)


def subscribe_newest(context: Any, host: str, port: int) -> Any:
    """Return a socket connected to the PC that holds its newest command and no other."""
    socket = context.socket(zmq.SUB)
    socket.linger = 0
    socket.conflate = True
    socket.subscribe(b"")
    socket.connect(f"tcp://{host}:{port}")
    return socket


def _zeros() -> ArmState:
    pose, joints, wrench = np.zeros((4, 4)), np.zeros(7), np.zeros(6)
    return ArmState(
        O_T_EE=pose, O_T_EE_d=pose, F_T_EE=pose, q=joints, q_d=joints, dq=joints, tau_J=joints, O_F_ext_hat_K=wrench,
        K_F_ext_hat_K=wrench, control_command_success_rate=0.0, robot_mode=RobotMode.OTHER, robot_time_s=0.0, frame=0,
    )  # fmt: skip
