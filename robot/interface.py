"""What a robot is to the rest of the system. SI units; base frame O, end effector EE (libfranka notation)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RobotState:
    """One measurement of the arm and gripper."""

    O_T_EE: Array  # (4, 4) pose of EE in O
    O_twist_EE: Array  # (6,) linear then angular velocity of EE in O, m/s and rad/s
    q: Array  # (7,) rad
    dq: Array  # (7,) rad/s
    tau_J: Array  # (7,) N m
    O_F_ext_hat_K: Array  # (6,) external force then torque on EE in O, N and N m
    gripper_width: float  # m, 0 closed
    robot_time_s: float  # the robot's own clock
    received_monotonic_s: float  # time.monotonic() at arrival


@dataclass(frozen=True, kw_only=True)
class RobotCommand:
    """One Cartesian step for one control period, relative to the *measured* pose (Deoxys OSC_POSE delta)."""

    delta_position: Array  # (3,) m, in O
    delta_rotation: Array  # (3,) rotation vector, rad, in O: R_goal = exp(delta_rotation) R_measured
    gripper_width: float | None = None  # m; None keeps the last command


@dataclass(frozen=True, kw_only=True)
class ScenePlacement:
    """Where an episode starts. A simulator puts arm and objects there; a robot moves its arm to O_T_EE."""

    O_T_EE: Array  # (4, 4)
    objects: Mapping[str, Array] = field(default_factory=dict)  # name -> (4, 4); frame stated by the scene


class RobotBackend(Protocol):
    """A Franka-like arm with a gripper. One thread calls it.

    What only a person may decide to leave behind (reflex, emergency stop, restart of the robot's control process,
    errors) latches: from then on every call that would read or move raises RobotFaultError, and nothing is sent that
    moves the arm, until `recover`.
    """

    def connect(self) -> None:
        """Open the connection. Raises RobotError with the remedy when there is nothing to talk to."""

    def reset(self, placement: ScenePlacement) -> RobotState:
        """Bring arm (and, in a simulator, objects) to `placement` at rest and return the state there."""

    def read_state(self) -> RobotState:
        """Return the newest state. Raises StaleStateError if it is too old, RobotFaultError when a fault is latched."""

    def send_command(self, command: RobotCommand) -> None:
        """Start executing a step that already passed the safety gate. Does not wait for its end."""

    def advance(self, period_s: float) -> None:
        """Let one control period pass: a simulator integrates it, a real robot returns at once."""

    def stop(self) -> None:
        """Hold the current pose. Safe to call twice, from any thread, and after a failure."""

    def recover(self) -> None:
        """Leave a latched fault behind, holding where the arm is. Only for a person who has seen why (robot/guard.py).

        Raises RobotFaultError, naming what still stands in the way; the fault then stays latched. Without a fault
        nothing happens.
        """

    def close(self) -> None:
        """Release everything. Safe to call twice."""


@runtime_checkable
class SimulatedWorld(Protocol):
    """The objects around a simulated arm."""

    def object_poses(self) -> dict[str, Array]:
        """Return name -> O_T_object (4, 4) for each object of the scene."""

    def render(self, width: int, height: int, camera: str = "overview") -> NDArray[np.uint8]:
        """Return an RGB image (height, width, 3); raises RobotError where it cannot be drawn."""


@runtime_checkable
class SimulatedBackend(RobotBackend, SimulatedWorld, Protocol):
    """A backend that is its own world: `reset` puts the objects in place, and time passes only in `advance`."""


class Room(SimulatedWorld, Protocol):
    """A simulated world that runs by itself behind a robot's real door, and what a person does in a real one."""

    def connect(self) -> None:
        """Open the connection. Raises RobotError with the remedy when nothing answers."""

    def place(self, placement: ScenePlacement) -> None:
        """Put the objects in place, as a person would between episodes. The arm stays where it is."""

    def close(self) -> None:
        """Release everything. Safe to call twice."""


@dataclass(frozen=True, kw_only=True)
class GripperState:
    """What a gripper reports."""

    width: float  # m between the fingers, 0 closed
    is_moving: bool
    is_holding: bool  # stopped by something between the fingers
    received_monotonic_s: float
    fault: str = ""  # why it cannot be used, and the remedy; empty when it works. Latched until `recover`


class Gripper(Protocol):
    """A two-finger gripper. A thread of its own talks to it; only connect, recover and close block."""

    max_width: float  # m

    def connect(self) -> None:
        """Open and activate it, which may move the fingers. Raises RobotError with the remedy."""

    def read(self) -> GripperState:
        """Return the newest state, however old. Never blocks. Raises RobotError before the first."""

    def move(self, width: float) -> None:
        """Go to `width`, m, and grip what is in between. Never blocks; the newest wins; without effect in a fault."""

    def stop(self) -> None:
        """Stay where the fingers are, without letting go. Never blocks; safe to call twice and from any thread."""

    def recover(self) -> None:
        """Leave a latched fault behind: activate it again, which may move the fingers. Only for a person's word.

        Raises RobotError when it does not work.
        """

    def close(self) -> None:
        """Release it. Safe to call twice."""


@dataclass(frozen=True, kw_only=True)
class CameraFrame:
    """One image as a camera delivered it."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB at the camera's own size, rows from the top
    sequence: int  # of the driver, grows with every new image
    received_monotonic_s: float  # time.monotonic() at arrival


class Camera(Protocol):
    """A colour camera. A thread of its own captures; `read` never waits for it."""

    width: int  # px, of every frame
    height: int

    def connect(self) -> None:
        """Start capturing. Raises RobotError with the remedy when there is no such camera."""

    def read(self) -> CameraFrame:
        """Return the newest frame, however old it is: judging its age is the caller's. Raises RobotError before one."""

    def close(self) -> None:
        """Stop capturing. Safe to call twice."""


@dataclass(frozen=True, kw_only=True)
class TeleopState:
    """What an input device says now."""

    twist: Array  # (6,) in [-1, 1]: forward x, left y, up z of O, then rotation about them; zeros when untouched
    buttons: tuple[bool, ...]  # in the device's order; a SpaceMouse's left, right
    received_monotonic_s: float  # arrival of the newest report
    is_connected: bool = True


class TeleopDevice(Protocol):
    """An input device in a person's hand. A thread of its own drains it; `read` never blocks."""

    num_buttons: int

    def connect(self) -> None:
        """Open the device. Raises RobotError with the remedy when there is none."""

    def read(self) -> TeleopState:
        """Return the newest state. An unplugged device reads as untouched, with is_connected False."""

    def close(self) -> None:
        """Release the device. Safe to call twice."""
