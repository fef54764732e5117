"""Where rewards come from: the simulator's ground truth, a success classifier on the cameras, or a person's keys.

A reward source judges each step from what was observed after it. The loop writes the verdict's source into the step,
and lets the operator's keys go before any verdict. A source never blocks.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from actor.config import RewardConfig
from actor.tasks.base import Outcome
from policy.config import PolicyConfig
from policy.encoder import EncoderInput
from policy.errors import ConfigError, WeightsError
from policy.spec import Observation, Specs
from policy.success_classifier import SuccessClassifier, load_classifier
from policy.transition import HELD_SUFFIX
from policy.weights import load_strict

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What a step was worth, and who says so."""

    reward: float
    terminated: bool
    is_success: bool
    source: str  # task, classifier or human; with HELD_SUFFIX while success has yet to last


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
            return Verdict(0.0, terminated=False, is_success=False, source=verdict.source + HELD_SUFFIX)
        return verdict


class HumanReward:
    """Nothing but the operator's keys decides: the loop applies them, the time limit truncates."""

    def begin_episode(self) -> None:
        pass

    def judge(self, observation: Observation, outcome: Outcome) -> Verdict:
        del observation, outcome
        return Verdict(0.0, terminated=False, is_success=False, source="human")


class SuccessJudge(Protocol):
    """Whatever tells success from an observation."""

    @property
    def threshold(self) -> float:
        """Least probability that counts as success."""

    def refresh(self) -> None:
        """Take over a newer classifier, if one has arrived. Called between episodes."""

    def probability(self, observation: Observation) -> float:
        """Return the probability that the observation shows success; 0 while there is no classifier."""


class ClassifierReward:
    """Success when the classifier has been sure enough for some frames in a row, and not right after the start.

    Frames of the first `minimum_steps` steps do not count, and a frame below the threshold starts the count again.
    """

    def __init__(self, judge: SuccessJudge, config: RewardConfig) -> None:
        self._judge = judge
        self._config = config
        self.begin_episode()

    def begin_episode(self) -> None:
        self._step = 0
        self._frames_in_a_row = 0
        self._judge.refresh()

    def judge(self, observation: Observation, outcome: Outcome) -> Verdict:
        del outcome  # what the cameras do not show does not count
        self._step += 1
        threshold = self._config.threshold or self._judge.threshold
        counts = self._step > self._config.minimum_steps and self._judge.probability(observation) >= threshold
        self._frames_in_a_row = self._frames_in_a_row + 1 if counts else 0
        is_success = self._frames_in_a_row >= self._config.consecutive_frames
        return Verdict(float(is_success), terminated=is_success, is_success=is_success, source="classifier")


Encode = Callable[[Observation], EncoderInput]
PublishedTensors = Callable[[], Mapping[str, Tensor]]
"""Returns the classifier's tensors among the newest weights, without prefix; the same object until others arrive."""


class TrainedJudge:
    """A success classifier from a folder, or whichever one last arrived with the policy."""

    def __init__(self, classifier: SuccessClassifier, encode: Encode, published: PublishedTensors | None) -> None:
        """`published` replaces the classifier's weights as they arrive; until the first do, nothing is a success."""
        self._classifier = classifier
        self._encode = encode
        self._published = published
        self._loaded: Mapping[str, Tensor] = {}
        self._is_trained = published is None
        self._threshold = float(classifier.threshold)

    @property
    def threshold(self) -> float:
        return self._threshold

    def refresh(self) -> None:
        """Load what has arrived, whole or not at all; a classifier that does not fit is reported once."""
        newest = self._published() if self._published is not None else self._loaded
        if newest is self._loaded or not newest:
            return
        self._loaded = newest
        try:
            load_strict(self._classifier, newest)
        except WeightsError as error:
            _log.error("the success classifier that came with the policy is refused: %s", error)
            return
        self._threshold = float(self._classifier.threshold)
        self._is_trained = True

    def probability(self, observation: Observation) -> float:
        if not self._is_trained:
            return 0.0
        return float(self._classifier.probability(self._encode(observation)))


def make_rewards(
    config: RewardConfig, specs: Specs, policy: PolicyConfig, encode: Encode, published: PublishedTensors
) -> RewardSource:
    """Return the configured source; `encode` and `published` serve the classifier.

    Raises ConfigError when the classifier's folder holds none for these inputs or the learner is to publish none,
    WeightsError when it is damaged.
    """
    if config.source == "human":
        return HumanReward()
    if config.source == "task":
        return HeldReward(TaskReward(), config.hold_steps) if config.hold_steps else TaskReward()
    if config.classifier != "learner":
        classifier, manifest = load_classifier(Path(config.classifier), specs, policy)
        _log.info("success classifier %s, version %d: %s", config.classifier, manifest.version, manifest.metrics)
        return ClassifierReward(TrainedJudge(classifier, encode, None), config)
    if not policy.success_classifier:
        raise ConfigError(
            "actor.reward.classifier = 'learner', but no classifier is published with the policy. Set "
            "policy.success_classifier = true on both sides, or give the folder of a trained one."
        )
    return ClassifierReward(TrainedJudge(SuccessClassifier(specs, policy), encode, published), config)
