"""A robot made of two formulas: no physics engine, microseconds per step, bit-identical runs.

EE follows each step as the twin's ideal operational-space controller would, a critically damped spring towards the
goal, integrated exactly. Contact is peg and plate, see `_push_out_of_plate`, and what fake_cubes.py says of cubes.
The joints stay at home and forces zero, wherever EE is.
"""

import math
import time

import numpy as np
from numpy.typing import NDArray

from robot.backends.fake_cubes import Cubes
from robot.errors import RobotError, RobotFaultError
from robot.franka import Q_HOME
from robot.geometry import HOLE_DEPTH_M, HOLE_RADIUS_M, PEG_RADIUS_M
from robot.interface import Array, RobotCommand, RobotState, ScenePlacement
from robot.pose import apply_delta, inverse, make_pose, pose_difference, rotation_from_rotvec
from robot.scenes import check_placement, check_scene

# Deoxys OSC_POSE defaults; with unit inertia and kd = 2 sqrt(kp) each axis is critically damped at sqrt(kp).
_TRANSLATION_RATE = math.sqrt(150.0)  # 1/s
_ROTATION_RATE = math.sqrt(250.0)  # 1/s
_CLEARANCE_M = HOLE_RADIUS_M - PEG_RADIUS_M


class FakeBackend:
    """A kinematic arm. Satisfies SimulatedBackend, except that it cannot draw.

    Faults are attributes, to be set at any time: `fault`, a reason that latches; `obstacle`, what then stands in the
    way of recovering from it.
    """

    def __init__(self, scene: str) -> None:
        check_scene(scene)
        self.fault = self.obstacle = ""
        self._scene = scene
        self._time_s = 0.0
        self._placement: ScenePlacement | None = None
        self._O_T_EE = self._O_T_EE_goal = np.eye(4)
        self._twist = np.zeros(6)
        self._cubes: Cubes | None = None

    def connect(self) -> None:
        """Nothing to open."""

    def reset(self, placement: ScenePlacement) -> RobotState:
        """Jump to `placement` at rest. Raises RobotConfigError if it does not fit the scene."""
        check_placement(self._scene, placement)
        self._require_no_fault()
        self._placement = placement
        self._O_T_EE = self._O_T_EE_goal = placement.O_T_EE.astype(np.float64)
        self._twist = np.zeros(6)
        self._cubes = Cubes(placement.objects) if self._scene == "cube_stacking" else None
        return self.read_state()

    def read_state(self) -> RobotState:
        """Return the state now; q is the home posture; dq, tau_J and the external wrench are zeros."""
        self._require_reset()
        self._require_no_fault()
        return RobotState(
            O_T_EE=self._O_T_EE.copy(),
            O_twist_EE=self._twist.copy(),
            q=Q_HOME.copy(),
            dq=np.zeros(7),
            tau_J=np.zeros(7),
            O_F_ext_hat_K=np.zeros(6),
            gripper_width=self._cubes.width if self._cubes else 2.0 * PEG_RADIUS_M,
            robot_time_s=self._time_s,
            received_monotonic_s=time.monotonic(),
        )

    def send_command(self, command: RobotCommand) -> None:
        """Set the goal to the present pose plus the step. Without cubes the fingers are frozen around a peg."""
        self._require_reset()
        self._require_no_fault()
        self._O_T_EE_goal = apply_delta(self._O_T_EE, command.delta_position, command.delta_rotation)
        if command.gripper_width is not None and self._cubes:
            self._cubes.commanded_width = command.gripper_width

    def advance(self, period_s: float) -> None:
        """Move towards the goal for period_s, then undo what plate, table and cubes forbid."""
        placement = self._require_reset()
        error_position, error_rotation = pose_difference(self._O_T_EE, self._O_T_EE_goal)
        position_left, linear = _approach(error_position, self._twist[:3], _TRANSLATION_RATE, period_s)
        rotation_left, angular = _approach(error_rotation, self._twist[3:], _ROTATION_RATE, period_s)
        O_T_EE = make_pose(
            rotation_from_rotvec(-rotation_left) @ self._O_T_EE_goal[:3, :3],
            self._O_T_EE_goal[:3, 3] - position_left,
        )
        push = np.zeros(3)
        if self._scene == "peg_in_hole":
            push = _push_out_of_plate(self._O_T_EE, O_T_EE, placement)
        elif self._cubes:
            push = self._cubes.push_out(O_T_EE)
        O_T_EE[:3, 3] += push
        linear = _stopped_by(push, linear)
        if self._cubes:
            self._cubes.follow(O_T_EE, period_s)
        self._O_T_EE = O_T_EE
        self._twist = np.concatenate([linear, angular])
        self._time_s += period_s

    def stop(self) -> None:
        """Hold the present pose."""
        self._O_T_EE_goal = self._O_T_EE
        self._twist = np.zeros(6)

    def recover(self) -> None:
        """Forget the fault unless an obstacle stands in the way."""
        if self.fault and self.obstacle:
            raise RobotFaultError(self.obstacle)
        self.fault = ""
        self.stop()

    def close(self) -> None:
        """Nothing to release."""

    def object_poses(self) -> dict[str, Array]:
        """Return name -> O_T_object (4, 4) for each object of the scene."""
        objects = self._require_reset().objects
        if self._scene == "peg_in_hole":
            return {"hole": objects["hole"].copy(), "peg": self._O_T_EE @ objects["peg"]}
        poses = self._cubes.poses if self._cubes else objects
        return {name: pose.copy() for name, pose in poses.items()}

    def render(self, width: int, height: int, camera: str = "overview") -> NDArray[np.uint8]:
        """Raise RobotError: there is nothing to draw."""
        raise RobotError("the fake backend cannot draw; use the backend 'twin' for images and videos")

    def _require_no_fault(self) -> None:
        if self.fault:
            self.stop()
            raise RobotFaultError(self.fault)

    def _require_reset(self) -> ScenePlacement:
        if self._placement is None:
            raise RobotError("the fake robot has no pose yet; call reset(placement) first")
        return self._placement


def _approach(error: Array, velocity: Array, rate: float, duration_s: float) -> tuple[Array, Array]:
    """Solve e'' + 2 rate e' + rate^2 e = 0 from e(0) = error, e'(0) = -velocity; return (e, velocity) at duration_s."""
    slope = rate * error - velocity
    decay = math.exp(-rate * duration_s)
    left = (error + slope * duration_s) * decay
    return left, rate * left - slope * decay


def _stopped_by(push: Array, velocity: Array) -> Array:
    """Return `velocity` without the part that runs against `push` (both (3,), in O)."""
    length = math.hypot(*push.tolist())
    if length == 0.0:
        return velocity
    direction = push / length
    return velocity - min(float(velocity @ direction), 0.0) * direction


def _push_out_of_plate(O_T_EE_before: Array, O_T_EE: Array, placement: ScenePlacement) -> Array:
    """Return the shift of EE (3,) m, in O, that brings the peg's tip back to where it may be.

    The plate is an endless plane at the rim. The tip may go below it only where its axis is within the clearance of
    the hole's axis; once below it stays there sideways, and above the bottom. Tilt and the peg's shaft do not count.
    """
    hole_T_O = inverse(placement.objects["hole"])
    EE_p_tip = placement.objects["peg"][:, 3]
    tip_before = (hole_T_O @ O_T_EE_before @ EE_p_tip)[:3]
    tip = (hole_T_O @ O_T_EE @ EE_p_tip)[:3]
    if tip[2] >= 0.0:
        return np.zeros(3)
    allowed = tip.copy()
    lateral = math.hypot(tip[0], tip[1])
    was_inside = tip_before[2] < 0.0
    if lateral <= _CLEARANCE_M or was_inside:
        allowed[2] = max(tip[2], -HOLE_DEPTH_M)
        if lateral > _CLEARANCE_M:
            allowed[:2] *= _CLEARANCE_M / lateral
    else:
        allowed[2] = 0.0
    shift: Array = placement.objects["hole"][:3, :3] @ (allowed - tip)
    return shift
