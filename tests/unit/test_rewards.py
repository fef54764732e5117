"""Reward sources on the actor: who decides, after how many frames, and what a classifier must be to be used."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from actor.config import RewardConfig
from actor.operator import OperatorSignal, ScriptedSignals
from actor.reviewer import TruthReviewer
from actor.rewards import (
    ClassifierReward,
    HeldReward,
    HumanReward,
    RewardSource,
    TaskReward,
    TrainedJudge,
    Verdict,
    make_rewards,
)
from actor.tasks.base import Outcome
from policy.config import PolicyConfig
from policy.encoder import EncoderInput
from policy.errors import ConfigError
from policy.spec import Observation
from policy.success_classifier import SuccessClassifier, save_classifier
from tests.success_episodes import POLICY, SPECS

OPEN, SOLVED = Outcome(0.0, False, False), Outcome(1.0, True, True)


class Table:
    """A judge that reads its probabilities from a table; the observation is the row."""

    threshold = 0.8

    def __init__(self, probabilities: Sequence[float]) -> None:
        self._probabilities = probabilities
        self.refreshed = 0

    def refresh(self) -> None:
        self.refreshed += 1

    def probability(self, observation: Observation) -> float:
        return self._probabilities[observation["row"]]


def first_success(rewards: RewardSource, outcomes: Sequence[Outcome]) -> int | None:
    """Return the step, from 0, at which an episode ends with reward 1."""
    rewards.begin_episode()
    for step, outcome in enumerate(outcomes):
        verdict = rewards.judge({"row": step}, outcome)
        if verdict.terminated:
            assert verdict.reward == 1.0
            assert verdict.is_success
            return step
        assert verdict.reward == 0.0
        assert not verdict.is_success
    return None


@pytest.mark.parametrize(
    ("probabilities", "consecutive", "minimum_steps", "threshold", "expected"),
    [
        ([0.9, 0.9, 0.9], 1, 0, 0.0, 0),
        ([0.9, 0.9, 0.9], 2, 0, 0.0, 1),
        ([0.9, 0.1, 0.9, 0.9], 2, 0, 0.0, 3),  # a doubt starts the count again
        ([0.9, 0.1, 0.9, 0.1], 2, 0, 0.0, None),
        ([0.8, 0.8], 2, 0, 0.0, 1),  # exactly the judge's threshold counts
        ([0.79, 0.79], 1, 0, 0.0, None),
        ([0.79, 0.79], 1, 0, 0.7, 0),  # a configured threshold replaces the judge's
        ([0.9, 0.9], 1, 0, 0.95, None),
        ([0.9] * 5, 1, 3, 0.0, 3),  # the first three steps do not count,
        ([0.9] * 6, 2, 3, 0.0, 4),  # nor towards frames in a row
    ],
)
def test_a_classifier_ends_the_episode_after_enough_frames_in_a_row(
    probabilities: list[float], consecutive: int, minimum_steps: int, threshold: float, expected: int | None
) -> None:
    config = RewardConfig(consecutive_frames=consecutive, minimum_steps=minimum_steps, threshold=threshold)
    rewards = ClassifierReward(Table(probabilities), config)
    assert first_success(rewards, [OPEN] * len(probabilities)) == expected
    assert first_success(rewards, [OPEN] * len(probabilities)) == expected  # nothing is left of the first episode


def test_a_classifier_is_not_helped_by_the_task_and_is_refreshed_between_episodes_only() -> None:
    judge = Table([0.1] * 4)
    rewards = ClassifierReward(judge, RewardConfig(minimum_steps=0, consecutive_frames=1))
    before = judge.refreshed
    assert first_success(rewards, [SOLVED] * 4) is None
    assert judge.refreshed == before + 1
    assert rewards.judge({"row": 0}, SOLVED).source == "classifier"


def test_only_keys_end_an_episode_of_human_reward() -> None:
    assert first_success(HumanReward(), [SOLVED] * 3) is None
    assert HumanReward().judge({}, SOLVED).source == "human"


def test_the_task_is_quoted_as_it_is() -> None:
    assert TaskReward().judge({}, Outcome(-0.5, True, False)) == Verdict(-0.5, True, False, "task")


def test_success_is_paid_once_it_has_lasted() -> None:
    rewards = HeldReward(TaskReward(), hold_steps=2)
    outcomes = [OPEN, SOLVED, SOLVED, OPEN, SOLVED, SOLVED, SOLVED]
    rewards.begin_episode()
    verdicts = [rewards.judge({}, outcome) for outcome in outcomes]
    assert [verdict.reward for verdict in verdicts] == [0, 0, 0, 0, 0, 0, 1]
    assert [verdict.terminated for verdict in verdicts] == [False] * 6 + [True]
    held = ["task", "task:held", "task:held", "task", "task:held", "task:held", "task"]
    assert [verdict.source for verdict in verdicts] == held
    rewards.begin_episode()
    assert rewards.judge({}, SOLVED).reward == 0


@pytest.mark.parametrize(
    ("claims", "truth", "expected"),
    [
        ([0, 1], [0, 1], []),  # right
        ([0, 1], [0, 0], [(2, "FAILURE")]),  # not at the poll of the claiming step, which would hide the claim
        ([0] * 7, [0, 1, 1, 1, 1, 1, 1], [(5, "SUCCESS")]),  # missed: five steps in a row are enough to be sure
        ([0] * 7, [1, 1, 1, 0, 1, 1, 1], []),
        ([0] * 3, [0] * 3, []),
    ],
)
def test_the_truth_reviews_a_classifier_as_a_person_would(
    claims: list[int], truth: list[int], expected: list[tuple[int, str]]
) -> None:
    rewards = ClassifierReward(Table(claims), RewardConfig(minimum_steps=0, consecutive_frames=1))
    reviewer = TruthReviewer(rewards, ScriptedSignals({0: [OperatorSignal.BOOKMARK]}))
    for _ in range(2):
        reviewer.begin_episode()
        said = []
        for step, is_solved in enumerate(truth):
            reviewer.judge({"row": step}, SOLVED if is_solved else OPEN)
            said += [(step, signal.name) for signal in reviewer.poll() if signal is not OperatorSignal.BOOKMARK]
        said += [(len(truth), signal.name) for signal in reviewer.poll()]  # after the episode
        assert said == expected


def classifier_with(bias: float) -> SuccessClassifier:
    classifier = SuccessClassifier(SPECS, POLICY, threshold=0.7)
    with torch.no_grad():
        classifier.logit.weight.zero_()
        classifier.logit.bias.fill_(bias)
    return classifier


def encode(observation: Observation) -> EncoderInput:
    return EncoderInput(torch.from_numpy(SPECS.observation.normalise(observation))[None])


def test_a_published_classifier_is_taken_over_whole_or_not_at_all() -> None:
    published: dict[str, torch.Tensor] = {}
    newest = [published]
    judge = TrainedJudge(SuccessClassifier(SPECS, POLICY), encode, lambda: newest[0])
    judge.refresh()
    seen = {"x": torch.zeros(2).numpy()}
    assert judge.probability(seen) == 0.0  # none has arrived

    newest[0] = dict(classifier_with(2.0).state_dict())
    assert judge.probability(seen) == 0.0  # not before the next episode
    judge.refresh()
    assert judge.probability(seen) == pytest.approx(0.8808, abs=1e-4)  # sigmoid(2)
    assert judge.threshold == pytest.approx(0.7)

    newest[0] = {**classifier_with(-2.0).state_dict(), "logit.weight": torch.zeros(1, 3)}
    judge.refresh()
    assert judge.probability(seen) == pytest.approx(0.8808, abs=1e-4)


def test_a_classifier_from_a_folder_judges(tmp_path: Path) -> None:
    save_classifier(tmp_path, classifier_with(2.0), SPECS, POLICY, 1)
    config = RewardConfig(source="classifier", classifier=str(tmp_path), minimum_steps=0, consecutive_frames=1)
    rewards = make_rewards(config, SPECS, POLICY, encode, lambda: {})
    rewards.begin_episode()
    verdict = rewards.judge({"x": torch.zeros(2).numpy()}, OPEN)
    assert verdict == Verdict(1.0, terminated=True, is_success=True, source="classifier")


def test_what_cannot_judge_is_refused(tmp_path: Path) -> None:
    in_folder = RewardConfig(source="classifier", classifier=str(tmp_path))
    with pytest.raises(ConfigError, match="reward_classifier train"):
        make_rewards(in_folder, SPECS, POLICY, encode, lambda: {})
    with pytest.raises(ConfigError, match=r"policy\.success_classifier = true"):
        make_rewards(RewardConfig(source="classifier"), SPECS, PolicyConfig(), encode, lambda: {})
