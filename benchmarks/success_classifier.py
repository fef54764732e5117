"""How many recorded successes a success classifier needs, on the twin's two cameras.

`python -m benchmarks.success_classifier` writes benchmarks/results/success_classifier.md. It records the scripted
operator with a trembling hand, who goes astray in every other episode, trains on the first episodes, and judges other
ones as the actor would: frame by frame, with threshold and frames in a row.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from actor.config import CamerasConfig, RewardConfig
from actor.env import RobotEnv, connect_backend, connect_cameras
from actor.intervention import Arbiter, HumanInput
from actor.intervention_config import Assistance
from actor.loop import run_episode
from actor.policy_runner import PolicyRunner, Proposal
from actor.rewards import ClassifierReward, HeldReward, TaskReward
from actor.tasks import make_task
from actor.tasks.base import Outcome, TaskOptions
from benchmarks.runs import machine
from learner.config import ClassifierConfig
from learner.log.folder import read_specs
from learner.reward_classifier.examples import EpisodeIndex, EpisodeRecord, TooFewExamplesError, label_episode
from learner.reward_classifier.logs import RunLogs
from learner.reward_classifier.metrics import confusion
from learner.reward_classifier.training import make_classifier, train
from policy.config import PolicyConfig
from policy.episode_log import EpisodeLog
from policy.spec import Observation, Specs
from policy.success_classifier import SuccessClassifier
from policy.transition import Recordable, RecordId

RESULTS = Path(__file__).parent / "results" / "success_classifier.md"
TASKS = ("peg_in_hole", "cube_stacking")
HOLD_STEPS = 9


class _Log:
    """An outbox straight into a learner's log."""

    def __init__(self, run_dir: Path, specs: Specs, policy: PolicyConfig) -> None:
        run_dir.mkdir(parents=True)
        (run_dir / "specs.json").write_text(specs.to_json())
        (run_dir / "policy.json").write_text(policy.to_json())
        self._log = EpisodeLog(run_dir / "log.sqlite", specs)
        self._incarnation = run_dir.name
        self._sequence = 0

    def offer(self, body: Recordable) -> None:
        self._log.append([(RecordId("twin", self._incarnation, self._sequence), body)])
        self._sequence += 1

    def close(self) -> None:
        self._log.close()


class _ShakyOperator:
    """The task's operator with noise on its actions; in every other episode it drifts off at a random step."""

    def __init__(self, env: RobotEnv, seed: int) -> None:
        self._env = env
        self._rng = np.random.default_rng(seed)
        self._episodes = 0

    def begin_episode(self, is_demonstration: bool, assistance: Assistance) -> None:
        self._operator = self._env.task.make_operator()
        limit = self._env.task.max_episode_steps
        self._steps_left = int(self._rng.integers(limit // 10, limit // 2)) if self._episodes % 2 else limit
        self._drift = self._rng.uniform(-1, 1, self._env.task.action_spec.dim)
        self._episodes += 1

    def read(self) -> HumanInput:
        self._steps_left -= 1
        wanted = self._operator.act(self._env.state, self._env.objects) if self._steps_left >= 0 else self._drift
        action = wanted + 0.1 * self._rng.standard_normal(len(wanted))
        return HumanInput(np.clip(action, -1, 1).astype(np.float32), is_active=True)


class _NoPolicy(PolicyRunner):
    """The operator always acts; nothing is proposed."""

    def __init__(self, action_dim: int) -> None:
        self._action = np.zeros(action_dim, np.float32)

    def swap_if_newer(self) -> bool:
        return False

    def propose(self, observation: Observation) -> Proposal:
        return Proposal(self._action, weights_version=0, weights_age_s=0.0)


def record(run_dir: Path, task_name: str, episodes: int, policy: PolicyConfig, seed: int) -> None:
    """Record episodes of a task with pixels into a new run folder, half of them or more with success."""
    task = make_task(task_name, TaskOptions(pixels=True))
    backend = connect_backend("twin", task)
    cameras = connect_cameras(CamerasConfig(), task, "twin", backend)
    env = RobotEnv(task, backend, cameras=cameras)
    log = _Log(run_dir, Specs(task.observation_spec, task.action_spec), policy)
    arbiter = Arbiter(_ShakyOperator(env, seed), hold_steps=0)
    rewards, no_policy = HeldReward(TaskReward(), HOLD_STEPS), _NoPolicy(task.action_spec.dim)
    for number in range(episodes):
        run_episode(env, no_policy, arbiter, log, episode=number, seed=1000 * seed + number, rewards=rewards)
    log.close()
    backend.close()


@dataclass
class Row:
    """One classifier, trained on the first episodes and tested on episodes of another recording."""

    task: str
    successes: int
    positives: int = 0
    frame_accuracy: float = float("nan")
    balanced_accuracy: float = float("nan")
    right: int = 0
    false: int = 0
    missed: int = 0

    @property
    def episodes(self) -> int:
        return self.right + self.false + self.missed


class _Recorded:
    """A judge that looks its probabilities up."""

    def __init__(self, probabilities: Sequence[float], threshold: float) -> None:
        self._probabilities = probabilities
        self.threshold = threshold

    def refresh(self) -> None:
        pass

    def probability(self, observation: Observation) -> float:
        return self._probabilities[observation["step"]]


def test(row: Row, classifier: SuccessClassifier, logs: RunLogs) -> None:
    """Judge all frames of all episodes of `logs`, and apply the actor's rule to each episode."""
    threshold, config = float(classifier.threshold), RewardConfig(source="classifier")
    every_probability: list[float] = []
    every_truth: list[bool] = []
    for record in logs.index.episodes.values():
        probabilities, shows_success = _judge(record, classifier, logs)
        every_probability += probabilities
        every_truth += shows_success
        rule = ClassifierReward(_Recorded(probabilities, threshold), config)
        claims = [rule.judge({"step": step}, Outcome(0.0, False, False)) for step in range(len(probabilities))]
        claimed = next((step for step, verdict in enumerate(claims) if verdict.is_success), None)
        if claimed is not None:
            row.right += shows_success[claimed]
            row.false += not shows_success[claimed]
        else:
            row.missed += record.is_success
            row.right += not record.is_success
    found = confusion(np.array(every_probability), np.array(every_truth), threshold)
    row.frame_accuracy = found.accuracy or 0.0
    row.balanced_accuracy = found.balanced_accuracy or 0.0


def _judge(record: EpisodeRecord, classifier: SuccessClassifier, logs: RunLogs) -> tuple[list[float], list[bool]]:
    """Return the probability and the truth of the frame after each step of an episode."""
    assert record.last_step is not None
    frames = [record.frame_after(step) for step in range(record.last_step + 1)]
    encoded = logs.store.get([frame for frame in frames if frame is not None], copies=0)
    positives = set(label_episode(record, ClassifierConfig()).positives)
    probabilities = classifier.probability(encoded.originals(slice(None), "cpu"))
    return probabilities.tolist(), [frame in positives for frame in frames]


def measure(task: str, folder: Path, successes: Sequence[int], test_episodes: int, policy: PolicyConfig) -> list[Row]:
    """Record once, then train on growing parts of the recording."""
    record(folder / "training", task, 2 * max(successes), policy, seed=1)
    record(folder / "test", task, test_episodes, policy, seed=2)
    specs, config = read_specs(folder / "training"), ClassifierConfig()
    training = RunLogs([folder / "training"], specs, policy, config)
    tested = RunLogs([folder / "test"], specs, policy, config)
    for logs in (training, tested):
        logs.read()
    rows = []
    for count in successes:
        index, found = EpisodeIndex(), 0
        for key, episode in training.index.episodes.items():
            index.episodes[key] = episode
            found += episode.is_success
            if found == count:
                break
        row = Row(task, found)
        rows.append(row)
        try:
            trained = train(
                index,
                training.store,
                make_classifier(specs, policy, config.threshold, 0),
                config,
                batches=config.batches,
                seed=0,
            )
        except TooFewExamplesError as error:
            print(f"{task}, {count} successes: {error}")
            continue
        row.positives = len(trained.training.positives)
        test(row, trained.classifier, tested)
        print(row)
    return rows


def to_markdown(rows: Sequence[Row], policy: PolicyConfig, test_episodes: int) -> str:
    lines = [
        "# Success classifier on the twin's cameras",
        "",
        f"`python -m benchmarks.success_classifier`, encoder weights `{policy.encoder_weights[:12]}`, {machine()}.",
        "",
        f"Scripted operator with noise 0.1, astray in every other episode; {HOLD_STEPS + 1} frames of held success "
        f"each. Tested on all frames of {test_episodes} other episodes per task; an episode is judged right when the "
        "first claim (probability 0.85 on 2 frames in a row, not in the first 10 steps) falls on a frame of success, "
        "or when there is neither success nor claim.",
        "",
        "| task | successes recorded | frames of success trained on | frame accuracy | balanced accuracy | "
        "episodes judged right | false claims | missed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        accuracies = [f"{row.frame_accuracy:.1%}", f"{row.balanced_accuracy:.1%}"]
        verdicts = [f"{row.right} of {row.episodes}", str(row.false), str(row.missed)]
        figures = [str(row.positives), *accuracies, *verdicts] if row.positives else ["too few", *[""] * 5]
        lines.append(" | ".join(["| " + row.task, str(row.successes), *figures]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--successes", type=int, nargs="+", default=[5, 10, 20, 40])
    parser.add_argument("--test-episodes", type=int, default=40)
    parser.add_argument("--encoder-weights", default="random", help="SHA-256 of converted weights (docs/encoder.md)")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    policy = PolicyConfig(encoder="resnet10", encoder_weights=arguments.encoder_weights)
    rows: list[Row] = []
    for task in arguments.tasks:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(task, Path(folder), arguments.successes, arguments.test_episodes, policy)
    RESULTS.write_text(to_markdown(rows, policy, arguments.test_episodes))


if __name__ == "__main__":
    main()
