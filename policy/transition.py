"""One control step as it is spooled, sent, logged and replayed."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from policy.spec import Observation

HELD_SUFFIX = ":held"
"""Ends the reward_source of a step that shows success which has yet to last before it is paid."""


class ActionSource(IntEnum):
    """Who chose the executed action."""

    POLICY = 1
    HUMAN_DEMONSTRATION = 2  # the whole episode is a demonstration
    HUMAN_INTERVENTION = 3  # the operator took over from the policy


@dataclass(frozen=True, kw_only=True)
class Transition:
    """What happened between two observations.

    The next observation is the following step's `observation`; only an episode's last step carries it itself
    (`final_observation`), so every frame crosses the wire once. A step that is neither last nor followed by the next
    one (the actor died) has no next observation and is not trained on.
    Actions are normalised to [-1, 1] by the ActionSpec, shape (A,).
    """

    episode: int  # 0, 1, ... within one actor incarnation
    step: int  # 0, 1, ... within the episode
    observation: Observation
    policy_action: NDArray[np.float32]  # proposed by the policy, also while a human drives
    executed_action: NDArray[np.float32]  # sent to the robot after intervention and safety gate
    source: ActionSource
    reward: float
    terminated: bool  # the task ended: do not bootstrap
    truncated: bool  # time limit or operator stop: bootstrap from the next observation
    weights_version: int  # policy weights behind policy_action; 0 = untrained
    weights_age_s: float  # since those weights were published by the learner (0 for version 0)
    wall_time_s: float  # for people; ordering never uses it
    monotonic_time_s: float  # actor's monotonic clock
    reward_source: str = "task"  # who judged: task (a simulator's ground truth), classifier or human; see HELD_SUFFIX
    gripper_toggled: bool = False  # the executed action really opened or closed the gripper
    weights_lag_steps: int = 0  # learner steps that the learner was ahead of these weights, as far as it was known
    final_observation: Observation | None = None  # set exactly on the last step of an episode

    @property
    def is_last(self) -> bool:
        return self.terminated or self.truncated

    @property
    def is_intervention(self) -> bool:
        return self.source is ActionSource.HUMAN_INTERVENTION

    @property
    def is_human(self) -> bool:
        return self.source is not ActionSource.POLICY


class MarkKind(IntEnum):
    """What is said about an episode after some of its steps are recorded: by an operator, or by the next actor."""

    SUCCESS = 1  # the step solved the task: reward 1, terminated
    FAILURE = 2  # the step did not solve it: reward 0; if it was terminated it becomes truncated (a veto)
    DISCARD = 3  # nothing of the episode is to be learned from
    BOOKMARK = 4  # for people
    ABORTED = 5  # the episode ended without a last step, by an outage or the actor's end: nothing follows its steps


@dataclass(frozen=True, kw_only=True)
class EpisodeMark:
    """What became of steps recorded before, as an operator's correction. The log keeps both; the replay applies it.

    It has its place in the sequence of records: a mark concerns an episode of its own incarnation that began before.
    """

    episode: int
    step: int  # the step it is about; for DISCARD the last one recorded
    kind: MarkKind
    wall_time_s: float
    note: str = ""


Recordable = Transition | EpisodeMark


@dataclass(frozen=True, order=True)
class RecordId:
    """Names one record for ever: no restart of either side can reuse it."""

    actor_id: str
    incarnation: str  # new for every actor process, sorts by start time
    sequence: int  # dense from 0 within one incarnation
