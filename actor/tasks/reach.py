"""Reach: bring the end effector to a target in the air. The smallest task that still needs the whole system."""

import numpy as np
from numpy.typing import NDArray

from actor.tasks.base import ObjectPoses, Outcome, TaskOptions
from actor.tasks.cartesian import CartesianDelta
from actor.tasks.cartesian_task import CartesianTask
from policy.spec import Field
from robot.interface import Array, RobotState, ScenePlacement
from robot.pose import O_R_DOWN, make_pose

WORKSPACE_CENTRE_M = np.array([0.5, 0.0, 0.30])
START_RANGE_M = 0.03  # the start is drawn from a cube of twice this edge around the centre
TARGET_RANGE_M = 0.10
WORKSPACE_RANGE_M = 0.15
SUCCESS_DISTANCE_M = 0.01


class Reach(CartesianTask):
    """Reward 1 and the end once EE is within 1 cm of a target drawn from a 20 cm cube; 5 s."""

    name = "reach"
    scene = "reach"
    time_limit_s = 5.0

    def __init__(self, options: TaskOptions) -> None:
        difference = Field(name="EE_to_target", unit="m", low=(-0.15,) * 3, high=(0.15,) * 3, fine_scale=0.02)
        super().__init__(
            options,
            workspace_min_m=WORKSPACE_CENTRE_M - WORKSPACE_RANGE_M,
            workspace_max_m=WORKSPACE_CENTRE_M + WORKSPACE_RANGE_M,
            travel_m=np.full(3, START_RANGE_M + WORKSPACE_RANGE_M),
            differences=(difference,),
        )

    def draw_placement(self, rng: np.random.Generator) -> ScenePlacement:
        """Draw start and target; a target that the start already touches is drawn again."""
        start = WORKSPACE_CENTRE_M + rng.uniform(-START_RANGE_M, START_RANGE_M, 3)
        while True:
            target = WORKSPACE_CENTRE_M + rng.uniform(-TARGET_RANGE_M, TARGET_RANGE_M, 3)
            if np.linalg.norm(target - start) > 2 * SUCCESS_DISTANCE_M:
                break
        return ScenePlacement(O_T_EE=make_pose(O_R_DOWN, start), objects={"target": make_pose(np.eye(3), target)})

    def measure(self, state: RobotState, objects: ObjectPoses) -> list[Array]:
        return [_EE_to_target(state, objects)]

    def outcome(self, state: RobotState, objects: ObjectPoses) -> Outcome:
        is_success = bool(np.linalg.norm(_EE_to_target(state, objects)) <= SUCCESS_DISTANCE_M)
        return Outcome(reward=float(is_success), terminated=is_success, is_success=is_success)

    def make_operator(self) -> "ReachOperator":
        return ReachOperator(self.cartesian)


class ReachOperator:
    """Moves straight at the target."""

    # A compliant arm covers about a third of a commanded step in one period, a stiff one all of it.
    _GAIN = 1.5

    def __init__(self, cartesian: CartesianDelta) -> None:
        self._cartesian = cartesian

    def act(self, state: RobotState, objects: ObjectPoses) -> NDArray[np.float32]:
        return self._cartesian.action(self._GAIN * _EE_to_target(state, objects), np.zeros(3), 0.0, state)


def _EE_to_target(state: RobotState, objects: ObjectPoses) -> Array:
    return objects["target"][:3, 3] - state.O_T_EE[:3, 3]
