"""Sweeps of real processes: retries, done-checks, several at a time, a killed sweep, and ray where it is installed."""

import contextlib
import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from learner import cluster
from learner.cluster import SweepConfig, SweepRun, SweepStoppedError, read_runs, run_sweep
from learner.run_process import ThisMachine
from policy.errors import EXIT_CONFIG, EXIT_INTERRUPTED, ConfigError

ROOT = Path(__file__).resolve().parents[2]
HANG_LIMIT_S = 60.0


def make_run(folder: Path, name: str, script: str, on_term: str = "exit") -> SweepRun:
    """A run that notes each start, "NAME" or "NAME --resume", in FOLDER/calls, and then does what `script` says.

    It is finished when FOLDER/NAME.done exists.
    """
    note = f"echo {name}${{1:+ $1}} >> calls; starts=$(grep -c ^{name} calls)"
    program = f"cd {folder}; trap '{on_term}' TERM; {note}; {script}"
    return SweepRun(name=name, command=("bash", "-c", program, "run"), is_finished=(folder / f"{name}.done").exists)


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def write_runs(folder: Path, runs: list[SweepRun]) -> Path:
    path = folder / "runs.jsonl"
    lines = [
        json.dumps({"name": run.name, "command": run.command, "finished": str(folder / f"{run.name}.done")})
        for run in runs
    ]
    path.write_text("\n".join(lines))
    return path


def start_sweep(runs: Path, logs: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "learner.cluster", str(runs), "--out", str(logs)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_runs_are_done_in_turn_and_finished_ones_are_not_done_again(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name, f"touch {name}.done") for name in ("a", "b")]
    assert run_sweep(runs, tmp_path / "logs", SweepConfig()) == []
    assert run_sweep(runs, tmp_path / "logs", SweepConfig()) == []
    assert calls(tmp_path) == ["a", "b"]


def test_several_runs_work_at_a_time(tmp_path: Path) -> None:
    meet = "for i in {1..600}; do ls {other}.here && touch {name}.done && exit; sleep 0.05; done"
    runs = [
        make_run(tmp_path, name, f"touch {name}.here; " + meet.replace("{other}", other).replace("{name}", name))
        for name, other in (("a", "b"), ("b", "a"))
    ]
    assert run_sweep(runs, tmp_path / "logs", SweepConfig(jobs=2, retries=0)) == []


def test_a_run_that_dies_is_resumed_and_its_last_words_are_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path, "a", 'echo "out of luck"; [ $starts -ge 3 ] && touch a.done; kill -9 $$')
    assert run_sweep([run], tmp_path / "logs", SweepConfig(retries=2, retry_pause_s=0)) == []
    assert calls(tmp_path) == ["a", "a --resume", "a --resume"]
    messages = [record.getMessage() for record in caplog.records]
    assert sum(message.startswith("a ended with code -9") for message in messages) == 2
    assert messages.count("    out of luck") == 1 + 2  # the log grows
    assert not any("\n" in message for message in messages)  # which the programs' log would escape


def test_a_run_that_never_finishes_is_given_up_and_the_others_go_on(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, "dies", "exit 1"),
        make_run(tmp_path, "hopeless", f"exit {EXIT_CONFIG}"),
        make_run(tmp_path, "good", "touch good.done"),
    ]
    failed = run_sweep(runs, tmp_path / "logs", SweepConfig(retries=1, retry_pause_s=0))
    assert failed == ["dies", "hopeless"]
    assert calls(tmp_path) == ["dies", "dies --resume", "hopeless", "good"]


def test_a_run_that_says_it_is_done_and_is_not_is_not_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one that writes to another folder: started again it would do the same, or nothing."""
    run = make_run(tmp_path, "elsewhere", "exit 0")
    assert run_sweep([run], tmp_path / "logs", SweepConfig(retry_pause_s=0)) == ["elsewhere"]
    assert calls(tmp_path) == ["elsewhere"]
    assert "elsewhere: giving it up, it says that all is done" in caplog.text


def test_what_another_machine_wrote_may_be_seen_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThisMachine, "seen_after_s", HANG_LIMIT_S)
    run = make_run(tmp_path, "a", "(sleep 0.5; touch a.done) & exit 0")
    assert run_sweep([run], tmp_path / "logs", SweepConfig(retries=0)) == []


def test_a_run_that_another_sweep_has_finished_meanwhile_is_not_started(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "a", "touch a.done b.done"), make_run(tmp_path, "b", "touch b.done")]
    assert run_sweep(runs, tmp_path / "logs", SweepConfig()) == []
    assert calls(tmp_path) == ["a"]


@contextlib.contextmanager
def locked(logs: Path, name: str) -> Iterator[None]:
    """As by a process that still works on the run."""
    logs.mkdir(exist_ok=True)
    with (logs / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_a_run_that_something_works_on_fails_alone_and_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster, "_PREDECESSOR_S", 0.2)
    caplog.set_level("INFO")
    runs = [make_run(tmp_path, "a", "exit 1"), make_run(tmp_path, "b", "sleep 0.5; touch b.done")]
    runs.append(make_run(tmp_path, "c", "touch c.done"))
    with locked(tmp_path / "logs", "a"):
        assert run_sweep(runs, tmp_path / "logs", SweepConfig()) == ["a"]
    assert calls(tmp_path) == ["b", "c"]
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count(f"a: waiting for its last start, which still holds {tmp_path}/logs/a.lock") == 1
    assert messages[-1].startswith("a: giving it up")


def test_a_sweep_that_waits_for_a_lock_hears_signals(tmp_path: Path) -> None:
    path = write_runs(tmp_path, [make_run(tmp_path, "a", "touch a.done")])
    with locked(tmp_path / "logs", "a"):
        sweep = start_sweep(path, tmp_path / "logs")
        assert sweep.stderr is not None
        assert any("waiting for" in line for line in sweep.stderr)
        sweep.send_signal(signal.SIGTERM)
        sweep.communicate(timeout=HANG_LIMIT_S)
    assert sweep.returncode == EXIT_INTERRUPTED
    assert calls(tmp_path) == []


def test_others_go_on_while_a_run_that_died_waits_for_its_next_start(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "a", "[ $1 ] && touch a.done"), make_run(tmp_path, "b", "touch b.done")]
    assert run_sweep(runs, tmp_path / "logs", SweepConfig(retries=1, retry_pause_s=0.5)) == []
    assert calls(tmp_path) == ["a", "b", "a --resume"]


def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    """The run left behind takes a moment to save its work; its successor must not start before that."""
    runs = [
        make_run(tmp_path, "a", "touch a.done"),
        make_run(
            tmp_path,
            "b",
            "[ $1 ] && touch b.done && exit; while true; do sleep 0.05; done",
            on_term="sleep 0.5; echo b has saved >> calls; exit",
        ),
        make_run(tmp_path, "c", "touch c.done"),
    ]
    path, logs = write_runs(tmp_path, runs), tmp_path / "logs"
    killed = start_sweep(path, logs)
    wait_for(lambda: "b" in calls(tmp_path))
    killed.kill()
    killed.communicate(timeout=HANG_LIMIT_S)
    successor = start_sweep(path, logs)
    _, errors = successor.communicate(timeout=HANG_LIMIT_S)
    assert successor.returncode == 0, errors
    assert [call for call in calls(tmp_path) if call != "c"] == ["a", "b", "b has saved", "b --resume"]
    assert calls(tmp_path).count("c") == 1  # before b or after it
    assert "a is finished already" in errors


def test_a_signal_ends_the_runs_and_then_the_sweep(tmp_path: Path) -> None:
    saves = "echo a has saved >> calls; exit"
    runs = [make_run(tmp_path, "a", "while true; do sleep 0.05; done", saves), make_run(tmp_path, "b", "exit")]
    sweep = start_sweep(write_runs(tmp_path, runs), tmp_path / "logs")
    wait_for(lambda: "a" in calls(tmp_path))
    sweep.send_signal(signal.SIGTERM)
    _, errors = sweep.communicate(timeout=HANG_LIMIT_S)
    assert sweep.returncode == EXIT_INTERRUPTED
    assert "2 unfinished: a, b" in errors
    assert calls(tmp_path) == ["a", "a has saved"]


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "a", "touch a.done")] * 2
    with pytest.raises(ConfigError, match="same name"):
        run_sweep(runs, tmp_path / "logs", SweepConfig())
    assert calls(tmp_path) == []


def test_a_line_that_is_no_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"name": "a", "command": ["true"], "finished": "x"}\n{"name": "b"}\n')
    with pytest.raises(ConfigError, match="line 2"):
        read_runs(path)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed here")
def test_without_ray_its_address_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the package ray"):
        run_sweep([make_run(tmp_path, "a", "exit")], tmp_path / "logs", SweepConfig(ray_address="local"))


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: launch/setup.sh cluster")
def test_ray_does_runs_at_a_time_and_again_when_they_die(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    runs = [
        make_run(tmp_path, "dies", "[ $starts -ge 2 ] && touch dies.done && exit; echo unlucky; exit 1"),
        make_run(tmp_path, "hopeless", f"exit {EXIT_CONFIG}"),
    ]
    config = SweepConfig(ray_address="local", cpus_per_run=0.5, retries=1, retry_pause_s=0)
    assert run_sweep(runs, tmp_path / "logs", config) == ["hopeless"]
    assert sorted(calls(tmp_path)) == ["dies", "dies --resume", "hopeless"]
    assert "    unlucky" in caplog.text


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: launch/setup.sh cluster")
def test_ray_ends_its_runs_with_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    script = f"kill -TERM {os.getpid()}; while true; do sleep 0.05; done"
    run = make_run(tmp_path, "a", script, on_term="echo saved >> calls; exit")
    with pytest.raises(SweepStoppedError, match="1 unfinished: a"):
        run_sweep([run], tmp_path / "logs", SweepConfig(ray_address="local"))
    wait_for(lambda: "saved" in calls(tmp_path))
