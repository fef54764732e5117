"""Cube stacking: pick one cube up from the table, put it on the other, and let go."""

import math

import numpy as np

from actor.tasks.base import ObjectPoses, Outcome, TaskOptions
from actor.tasks.cartesian_task import CartesianTask
from actor.tasks.stacking_operator import StackingOperator
from policy.spec import Field
from robot.geometry import CUBE_EDGE_M
from robot.interface import Array, RobotState, ScenePlacement
from robot.pose import O_R_DOWN, make_pose, rotation_from_rotvec

UP = np.array([0.0, 0.0, 1.0])
CENTRE_M = np.array([0.5, 0.0, 0.0])  # on the table, in the middle of where cubes lie
CUBE_RANGE_M = 0.06  # along x and y
CUBE_YAW_RANGE_RAD = 0.2  # the closing fingers turn a cube straight
MIN_DISTANCE_M = 0.075  # between the cubes' centres: room for a finger between them
START_HEIGHT_M = 0.16  # of EE above the table
START_RANGE_M = np.array([0.04, 0.04, 0.03])
WORKSPACE_RANGE_M = 0.13  # of EE along x and y
FLOOR_M = 0.5 * CUBE_EDGE_M - 0.002  # lowest EE: at the middle of a cube on the table
CEILING_M = 0.26
MAX_STEP_M = 0.03  # per axis; the hand has some 35 cm to go in 100 steps, and after a take-over in 60
MISALIGNED_M = 0.5 * CUBE_EDGE_M  # of the upper cube's centre; beyond, it would not rest on the other
HEIGHT_TOLERANCE_M = 0.004
TILT_TOLERANCE_RAD = 0.1
RELEASED_M = 0.008  # how much wider than the cube the fingers are open
RETREATED_M = 0.02  # EE above the middle of the upper cube


class CubeStacking(CartesianTask):
    """Reward 1 and the end once cube_top stands on cube_bottom, released, with the hand above; 10 s.

    The hand points down. Its start and both cubes' places are drawn for each episode.
    """

    name = "cube_stacking"
    scene = "cube_stacking"
    time_limit_s = 10.0
    gripper_modes = ("discrete", "continuous")

    def __init__(self, options: TaskOptions) -> None:
        sideways = np.array([WORKSPACE_RANGE_M, WORKSPACE_RANGE_M, 0.0])
        super().__init__(
            options,
            workspace_min_m=CENTRE_M - sideways + FLOOR_M * UP,
            workspace_max_m=CENTRE_M + sideways + CEILING_M * UP,
            max_step_m=MAX_STEP_M,
            travel_m=START_RANGE_M + sideways + START_HEIGHT_M * UP,
            differences=(
                Field(name="EE_to_top", unit="m", low=(-0.2, -0.2, -0.25), high=(0.2, 0.2, 0.05), fine_scale=0.01),
                Field(name="top_to_goal", unit="m", low=(-0.2, -0.2, -0.2), high=(0.2, 0.2, 0.1), fine_scale=0.01),
            ),
        )

    def draw_placement(self, rng: np.random.Generator) -> ScenePlacement:
        """Draw the hand's O_T_EE and both cubes' O_T_cube; cubes too close to each other are drawn again."""
        start = CENTRE_M + START_HEIGHT_M * UP + rng.uniform(-1, 1, 3) * START_RANGE_M
        while True:
            top, bottom = rng.uniform(-CUBE_RANGE_M, CUBE_RANGE_M, (2, 2))
            if np.linalg.norm(top - bottom) >= MIN_DISTANCE_M:
                break
        yaws = rng.uniform(-CUBE_YAW_RANGE_RAD, CUBE_YAW_RANGE_RAD, 2)
        cubes = {
            name: make_pose(rotation_from_rotvec(yaw * UP), CENTRE_M + np.array([x, y, CUBE_EDGE_M / 2]))
            for name, (x, y), yaw in zip(("cube_top", "cube_bottom"), (top, bottom), yaws, strict=True)
        }
        return ScenePlacement(O_T_EE=make_pose(O_R_DOWN, start), objects=cubes)

    def measure(self, state: RobotState, objects: ObjectPoses) -> list[Array]:
        top, bottom = objects["cube_top"][:3, 3], objects["cube_bottom"][:3, 3]
        return [top - state.O_T_EE[:3, 3], bottom + CUBE_EDGE_M * UP - top]

    def outcome(self, state: RobotState, objects: ObjectPoses) -> Outcome:
        """Judge by where the cubes are and that the hand has let go: what then stays, stands by itself."""
        EE_to_top, top_to_goal = self.measure(state, objects)
        is_above = math.hypot(top_to_goal[0], top_to_goal[1]) < MISALIGNED_M
        is_on_top = is_above and abs(top_to_goal[2]) < HEIGHT_TOLERANCE_M
        is_free = state.gripper_width > CUBE_EDGE_M + RELEASED_M and EE_to_top[2] < -RETREATED_M
        is_success = bool(is_on_top and is_free and tilt(objects["cube_top"]) < TILT_TOLERANCE_RAD)
        return Outcome(reward=float(is_success), terminated=is_success, is_success=is_success)

    def make_operator(self) -> StackingOperator:
        return StackingOperator(self.cartesian)


def tilt(O_T_cube: Array) -> float:
    """Return the angle, rad, between the vertical and the nearest axis of a cube."""
    return math.acos(min(1.0, float(np.abs(O_T_cube[2, :3]).max())))
