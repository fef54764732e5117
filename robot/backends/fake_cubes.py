"""The fake robot's fingers and cubes: what is between closing fingers is held, what is let go falls straight down.

Simplified: open fingers pass through cubes instead of pushing them, cubes stay level on whatever they rest on, and a
cube blocks another one as if both had their edges along the axes of O.
"""

import math
from collections.abc import Mapping

import numpy as np

from robot.geometry import CUBE_EDGE_M, FINGER_TIP_M, GRIPPER_OPEN_M, GRIPPER_SPEED_M_S
from robot.interface import Array
from robot.pose import inverse, rotation_from_rotvec

# Where a cube's centre has to be in EE for the closing fingers to hold it. Along x the pads, 22 mm wide, touch it near
# its middle; along y, in which they push it to their own middle, they are around it; along z they overlap with it.
_HELD_WITHIN_M = np.array([0.015, (GRIPPER_OPEN_M - CUBE_EDGE_M) / 2, 0.025])
_HELD_YAW_RAD = (
    0.45  # of the cube to the fingers, which turn it straight; the diagonal beyond does not fit between them
)


class Cubes:
    """Cubes on a table at z = 0 of O, and the fingers that move them. Changes only in `follow`."""

    def __init__(self, poses: Mapping[str, Array]) -> None:
        """poses: name -> O_T_cube (4, 4). The fingers start open."""
        self.poses = {name: pose.astype(np.float64) for name, pose in poses.items()}
        self.width = self.commanded_width = GRIPPER_OPEN_M
        self._held: str | None = None
        self._EE_T_held = np.eye(4)

    def push_out(self, O_T_EE: Array) -> Array:
        """Return the shift (3,) m, in O, that brings hand and held cube, with EE at O_T_EE, out of table and cubes."""
        if self._held is None:
            return np.array([0.0, 0.0, max(0.0, FINGER_TIP_M - O_T_EE[2, 3])])
        position = (O_T_EE @ self._EE_T_held)[:3, 3]
        push = np.zeros(3)
        push[2] = max(0.0, CUBE_EDGE_M / 2 - position[2], FINGER_TIP_M - O_T_EE[2, 3])
        for name, pose in self.poses.items():
            if name != self._held:
                push += _push_apart(position + push, pose[:3, 3])
        return push

    def follow(self, O_T_EE: Array, period_s: float) -> None:
        """Move the fingers for period_s at O_T_EE, take or release a cube, and let what is free come to rest."""
        reach_m = GRIPPER_SPEED_M_S * period_s
        wanted = min(max(self.commanded_width, self.width - reach_m), self.width + reach_m)
        is_closing = wanted < self.width
        if self._held is not None and wanted > CUBE_EDGE_M:
            self._held = None
        if self._held is None and is_closing and wanted <= CUBE_EDGE_M <= self.width:
            self._take(O_T_EE)
        self.width = CUBE_EDGE_M if self._held is not None else wanted
        if self._held is not None:
            self.poses[self._held] = O_T_EE @ self._EE_T_held
        for name in sorted(self.poses, key=lambda name: float(self.poses[name][2, 3])):  # the lowest first
            if name != self._held:
                self.poses[name] = self._at_rest(name)

    def _take(self, O_T_EE: Array) -> None:
        """Hold the cube between the fingers, if there is one, pushed to their middle and turned straight."""
        for name, pose in self.poses.items():
            EE_T_cube = inverse(O_T_EE) @ pose
            yaw = math.remainder(math.atan2(EE_T_cube[1, 0], EE_T_cube[0, 0]), math.pi / 2)
            if (np.abs(EE_T_cube[:3, 3]) < _HELD_WITHIN_M).all() and abs(yaw) < _HELD_YAW_RAD:
                EE_T_cube[:3, :3] = rotation_from_rotvec((0.0, 0.0, -yaw)) @ EE_T_cube[:3, :3]
                EE_T_cube[1, 3] = 0.0
                self._held, self._EE_T_held = name, EE_T_cube
                return

    def _at_rest(self, name: str) -> Array:
        """Return a free cube's pose after it fell: level, on the highest cube under its centre or on the table."""
        pose = _levelled(self.poses[name])
        others = [other[:3, 3] for other_name, other in self.poses.items() if other_name != name]
        below = [other for other in others if other[2] + CUBE_EDGE_M / 2 <= pose[2, 3]]
        supports = [other[2] for other in below if np.abs(other[:2] - pose[:2, 3]).max() < CUBE_EDGE_M / 2]
        pose[2, 3] = max(supports) + CUBE_EDGE_M if supports else CUBE_EDGE_M / 2
        for other in others:  # it slid off the other one's edge, or lies beside it
            pose[:2, 3] += _push_apart(pose[:3, 3], other, sideways_only=True)[:2]
        return pose


def _push_apart(position: Array, other: Array, *, sideways_only: bool = False) -> Array:
    """Return the shortest shift (3,) m, along an axis of O, that brings a cube at `position` out of the `other` one."""
    offset = position - other
    depth = CUBE_EDGE_M - np.abs(offset)
    push = np.zeros(3)
    if depth.min() > 1e-9:
        axis = int(np.argmin(depth[:2])) if sideways_only else int(np.argmin(depth))
        push[axis] = math.copysign(depth[axis], offset[axis])
    return push


def _levelled(pose: Array) -> Array:
    """Return `pose` turned by the least angle that makes one of its axes vertical."""
    levelled = pose.copy()
    axis = pose[:3, int(np.argmax(np.abs(pose[2, :3])))]
    axis = axis * math.copysign(1.0, axis[2])
    sine = math.hypot(axis[0], axis[1])
    if sine > 1e-12:
        towards_vertical = np.array([axis[1], -axis[0], 0.0]) / sine  # axis x z, of unit length
        levelled[:3, :3] = rotation_from_rotvec(math.atan2(sine, axis[2]) * towards_vertical) @ pose[:3, :3]
    return levelled
