"""A failure is excused when the machine stood still meanwhile, and by nothing else."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import os, signal, subprocess, time
runs = []

def test_that_needs_a_machine():
    runs.append(1)
    if len(runs) < 3:
        resumed = subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
        resumed.wait()
        time.sleep(0.05)  # the meter wakes up
    assert len(runs) == 3

def test_that_fails_by_itself():
    assert not runs
"""


def test_what_fails_while_its_process_stands_still_runs_again_and_what_fails_by_itself_does_not(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text().replace("delay=5", "delay=0"))
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert "1 failed, 1 passed, 2 rerun" in run.stdout, run.stdout
    assert run.stdout.count("test_it.py::test_that_needs_a_machine: for ") == 2
    assert "test_that_fails_by_itself: for" not in run.stdout
