"""Real processes for end-to-end tests: started with their output in a file, never outliving the test."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HANG_LIMIT_S = 280.0  # generous: a failure, not a measurement


@dataclass
class Program:
    """A running `python -m ...` and its output."""

    process: subprocess.Popen[bytes]
    output_path: Path

    @property
    def output(self) -> str:
        return self.output_path.read_text()

    def finish(self) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(HANG_LIMIT_S)

    def stop(self) -> int:
        """Ask it to finish, as Ctrl-C does, and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.finish()


Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    programs: list[Program] = []

    def start_program(*arguments: str) -> Program:
        path = tmp_path / f"output_{len(programs)}.log"
        with path.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that all it started can be ended with it
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        programs.append(Program(process, path))
        return programs[-1]

    yield start_program
    for program in programs:
        try:
            os.killpg(program.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        program.process.wait()


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {HANG_LIMIT_S:.0f} s in vain for {what}"
        time.sleep(0.05)


def ready_address(run_dir: Path) -> str:
    """Wait until the learner of `run_dir` listens; return its HOST:PORT."""
    wait_until((run_dir / "ingest.json").exists, "the learner to listen")
    address: str = json.loads((run_dir / "ingest.json").read_text())["address"]
    return address
