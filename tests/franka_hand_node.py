"""Deoxys' gripper process with a Franka Hand, on real sockets and read by the independent schema.

As the process on the NUC: one command at a time, what arrives meanwhile is forgotten; after a Grasp that held something
further ones are ignored until a Move; a Stop homes; homing lets go. Attributes are knobs; `received` is all that came.
"""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from robot.backends.deoxys.config import Network
from tests.deoxys_fake import free_ports, schema

MAX_WIDTH = 0.08
_TICK_S = 0.002
_STATE_S = 0.025


@dataclass(frozen=True)
class Received:
    """One command as it arrived."""

    at_monotonic_s: float
    kind: str  # Move, Grasp, Stop, Homing
    values: dict[str, float] = field(default_factory=dict)  # of its fields


class FrankaHandNode:
    """The process and the hand. `hurry`: how much faster than a real one it moves."""

    def __init__(self, folder: Path, hurry: float = 8.0) -> None:
        command_port, state_port, gripper_command_port, gripper_state_port = free_ports(4)
        self.network = Network(
            path=folder / "network.yml",
            nuc_ip="127.0.0.1",
            command_port=command_port,
            state_port=state_port,
            gripper_command_port=gripper_command_port,
            gripper_state_port=gripper_state_port,
            pc_ip="127.0.0.1",
        )
        self.object_width: float | None = None
        self.max_width = MAX_WIDTH
        self.is_silent = False
        self.garbled_states = 0
        self.loses_commands = 0  # so many of the next ones, as a busy process does
        self.received: list[Received] = []
        self.num_homings = 0
        self.width = MAX_WIDTH
        self.is_grasped = False
        self._hurry = hurry
        self._has_grasped = False
        self._motion: tuple[str, dict[str, float]] | None = None  # what it executes
        self._quits = threading.Event()
        self._thread: threading.Thread | None = None
        self.start()

    def start(self) -> None:
        """Start the process; it homes, so that what it held falls."""
        self._quits.clear()
        self.num_homings += 1
        self.width, self.is_grasped, self._has_grasped, self._motion = MAX_WIDTH, False, False, None
        self._thread = threading.Thread(target=self._run, name="hand-node", daemon=True)
        self._thread.start()

    def kill(self) -> None:
        self._quits.set()
        if self._thread is not None:
            self._thread.join(10)
            self._thread = None

    def close(self) -> None:
        self.kill()

    def _run(self) -> None:
        with zmq.Context() as context:
            states = context.socket(zmq.PUB)
            commands = context.socket(zmq.SUB)
            states.linger = commands.linger = 0
            commands.conflate = 1
            commands.subscribe(b"")
            states.bind(f"tcp://*:{self.network.gripper_state_port}")
            commands.connect(f"tcp://{self.network.pc_ip}:{self.network.gripper_command_port}")
            published_s = 0.0
            while not self._quits.wait(_TICK_S):
                self._take(commands)
                self._move()
                if time.monotonic() - published_s > _STATE_S and not self.is_silent:
                    published_s = time.monotonic()
                    states.send(self._state())
            states.close()
            commands.close()

    def _take(self, commands: Any) -> None:
        try:
            message = schema().FrankaGripperControlMessage.FromString(commands.recv(zmq.NOBLOCK))
        except zmq.Again:
            return
        for kind in ("Move", "Grasp", "Stop", "Homing"):
            inner = getattr(schema(), f"FrankaGripper{kind}Message")()
            if message.control_msg.Unpack(inner):
                values = {descriptor.name: float(value) for descriptor, value in inner.ListFields()}
                self.received.append(Received(time.monotonic(), kind, values))
                if self.loses_commands > 0:
                    self.loses_commands -= 1
                else:
                    self._start(kind, values)

    def _start(self, kind: str, values: dict[str, float]) -> None:
        if kind == "Stop":
            self.num_homings += 1
            self.width, self.is_grasped, self._has_grasped, self._motion = MAX_WIDTH, False, False, None
        elif kind != "Homing" and self._motion is None and not (kind == "Grasp" and self._has_grasped):
            self._motion = (kind, values)
            self.is_grasped = False

    def _move(self) -> None:
        if self._motion is None:
            return
        kind, values = self._motion
        target = values.get("width", 0.0) if kind == "Move" else 0.0  # Grasp closes until something is there
        blocks = self.object_width is not None and target < self.object_width <= self.width
        end = self.object_width if blocks and self.object_width is not None else target
        reach = self._hurry * values.get("speed", 0.0) * _TICK_S
        self.width += min(max(end - self.width, -reach), reach)
        if self.width != end:
            return
        self._motion, self._has_grasped = None, False
        if kind == "Grasp":
            expected = values.get("width", 0.0)
            low, high = expected - values.get("epsilon_inner", 0.0), expected + values.get("epsilon_outer", 0.0)
            self.is_grasped = self._has_grasped = low < self.width < high

    def _state(self) -> bytes:
        if self.garbled_states > 0:
            self.garbled_states -= 1
            return b"\xff\xff\xff garbled"
        message = schema().FrankaGripperStateMessage(
            width=self.width, max_width=self.max_width, is_grasped=self.is_grasped, temperature=30
        )
        message.time.toSec = time.monotonic()
        message.time.toMSec = int(message.time.toSec * 1e3)
        return bytes(message.SerializeToString())
