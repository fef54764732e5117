"""The scripted expert of cube stacking. Decides from the present measurement alone, so it can take over any time."""

import math

import numpy as np
from numpy.typing import NDArray

from actor.tasks.base import ObjectPoses
from actor.tasks.cartesian import CartesianDelta
from robot.geometry import CUBE_EDGE_M
from robot.interface import Array, RobotState

# As for the peg (actor/tasks/peg_operator.py): the arm covers 0.34 of a commanded step and coasts 0.03 s.
_STEP_GAIN = 2.9
_COAST_S = 0.03

_UP = np.array([0.0, 0.0, 1.0])
_OPEN, _CLOSE = 1.0, -1.0
_OVER_M = CUBE_EDGE_M / 2 + 0.03  # EE above a cube's middle: the finger tips pass over its top
_FUNNEL_M = 0.012  # lateral error up to which the open hand may come down around a cube
_GRASP_M = 0.008  # distance of EE from the cube's middle at which it closes, in height and across
_GRIPPED_M = 0.004  # fingers at most this much wider than the cube hold it
_CARRY_M = 0.015  # height of the carried cube's lower face over the other one while it travels
_ALIGNED_M = 0.005  # lateral error at which it goes down
_LANDED_M = 0.003  # height over the other cube at which it lets go
_STACKED_M = 0.4 * CUBE_EDGE_M  # lateral error at which a cube that lies on the other one is left there


class StackingOperator:
    """Grasps cube_top from above, carries it over cube_bottom, puts it down, opens and rises."""

    def __init__(self, cartesian: CartesianDelta) -> None:
        self._cartesian = cartesian

    def act(self, state: RobotState, objects: ObjectPoses) -> NDArray[np.float32]:
        """Return the next action (A,) in [-1, 1], in the task's frame."""
        EE = state.O_T_EE[:3, 3]
        top, bottom = objects["cube_top"][:3, 3], objects["cube_bottom"][:3, 3]
        goal = bottom + CUBE_EDGE_M * _UP
        is_gripped = _is_between_fingers(top - EE) and state.gripper_width < CUBE_EDGE_M + _GRIPPED_M
        if _is_stacked(top, goal):
            target, gripper = _leave(EE, top, state.gripper_width)
        elif is_gripped:
            target, gripper = _carry(EE, top, goal)
        else:
            target, gripper = _grasp(EE, top, bottom)
        step = _STEP_GAIN * (target - EE - _COAST_S * state.O_twist_EE[:3])
        return self._cartesian.action(step, np.zeros(3), gripper, state)


def _is_between_fingers(EE_to_top: Array) -> bool:
    return bool(np.abs(EE_to_top).max() < CUBE_EDGE_M / 2)


def _is_stacked(top: Array, goal: Array) -> bool:
    lateral = math.hypot(*(top - goal)[:2])
    return lateral < _STACKED_M and abs(top[2] - goal[2]) < _LANDED_M


def _leave(EE: Array, top: Array, width: float) -> tuple[Array, float]:
    """Open where the hand is, then rise straight."""
    is_open = width > CUBE_EDGE_M + 2 * _GRIPPED_M
    return np.array([EE[0], EE[1], top[2] + _OVER_M if is_open else EE[2]]), _OPEN


def _carry(EE: Array, top: Array, goal: Array) -> tuple[Array, float]:
    """Lift, travel above the other cube, come down when aligned."""
    to_goal = goal - top
    lateral = math.hypot(to_goal[0], to_goal[1])
    if lateral < _ALIGNED_M:
        return EE + to_goal, _CLOSE
    target = EE + to_goal + _CARRY_M * _UP
    if top[2] < goal[2] + 0.5 * _CARRY_M and lateral < 2 * CUBE_EDGE_M:
        target[:2] = EE[:2]  # too low to pass over the other cube: first up
    return target, _CLOSE


def _grasp(EE: Array, top: Array, bottom: Array) -> tuple[Array, float]:
    """Come down around the cube with open fingers and close them."""
    to_top = top - EE
    lateral = math.hypot(to_top[0], to_top[1])
    if lateral < _GRASP_M and abs(to_top[2]) < _GRASP_M:
        return top, _CLOSE
    if lateral < _FUNNEL_M:
        return top, _OPEN
    height = max(top[2], bottom[2]) + _OVER_M
    target = np.array([top[0], top[1], height])
    if EE[2] < height - 0.01:
        target[:2] = EE[:2]  # beside a cube: first up
    return target, _OPEN
