"""The actor as a process of its own, on the fake robot, mostly with no learner to talk to."""

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policy.config import PolicyConfig
from policy.errors import EXIT_CONFIG, EXIT_MISMATCH, EXIT_OK

HANG_LIMIT_S = 60.0


def command(run_dir: Path, *options: str) -> list[str]:
    small = ["--policy.denoising-steps", "2", "--policy.denoiser-hidden", "8", "--policy.behavior-candidates", "1"]
    where = ["--backend", "fake", "--task", "reach", "--run-dir", str(run_dir), "--learner", f"127.0.0.1:{free_port()}"]
    return [
        sys.executable,
        "-m",
        "actor",
        *where,
        "--no-pixels",
        "--policy.encoder",
        "none",
        *small,
        "--pace",
        "0",
        "--eval-pace",
        "0",
        "--drain-timeout-s",
        "0",
        *options,
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(run_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(run_dir, *options), capture_output=True, text=True, timeout=HANG_LIMIT_S, check=False)


def summary(run_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_dir / "actor_summary.json").read_text())
    return content


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def spooled_steps(run_dir: Path) -> int:
    with sqlite3.connect(run_dir / "spool.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return int(connection.execute("SELECT COUNT(*) FROM records").fetchone()[0])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_without_a_learner_it_runs_to_its_end_and_spools_every_step(tmp_path: Path) -> None:
    result = run(tmp_path, "--demonstrations", "2", "--max-env-steps", "120", "--eval-episodes", "3", "--seed", "1")
    assert result.returncode == EXIT_OK, result.stderr
    assert "demonstrations: 0 of 2 recorded earlier, 2 to record" in result.stdout
    assert "demo 000 SUCCESS" in result.stdout
    assert "is not connected" in result.stdout
    episodes = lines(tmp_path / "episodes.jsonl")
    written = summary(tmp_path)
    assert written["demonstrations"]["episodes"] == 2
    assert written["episodes"] == len(episodes)
    assert written["env_steps"] == sum(episode["length"] for episode in episodes)
    assert written["link"]["offered"] == written["env_steps"] == spooled_steps(tmp_path)
    assert written["weights"]["version"] == 0
    assert written["eval"]["episodes"] == 3
    assert written["control"]["period_ms"]["max"] >= written["control"]["period_ms"]["p50"] > 0
    assert [evaluation["kind"] for evaluation in lines(tmp_path / "evaluations.jsonl")] == ["final"]
    training = [episode["length"] for episode in episodes if episode["kind"] == "training"]
    assert sum(training) >= 120 > sum(training[:-1])


def test_the_time_limit_leaves_time_for_the_whole_final_evaluation(tmp_path: Path) -> None:
    result = run(tmp_path, "--demonstrations", "1", "--max-minutes", "0.05", "--pace", "50", "--eval-episodes", "4")
    assert result.returncode == EXIT_OK
    assert summary(tmp_path)["eval"]["episodes"] == 4
    assert summary(tmp_path)["episodes"] > 2


def test_started_again_it_goes_on_where_it_was(tmp_path: Path) -> None:
    options = ["--demonstrations", "2", "--eval-episodes", "0", "--intervention.decay-steps", "0"]
    assert run(tmp_path, *options, "--max-env-steps", "50").returncode == EXIT_OK
    again = run(tmp_path, *options, "--max-env-steps", "100")
    assert "demonstrations: 2 of 2 recorded earlier, 0 to record" in again.stdout
    episodes = lines(tmp_path / "episodes.jsonl")
    assert [episode["episode"] for episode in episodes] == [0, 1, 2, 3]
    assert [episode["kind"] for episode in episodes] == ["demonstration"] * 2 + ["training"] * 2
    assert summary(tmp_path)["env_steps"] == spooled_steps(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_closes_the_episode_and_keeps_every_step(tmp_path: Path, number: signal.Signals) -> None:
    """Without limits and without learner: only the signal ends it."""
    process = subprocess.Popen(
        command(tmp_path, "--demonstrations", "1", "--pace", "5"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # the tests themselves may run under nohup
    )
    path = tmp_path / "episodes.jsonl"
    wait_until(lambda: path.exists() and len(path.read_text().splitlines()) >= 2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=HANG_LIMIT_S)
    assert process.returncode == EXIT_OK, errors
    assert "stopped: saving what there is" in output
    assert "final evaluation: skipped" in output
    assert "Traceback" not in errors
    written = summary(tmp_path)
    assert written["stopped"] is True
    assert written["eval"]["episodes"] is None
    assert not any(row["stopped"] for row in lines(path)[:-1])  # the last may be whole: signals come between them too
    assert written["env_steps"] == written["link"]["offered"] == spooled_steps(tmp_path)


def test_a_second_signal_ends_it_at_once_and_the_spool_stays_whole(tmp_path: Path) -> None:
    """The drain of an unreachable learner's spool takes long here, so the second signal has something to cut short."""
    process = subprocess.Popen(
        command(tmp_path, "--demonstrations", "1", "--drain-timeout-s", "1000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    path = tmp_path / "episodes.jsonl"
    wait_until(lambda: path.exists() and len(path.read_text().splitlines()) >= 3)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    while "final evaluation" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=HANG_LIMIT_S)
    assert process.returncode == 130
    assert spooled_steps(tmp_path) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "peg_in_hol"], r"unknown task 'peg_in_hol'. Did you mean 'peg_in_hole'?"),
        (["--backend", "twinn"], r"unknown robot backend 'twinn'. Did you mean 'twin'? Valid: deoxys, fake, twin."),
        (["--pace", "-1"], "actor.pace = -1.0 must not be negative"),
    ],
)
def test_bad_input_ends_with_one_message_and_its_exit_code(tmp_path: Path, options: list[str], message: str) -> None:
    result = run(tmp_path / "run", *options)
    assert result.returncode == EXIT_CONFIG
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()  # nothing was begun


def test_help_explains_every_option() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "actor", "--help"], capture_output=True, text=True, timeout=HANG_LIMIT_S, check=False
    )
    assert result.returncode == 0
    for text in ("--max-steps-per-version", "--intervention.probability", "--eval-candidates", "Exit codes"):
        assert text in result.stdout


def test_a_learner_that_refuses_ends_the_actor_with_both_sides_values(tmp_path: Path) -> None:
    """The learner was started for another policy: the robot must not go on collecting for it."""
    policy_path = tmp_path / "policy.json"
    policy_path.write_text(PolicyConfig(denoising_steps=7).to_json())
    ingest_dir, run_dir = tmp_path / "learner", tmp_path / "actor"
    options = ["--run-dir", str(ingest_dir), "--host", "127.0.0.1", "--port", "0", "--policy-json", str(policy_path)]
    ingest = subprocess.Popen([sys.executable, "-m", "learner.ingest", *options])
    try:
        wait_until((ingest_dir / "ingest.json").exists)
        address = json.loads((ingest_dir / "ingest.json").read_text())["address"]
        result = run(run_dir, "--learner", address, "--pace", "5")
    finally:
        ingest.terminate()
        ingest.wait(HANG_LIMIT_S)
    assert result.returncode == EXIT_MISMATCH
    assert "denoising_steps" in result.stderr
    assert "7" in result.stderr
    assert "Traceback" not in result.stderr
    assert summary(run_dir)["link"]["acked"] == 0
