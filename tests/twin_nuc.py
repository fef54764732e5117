"""The twin's NUC process, and a plain client that talks to it as Deoxys' own would: pyzmq and an independent schema."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
import zmq

from robot.interface import Array
from robot.pose import rotvec_from_rotation
from tests.deoxys_fake import schema

ROOT = Path(__file__).resolve().parents[1]
HANG_S = 30.0
POLICY_PERIOD_S = 0.05


class NucProcess:
    """`python -m robot.backends.twin.nuc` on free ports."""

    def __init__(self, scene: str, folder: Path, *flags: str) -> None:
        self.network = folder / "network.yml"
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "robot.backends.twin.nuc", "--scene", scene, "--with-parent",
                "--write-network", str(self.network), "--room", "127.0.0.1:0", "--restart-delay-s", "0.2", *flags,
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("ready"):
            raise AssertionError(f"the process said {line!r} and ended with {self.close()}")
        self.room = line.split()[-1]

    def close(self) -> int:
        """End it as a person would; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(HANG_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


class PlainClient:
    """Deoxys' PC side. A thread keeps every state that comes; goals are repeated only when asked to."""

    def __init__(self, network: Path) -> None:
        ports = yaml.safe_load(network.read_text())["NUC"]
        self.states: list[Any] = []
        self.hand_states: list[Any] = []
        self.garbled = 0
        self._context = zmq.Context()
        self._commands = self._publisher(ports["SUB_PORT"])
        self._hand_commands = self._publisher(ports["GRIPPER_SUB_PORT"])
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._drain, args=(ports["PUB_PORT"], "FrankaRobotStateMessage", self.states)),
            threading.Thread(
                target=self._drain, args=(ports["GRIPPER_PUB_PORT"], "FrankaGripperStateMessage", self.hand_states)
            ),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._commands.close(0)
        self._hand_commands.close(0)
        self._context.term()

    def wait(self, is_so: Callable[[], bool], what: str, while_doing: Callable[[], None] = lambda: None) -> None:
        """Wait until it is so, doing something each policy period."""
        deadline_s = time.monotonic() + HANG_S
        while not is_so():
            assert time.monotonic() < deadline_s, what
            while_doing()
            time.sleep(POLICY_PERIOD_S)

    def next_state(self) -> Any:
        """Return a state that came after the call."""
        count = len(self.states)
        self.wait(lambda: len(self.states) > count, "a state comes")
        return self.states[-1]

    def no_control(self, count: int = 20) -> None:
        """Release the arm; as often as Deoxys' client does it unless told otherwise."""
        for _ in range(count):
            self._command("NO_CONTROL", schema().FrankaDummyControllerMessage())
            time.sleep(POLICY_PERIOD_S)

    def terminate(self) -> None:
        self._command("NO_CONTROL", schema().FrankaDummyControllerMessage(), termination=True)

    def send_bytes(self, data: bytes) -> None:
        self._commands.send(data)

    def osc_delta(self, position: tuple[float, ...] = (0, 0, 0), rotvec: tuple[float, ...] = (0, 0, 0)) -> None:
        self._osc(position, rotvec, is_delta=True)

    def osc_pose(self, O_T_EE: Array) -> None:
        self._osc(O_T_EE[:3, 3].tolist(), rotvec_from_rotation(O_T_EE[:3, :3]).tolist(), is_delta=False)

    def joints(self, q: Array) -> None:
        inner = schema().FrankaJointPositionControllerMessage()
        for joint, angle in enumerate(q.tolist(), 1):
            setattr(inner.goal, f"q{joint}", angle)
        self._command("JOINT_POSITION", inner, interpolator="SMOOTH_JOINT_POSITION")

    def hand(self, kind: str, **values: Any) -> None:
        """Send FrankaGripper<kind>Message."""
        message = schema().FrankaGripperControlMessage()
        message.control_msg.Pack(getattr(schema(), f"FrankaGripper{kind}Message")(**values))
        self._hand_commands.send(message.SerializeToString())

    def _osc(self, position: Any, rotvec: Any, is_delta: bool) -> None:
        inner = schema().FrankaOSCPoseControllerMessage(
            translational_stiffness=[150.0] * 3, rotational_stiffness=[250.0] * 3
        )
        inner.goal.is_delta = is_delta
        inner.goal.x, inner.goal.y, inner.goal.z = position
        inner.goal.ax, inner.goal.ay, inner.goal.az = rotvec
        inner.config.residual_mass_vec.extend([0.0, 0.0, 0.0, 0.0, 0.1, 0.5, 0.5])
        self._command("OSC_POSE", inner, interpolator="LINEAR_POSE")

    def _command(self, controller: str, inner: Any, interpolator: str = "NO_OP", termination: bool = False) -> None:
        outer = schema().FrankaControlMessage
        message = outer(
            controller_type=outer.ControllerType.Value(controller),
            traj_interpolator_type=outer.TrajInterpolatorType.Value(interpolator),
            traj_interpolator_time_fraction=0.3,
            timeout=0.2,
            termination=termination,
        )
        message.control_msg.Pack(inner)
        message.state_estimator_msg.estimator_type = 1
        message.state_estimator_msg.config.Pack(schema().ExponentialSmoothingConfig(alpha_q=0.9, alpha_dq=0.9))
        self._commands.send(message.SerializeToString())

    def _publisher(self, port: int) -> Any:
        publisher = self._context.socket(zmq.PUB)
        publisher.bind(f"tcp://*:{port}")
        return publisher

    def _drain(self, port: int, message: str, into: list[Any]) -> None:
        with self._context.socket(zmq.SUB) as socket:
            socket.linger = 0
            socket.subscribe(b"")
            socket.connect(f"tcp://127.0.0.1:{port}")
            while not self._closing.is_set():
                if socket.poll(50):
                    try:
                        into.append(getattr(schema(), message).FromString(socket.recv()))
                    except Exception:
                        self.garbled += 1


def pose_of(state: Any) -> Array:
    """Return O_T_EE (4, 4): it is sent column by column."""
    return np.array(state.O_T_EE).reshape(4, 4).T
