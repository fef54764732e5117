"""The scripted expert of peg in hole. Decides from the present measurement alone, so it can take over at any moment."""

import math

import numpy as np
from numpy.typing import NDArray

from actor.tasks.base import ObjectPoses
from actor.tasks.cartesian import CartesianDelta, rotation_error
from robot.geometry import HOLE_RADIUS_M
from robot.interface import Array, RobotState

# The arm's response to one step of 0.1 s under the operational-space controller (stiffness 150, critical damping): it
# covers 0.34 of the commanded step and coasts 0.03 s of its velocity. Inverting it settles in two steps.
_STEP_GAIN = 2.9
_COAST_S = 0.03
_ROTATION_GAIN = 2.0

_HOVER_M = 0.003  # height of the tip over the rim while it aligns
_FUNNEL_SLOPE = 0.5  # height over the hover height per lateral distance
_ALIGNED_M = 0.002  # lateral error at which it goes down: clearance and chamfer of 1 mm each
_ON_RIM_M = 0.002  # below this height the tip touches, or soon will
_SEARCH_M = 0.004  # lateral error up to which a tip on the rim slides to the hole; beyond, it lifts off and comes again
_PRESS_M = 0.02  # commanded step while inserting
_FORCE_LIMIT_N = 20.0  # external force at which it stops pressing
_STUCK_FORCE_N = 5.0  # above this force and below this speed friction holds the tip on the rim
_STUCK_SPEED_M_S = 0.005
_LIFT_M = 0.01  # commanded step that frees it; the arm makes a third of it


class PegOperator:
    """Comes down a funnel above the hole, aligns, inserts with limited force; lifts off and retries when it misses."""

    def __init__(self, cartesian: CartesianDelta) -> None:
        self._cartesian = cartesian

    def act(self, state: RobotState, objects: ObjectPoses) -> NDArray[np.float32]:
        """Return the next action (A,) in [-1, 1]."""
        tip: Array = objects["peg"][:3, 3] - objects["hole"][:3, 3]
        coasting = tip + _COAST_S * state.O_twist_EE[:3]
        step = -_STEP_GAIN * coasting
        step[2] = _vertical_step(tip, coasting, state)
        if step[2] > 0.0 and tip[2] < -_ON_RIM_M:
            step[:2] = 0.0  # beside the plate and below its rim: first straight up
        turn = _ROTATION_GAIN * rotation_error(objects["peg"])
        return self._cartesian.action(step, turn, 0.0, state)


def _vertical_step(tip: Array, coasting: Array, state: RobotState) -> float:
    lateral = math.hypot(coasting[0], coasting[1])
    force_n = float(np.linalg.norm(state.O_F_ext_hat_K[:3]))
    is_inside = tip[2] < -0.001 and math.hypot(tip[0], tip[1]) < HOLE_RADIUS_M
    is_stuck = force_n > _STUCK_FORCE_N and np.linalg.norm(state.O_twist_EE[:3]) < _STUCK_SPEED_M_S
    if is_stuck and not is_inside:
        return _LIFT_M
    slides_to_hole = tip[2] < _ON_RIM_M and lateral < _SEARCH_M
    if is_inside or slides_to_hole or lateral < _ALIGNED_M:
        return -_PRESS_M * max(0.0, 1.0 - force_n / _FORCE_LIMIT_N)
    return _STEP_GAIN * (_HOVER_M + _FUNNEL_SLOPE * lateral - float(coasting[2]))
