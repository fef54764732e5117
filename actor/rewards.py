"""Where rewards come from: the simulator's ground truth, a success classifier on the cameras, or a person's keys.

A reward source judges each step from what was observed after it. The loop writes the verdict's source into the step,
and lets the operator's keys go before any verdict. A source never blocks.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from actor.config import RewardConfig
from actor.tasks.base import Outcome
from policy.spec import Observation

_log = logging.getLogger(__name__)

Source = Literal["task", "classifier", "human"]


@dataclass(frozen=True)
class Verdict:
    """What a step was worth, and who says so."""

    reward: float
    terminated: bool
    is_success: bool
    source: Source


DECLARED_SUCCESS = Verdict(reward=1.0, terminated=True, is_success=True, source="human")
"""The operator's success key, whatever the reward source says."""
DECLARED_FAILURE = Verdict(reward=0.0, terminated=False, is_success=False, source="human")
"""The operator's failure key; the loop closes the episode as truncated."""


class RewardSource(Protocol):
    """Judges the steps of one episode after another."""

    def begin_episode(self) -> None:
        """Forget the last episode. Call before the first step."""

    def judge(self, observation: Observation, outcome: Outcome) -> Verdict:
        """Judge a step by the observation after it (images coded) and the task's own outcome. Never blocks."""


class TaskReward:
    """The task's own outcome: a simulator's ground truth."""

    def begin_episode(self) -> None:
        pass

    def judge(self, observation: Observation, outcome: Outcome) -> Verdict:
        del observation
        return Verdict(outcome.reward, outcome.terminated, outcome.is_success, "task")


class HeldReward:
    """Success of another source, once it has lasted for a number of steps; until then the episode goes on unpaid."""

    def __init__(self, rewards: RewardSource, hold_steps: int) -> None:
        self._rewards = rewards
        self._hold_steps = hold_steps
        self._held = 0

    def begin_episode(self) -> None:
        self._held = 0
        self._rewards.begin_episode()

    def judge(self, observation: Observation, outcome: Outcome) -> Verdict:
        verdict = self._rewards.judge(observation, outcome)
        self._held = self._held + 1 if verdict.is_success else 0
        if verdict.is_success and self._held <= self._hold_steps:
            return Verdict(0.0, terminated=False, is_success=False, source=verdict.source)
        return verdict


class HumanReward:
    """Nothing but the operator's keys decides: the loop applies them, the time limit truncates."""

    def begin_episode(self) -> None:
        pass

    def judge(self, observation: Observation, outcome: Outcome) -> Verdict:
        del observation, outcome
        return Verdict(0.0, terminated=False, is_success=False, source="human")


SuccessProbability = Callable[[Observation], float | None]
"""Observation -> probability that it shows success; None as long as there is no classifier."""


class ClassifierReward:
    """Success when the classifier has been sure enough for some frames in a row, and not right after the start.

    Frames of the first `minimum_steps` steps do not count, and a frame below the threshold starts the count again.
    """

    def __init__(self, probability: SuccessProbability, threshold: Callable[[], float], config: RewardConfig) -> None:
        """`threshold` is asked at each step: a retrained classifier may bring its own."""
        self._probability = probability
        self._threshold = threshold
        self._config = config
        self.begin_episode()

    def begin_episode(self) -> None:
        self._step = 0
        self._frames_in_a_row = 0

    def judge(self, observation: Observation, outcome: Outcome) -> Verdict:
        del outcome  # what the cameras do not show does not count
        self._step += 1
        probability = self._probability(observation)
        counts = (
            probability is not None and probability >= self._threshold() and self._step > self._config.minimum_steps
        )
        self._frames_in_a_row = self._frames_in_a_row + 1 if counts else 0
        is_success = self._frames_in_a_row >= self._config.consecutive_frames
        return Verdict(float(is_success), terminated=is_success, is_success=is_success, source="classifier")
