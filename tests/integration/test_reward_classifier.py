"""The success classifier from recorded episodes to a veto: on images of the twin, in use, and as processes."""

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from actor.config import RewardConfig
from actor.env import RobotEnv, connect_backend
from actor.policy_runner import PolicyRunner
from actor.rewards import ClassifierReward, HeldReward, TaskReward, TrainedJudge
from actor.tasks import make_task
from actor.tasks.base import Outcome, TaskOptions
from learner.__main__ import Child
from learner.config import ClassifierConfig, LearnerConfig
from learner.reward_classifier.__main__ import TrainCommand, train_command
from learner.reward_classifier.feed import ClassifierFeed
from learner.reward_classifier.watch import ClassifierWatch
from learner.trainer import Trainer
from policy.config import PolicyConfig, to_json
from policy.encoder import ObservationEncoder
from policy.episode_log import EpisodeLog
from policy.image_codec import encode_image
from policy.spec import ImageField, Observation, ObservationSpec, Specs
from policy.success_classifier import TENSOR_PREFIX, SuccessClassifier, load_classifier, read_manifest
from policy.transition import ActionSource, MarkKind, Recordable, RecordId, Transition
from policy.weights import PolicyWeights, deserialise
from policy.weights_store import WeightsStore
from robot.interface import SimulatedBackend
from tests.success_episodes import POLICY, SPECS, append, episode, judged_by_task, mark

HANG_LIMIT_S = 60.0
CONFIG = ClassifierConfig(min_positives=10, frames_per_batch=64, learning_rate=3e-3, reaction_steps=1)
FALSE_SUCCESS = (0.9, 1.4)  # as far along as a success, but beside everything that was trained on


def learner_config(run_dir: Path, classifier: ClassifierConfig) -> LearnerConfig:
    policy = replace(POLICY, denoising_steps=4, denoiser_hidden=(8,), critic_hidden=(8,), num_critics=2)
    return LearnerConfig(policy=policy, classifier=classifier, run_dir=run_dir, device="cpu")


def claimed(number: int, veto: bool = False) -> list[Recordable]:
    bodies: list[Recordable] = [*episode(number, [0.0, 0.1, FALSE_SUCCESS], success=True, source="classifier")]
    return [*bodies, mark(number, 1, MarkKind.FAILURE)] if veto else bodies


def metrics(run_dir: Path, event: str) -> list[dict[str, float]]:
    lines = (run_dir / "classifier_metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


@pytest.fixture
def initial(tmp_path: Path) -> Path:
    """Return the folder of a classifier trained on episodes that the task judged."""
    append(tmp_path / "recorded", judged_by_task(0, 80))
    command = TrainCommand(log=(tmp_path / "recorded",), out=tmp_path / "initial", classifier=CONFIG)
    assert train_command(command) == 0
    return command.out


def judge_of(feed: ClassifierFeed) -> TrainedJudge:
    """Return what an actor judges with that gets whatever the feed publishes."""
    encoder = ObservationEncoder(SPECS, POLICY)

    def published() -> dict[str, object]:
        return {name.removeprefix(TENSOR_PREFIX): tensor for name, tensor in feed.tensors().items()}

    return TrainedJudge(SuccessClassifier(SPECS, POLICY), encoder.inputs, published)  # type: ignore[arg-type]


def test_a_veto_corrects_the_classifier_that_the_actor_uses(tmp_path: Path, initial: Path) -> None:
    run_dir = tmp_path / "run"
    append(run_dir, claimed(0))
    config = learner_config(run_dir, replace(CONFIG, initial=initial, retrain=True))
    watch, judge = ClassifierWatch(config, SPECS), judge_of(ClassifierFeed(config, SPECS))
    seen: Observation = {"x": np.array(FALSE_SUCCESS, np.float32)}
    judge.refresh()
    assert judge.probability(seen) > judge.threshold, "the test needs a false success"
    assert not watch.step()  # a claim that nobody contradicts is no reason to learn

    append(run_dir, claimed(1, veto=True))
    assert watch.step()
    judge.refresh()
    assert judge.probability(seen) < judge.threshold
    rewards = ClassifierReward(judge, RewardConfig(minimum_steps=0, consecutive_frames=1))
    assert not rewards.judge(seen, Outcome(0.0, False, False)).is_success
    true_success: Observation = {"x": np.array([0.9, 0.0], np.float32)}
    assert rewards.judge(true_success, Outcome(0.0, False, False)).is_success

    (version,) = metrics(run_dir, "version")
    assert version["version"] == 2
    assert version["accuracy"] >= 0.95
    assert metrics(run_dir, "usage")[-1]["agreement"] == 0.5


def test_the_watch_resumes_where_it_was(tmp_path: Path, initial: Path) -> None:
    run_dir = tmp_path / "run"
    append(run_dir, claimed(0, veto=True))
    config = learner_config(run_dir, replace(CONFIG, initial=initial, retrain=True))
    first = ClassifierWatch(config, SPECS)
    assert first.step()
    again = ClassifierWatch(config, SPECS)
    assert again.version == 2
    assert not again.step()  # that veto has been learned from
    append(run_dir, claimed(1, veto=True))
    assert again.step()
    assert again.version == 3


def test_without_an_initial_classifier_the_first_is_trained_when_there_is_enough(tmp_path: Path) -> None:
    config = learner_config(tmp_path, replace(CONFIG, retrain=True))
    append(tmp_path, judged_by_task(0, 8))
    watch = ClassifierWatch(config, SPECS)
    assert not watch.step()
    append(tmp_path, judged_by_task(8, 72))
    assert watch.step()
    manifest = read_manifest(tmp_path / "classifier")
    assert manifest is not None
    assert manifest.metrics["accuracy"] >= 0.95


def test_low_agreement_is_said_once(tmp_path: Path, initial: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = learner_config(tmp_path, replace(CONFIG, initial=initial, retrain=True))
    append(tmp_path, [body for number in range(5) for body in claimed(number)])
    watch = ClassifierWatch(config, SPECS)
    with caplog.at_level(logging.WARNING):
        watch.step()
        assert not caplog.records
        for number in (5, 6, 7):
            append(tmp_path, claimed(number, veto=True))
            watch.step()
    (warning,) = caplog.records
    assert "agreed with the operator on 83 % of the last 6 episodes" in warning.getMessage()


def test_the_trainer_publishes_the_newest_classifier_with_the_policy(tmp_path: Path, initial: Path) -> None:
    run_dir = tmp_path / "run"
    append(run_dir, claimed(0))
    config = learner_config(run_dir, replace(CONFIG, initial=initial, retrain=True))
    trainer = Trainer(config, SPECS)
    watch, store = ClassifierWatch(config, SPECS), WeightsStore(run_dir / "weights")
    for expected in (load_classifier(initial, SPECS, POLICY)[0], None):
        trainer.publish()
        manifest = store.latest()
        assert manifest is not None
        tensors = deserialise(store.read(manifest), manifest.sha256)
        newest = expected or load_classifier(run_dir / "classifier", SPECS, POLICY)[0]
        for name, tensor in newest.state_dict().items():
            np.testing.assert_array_equal(tensors[TENSOR_PREFIX + name], tensor)
        arrived = PolicyWeights(manifest.version, manifest.learner_step, manifest.published_wall_s, tensors)
        actor = PolicyRunner(SPECS, config.policy, 0, Mock(latest_weights=lambda arrived=arrived: arrived))
        assert actor.swap_if_newer()
        append(run_dir, claimed(1, veto=True))
        watch.step()


def test_a_damaged_version_does_not_stop_publication(tmp_path: Path, initial: Path) -> None:
    config = learner_config(tmp_path, replace(CONFIG, initial=initial, retrain=True))
    feed = ClassifierFeed(config, SPECS)
    before = feed.tensors()
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier" / "manifest.json").write_text("{}")
    assert feed.tensors() == before


def run(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "learner.reward_classifier", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_one_sided_examples_end_the_command_with_counts(tmp_path: Path) -> None:
    append(tmp_path, [body for number in range(30) for body in episode(number, [0.0, 0.1, 0.2], success=False)])
    process = run("train", "--log", str(tmp_path), "--out", str(tmp_path / "out"))
    _, error = process.communicate(timeout=HANG_LIMIT_S)
    assert process.returncode == 1
    assert "from 30 labelled episodes, 0 of them with success: 0 training frames of success, needed 20" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_the_watch_is_a_process_that_stops_when_told(tmp_path: Path) -> None:
    append(tmp_path, judged_by_task(0, 80))
    config = learner_config(tmp_path, replace(CONFIG, retrain=True))
    (tmp_path / "config.json").write_text(to_json(config))
    process = run("watch", str(tmp_path / "config.json"))
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not (tmp_path / "classifier" / "report.md").exists():
        assert time.monotonic() < deadline_s
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=HANG_LIMIT_S)
    assert process.returncode == 0


@pytest.mark.parametrize(("is_optional", "expected"), [(True, None), (False, 2)])
def test_the_learner_outlives_a_classifier_that_cannot_be_retrained(is_optional: bool, expected: int | None) -> None:
    child = Child("classifier", lambda: [sys.executable, "-c", "raise SystemExit(2)"], is_optional=is_optional)
    child.start()
    assert child.process is not None
    child.process.wait(HANG_LIMIT_S)
    assert child.check() == expected
    assert child.check() == expected
    child.stop(threading.Event())


# -- On images of the twin -----------------------------------------------------------------------------------------


def record_twin(run_dir: Path, episodes: int, max_steps: int = 40, hold_steps: int = 7) -> None:
    """Log what a camera of the twin sees of the scripted operator; in every other episode it goes astray on the way.

    Task and camera are the twin's own; only the operator's mistakes are the test's.
    """
    task = make_task("peg_in_hole", TaskOptions())
    backend = connect_backend("twin", task)
    assert isinstance(backend, SimulatedBackend)
    env, rng = RobotEnv(task, backend), np.random.default_rng(0)
    specs = Specs(
        ObservationSpec(task.observation_spec.fields[:1], (ImageField(name="close", height=128, width=128),)),
        task.action_spec,
    )
    run_dir.mkdir()
    (run_dir / "specs.json").write_text(specs.to_json())
    (run_dir / "policy.json").write_text(PolicyConfig(encoder="resnet10", encoder_weights="random").to_json())
    log = EpisodeLog(run_dir / "log.sqlite", specs)
    rewards, sequence = HeldReward(TaskReward(), hold_steps), 0

    def seen_with(measured: Observation) -> Observation:
        return {"O_p_EE": measured["O_p_EE"], "close": encode_image(backend.render(128, 128, "close"), "jpeg")}

    for number in range(episodes):
        operator, observation = task.make_operator(), seen_with(env.reset(seed=number)[0])
        rewards.begin_episode()
        astray = rng.uniform(-1, 1, task.action_spec.dim)
        astray_from = int(rng.integers(5, 15)) if number % 2 else max_steps
        for step in range(max_steps):
            wanted = operator.act(env.state, env.objects) if step < astray_from else astray
            noisy = np.clip(wanted + 0.1 * rng.standard_normal(len(wanted)), -1, 1).astype(np.float32)
            measured, reward, terminated, _, info = env.step(noisy)
            next_observation = seen_with(measured)
            verdict = rewards.judge(next_observation, Outcome(reward, terminated, info["is_success"]))
            is_last = verdict.terminated or step == max_steps - 1
            transition = Transition(
                episode=number,
                step=step,
                observation=observation,
                policy_action=noisy,
                executed_action=noisy,
                source=ActionSource.POLICY,
                reward=verdict.reward,
                terminated=verdict.terminated,
                truncated=is_last and not verdict.terminated,
                weights_version=0,
                weights_age_s=0.0,
                wall_time_s=0.0,
                monotonic_time_s=0.0,
                reward_source=verdict.source,
                final_observation=next_observation if is_last else None,
            )
            log.append([(RecordId("twin", "first", sequence), transition)])
            sequence, observation = sequence + 1, next_observation
            if is_last:
                break
    log.close()
    backend.close()


def test_success_is_told_from_images_of_the_twin(tmp_path: Path) -> None:
    record_twin(tmp_path / "run", episodes=24)
    config = ClassifierConfig(shifted_copies=1, frames_per_batch=64, batches=120)
    assert train_command(TrainCommand(log=(tmp_path / "run",), out=tmp_path / "out", classifier=config)) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    held_out, counts = report["held_out"], report["counts"]["held_out"]
    assert counts["positives"] >= 15
    assert counts["negatives"] >= 45
    assert held_out["accuracy"] >= 0.95
    assert held_out["balanced_accuracy"] >= 0.95
    assert (tmp_path / "out" / "roc.png").stat().st_size > 1000
    assert f"({held_out['true_positives'] + held_out['true_negatives']} of" in (tmp_path / "out/report.md").read_text()
