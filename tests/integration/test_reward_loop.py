"""The real control loop under a classifier, a reviewer with keys, and retraining: claims, vetoes, better claims."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from actor.config import RewardConfig
from actor.env import RobotEnv, connect_backend
from actor.intervention import Arbiter, HumanInput
from actor.intervention_config import Assistance
from actor.loop import EpisodeTally, await_verdict, run_episode
from actor.operator import NoOperator
from actor.policy_runner import PolicyRunner
from actor.reviewer import TruthReviewer
from actor.rewards import HeldReward, RewardSource, TaskReward, make_rewards
from actor.tasks import make_task
from learner.config import ClassifierConfig, LearnerConfig
from learner.reward_classifier.drift import usage
from learner.reward_classifier.examples import EpisodeIndex
from learner.reward_classifier.feed import ClassifierFeed
from learner.reward_classifier.watch import ClassifierWatch
from policy.config import PolicyConfig
from policy.encoder import ObservationEncoder
from policy.episode_log import EpisodeLog
from policy.spec import Specs
from policy.success_classifier import TENSOR_PREFIX
from policy.transition import Recordable, RecordId

POLICY = PolicyConfig(
    denoising_steps=2, denoiser_hidden=(8,), critic_hidden=(8,), success_classifier=True, success_classifier_vector=True
)
CLASSIFIER = ClassifierConfig(retrain=True, frames_per_batch=64, learning_rate=3e-3, batches=20, retrain_batches=20)


class Log:
    """An outbox straight into a learner's log, as if spool and link lay between."""

    def __init__(self, run_dir: Path, specs: Specs) -> None:
        run_dir.mkdir()
        (run_dir / "specs.json").write_text(specs.to_json())
        self._log = EpisodeLog(run_dir / "log.sqlite", specs)
        self._sequence = 0

    def offer(self, body: Recordable) -> None:
        self._log.append([(RecordId("robot", "first", self._sequence), body)])
        self._sequence += 1

    def index(self) -> EpisodeIndex:
        index = EpisodeIndex()
        for entry in self._log.read_after(0, self._sequence):
            index.add(entry)
        return index


class ShakyOperator:
    """The task's operator with a trembling hand, who gives up half way in every third episode."""

    def __init__(self, env: RobotEnv) -> None:
        self._env = env
        self._rng = np.random.default_rng(0)
        self._episodes = 0

    def begin_episode(self, is_demonstration: bool, assistance: Assistance) -> None:
        self._operator = self._env.task.make_operator()
        self._episodes += 1
        self._steps_left = 8 if self._episodes % 3 == 0 else 1000

    def read(self) -> HumanInput:
        self._steps_left -= 1
        action = self._operator.act(self._env.state, self._env.objects) * (self._steps_left >= 0)
        noise = 0.2 * self._rng.standard_normal(len(action))
        return HumanInput(np.clip(action + noise, -1, 1).astype(np.float32), is_active=True)


class Nothing:
    def latest_weights(self) -> None:
        return None


class Robot:
    """Runs episodes one after another into one log."""

    def __init__(self, run_dir: Path) -> None:
        task = make_task("reach")
        self.env = RobotEnv(task, connect_backend("fake", task))
        self.specs = Specs(task.observation_spec, task.action_spec)
        self.log = Log(run_dir, self.specs)
        self._arbiter = Arbiter(ShakyOperator(self.env), hold_steps=0)
        self._policy = PolicyRunner(self.specs, POLICY, 0, Nothing())
        self.episodes = 0

    def run(self, rewards: RewardSource, reviewer: TruthReviewer | None = None) -> EpisodeTally:
        operator = reviewer or NoOperator()
        number, self.episodes = self.episodes, self.episodes + 1
        options = {"rewards": reviewer or rewards, "operator": operator, "episode": number, "seed": number}
        tally = run_episode(self.env, self._policy, self._arbiter, self.log, **options)  # type: ignore[arg-type]
        await_verdict(self.env, operator, self.log, tally, episode=number, window_s=0.5)
        return tally


@pytest.fixture
def robot(tmp_path: Path) -> Iterator[Robot]:
    robot = Robot(tmp_path / "run")
    yield robot
    robot.env.close()


def test_vetoes_make_a_classifier_better_while_it_is_in_use(robot: Robot, tmp_path: Path) -> None:
    for _ in range(30):
        robot.run(HeldReward(TaskReward(), hold_steps=3))
    config = LearnerConfig(policy=POLICY, classifier=CLASSIFIER, run_dir=tmp_path / "run", device="cpu")
    watch, feed = ClassifierWatch(config, robot.specs), ClassifierFeed(config, robot.specs)
    assert watch.step()

    def published() -> dict[str, Tensor]:
        return {name.removeprefix(TENSOR_PREFIX): tensor for name, tensor in feed.tensors().items()}

    encode = ObservationEncoder(robot.specs, POLICY).inputs
    rewards = make_rewards(RewardConfig(source="classifier", minimum_steps=0), robot.specs, POLICY, encode, published)
    agreement = []
    for _ in range(4):
        for _ in range(10):
            robot.run(rewards, TruthReviewer(rewards, NoOperator()))
            watch.step()
        latest = usage(robot.log.index().episodes.values(), latest=10)
        assert latest.episodes == 10
        agreement.append(latest.agreement)
    assert agreement[0] is not None
    assert agreement[-1] is not None
    assert agreement[0] <= 0.8, "the test needs a classifier with something left to learn"
    assert agreement[-1] >= 0.9
    assert watch.version > 2
