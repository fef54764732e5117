"""python -m learner as a process: its children die in every way, and nothing is lost or left behind."""

import contextlib
import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
import torch

from learner.__main__ import Child
from learner.checkpoint import load_newest
from learner.config import LearnerConfig
from learner.trainer import Trainer
from learner.trainer_status import read_status
from policy.config import to_json
from policy.errors import EXIT_DIVERGED, EXIT_INTERRUPTED, EXIT_RETRY
from policy.failpoints import EXIT_CODE
from policy.weights_store import WeightsStore
from tests.link_ends import Actor
from tests.trainer_runs import SPECS, assert_same_state, make_config, train, wait_until, write_log


class Learner:
    """The learner's command on a configuration of its own, with failpoints in its children."""

    def __init__(self, config: LearnerConfig, failpoints: str = "") -> None:
        self.run_dir = config.run_dir
        self.run_dir.mkdir(parents=True, exist_ok=True)
        tables = _without_none(json.loads(to_json(config)))
        preset = config.run_dir.with_suffix(".toml")
        preset.write_text(tomli_w.dumps({"policy": tables.pop("policy"), "learner": tables}))
        self._log = config.run_dir.with_suffix(".log").open("ab")
        self.process = psutil.Popen(
            [sys.executable, "-m", "learner", "--preset", str(preset), "--port", "0"],
            stderr=self._log,
            env={**os.environ, "CGPO_FAILPOINTS": failpoints},
        )

    def address(self) -> str:
        wait_until(lambda: (self.run_dir / "ingest.json").exists() or self.process.poll() is not None)
        return str(json.loads((self.run_dir / "ingest.json").read_text())["address"])

    @property
    def said(self) -> str:
        return self.run_dir.with_suffix(".log").read_text()

    def children(self) -> dict[str, psutil.Process]:
        """Return the processes that run now, by "ingest" and "trainer"."""
        found: dict[str, psutil.Process] = {}
        for child in self.process.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(child.cmdline())
                found |= {name: child for name in ("ingest", "trainer") if f"learner.{name}" in command}
        return found

    def close(self) -> None:
        everyone = [self.process, *self.process.children()] if self.process.poll() is None else []
        for process in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self._log.close()


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in table.items() if value is not None}
    return {key: _without_none(value) if isinstance(value, dict) else value for key, value in kept.items()}


@pytest.fixture
def start() -> Iterator[Callable[..., Learner]]:
    with contextlib.ExitStack() as stack:

        def start(config: LearnerConfig, failpoints: str = "") -> Learner:
            learner = Learner(config, failpoints)
            stack.callback(learner.close)
            return learner

        yield start


def link_config(run_dir: Path) -> LearnerConfig:
    """Return a configuration for the transitions of tests.transitions, trained on as they come."""
    return make_config(run_dir, checkpoint_period_s=0.05, steps_per_update=5)


# --- a killed trainer ------------------------------------------------------------------------------------------------


@pytest.mark.e2e
@pytest.mark.parametrize("algorithm", ["cgpo", "hil_serl_sac"])
def test_a_run_of_killed_trainers_equals_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, start: Callable[..., Learner], algorithm: str
) -> None:
    """The first trainer dies at a failpoint, the second by kill -9 wherever it is, the third one finishes."""
    last_step = 300
    configs = [
        make_config(tmp_path / name, algorithm, max_learner_steps=last_step, checkpoint_period_s=0.2, metrics_every=7)
        for name in ("whole", "killed")
    ]
    for config in configs:
        write_log(config.run_dir, 0, 100)
        (config.run_dir / "specs.json").write_text(SPECS.to_json())
    whole = Trainer(configs[0], SPECS)
    train(whole, last_step)

    learner = start(configs[1], "trainer.after_update:exit@200")
    first = wait_for_trainer(learner)
    wait_until(lambda: not first.is_running())
    second = wait_for_trainer(learner, other_than=first)
    resumed_at = newest_checkpoint(learner.run_dir)
    kill_at = random.randint(resumed_at, last_step)
    wait_until(lambda: not second.is_running() or metric_steps(learner.run_dir)[-1] >= kill_at - 7)
    with contextlib.suppress(psutil.NoSuchProcess):
        second.kill()
    wait_until(lambda: newest_checkpoint(learner.run_dir) == last_step)
    assert learner.process.poll() is None

    killed = load_newest(learner.run_dir / "checkpoints")
    assert killed is not None
    assert_same_state(killed.tensors, whole.algorithm.state())
    assert torch.equal(killed.replay_noise, whole._replay.noise.generators[0].get_state())
    assert learner.said.count("trainer ended with code") >= 2
    steps = metric_steps(learner.run_dir)
    assert steps == sorted(set(steps))


def wait_for_trainer(learner: Learner, other_than: psutil.Process | None = None) -> psutil.Process:
    wait_until(lambda: learner.children().get("trainer", other_than) != other_than)
    return learner.children()["trainer"]


def newest_checkpoint(run_dir: Path) -> int:
    return max((int(path.name.removeprefix("step_")) for path in (run_dir / "checkpoints").glob("step_*")), default=0)


def metric_steps(run_dir: Path) -> list[int]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [0, *(json.loads(line)["learner_step"] for line in lines if line.endswith("}"))]


@pytest.mark.e2e
def test_intake_goes_on_while_trainers_crash_and_nobody_outlives_the_learner(
    tmp_path: Path, start: Callable[..., Learner]
) -> None:
    learner = start(link_config(tmp_path / "run"), "trainer.before_publish:exit@20")
    actor = Actor(tmp_path / "actor", learner.address(), policy=link_config(tmp_path / "run").policy)
    try:
        actor.offer(range(40))
        actor.drain()
        first = wait_for_trainer(learner)
        wait_until(lambda: not first.is_running())
        actor.offer(range(40, 80))
        actor.drain()  # the trainer is dead, or takes seconds to start
        store = WeightsStore(learner.run_dir / "weights")
        dead_at = store.latest()
        assert dead_at is not None
        # Whole, and it fits: the link has checked both.
        wait_until(lambda: (newest := actor.link.latest_weights()) and newest.version > dead_at.version)
        wait_until(lambda: newest_checkpoint(learner.run_dir) > 0)
    finally:
        actor.close()
    ended = [learner.process, *learner.process.children()]
    learner.process.kill()
    assert not psutil.wait_procs(ended, timeout=30)[1]
    assert integrity(learner.run_dir) == "ok"
    assert f"trainer ended with code {EXIT_CODE}, starting it again" in learner.said


@pytest.mark.e2e
def test_a_trainer_that_hangs_delays_neither_intake_nor_a_second_ctrl_c(
    tmp_path: Path, start: Callable[..., Learner]
) -> None:
    config = link_config(tmp_path / "run")
    learner = start(config, "trainer.after_update:sleep(1000)")
    actor = Actor(tmp_path / "actor", learner.address(), policy=config.policy)
    try:
        actor.offer(range(30))
        wait_until(lambda: read_status(learner.run_dir).state == "training")
        actor.offer(range(30, 330))
        actor.drain()
    finally:
        actor.close()
    children = learner.children()
    learner.process.send_signal(signal.SIGINT)
    with pytest.raises(psutil.TimeoutExpired):
        learner.process.wait(1.0)  # it waits for the trainer, as it should after one Ctrl-C
    learner.process.send_signal(signal.SIGINT)
    assert learner.process.wait(20) == EXIT_INTERRUPTED  # well before the 30 s it would give the trainer
    assert not [name for name, child in children.items() if child.is_running()]
    assert integrity(learner.run_dir) == "ok"
    assert num_records(learner.run_dir) == 330


def integrity(run_dir: Path) -> str:
    with contextlib.closing(sqlite3.connect(run_dir / "log.sqlite")) as database:
        return str(database.execute("PRAGMA integrity_check").fetchone()[0])


def num_records(run_dir: Path) -> int:
    with contextlib.closing(sqlite3.connect(run_dir / "log.sqlite")) as database:
        return int(database.execute("SELECT count(*) FROM records").fetchone()[0])


# --- what is started again, and when ---------------------------------------------------------------------------------


def child_that_exits(code: int) -> Child:
    child = Child("child", lambda: [sys.executable, "-c", f"raise SystemExit({code})"])
    child.start()
    assert child.process is not None
    child.process.wait()
    return child


def test_a_lack_of_memory_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    child = child_that_exits(EXIT_RETRY)
    dead = child.process
    assert child.check() is None
    assert child.process is not dead


def test_training_that_diverged_ends_the_learner() -> None:
    assert child_that_exits(EXIT_DIVERGED).check() == EXIT_DIVERGED


def test_pauses_grow_until_it_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, moments = 0.0, []
    monkeypatch.setattr("learner.__main__.time.monotonic", lambda: now_s)
    child = child_that_exits(1)
    while True:
        process = child.process
        assert process is not None
        process.wait()
        code = child.check()
        if code is not None:
            break
        if child.process is not process:
            moments.append(now_s)
        now_s += 0.25
    assert code == 1
    pauses = [round(after - before) for before, after in itertools.pairwise(moments)]
    assert pauses == [1, 2, 4, 8]


def test_deaths_that_are_far_apart_are_always_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr("learner.__main__.time.monotonic", lambda: now_s)
    child = child_that_exits(1)
    for _ in range(10):
        dead = child.process
        assert dead is not None
        dead.wait()
        assert child.check() is None
        assert child.process is not dead
        now_s += 601.0


def test_a_process_that_ignores_the_request_is_killed_when_nobody_wants_to_wait() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(1000)"
    child = Child("child", lambda: [sys.executable, "-c", code])
    child.process = subprocess.Popen(child.command(), stdout=subprocess.PIPE)
    assert child.process.stdout is not None
    child.process.stdout.readline()
    at_once = threading.Event()
    at_once.set()
    child.stop(at_once)
    assert child.process.returncode == -signal.SIGKILL
    child.process.stdout.close()
