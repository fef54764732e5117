"""A learner that reuses an earlier run trains before any actor has said a word."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from policy.episode_log import EpisodeLog
from policy.errors import EXIT_MISMATCH, EXIT_OK
from policy.spec import ObservationSpec, Specs
from policy.transition import ActionSource, RecordId
from tests.transitions import SPECS, make_transition

HANG_LIMIT_S = 90.0
EPISODES, LENGTH, LEARNER_STEPS = 6, 5, 7
SMALL = ("--policy.denoising-steps", "2", "--policy.denoiser-hidden", "8", "--policy.critic-hidden", "8")


def demonstrations(folder: Path) -> None:
    """Make the folder of an earlier run: demonstrations, and between them as many episodes of a policy."""
    log = EpisodeLog(folder / "learner" / "log.sqlite", SPECS)
    sequence = 0
    for episode in range(2 * EPISODES):
        source = ActionSource.POLICY if episode % 2 else ActionSource.HUMAN_DEMONSTRATION
        for step in range(LENGTH):
            body = make_transition(step, episode=episode, source=source, is_last=step == LENGTH - 1)
            log.append([(RecordId("robot", "old", sequence), body)])
            sequence += 1
    log.close()
    (folder / "learner" / "specs.json").write_text(SPECS.to_json())


def start(run_dir: Path, earlier: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "learner", "--run-dir", str(run_dir), "--port", "0", "--device", "cpu", *SMALL]
    command += ["--replay.training-starts", str(EPISODES * LENGTH), "--replay.batch-size", "8"]
    command += ["--max-learner-steps", str(LEARNER_STEPS), "--metrics-every", "1", "--from-log", str(earlier)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "hangs"
        time.sleep(0.05)


def test_training_starts_from_imported_demonstrations_alone(tmp_path: Path) -> None:
    demonstrations(tmp_path / "old")
    run_dir, summary_path = tmp_path / "new", tmp_path / "new" / "learner_summary.json"
    learner = start(run_dir, tmp_path / "old")
    try:
        wait_until(lambda: summary_path.exists() and json.loads(summary_path.read_text())["updates"] == LEARNER_STEPS)
    finally:
        learner.send_signal(signal.SIGTERM)
        _, output = learner.communicate(timeout=HANG_LIMIT_S)
    assert learner.returncode == EXIT_OK, output.decode()
    summary = json.loads(summary_path.read_text())
    assert summary["transitions"] == EPISODES * LENGTH
    assert summary["transitions_by_actor"] == {"robot": EPISODES * LENGTH}
    assert f"it holds {EPISODES} demonstrations" in output.decode()


def test_a_log_of_another_task_ends_the_learner_with_its_exit_code(tmp_path: Path) -> None:
    demonstrations(tmp_path / "old")
    (tmp_path / "new").mkdir()
    fewer = ObservationSpec(SPECS.observation.fields[:1])
    (tmp_path / "new" / "specs.json").write_text(Specs(fewer, SPECS.action).to_json())
    learner = start(tmp_path / "new", tmp_path / "old")
    _, output = learner.communicate(timeout=HANG_LIMIT_S)
    assert learner.returncode == EXIT_MISMATCH
    assert "observation fields: " in output.decode()
    assert "Nothing was imported" in output.decode()
