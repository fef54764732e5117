"""The action that tasks share: a Cartesian step of the end effector, with or without rotation."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy.spec import ActionSpec, Field
from robot.interface import Array, RobotCommand, RobotState
from robot.pose import O_R_DOWN, rotvec_from_rotation
from robot.safety import SafetyConfig

_CUBE_CORNER = 3**0.5 * (1 + 1e-6)  # distance of a cube's corner in half edges, with room for rounding


@dataclass(frozen=True)
class CartesianDelta:
    """Action [dx, dy, dz], with rotation also a rotation vector, all in O and relative to the measured pose.

    Without rotation each command turns the measured orientation back to straight down: steps relative to a measured
    pose would otherwise add up whatever tilt contacts cause.
    """

    max_step_m: float = 0.02
    max_step_rad: float = 0.05
    rotation: bool = False
    control_rate_hz: float = 10.0

    @property
    def spec(self) -> ActionSpec:
        position = Field(name="delta_position", unit="m", low=(-self.max_step_m,) * 3, high=(self.max_step_m,) * 3)
        if not self.rotation:
            return ActionSpec((position,))
        turn = Field(name="delta_rotation", unit="rad", low=(-self.max_step_rad,) * 3, high=(self.max_step_rad,) * 3)
        return ActionSpec((position, turn))

    def safety(self, workspace_min_m: Array, workspace_max_m: Array) -> SafetyConfig:
        """Return limits that pass every action of the spec, corners of the cube included, inside a box for EE.

        A gate tighter than the action space would make distinct actions do the same thing.
        """
        return SafetyConfig(
            workspace_min_m=tuple(workspace_min_m.tolist()),
            workspace_max_m=tuple(workspace_max_m.tolist()),
            max_step_m=_CUBE_CORNER * self.max_step_m,
            max_step_rad=_CUBE_CORNER * self.max_step_rad,
            # Speed of the goal. The arm itself lags: a steady 2 cm per 0.1 s moves it at 0.08 m/s.
            max_speed_m_s=_CUBE_CORNER * self.max_step_m * self.control_rate_hz,
            max_speed_rad_s=_CUBE_CORNER * self.max_step_rad * self.control_rate_hz,
        )

    def command(self, action: NDArray[np.float32], state: RobotState) -> RobotCommand:
        """Return the robot step for an action (A,) in [-1, 1]; raises WireError on a wrong shape or NaN."""
        physical = self.spec.to_physical(action)
        delta_rotation = physical[3:] if self.rotation else self._towards_down(state)
        return RobotCommand(delta_position=physical[:3], delta_rotation=delta_rotation)

    def action_of(self, command: RobotCommand) -> NDArray[np.float32]:
        """Return the action (A,) whose command this is."""
        parts = [command.delta_position, command.delta_rotation] if self.rotation else [command.delta_position]
        return self.spec.to_normalised(np.concatenate(parts))

    def _towards_down(self, state: RobotState) -> Array:
        error = rotation_error(state.O_T_EE)
        return clip_norm(error, self.max_step_rad)


def rotation_error(O_T_B: Array) -> Array:
    """Return the rotation vector (3,), rad, in O that turns B to point straight down (robot.pose.O_R_DOWN)."""
    return rotvec_from_rotation(O_R_DOWN @ O_T_B[:3, :3].T)


def clip_norm(vector: Array, limit: float) -> Array:
    """Shorten `vector` to length `limit` if it is longer, keeping its direction."""
    length = float(np.linalg.norm(vector))
    return vector if length <= limit else vector * (limit / length)
