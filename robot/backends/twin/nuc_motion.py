"""Goals on their way: what Deoxys' interpolators turn a command into."""

import math
from dataclasses import dataclass

import numpy as np

from robot.interface import Array
from robot.pose import make_pose, pose_difference, rotation_from_rotvec

# Deoxys' limits for JOINT_POSITION: rad/s and rad/s^2.
_MAX_JOINT_SPEED: Array = np.array([2.0, 2.0, 2.0, 2.0, 2.5, 2.5, 2.5])
_MAX_JOINT_ACCELERATION = 1.0
# A minimum-jerk motion over distance d in time T has these peaks: 1.875 d/T and 5.7735 d/T^2.
_PEAK_SPEED, _PEAK_ACCELERATION = 1.875, 10.0 / math.sqrt(3.0)


@dataclass(frozen=True)
class PoseMotion:
    """From one pose (4, 4) to another in `duration_s`, at even speed; then the goal stays."""

    start: Array
    goal: Array
    start_s: float
    duration_s: float

    def at(self, now_s: float) -> Array:
        """Return the pose (4, 4) at an instant."""
        share = (now_s - self.start_s) / self.duration_s
        if share >= 1.0:
            return self.goal
        position, rotation = pose_difference(self.start, self.goal)
        share = max(share, 0.0)
        return make_pose(
            rotation_from_rotvec(share * rotation) @ self.start[:3, :3], self.start[:3, 3] + share * position
        )


class JointMotion:
    """From rest at one posture (7,) to rest at another, as fast as Deoxys' limits allow, all joints arriving at once.

    The minimum-jerk curve takes 2 % less time than the trapezoid that Deoxys rounds off.
    """

    def __init__(self, start: Array, goal: Array, start_s: float) -> None:
        self.goal = goal
        self._start, self._start_s = start, start_s
        distance = np.abs(goal - start)
        slowest = np.maximum(
            _PEAK_SPEED * distance / _MAX_JOINT_SPEED,
            np.sqrt(_PEAK_ACCELERATION * distance / _MAX_JOINT_ACCELERATION),
        )
        self.duration_s = max(float(slowest.max()), 1e-3)

    def at(self, now_s: float) -> tuple[Array, Array]:
        """Return joint angles and speeds, (7,) rad and (7,) rad/s, at an instant."""
        share = min(max((now_s - self._start_s) / self.duration_s, 0.0), 1.0)
        way = share**3 * (10.0 - 15.0 * share + 6.0 * share**2)
        speed = 30.0 * share**2 * (1.0 - share) ** 2 / self.duration_s
        return self._start + way * (self.goal - self._start), speed * (self.goal - self._start)
