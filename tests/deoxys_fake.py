"""A NUC with Deoxys' controller, scripted, on real sockets: what our client of it is tested against.

Its messages come from tests/deoxys_schema, compiled when the tests run: nothing of the client's own schema is used. The
arm is kinematic: it goes to its goals as OSC_POSE does in free air, without a force.
"""

import functools
import importlib.resources
import socket
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import zmq
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from robot.franka import forward_kinematics, jacobian
from robot.interface import Array
from robot.pose import apply_delta, make_pose, pose_difference, rotation_from_rotvec

START_Q = (0.1, 0.1, -0.1, -2.0, 0.05, 2.1, 0.8)
_TICK_S = 0.005
_STATE_S = 0.01
_POLL_S = 0.05
_EMPTY_POLLS = 20
_RESTART_S = 0.8
_JOINT_SPEED = 2.0  # rad/s


@functools.cache
def schema() -> SimpleNamespace:
    """Return Deoxys' message classes by name, from our independent statement of them, in a pool of their own."""
    from grpc_tools import protoc

    folder = Path(__file__).with_name("deoxys_schema")
    bundled = importlib.resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as temporary:
        compiled = Path(temporary) / "deoxys.bin"
        names = sorted(path.name for path in folder.glob("*.proto"))
        arguments = [f"-I{folder}", f"-I{bundled}", "--include_imports", f"--descriptor_set_out={compiled}", *names]
        if protoc.main(["protoc", *arguments]):
            raise RuntimeError(f"{folder} does not compile")
        files = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
    found = {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(message.name))
        for file in files.file
        if not file.package
        for message in file.message_type
    }
    return SimpleNamespace(**found)


@dataclass(frozen=True)
class Sent:
    """One arm command as the PC sent it."""

    at_s: float  # time.monotonic()
    controller: str
    termination: bool
    is_delta: bool = False
    position: tuple[float, ...] = ()
    rotvec: tuple[float, ...] = ()
    q: tuple[float, ...] = ()
    message: Any = None  # FrankaControlMessage

    @property
    def O_T_EE(self) -> Array:
        return make_pose(rotation_from_rotvec(self.rotvec), self.position)


def decode_sent(data: bytes, at_s: float) -> Sent:
    """Return what `data` commands, read by the independent schema."""
    messages = schema()
    message = messages.FrankaControlMessage.FromString(data)
    controller = messages.FrankaControlMessage.ControllerType.Name(message.controller_type)
    if controller == "OSC_POSE":
        inner = messages.FrankaOSCPoseControllerMessage()
        assert message.control_msg.Unpack(inner), message.control_msg.type_url
        goal = inner.goal
        return Sent(
            at_s,
            controller,
            message.termination,
            goal.is_delta,
            (goal.x, goal.y, goal.z),
            (goal.ax, goal.ay, goal.az),
            message=message,
        )
    if controller == "JOINT_POSITION":
        inner = messages.FrankaJointPositionControllerMessage()
        assert message.control_msg.Unpack(inner), message.control_msg.type_url
        q = tuple(getattr(inner.goal, f"q{joint}") for joint in range(1, 8))
        return Sent(at_s, controller, message.termination, inner.goal.is_delta, q=q, message=message)
    assert message.control_msg.Unpack(messages.FrankaDummyControllerMessage()), message.control_msg.type_url
    return Sent(at_s, controller, message.termination, message=message)


def free_ports(count: int) -> list[int]:
    """Return TCP ports that nobody has."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class FakeNuc:
    """The NUC and the robot. Attributes are knobs, to be set at any time; `sent` is all that the PC ever sent."""

    def __init__(self, folder: Path) -> None:
        self.command_port, self.state_port, gripper_command_port, gripper_state_port = free_ports(4)
        self.network = folder / "network.yml"
        self.network.write_text(
            f"PC: {{NAME: pc, IP: 127.0.0.1}}\n"
            f"NUC: {{NAME: nuc, IP: 127.0.0.1, PUB_PORT: {self.state_port}, SUB_PORT: {self.command_port}, "
            f"GRIPPER_PUB_PORT: {gripper_state_port}, GRIPPER_SUB_PORT: {gripper_command_port}}}\n"
            "CONTROL: {STATE_PUBLISHER_RATE: 100, POLICY_RATE: 20, TRAJ_RATE: 500, ZMQ_NOBLOCK: true}\n"
        )
        self.sent: list[Sent] = []
        self.violations: list[str] = []  # of what a controller requires of its client
        self.mode = "Move"
        self.errors: tuple[str, ...] = ()
        self.force_n = 0.0
        self.drops_states = False
        self.freezes_state = False
        self.delays_states_s = 0.0
        self.garbles_states = False
        self.zeroes_states = False
        self.adds_absolute_goals = False  # as Deoxys did before its pull request 4
        self.stops_short_m = 0.0  # of its goals, as friction makes it
        self.holds_joints = False  # the joint controller does not get anywhere
        self.restarts = True  # auto_arm.sh runs
        self.is_stop_pressed = False
        self.starts = 0
        self.q = np.array(START_Q)
        self.dq = np.zeros(7)
        self._begin_s = time.monotonic()
        self._restart_at_s: float | None = 0.0
        self._is_up = False
        self._delayed: list[tuple[float, bytes]] = []
        self._closing = threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.linger = 0
        self._thread = threading.Thread(target=self._run, name="fake-nuc", daemon=True)
        self._thread.start()

    @property
    def O_T_EE(self) -> Array:
        return forward_kinematics(self.q, F_T_EE)

    def kill(self) -> None:
        """End the control process for good."""
        self.restarts = False
        self._exit_requested = True

    def restart(self) -> None:
        """End the control process; auto_arm.sh starts it again."""
        self._exit_requested = True

    def press_stop(self) -> None:
        self.is_stop_pressed = True
        self._exit_requested = True

    def release_stop(self) -> None:
        self.is_stop_pressed = False

    def sent_since(self, at_s: float) -> list[Sent]:
        return [each for each in list(self.sent) if each.at_s > at_s]

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._context.term()

    # The thread. _exit_requested: what ended the process, looked at once a tick.
    _exit_requested = False

    def _run(self) -> None:
        tap = self._context.socket(zmq.SUB)  # hears everything, the process on the NUC up or not
        tap.reconnect_ivl = 20
        tap.subscribe(b"")
        tap.connect(f"tcp://127.0.0.1:{self.command_port}")
        due_s = time.monotonic()
        while not self._closing.is_set():
            due_s = max(due_s + _TICK_S, time.monotonic() - 0.05)
            while tap.poll(round(max(0.0, due_s - time.monotonic()) * 1e3)):
                self.sent.append(decode_sent(tap.recv(), time.monotonic()))
            if self._is_up:
                self._tick()
            elif self._restart_at_s is not None and due_s >= self._restart_at_s and not self.is_stop_pressed:
                self._start()
        if self._is_up:
            self._exit()
        tap.close()

    def _start(self) -> None:
        self._publisher = self._context.socket(zmq.PUB)
        self._publisher.bind(f"tcp://127.0.0.1:{self.state_port}")
        self._subscriber = self._context.socket(zmq.SUB)
        self._subscriber.reconnect_ivl = 20
        self._subscriber.conflate = True
        self._subscriber.subscribe(b"")
        self._subscriber.connect(f"tcp://127.0.0.1:{self.command_port}")
        self.starts += 1
        self._is_up, self._exit_requested = True, False
        self._frame = self._empty_polls = 0
        self._has_goal, self._controller = False, "NO_CONTROL"
        self._known, self._known_s = self.q.copy(), self._now_s()
        self._goal: Array = self.q.copy()
        self._state_at_s = self._poll_at_s = 0.0

    def _exit(self) -> None:
        self._is_up = False
        self.dq[:] = 0.0
        self._publisher.close()
        self._subscriber.close()
        self._restart_at_s = time.monotonic() + _RESTART_S if self.restarts else None

    def _now_s(self) -> float:
        return 100.0 + time.monotonic() - self._begin_s  # the robot has been on for a while

    def _tick(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._poll_at_s:
            self._poll_at_s = now_s + _POLL_S
            self._poll_command()
        stopped_itself = self.mode in ("Reflex", "UserStopped") and self._controller != "NO_CONTROL"
        if self._exit_requested or stopped_itself:
            self._publish(now_s)
            self._exit()
            return
        if self._controller != "NO_CONTROL":
            self._move()
            if not self.freezes_state:
                self._known, self._known_s = self.q.copy(), self._now_s()
        else:
            self.dq[:] = 0.0
        if now_s >= self._state_at_s:
            self._state_at_s = now_s + _STATE_S
            self._publish(now_s)

    def _poll_command(self) -> None:
        try:
            command = decode_sent(self._subscriber.recv(zmq.NOBLOCK), 0.0)
        except zmq.Again:
            self._empty_polls += int(self._has_goal)
            self._exit_requested |= self._empty_polls >= _EMPTY_POLLS
            return
        self._empty_polls = 0
        if command.termination:
            self._exit_requested = True
        elif command.controller == "NO_CONTROL":
            self._controller = "NO_CONTROL"
        elif self._controller not in ("NO_CONTROL", command.controller):
            self.violations.append(f"{self._controller} -> {command.controller} without NO_CONTROL in between")
        else:
            self._has_goal, self._controller = True, command.controller
            self._take_goal(command)

    def _take_goal(self, command: Sent) -> None:
        if command.controller == "JOINT_POSITION":
            self._goal = np.array(command.q)
            return
        if command.message.state_estimator_msg.estimator_type != 1:
            self.violations.append("an OSC goal without a state estimator: the controller would crash")
        inner = schema().FrankaOSCPoseControllerMessage()
        command.message.control_msg.Unpack(inner)
        self._rate = inner.translational_stiffness[0] ** 0.5  # twice stiffness over damping, for the tests' time
        known = forward_kinematics(self._known, F_T_EE)
        if command.is_delta:
            self._goal = apply_delta(known, np.array(command.position), np.array(command.rotvec))
        else:
            self._goal = command.O_T_EE
            if self.adds_absolute_goals:
                self._goal[:3, 3] += known[:3, 3]

    def _move(self) -> None:
        if self._controller == "JOINT_POSITION":
            limit = 0.0 if self.holds_joints else _JOINT_SPEED
            self.dq = np.clip(10.0 * (self._goal - self.q), -limit, limit)
        else:
            missing, turn = pose_difference(self.O_T_EE, self._goal)
            distance = float(np.linalg.norm(missing))
            missing = missing * max(0.0, distance - self.stops_short_m) / max(distance, 1e-9)
            speed = np.concatenate((np.clip(self._rate * missing, -0.5, 0.5), np.clip(self._rate * turn, -1.5, 1.5)))
            self.dq = np.linalg.pinv(jacobian(self.q, F_T_EE), rcond=0.05) @ speed
        self.q = self.q + _TICK_S * self.dq

    def _publish(self, now_s: float) -> None:
        data = self._state_message().SerializeToString()
        self._frame += 1
        if self.garbles_states:
            data = b"\x0a\xff" + data[: len(data) // 2]
        if not self.drops_states:
            self._delayed.append((now_s + self.delays_states_s, data))
        while self._delayed and self._delayed[0][0] <= now_s:
            self._publisher.send(self._delayed.pop(0)[1])

    def _state_message(self) -> Any:
        message = schema().FrankaRobotStateMessage()
        scale = 0.0 if self.zeroes_states else 1.0
        message.frame = self._frame
        message.robot_mode = schema().FrankaRobotStateMessage.RobotMode.Value(self.mode)
        message.time.toSec = self._known_s
        message.time.toMSec = int(self._known_s * 1e3)
        message.control_command_success_rate = 1.0
        message.O_T_EE.extend((scale * forward_kinematics(self._known, F_T_EE)).T.ravel())
        message.O_T_EE_d.extend(message.O_T_EE)
        message.F_T_EE.extend(F_T_EE.T.ravel())
        message.q.extend(scale * self._known)
        message.q_d.extend(self._known)
        message.dq.extend(self.dq)
        message.tau_J.extend(np.linspace(-3.0, 3.0, 7))
        message.O_F_ext_hat_K.extend((0.0, 0.0, self.force_n, 0.1, 0.2, 0.3))
        message.K_F_ext_hat_K.extend((0.0,) * 6)
        message.theta.extend((0.0,) * 7)  # of those that the client does not declare
        message.current_errors.SetInParent()
        for error in self.errors:
            setattr(message.current_errors, error, True)
        return message


F_T_EE = make_pose(rotation_from_rotvec((0.0, 0.0, -np.pi / 4)), (0.0, 0.0, 0.1034))
