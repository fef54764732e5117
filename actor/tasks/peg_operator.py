"""The scripted expert of peg in hole. Decides from the present measurement alone, so it can take over at any moment."""

import math

import numpy as np
from numpy.typing import NDArray

from actor.tasks.base import ObjectPoses
from actor.tasks.cartesian import rotation_error
from policy.spec import ActionSpec
from robot.geometry import HOLE_RADIUS_M, PEG_RADIUS_M
from robot.interface import Array, RobotState

_CLEARANCE_M = HOLE_RADIUS_M - PEG_RADIUS_M


class PegOperator:
    """Comes down a funnel above the hole, aligns, inserts; lifts off the rim and tries again when it sticks."""

    # Inverse of the arm's response to one step: after 0.1 s it has covered a third of it, plus 0.03 s of its velocity.
    _STEP_GAIN = 2.9
    _VELOCITY_LEAD_S = 0.03
    _HOVER_M = 0.004  # height of the tip over the rim at which it aligns
    _ALIGNED_M = 1.2 * _CLEARANCE_M  # lateral error at which it goes down
    _STUCK_FORCE_N = 15.0

    def __init__(self, action_spec: ActionSpec, rng: np.random.Generator) -> None:
        self._action_spec = action_spec
        self._rng = rng

    def act(self, state: RobotState, objects: ObjectPoses) -> NDArray[np.float32]:
        tip: Array = objects["peg"][:3, 3] - objects["hole"][:3, 3]
        coming = tip + self._VELOCITY_LEAD_S * state.O_twist_EE[:3]  # where the tip coasts to
        lateral = math.hypot(coming[0], coming[1])
        goal = np.zeros(3)  # of the tip, from the hole
        is_inside = tip[2] < -0.001 and math.hypot(tip[0], tip[1]) < HOLE_RADIUS_M
        if is_inside or lateral < self._ALIGNED_M or (lateral < 3 * self._ALIGNED_M and tip[2] < 0.002):
            goal[2] = coming[2] - 0.02
        else:
            goal[2] = self._HOVER_M + 0.7 * lateral
            if tip[2] < 0.5 * self._HOVER_M:  # beside the hole at the rim's height: first up
                goal[:2] = coming[:2]
        step = self._STEP_GAIN * (goal - coming)
        parts = [step]
        if self._action_spec.dim == 6:
            parts.append(2.0 * rotation_error(objects["peg"]))
        return self._action_spec.to_normalised(np.concatenate(parts))
