"""What a Cartesian step asks of the joints, and how much of it they have room for. Pure.

The joint step is the smallest one that makes the Cartesian step x: J^+ x with J^+ = J^T (J J^T + d^2 I)^-1. That of
Deoxys' controller differs: it weighs joints by inertia, and in the null space it pulls the elbow towards a posture,
also while the hand rests. No Cartesian step can undo that.
"""

import numpy as np

from robot.franka import JOINT_MAX, JOINT_MIN, jacobian_at
from robot.interface import Array

# 0.1 of the smallest singular value of J in the middle of the table: exact to 1 % there, bounded at a singularity.
_DAMPING = 0.02
_SWEEPS = 15  # with several joints at their limits 95 in 100 steps have settled by then, in 75 us at most
_TOLERANCE_RAD = 1e-9


class JointRoom:
    """How far each joint may go from one posture: to `margin_rad` before its limit, and from within that only back."""

    def __init__(self, q: Array, O_p_EE: Array, margin_rad: float) -> None:
        """q (7,), rad; O_p_EE (3,), m, measured."""
        self._lowest = np.minimum(JOINT_MIN + margin_rad - q, 0.0)
        self._highest = np.maximum(JOINT_MAX - margin_rad - q, 0.0)
        self._jacobian = jacobian_at(q, O_p_EE)
        mobility = self._jacobian @ self._jacobian.T
        mobility.flat[::7] += _DAMPING**2
        self._inverse = self._jacobian.T @ np.linalg.inv(mobility)

    def is_enough(self, step: Array) -> bool:
        """Return whether the joints have room for a Cartesian step (6,), m and rad in O."""
        joints = self._inverse @ step
        return bool(
            (joints >= self._lowest - _TOLERANCE_RAD).all() and (joints <= self._highest + _TOLERANCE_RAD).all()
        )

    def fit(self, step: Array) -> tuple[Array, tuple[int, ...]]:
        """Return the step (6,) without what the joints have no room for, and which joints (0 to 6) those were.

        It is the nearest such step by what it changes in the joints, (x - x')^T (J J^T + d^2 I)^-1 (x - x'), found one
        joint at a time with a multiplier each (Hildreth 1957); not quite settled it is a little too long: see `share`.
        `step` itself, and no joints, when there is room.
        """
        if self.is_enough(step):
            return step, ()
        coupling = self._inverse @ self._jacobian  # (7, 7): joint motion that is left of each joint's unit step
        columns = coupling.T.tolist()
        joints = (self._inverse @ step).tolist()
        lowest, highest = self._lowest.tolist(), self._highest.tolist()
        multipliers = [0.0] * 7
        for _ in range(_SWEEPS):
            largest_change = 0.0
            for i, column in enumerate(columns):
                if column[i] < _TOLERANCE_RAD:
                    continue  # the step does not move this joint
                freed = joints[i] + column[i] * multipliers[i]
                multiplier = (freed - min(max(freed, lowest[i]), highest[i])) / column[i]
                change, multipliers[i] = multiplier - multipliers[i], multiplier
                if change:
                    joints = [joint - change * part for joint, part in zip(joints, column, strict=True)]
                    largest_change = max(largest_change, abs(change))
            if largest_change < _TOLERANCE_RAD:
                break
        blocked = tuple(i for i, multiplier in enumerate(multipliers) if multiplier)
        return step - self._jacobian @ np.array(multipliers), blocked

    def share(self, step: Array) -> float:
        """Return the largest share, 0 to 1, of a step (6,) that the joints have room for."""
        joints = self._inverse @ step
        room = np.where(joints > 0.0, self._highest, self._lowest)
        too_far = np.abs(joints) > np.abs(room) + _TOLERANCE_RAD
        return float((room[too_far] / joints[too_far]).min(initial=1.0))
