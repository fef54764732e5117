"""The wire to Deoxys' controller on the NUC: two ZeroMQ sockets, and what may be sent through them."""

import threading
import time
from collections.abc import Callable
from typing import Protocol

import zmq

from robot.backends.deoxys.config import Network
from robot.backends.deoxys.messages import (
    ArmCommand,
    ArmState,
    Controller,
    GarbledMessageError,
    JointPosition,
    OscPose,
    decode_arm_state,
    encode_arm_command,
)
from robot.errors import RobotError

Goal = OscPose | JointPosition

RELEASE_MESSAGES = 20  # NO_CONTROL messages over RELEASE_S, as Deoxys' own client sends them
RELEASE_S = 1.0
_CLOSE_LINGER_MS = 200


class ArmLink(Protocol):
    """A way to Deoxys' controller. One thread receives; sending is serialised by the caller."""

    garbled: int  # messages that could not be read so far

    def open(self) -> None:
        """Open it. Sends nothing. Raises RobotError with the remedy."""

    def receive(self, timeout_s: float) -> list[ArmState]:
        """Return the states that have come, oldest first, after waiting for one for at most `timeout_s`."""

    def release(self, should_stop: Callable[[], bool]) -> None:
        """Take the arm from any controller: what must precede another one. Blocks for RELEASE_S.

        Sends on its own, until should_stop(), which must not wait for the caller of `send` or `terminate`.
        """

    def send(self, goal: Goal) -> None:
        """Give the controller its goal. Does not block, once released."""

    def terminate(self) -> None:
        """Tell the control process on the NUC to end."""

    def close(self) -> None:
        """Release everything; what was sent last still goes out. Safe to call twice."""


class WireLink:
    """Our own client of the controller. The NUC connects to the command port of this PC, and this to its state port."""

    def __init__(self, network: Network) -> None:
        self.garbled = 0
        self._network = network
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._commands: zmq.Socket[bytes] | None = None
        self._states: zmq.Socket[bytes] | None = None
        self._lock = threading.Lock()  # around the command socket: a ZeroMQ socket is not for two threads

    def open(self) -> None:
        self.close()
        self.garbled = 0
        self._context = zmq.Context()
        self._context.linger = 0
        self._commands = self._context.socket(zmq.PUB)
        port = self._network.command_port
        try:
            self._commands.bind(f"tcp://*:{port}")
        except zmq.ZMQError as error:
            self.close()
            raise RobotError(
                f"port {port} of this PC (NUC.SUB_PORT in {self._network.path}), to which the NUC connects, cannot be "
                f"opened: {error}. Another actor or Deoxys client is probably running: `ss -ltnp 'sport = :{port}'` "
                "names it."
            ) from error
        self._states = self._context.socket(zmq.SUB)
        self._states.subscribe(b"")
        self._states.connect(f"tcp://{self._network.nuc_ip}:{self._network.state_port}")

    def receive(self, timeout_s: float) -> list[ArmState]:
        assert self._states is not None, "receive() before open()"
        received: list[ArmState] = []
        if not self._states.poll(round(timeout_s * 1e3)):
            return received
        while True:
            try:
                data = self._states.recv(zmq.NOBLOCK)
            except zmq.Again:
                return received
            try:
                received.append(decode_arm_state(data))
            except GarbledMessageError:
                self.garbled += 1

    def release(self, should_stop: Callable[[], bool]) -> None:
        for _ in range(RELEASE_MESSAGES):
            with self._lock:  # with the question: nothing may follow a termination that another thread sends
                if should_stop():
                    return
                self._send(ArmCommand(controller=Controller.NO_CONTROL))
            time.sleep(RELEASE_S / RELEASE_MESSAGES)

    def send(self, goal: Goal) -> None:
        controller = Controller.OSC_POSE if isinstance(goal, OscPose) else Controller.JOINT_POSITION
        with self._lock:
            self._send(ArmCommand(controller=controller, goal=goal))

    def terminate(self) -> None:
        with self._lock:
            self._send(ArmCommand(controller=Controller.NO_CONTROL, termination=True))

    def close(self) -> None:
        if self._states is not None:
            self._states.close(linger=0)
        if self._commands is not None:
            self._commands.close(linger=_CLOSE_LINGER_MS)  # not 0: a termination just sent has to go out
        if self._context is not None:
            self._context.term()
        self._states = self._commands = self._context = None

    def _send(self, command: ArmCommand) -> None:
        assert self._commands is not None, "send() before open()"
        self._commands.send(encode_arm_command(command), zmq.NOBLOCK)
