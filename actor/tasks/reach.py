"""Reach: bring the end effector to a target in the air. The smallest task that still needs the whole system."""

import numpy as np
from numpy.typing import NDArray

from actor.tasks.base import ObjectPoses, Outcome, TaskOptions
from actor.tasks.cartesian import CartesianDelta
from policy.spec import Field, Observation, ObservationSpec
from robot.interface import Array, RobotCommand, RobotState, ScenePlacement
from robot.pose import O_R_DOWN, make_pose

WORKSPACE_CENTRE_M = np.array([0.5, 0.0, 0.30])
START_RANGE_M = 0.03  # the start is drawn from a cube of twice this edge around the centre
TARGET_RANGE_M = 0.10
SUCCESS_DISTANCE_M = 0.01


class Reach:
    """Reward 1 and the end once EE is within 1 cm of a target drawn from a 20 cm cube; 50 steps at 10 Hz."""

    name = "reach"
    scene = "reach"
    max_episode_steps = 50
    control_rate_hz = 10.0

    def __init__(self, options: TaskOptions) -> None:
        del options
        self._cartesian = CartesianDelta()
        self.action_spec = self._cartesian.spec
        low, high = WORKSPACE_CENTRE_M - 0.15, WORKSPACE_CENTRE_M + 0.15
        self.safety = self._cartesian.safety(low, high)
        self.observation_spec = ObservationSpec(
            (
                Field(name="O_p_EE", unit="m", low=tuple(low.tolist()), high=tuple(high.tolist())),
                Field(name="O_v_EE", unit="m/s", low=(-0.2,) * 3, high=(0.2,) * 3),
                Field(name="EE_to_target", unit="m", low=(-0.15,) * 3, high=(0.15,) * 3, fine_scale=0.02),
            )
        )

    def sample_placement(self, rng: np.random.Generator) -> ScenePlacement:
        """Draw start and target; a target that the start already touches is drawn again."""
        start = WORKSPACE_CENTRE_M + rng.uniform(-START_RANGE_M, START_RANGE_M, 3)
        while True:
            target = WORKSPACE_CENTRE_M + rng.uniform(-TARGET_RANGE_M, TARGET_RANGE_M, 3)
            if np.linalg.norm(target - start) > 2 * SUCCESS_DISTANCE_M:
                break
        return ScenePlacement(O_T_EE=make_pose(O_R_DOWN, start), objects={"target": make_pose(np.eye(3), target)})

    def observe(self, state: RobotState, objects: ObjectPoses) -> Observation:
        return {
            "O_p_EE": state.O_T_EE[:3, 3].astype(np.float32),
            "O_v_EE": state.O_twist_EE[:3].astype(np.float32),
            "EE_to_target": _EE_to_target(state, objects).astype(np.float32),
        }

    def command(self, action: NDArray[np.float32], state: RobotState) -> RobotCommand:
        return self._cartesian.command(action, state)

    def action_of(self, command: RobotCommand) -> NDArray[np.float32]:
        return self._cartesian.action_of(command)

    def outcome(self, state: RobotState, objects: ObjectPoses) -> Outcome:
        is_success = bool(np.linalg.norm(_EE_to_target(state, objects)) <= SUCCESS_DISTANCE_M)
        return Outcome(reward=float(is_success), terminated=is_success, is_success=is_success)

    def make_operator(self) -> "ReachOperator":
        return ReachOperator(self)


class ReachOperator:
    """Moves straight at the target."""

    # A compliant arm covers about a third of a commanded step in one period, a stiff one all of it.
    _GAIN = 1.5

    def __init__(self, task: Reach) -> None:
        self._action_spec = task.action_spec

    def act(self, state: RobotState, objects: ObjectPoses) -> NDArray[np.float32]:
        return self._action_spec.to_normalised(self._GAIN * _EE_to_target(state, objects))


def _EE_to_target(state: RobotState, objects: ObjectPoses) -> Array:
    return objects["target"][:3, 3] - state.O_T_EE[:3, 3]
