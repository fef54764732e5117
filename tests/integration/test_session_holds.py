"""Actor and recorder between two episodes, with a full disk or old weights. No learner listens."""

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actor.config import ActorConfig, RecorderConfig
from actor.loop import EpisodeTally, run_episode
from actor.recorder import Recorder
from actor.report import append_json_line
from actor.session import Session
from actor.workcell import Workcell, configured_task
from policy.config import PolicyConfig
from policy.diffusion_policy import make_denoiser
from policy.spec import Specs
from policy.weights import serialise
from policy.weights_store import WeightsStore

POLICY = PolicyConfig(denoising_steps=2, denoiser_hidden=(8,), behavior_candidates=1)


def config(run_dir: Path, kind: type[ActorConfig] = ActorConfig, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "policy": POLICY,
        "task": "reach",
        "backend": "fake",
        "learner": "127.0.0.1:1",
        "run_dir": run_dir,
        "demonstrations": 1,
        "pace": 0.0,
        "max_env_steps": 1,
        "eval_episodes": 0,
        "drain_timeout_s": 0.0,
    }
    return kind(**(values | changes))


class Disk:
    """The disk's free space, and what happens while the arm rests for the n-th time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free_gb: float) -> None:
        self.free_gb = free_gb
        self.rests = 0
        self.at_rest: Callable[[], Any] = lambda: None
        monkeypatch.setattr("actor.disk_room._PERIOD_S", 0.0)
        monkeypatch.setattr("actor.spool._IDLE_S", 0.01)
        monkeypatch.setattr("actor.disk_room.shutil.disk_usage", lambda _: SimpleNamespace(free=self.free_gb * 1e9))
        monkeypatch.setattr(Workcell, "rest", lambda *_: self._rest())

    def _rest(self) -> None:
        self.rests += 1
        assert self.rests < 1000, "hangs"
        time.sleep(0.01)
        if self.rests == 5:
            self.at_rest()


def episodes(run_dir: Path) -> list[str]:
    path = run_dir / "episodes.jsonl"
    return [json.loads(line)["kind"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("program", [Session, Recorder])
def test_on_a_full_disk_no_episode_begins_until_there_is_room(
    program: type[Session] | type[Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, free_gb=0.2)
    disk.at_rest = lambda: setattr(disk, "free_gb", 5.0)
    said: list[str] = []
    is_recorder = program is Recorder
    configuration = config(tmp_path, RecorderConfig, auto=True) if is_recorder else config(tmp_path)
    program(configuration, lambda: False, said.append).run()
    assert disk.rests >= 5
    assert any("HOLD" in line and "0.20 GB" in line and "min_free_gb = 1" in line for line in said)
    assert any("the next episode begins" in line for line in said)
    assert episodes(tmp_path) == (["demonstration"] if is_recorder else ["demonstration", "training"])


@pytest.mark.parametrize("program", [Session, Recorder])
def test_while_the_disk_takes_nothing_steps_wait_and_no_episode_begins(
    program: type[Session] | type[Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, free_gb=5.0)
    monkeypatch.setattr("actor.spool._RETRY_S", 0.01)
    failing = [OSError("no space left on device")]
    has_failed_twice = threading.Event()  # so that the spool knows of the first time
    failures: list[str] = []

    def fail(place: str) -> None:
        for error in failing:
            failures.append(place)
            if len(failures) > 1:
                has_failed_twice.set()
            raise error

    monkeypatch.setattr("actor.spool.failpoint", fail)
    disk.at_rest = failing.clear
    begun: list[int] = []

    def begin(*args: Any, **settings: Any) -> EpisodeTally:
        begun.append(disk.rests)
        tally = run_episode(*args, **settings)
        assert has_failed_twice.wait(30.0)
        return tally

    monkeypatch.setattr(f"{program.__module__}.run_episode", begin)
    said: list[str] = []
    configuration = config(tmp_path, RecorderConfig, auto=True) if program is Recorder else config(tmp_path)
    program(configuration, lambda: False, said.append).run()
    assert not [rests for rests in begun[1:] if rests < 5]  # the first began before anything failed
    assert any("HOLD" in line and "no space left on device" in line for line in said)
    lengths = [json.loads(line)["length"] for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    with contextlib.closing(sqlite3.connect(tmp_path / "spool.sqlite")) as database:
        assert database.execute("SELECT COUNT(*) FROM records").fetchone() == (sum(lengths),)


@pytest.mark.parametrize("program", [Session, Recorder])
def test_a_stop_ends_the_hold(
    program: type[Session] | type[Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, free_gb=0.2)
    stops: list[bool] = []
    disk.at_rest = lambda: stops.append(True)
    configuration = config(tmp_path, RecorderConfig, auto=True) if program is Recorder else config(tmp_path)
    program(configuration, lambda: bool(stops), lambda line: None).run()
    assert 5 <= disk.rests < 10
    assert episodes(tmp_path) == []


@pytest.mark.parametrize("stops_first", [False, True])
def test_the_recorder_holds_while_its_list_of_episodes_takes_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops_first: bool
) -> None:
    """With its line a demonstration is kept; without one the next start discards it."""
    disk = Disk(monkeypatch, free_gb=5.0)
    is_full, stops = [True], list[bool]()
    disk.at_rest = lambda: stops.append(True) if stops_first else is_full.clear()

    def append(path: Path, record: Any) -> None:
        if is_full:
            raise OSError("no space left on device")
        append_json_line(path, record)

    monkeypatch.setattr("actor.readiness.append_json_line", append)
    said: list[str] = []
    Recorder(config(tmp_path, RecorderConfig, auto=True), lambda: bool(stops), said.append).run()
    assert disk.rests >= 5
    assert any("HOLD" in line and "no space left on device" in line for line in said)
    assert episodes(tmp_path) == ([] if stops_first else ["demonstration"])
    assert any("the next start here discards it" in line for line in said) == stops_first
    assert any(f"recorded: {1 - stops_first} of 1 demonstrations" in line for line in said)


def test_garbage_is_collected_while_the_arm_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session switches Python's own collection off, and a hold may last for days."""
    collections, pauses = list[float](), list[float]()
    now = SimpleNamespace(s=1000.0)

    def sleep(duration_s: float) -> None:
        now.s += duration_s
        pauses.append(duration_s)

    monkeypatch.setattr("actor.workcell.gc.collect", lambda: collections.append(now.s))
    monkeypatch.setattr("actor.workcell.time", SimpleNamespace(monotonic=lambda: now.s, sleep=sleep))
    configuration = config(tmp_path)
    with contextlib.ExitStack() as closing:
        cell = Workcell(
            configuration,
            configured_task(configuration),
            SimpleNamespace(latest_weights=lambda: None),
            closing,
            lambda line: None,
            operator_seed=1,
            should_stop=lambda: False,
        )
        while now.s < 1035.0:
            cell.rest("a reason")
    assert len(pauses) > 100
    assert 3 <= len(collections) <= 5


def test_a_disk_that_is_not_looked_at_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, free_gb=0.0)
    Session(config(tmp_path, min_free_gb=0.0), lambda: False, lambda line: None).run()
    assert (disk.rests, len(episodes(tmp_path))) == (0, 2)


@pytest.mark.parametrize(("age_s", "holds"), [(1000.0, True), (5.0, False)])
def test_old_weights_hold_the_policy_and_no_demonstration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_s: float, holds: bool
) -> None:
    disk = Disk(monkeypatch, free_gb=5.0)
    stops: list[bool] = []
    disk.at_rest = lambda: stops.append(True)
    configuration = config(tmp_path, max_weights_age_s=300.0)
    task = configured_task(configuration)
    denoiser = make_denoiser(Specs(task.observation_spec, task.action_spec), POLICY)
    data = serialise({f"denoiser.{name}": tensor for name, tensor in denoiser.state_dict().items()})
    WeightsStore(tmp_path / "weights").publish(data, 3, 450, published_wall_s=time.time() - age_s)
    said: list[str] = []
    Session(configuration, lambda: bool(stops), said.append).run()
    assert episodes(tmp_path) == (["demonstration"] if holds else ["demonstration", "training"])
    assert any("weights, version 3" in line and "300" in line for line in said) == holds
    summary = json.loads((tmp_path / "actor_summary.json").read_text())
    assert (summary["link"]["refused"], summary["link"]["alarm"]) == (0, "")
    assert summary["weights"]["staleness_s"]["p95"] >= age_s
