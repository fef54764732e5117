"""The scripted expert of cube stacking. Decides from the present measurement alone, so it can take over any time."""

import math

import numpy as np
from numpy.typing import NDArray

from actor.tasks.base import ObjectPoses
from actor.tasks.cartesian import CartesianDelta
from robot.geometry import CUBE_EDGE_M, GRIPPER_OPEN_M
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
_JAMMED_RAD = 0.45
_PAD_M = (0.022, 0.008)  # width and thickness of a finger's pad (Robotiq 2F-85)
_SPARE_M = 0.002  # air between a pad and a cube on either side
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
        is_gripped = _is_between_fingers(top - EE) and state.gripper_width < _gripped_width(objects["cube_top"])
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


def _gripped_width(O_T_cube: Array) -> float:
    """Return the width, m, below which the fingers hold a cube.

    They turn it straight, unless it lies so far askew that they jam on its diagonal, which holds it as well.
    """
    edge = O_T_cube[:, int(np.argmin(np.abs(O_T_cube[2, :3])))]  # a level one, whichever face it lies on
    yaw = math.remainder(math.atan2(edge[1], edge[0]), math.pi / 2)
    if abs(yaw) < _JAMMED_RAD:
        return CUBE_EDGE_M + _GRIPPED_M
    return CUBE_EDGE_M * (math.cos(yaw) + abs(math.sin(yaw))) + _GRIPPED_M


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
    target = top + _shift_from_neighbour(top - bottom)
    to_target = target - EE
    lateral = math.hypot(to_target[0], to_target[1])
    if lateral < _GRASP_M and abs(to_target[2]) < _GRASP_M:
        return target, _CLOSE
    if lateral < _FUNNEL_M:
        return target, _OPEN
    height = max(top[2], bottom[2]) + _OVER_M
    target[2] = height
    if EE[2] < height - 0.01:
        target[:2] = EE[:2]  # beside a cube: first up
    return target, _OPEN


def _shift_from_neighbour(bottom_to_top: Array) -> Array:
    """Return by how much (3,), m, the hand keeps aside so that a pad fits between the cubes; the fingers close along y.

    Closing then brings cube_top to the middle of the hand, away from the other one.
    """
    x, y, z = bottom_to_top
    is_beside = abs(x) < (CUBE_EDGE_M + _PAD_M[0]) / 2 + _SPARE_M and abs(z) < CUBE_EDGE_M / 2
    missing = GRIPPER_OPEN_M / 2 + _PAD_M[1] + _SPARE_M - (abs(y) - CUBE_EDGE_M / 2)
    most = (GRIPPER_OPEN_M - CUBE_EDGE_M) / 2 - _SPARE_M
    return np.array([0.0, math.copysign(min(max(missing, 0.0), most), y) if is_beside else 0.0, 0.0])
