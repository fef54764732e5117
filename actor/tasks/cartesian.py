"""The action that tasks share: a Cartesian step of the end effector, with or without rotation and gripper."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from actor.reference_frame import ReferenceFrame
from policy.spec import ActionSpec, Field, GripperMode
from robot.geometry import GRIPPER_OPEN_M
from robot.interface import Array, RobotCommand, RobotState
from robot.pose import O_R_DOWN, rotvec_from_rotation
from robot.safety import SafetyConfig

_CUBE_CORNER = 3**0.5 * (1 + 1e-6)  # distance of a cube's corner in half edges, with room for rounding
MAX_TURN_RAD = 0.5  # of the hand from straight down, where an action can turn it
GRIPPER_THRESHOLD = 0.5  # beyond it, the gripper's element of an action means close (-) or open (+); else stay
_GRIPPER_HALF_M = GRIPPER_OPEN_M / 2  # a commanded width below it is a command to close


@dataclass(frozen=True)
class CartesianDelta:
    """Action [dx, dy, dz], with rotation also a rotation vector, relative to the measured pose; then the gripper.

    Steps are along O's axes, or EE's in the frame "reset". Without rotation each command turns the measured orientation
    back to straight down: steps relative to a measured pose would otherwise add up whatever tilt contacts cause.
    """

    max_step_m: float = 0.02
    max_step_rad: float = 0.05
    rotation: bool = False
    gripper: GripperMode = "none"
    frame: ReferenceFrame = field(default_factory=ReferenceFrame)
    control_rate_hz: float = 10.0

    @property
    def spec(self) -> ActionSpec:
        fields = [Field(name="delta_position", unit="m", low=(-self.max_step_m,) * 3, high=(self.max_step_m,) * 3)]
        if self.rotation:
            limit = (self.max_step_rad,) * 3
            fields.append(Field(name="delta_rotation", unit="rad", low=tuple(-value for value in limit), high=limit))
        if self.gripper != "none":
            fields.append(Field(name="gripper", unit="1", low=(-1.0,), high=(1.0,)))
        return ActionSpec(tuple(fields), self.gripper)

    def safety(self, workspace_min_m: Array, workspace_max_m: Array) -> SafetyConfig:
        """Return limits that pass every action of the spec, corners of the cube included, inside a box for EE.

        A gate tighter than the action space would make distinct actions do the same thing.
        """
        return SafetyConfig(
            workspace_min_m=tuple(workspace_min_m.tolist()),
            workspace_max_m=tuple(workspace_max_m.tolist()),
            max_step_m=_CUBE_CORNER * self.max_step_m,
            max_step_rad=_CUBE_CORNER * self.max_step_rad,
            # A policy that turns its hand again and again would drive the wrist against its limits.
            max_turn_rad=MAX_TURN_RAD if self.rotation else math.pi,
            # Speed of the goal. The arm itself lags: a steady 2 cm per 0.1 s moves it at 0.08 m/s.
            max_speed_m_s=_CUBE_CORNER * self.max_step_m * self.control_rate_hz,
            max_speed_rad_s=_CUBE_CORNER * self.max_step_rad * self.control_rate_hz,
            gripper_max_m=GRIPPER_OPEN_M,
        )

    def command(self, action: NDArray[np.float32], state: RobotState) -> RobotCommand:
        """Return the robot step for an action (A,) in [-1, 1]; raises WireError on a wrong shape or NaN."""
        physical = self.spec.to_physical(action)
        O_T_EE = state.O_T_EE
        turn = self.frame.to_base(physical[3:6], O_T_EE) if self.rotation else self._towards_down(state)
        return RobotCommand(
            delta_position=self.frame.to_base(physical[:3], O_T_EE),
            delta_rotation=turn,
            gripper_width=None if self.gripper == "none" else _gripper_width(float(physical[-1])),
        )

    def sayable(self, command: RobotCommand, state: RobotState) -> RobotCommand:
        """Shorten the step until an action can say it.

        What the gate leaves can stick out of the cube of actions: cut along O's axes where the action is along EE's, or
        turned by a contact, a joint's limit or the hand's. Shortened as a whole it still lies within the gate's limits,
        because they hold for every shorter step of the same kind.
        """
        longest = float(np.abs(self.frame.from_base(command.delta_position, state.O_T_EE)).max()) / self.max_step_m
        if self.rotation:
            turn = float(np.abs(self.frame.from_base(command.delta_rotation, state.O_T_EE)).max()) / self.max_step_rad
            longest = max(longest, turn)
        if longest <= 1 + 1e-9:
            return command
        return replace(
            command,
            delta_position=command.delta_position / longest,
            delta_rotation=command.delta_rotation / longest,
        )

    def action_of(self, command: RobotCommand, state: RobotState) -> NDArray[np.float32]:
        """Return the action (A,) whose command at `state` this is; its gripper element is -1, 0 or 1."""
        gripper = 0.0
        if command.gripper_width is not None:
            gripper = -1.0 if commands_close(command.gripper_width) else 1.0
        return self.action(command.delta_position, command.delta_rotation, gripper, state)

    def action_from_twist(self, twist: Array, gripper: float, state: RobotState) -> NDArray[np.float32]:
        """Return the action (A,) for a device's twist (6,) in [-1, 1] along O's axes, full deflection a full step."""
        return self.action(self.max_step_m * twist[:3], self.max_step_rad * twist[3:], gripper, state)

    def action(
        self, delta_position: Array, delta_rotation: Array, gripper: float, state: RobotState
    ) -> NDArray[np.float32]:
        """Return the action (A,) for a step (3,) m, turn (3,) rad, both in O, and gripper element; cut to [-1, 1]."""
        parts = [self.frame.from_base(delta_position, state.O_T_EE)]
        if self.rotation:
            parts.append(self.frame.from_base(delta_rotation, state.O_T_EE))
        if self.gripper != "none":
            parts.append(np.array([gripper]))
        return self.spec.to_normalised(np.concatenate(parts))

    def _towards_down(self, state: RobotState) -> Array:
        error = rotation_error(state.O_T_EE)
        return clip_norm(error, self.max_step_rad)


def commands_close(width: float) -> bool:
    """Return whether a commanded gripper width, m, closes it rather than opens it."""
    return width < _GRIPPER_HALF_M


def _gripper_width(element: float) -> float | None:
    if element <= -GRIPPER_THRESHOLD:
        return 0.0
    return GRIPPER_OPEN_M if element >= GRIPPER_THRESHOLD else None


def rotation_error(O_T_B: Array) -> Array:
    """Return the rotation vector (3,), rad, in O that turns B to point straight down (robot.pose.O_R_DOWN)."""
    return rotvec_from_rotation(O_R_DOWN @ O_T_B[:3, :3].T)


def clip_norm(vector: Array, limit: float) -> Array:
    """Shorten `vector` to length `limit` if it is longer, keeping its direction."""
    length = float(np.linalg.norm(vector))
    return vector if length <= limit else vector * (limit / length)
