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
    control_rate_hz: float = 10.0
    offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Outcome:
    """What a step was worth."""

    reward: float
    terminated: bool
    is_success: bool


class Operator(Protocol):
    """A closed-loop expert: one object per episode, asked each step, also when it takes over midway."""

    def act(self, state: RobotState, objects: ObjectPoses) -> NDArray[np.float32]:
        """Return the next action (A,) in [-1, 1], in the task's frame."""


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

    def observe(self, state: RobotState, objects: ObjectPoses, O_T_reset: Array) -> Observation:
        """Build the observation's vectors; float32, in the spec's units. Images are not the task's.

        O_T_reset: pose of EE (4, 4) at the episode's start, for a task in the frame "reset".
        """

    def command(self, action: NDArray[np.float32], state: RobotState) -> RobotCommand:
        """Turn an action (A,) in [-1, 1] into a robot step from the measured `state`."""

    def sayable(self, command: RobotCommand, state: RobotState) -> RobotCommand:
        """Shorten what the safety gate let through, where needed, to a step that some action stands for."""

    def action_of(self, command: RobotCommand, state: RobotState) -> NDArray[np.float32]:
        """Inverse of `command` at the same `state`, used to record what was really sent.

        The gripper's element comes back as -1, 0 or 1.
        """

    def action_from_twist(self, twist: Array, gripper: float, state: RobotState) -> NDArray[np.float32]:
        """Return the action (A,) for a person's input: twist (6,) in [-1, 1] along O, gripper in [-1, 1].

        What the action has no element for is dropped.
        """

    def outcome(self, state: RobotState, objects: ObjectPoses) -> Outcome:
        """Judge the situation after a step."""

    def make_operator(self) -> Operator:
        """Return a fresh scripted operator."""
