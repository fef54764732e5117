"""What a task is: where episodes start, what is observed, when it is solved, and an operator who can solve it."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from policy.spec import ActionSpec, Observation, ObservationSpec
from robot.interface import Array, RobotCommand, RobotState, ScenePlacement
from robot.safety import SafetyConfig

ObjectPoses = dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What can be chosen for every task; the same fields of ActorConfig (actor/config.py) explain them."""

    pixels: bool = False
    image_size_px: int = 128
    gripper: Literal["task", "fixed", "continuous", "discrete"] = "task"
    frame: Literal["base", "reset"] = "base"


@dataclass(frozen=True)
class Outcome:
    """What a step was worth."""

    reward: float
    terminated: bool
    is_success: bool


class Operator(Protocol):
    """A closed-loop expert: one object per episode, asked each step, also when it takes over midway."""

    def act(self, state: RobotState, objects: ObjectPoses) -> NDArray[np.float32]:
        """Return the next action (A,) in [-1, 1]."""


class Task(Protocol):
    """One task. Stateless apart from its configuration: everything about an episode comes in as arguments."""

    name: str
    scene: str  # scene name given to a simulated backend
    max_episode_steps: int
    control_rate_hz: float
    observation_spec: ObservationSpec
    action_spec: ActionSpec
    safety: SafetyConfig  # what the gate lets through in this task

    def sample_placement(self, rng: np.random.Generator) -> ScenePlacement:
        """Draw where an episode starts."""

    def observe(self, state: RobotState, objects: ObjectPoses) -> Observation:
        """Build the observation; float32, in the spec's units."""

    def command(self, action: NDArray[np.float32], state: RobotState) -> RobotCommand:
        """Turn an action (A,) in [-1, 1] into a robot step from the measured `state`."""

    def action_of(self, command: RobotCommand) -> NDArray[np.float32]:
        """Inverse of `command`, used to record what the safety gate let through."""

    def outcome(self, state: RobotState, objects: ObjectPoses) -> Outcome:
        """Judge the situation after a step."""

    def make_operator(self) -> Operator:
        """Return a fresh scripted operator."""
