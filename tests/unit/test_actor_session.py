"""What a session does when the robot fails, and which settings it refuses. No learner listens."""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from actor.__main__ import claim_priority
from actor.config import ActorConfig
from actor.env import RobotFailureError
from actor.intervention_config import InterventionConfig
from actor.link import Link
from actor.session import Session
from actor.spool import Spool
from policy.config import PolicyConfig
from policy.errors import ConfigError, SpecMismatchError
from robot.backends.fake import FakeBackend
from robot.errors import RobotError

POLICY = PolicyConfig(denoising_steps=2, denoiser_hidden=(8,), behavior_candidates=1)


def config(run_dir: Path, **changes: object) -> ActorConfig:
    values: dict[str, object] = {
        "policy": POLICY,
        "task": "reach",
        "backend": "fake",
        "learner": "127.0.0.1:1",
        "run_dir": run_dir,
        "demonstrations": 1,
        "pace": 0.0,
        "eval_pace": 0.0,
        "max_env_steps": 100,
        "eval_episodes": 2,
        "drain_timeout_s": 0.0,
    }
    return ActorConfig(**(values | changes))  # type: ignore[arg-type]


def run(configuration: ActorConfig) -> list[str]:
    said: list[str] = []
    Session(configuration, lambda: False, said.append).run()
    return said


def test_a_robot_that_fails_ends_the_session_with_its_message_and_a_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 30
    calls: list[str] = []

    def fail_after(self: FakeBackend, period_s: float, advance: object = FakeBackend.advance) -> None:
        if calls.count("advance") == steps:
            raise RobotError("reflex: joint 4 above 87 N m")
        calls.append("advance")
        advance(self, period_s)  # type: ignore[operator]

    monkeypatch.setattr(FakeBackend, "advance", fail_after)
    monkeypatch.setattr(FakeBackend, "stop", lambda self: calls.append("stop"))
    monkeypatch.setattr(FakeBackend, "close", lambda self: calls.append("close"))
    with pytest.raises(RobotFailureError, match="joint 4 above 87 N m"):
        run(config(tmp_path))
    assert calls[-3:] == ["advance", "stop", "close"]
    summary = json.loads((tmp_path / "actor_summary.json").read_text())
    assert summary["link"]["offered"] == summary["link"]["pending"] == steps
    assert summary["eval"]["episodes"] is None


def test_a_robot_that_does_not_answer_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FakeBackend) -> None:
        raise RobotError("no answer from 172.16.0.2: is the arm unlocked?")

    monkeypatch.setattr(FakeBackend, "connect", refuse)
    with pytest.raises(RobotFailureError, match="is the arm unlocked"):
        run(config(tmp_path))


def stop_after(calls: int) -> Callable[[], bool]:
    """A stop request that comes at this call of should_stop and stays."""
    counter = itertools.count(1)
    return lambda: next(counter) >= calls


def test_a_demonstration_cut_short_is_recorded_again(tmp_path: Path) -> None:
    configuration = config(tmp_path, demonstrations=2, max_env_steps=1, eval_episodes=0)
    Session(configuration, stop_after(4), lambda line: None).run()
    run(configuration)
    episodes = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["stopped"]) for row in episodes] == [
        ("demonstration", True),
        ("demonstration", False),
        ("demonstration", False),
        ("training", False),
    ]


def test_an_evaluation_stopped_in_its_first_episode_has_no_figures(tmp_path: Path) -> None:
    configuration = config(tmp_path, demonstrations=0, max_env_steps=1, intervention=InterventionConfig(decay_steps=0))
    Session(configuration, stop_after(60), lambda line: None).run()  # training takes 50 steps, each asks once
    assert [json.loads(line)["episodes"] for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()] == [0]
    assert set(json.loads((tmp_path / "actor_summary.json").read_text())["eval"].values()) == {None}


def test_a_refused_actor_does_not_promise_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = stop_after(4)
    monkeypatch.setattr(Link, "refusal", property(lambda self: SpecMismatchError("other specs") if refused() else None))
    said: list[str] = []
    with pytest.raises(SpecMismatchError):
        Session(config(tmp_path), lambda: False, said.append).run()
    assert any("demo 000 STOPPED" in line for line in said)
    assert not any("goes on" in line for line in said)


def test_a_run_folder_of_another_task_is_refused(tmp_path: Path) -> None:
    run(config(tmp_path, eval_episodes=0))
    with pytest.raises(ConfigError, match=r"holds episodes of task 'reach', not of 'peg_in_hole'.*--run-dir"):
        run(config(tmp_path, task="peg_in_hole"))
    run(config(tmp_path, eval_episodes=0))  # and stays usable for its own


def test_a_second_actor_leaves_the_configuration_of_the_first_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.sqlite", "actor-0", "incarnation")
    with pytest.raises(ConfigError, match="another process"):
        run(config(tmp_path))
    spool.close()
    assert not (tmp_path / "config.toml").exists()


def test_equal_seeds_give_equal_sessions(tmp_path: Path) -> None:
    def lengths(name: str, seed: int) -> list[int]:
        run(config(tmp_path / name, seed=seed, demonstrations=5))
        return [json.loads(line)["length"] for line in (tmp_path / name / "episodes.jsonl").read_text().splitlines()]

    assert lengths("a", 0) == lengths("b", 0) != lengths("c", 1)


def test_interim_evaluations_come_at_their_steps(tmp_path: Path) -> None:
    changes = {"max_env_steps": 300, "eval_every_steps": 100, "interim_eval_episodes": 2}  # the final one is at 300
    run(config(tmp_path, **changes))
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert kinds == ["interim", "interim", "final"]


@pytest.mark.parametrize("changes", [{"pace": 0.0}, {"pace": 1.0, "max_steps_per_version": 50}])
def test_a_real_robot_runs_in_real_time_and_never_waits_for_its_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    monkeypatch.setattr("actor.workcell.connect_robot", lambda *_: RealArm("reach"))
    with pytest.raises(ConfigError, match="runs in real time"):
        run(config(tmp_path, **changes))


class RealArm(FakeBackend):
    """A backend that is no simulator: it knows no object poses."""

    object_poses = None  # type: ignore[assignment]


def test_evaluating_with_candidates_needs_a_published_critic() -> None:
    with pytest.raises(ConfigError, match="eval_candidates = 4 needs a published critic"):
        ActorConfig(policy=POLICY, eval_candidates=4)


def test_a_priority_is_claimed_and_what_forbids_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    claimed: list[tuple[int, int, int]] = []
    monkeypatch.setattr(
        os, "sched_setscheduler", lambda pid, policy, param: claimed.append((pid, policy, param.sched_priority))
    )
    claim_priority(0)
    claim_priority(20)
    assert claimed == [(0, os.SCHED_FIFO, 20)]

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with pytest.raises(ConfigError, match=r"realtime_priority = 20 is not allowed.*limits\.conf"):
        claim_priority(20)
    with pytest.raises(ConfigError, match="realtime_priority = 100"):
        ActorConfig(realtime_priority=100)


@pytest.mark.parametrize("address", ["workstation", "workstation:", ":50051", "workstation:http", "workstation:70000"])
def test_an_address_that_is_none_is_refused_before_anything_starts(address: str) -> None:
    with pytest.raises(ConfigError, match="not HOST:PORT"):
        ActorConfig(learner=address)
