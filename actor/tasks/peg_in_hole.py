"""Peg in hole: put a cylindrical peg, already in the gripper, into a hole with 1 mm radial clearance."""

import math

import numpy as np

from actor.tasks.base import ObjectPoses, Outcome, TaskOptions
from actor.tasks.cartesian import rotation_error
from actor.tasks.cartesian_task import CartesianTask
from actor.tasks.peg_operator import PegOperator
from policy.spec import Field
from robot.geometry import HOLE_RADIUS_M, PEG_LENGTH_M
from robot.interface import Array, RobotState, ScenePlacement
from robot.pose import O_R_DOWN, inverse, make_pose, rotation_from_rotvec

HOLE_CENTRE_M = np.array([0.5, 0.0, 0.06])  # middle of the range of the rim's centre
HOLE_RANGE_M = np.array([0.04, 0.04, 0.0])
HOLE_YAW_RANGE_RAD = 0.5
START_CENTRE_M = HOLE_CENTRE_M + np.array([0.0, 0.0, PEG_LENGTH_M + 0.09])  # of EE: the tip 9 cm above the rim
START_RANGE_M = np.array([0.05, 0.05, 0.03])
WORKSPACE_RANGE_M = np.array([0.13, 0.13, 0.12])  # of EE around START_CENTRE_M; its floor is the hole's bottom
PEG_IN_HAND_M = np.array([0.0, 0.0, PEG_LENGTH_M])  # of the tip in EE
PEG_IN_HAND_RANGE_M = np.array([0.004, 0.004, 0.003])
START_TILT_RAD = 0.1  # of the hand, only with rotation
PEG_TILT_RAD = 0.05  # in the hand, only with rotation
SUCCESS_DEPTH_M = 0.02


class PegInHole(CartesianTask):
    """Reward 1 and the end once the tip is 2 cm below the rim; 10 s.

    The hand's start, the hole and where the peg sits in the hand are drawn for each episode. In the state observation
    the peg's place relative to the hole stands in for cameras.
    """

    name = "peg_in_hole"
    scene = "peg_in_hole"
    time_limit_s = 10.0

    def __init__(self, options: TaskOptions, rotation: bool = False) -> None:
        """With rotation the action turns the hand too, and both hand and peg start tilted."""
        self._rotation = rotation
        super().__init__(
            options,
            workspace_min_m=START_CENTRE_M - WORKSPACE_RANGE_M,
            workspace_max_m=START_CENTRE_M + WORKSPACE_RANGE_M,
            travel_m=START_RANGE_M + WORKSPACE_RANGE_M,
            differences=self._differences(),
            rotation=rotation,
        )

    def _differences(self) -> tuple[Field, ...]:
        turn = Field(name="rotation_error", unit="rad", low=(-0.3,) * 3, high=(0.3,) * 3, fine_scale=0.03)
        return (_to_hole("hole_to_peg"), turn) if self._rotation else (_to_hole("hole_to_peg"),)

    def draw_placement(self, rng: np.random.Generator) -> ScenePlacement:
        """Draw the hole's O_T_hole, the hand's O_T_EE and the peg's EE_T_peg."""
        hole = HOLE_CENTRE_M + rng.uniform(-1, 1, 3) * HOLE_RANGE_M
        yaw = rng.uniform(-HOLE_YAW_RANGE_RAD, HOLE_YAW_RANGE_RAD)
        start = START_CENTRE_M + rng.uniform(-1, 1, 3) * START_RANGE_M
        tip = PEG_IN_HAND_M + rng.uniform(-1, 1, 3) * PEG_IN_HAND_RANGE_M
        hand_tilt = rng.uniform(-1, 1, 3) * START_TILT_RAD * self._rotation
        peg_tilt = rng.uniform(-1, 1, 3) * PEG_TILT_RAD * self._rotation
        return ScenePlacement(
            O_T_EE=make_pose(rotation_from_rotvec(hand_tilt) @ O_R_DOWN, start),
            objects={
                "hole": make_pose(rotation_from_rotvec([0.0, 0.0, yaw]), hole),
                "peg": make_pose(rotation_from_rotvec(peg_tilt), tip),
            },
        )

    def measure(self, state: RobotState, objects: ObjectPoses) -> list[Array]:
        del state  # what matters is in the hand
        hole_to_peg = objects["peg"][:3, 3] - objects["hole"][:3, 3]
        return [hole_to_peg, rotation_error(objects["peg"])] if self._rotation else [hole_to_peg]

    def outcome(self, state: RobotState, objects: ObjectPoses) -> Outcome:
        del state  # the peg's tip decides
        hole_p_peg: Array = (inverse(objects["hole"]) @ objects["peg"])[:3, 3]
        is_inside = math.hypot(hole_p_peg[0], hole_p_peg[1]) < HOLE_RADIUS_M
        is_success = bool(is_inside and hole_p_peg[2] <= -SUCCESS_DEPTH_M)
        return Outcome(reward=float(is_success), terminated=is_success, is_success=is_success)

    def make_operator(self) -> PegOperator:
        return PegOperator(self.cartesian)


class PegInHoleRotation(PegInHole):
    """Peg in hole with tilted start, tilted grasp and a six-dimensional action."""

    name = "peg_in_hole_rotation"

    def __init__(self, options: TaskOptions) -> None:
        super().__init__(options, rotation=True)


class PegInHoleBlind(PegInHole):
    """Peg in hole where nothing says how the peg sits in the hand: up to 4 mm aside, with 1 mm clearance.

    In place of the tip the policy knows where it would be in a perfect grasp, and feels the contact's force. It has to
    search. The scripted operator still sees the tip.
    """

    name = "peg_in_hole_blind"

    def _differences(self) -> tuple[Field, ...]:
        force = Field(name="contact_force", unit="N", low=(-20.0,) * 3, high=(20.0,) * 3)
        return _to_hole("hole_to_nominal_tip"), force

    def measure(self, state: RobotState, objects: ObjectPoses) -> list[Array]:
        nominal_tip = (state.O_T_EE @ np.append(PEG_IN_HAND_M, 1.0))[:3]
        return [nominal_tip - objects["hole"][:3, 3], state.O_F_ext_hat_K[:3]]


def _to_hole(name: str) -> Field:
    """Return the field of a point relative to the hole, along O's axes and not the hole's: a round hole has no yaw."""
    return Field(name=name, unit="m", low=(-0.15, -0.15, -0.05), high=(0.15, 0.15, 0.15), fine_scale=0.005)
