"""Both ends of the link as processes of their own, to be started, frozen and killed, with the proxy between them."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from actor.config import ActorConfig
from benchmarks.fault_matrix.oracle import Comparison, ExecutedStep, compare, read_log, read_oracle
from benchmarks.fault_matrix.proxy import FaultProxy
from policy.cli import config_from_preset
from policy.config import load_preset
from policy.process import die_with_parent

HANG_LIMIT_S = 120.0
_POLL_S = 0.01

STATE_PRESET = """
[policy]
encoder = "none"
denoising_steps = 2
denoiser_hidden = [8]
behavior_candidates = 1

[actor]
task = "reach"
backend = "fake"
control_rate_hz = 20.0
demonstrations = 1
max_env_steps = 0
eval_episodes = 0
videos = 0
drain_timeout_s = 60.0
"""

PIXELS_PRESET = """
[policy]
encoder = "resnet10"
encoder_weights = "random"
image_feature_dim = 8
spatial_blocks = 1
denoising_steps = 2
denoiser_hidden = [8]
behavior_candidates = 1

[actor]
task = "reach"
backend = "fake"
control_rate_hz = 20.0
pixels = true
demonstrations = 1
max_env_steps = 0
eval_episodes = 0
videos = 0
drain_timeout_s = 60.0

[actor.cameras]
codec = "raw"
"""  # two images of 128 x 128: 98 kB a step


class ProgramError(RuntimeError):
    """A program did not do what it was started for; the message ends with what it logged."""


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = HANG_LIMIT_S) -> None:
    """Raise ProgramError when it takes longer than limit_s."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise ProgramError(f"{what} did not happen within {limit_s:.0f} s")
        time.sleep(_POLL_S)


class Program:
    """One process at a time, started again and again; its output goes to one file."""

    def __init__(self, log_path: Path) -> None:
        self.log_path = log_path
        self.process: subprocess.Popen[bytes] | None = None

    def spawn(self, arguments: list[str], **environment: str) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
                start_new_session=True,  # so that a terminal's Ctrl-C reaches us alone
                preexec_fn=die_with_parent,
            )

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def output(self) -> str:
        return self.log_path.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9; no effect on one that is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def wait(self, limit_s: float = HANG_LIMIT_S) -> int:
        """Return the exit code. Raises ProgramError for a program that does not end."""
        assert self.process is not None
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise ProgramError(f"does not end: {self.output[-2000:]}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end and return its exit code."""
        self.send(number)
        return self.wait()


class IngestEnd(Program):
    """python -m learner.ingest on one run folder, always at the same port."""

    def __init__(self, run_dir: Path, preset: Path) -> None:
        super().__init__(run_dir.with_suffix(".log"))
        self.run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        self._policy_json = run_dir.with_suffix(".policy.json")
        policy = config_from_preset(ActorConfig, "actor", load_preset(str(preset))).policy
        self._policy_json.write_text(policy.to_json())
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"

    def start(self, *flags: str, **environment: str) -> None:
        """Start it and wait until it serves; with a failpoint it may be over before."""
        port = self.address.rpartition(":")[2]
        arguments = ["learner.ingest", "--run-dir", str(self.run_dir), "--port", port]
        self.spawn([*arguments, "--policy-json", str(self._policy_json), *flags], **environment)
        wait_until(lambda: self._is_ready() or not self.is_running, f"ingest, {self.log_path},")

    def check_log(self) -> None:
        """Raise ProgramError unless SQLite finds the log whole."""
        check_database(self.run_dir / "log.sqlite")

    @property
    def num_logged(self) -> int:
        """Records in the log."""
        return self._count("SELECT COALESCE(MAX(position), 0) FROM records")

    def has_steps_of(self, incarnation: str) -> bool:
        return self._count("SELECT COUNT(*) FROM records WHERE incarnation = ?", incarnation) > 0

    def has_step(self, step: ExecutedStep) -> bool:
        query = "SELECT COUNT(*) FROM records WHERE incarnation = ? AND episode = ? AND step = ?"
        return self._count(query, step.incarnation, step.episode, step.step) > 0

    def _count(self, query: str, *values: str | int) -> int:
        path = self.run_dir / "log.sqlite"
        if not path.exists():
            return 0
        with closing(sqlite3.connect(path, timeout=30.0)) as connection:
            try:
                return int(connection.execute(query, values).fetchone()[0])
            except sqlite3.OperationalError:
                return 0  # the table is being made

    def _is_ready(self) -> bool:
        try:
            ready: dict[str, Any] = json.loads((self.run_dir / "ingest.json").read_text())
        except FileNotFoundError:
            return False
        return self.process is not None and ready["pid"] == self.process.pid


class ActorEnd(Program):
    """python -m actor with a witness in its environment, on one run folder."""

    def __init__(self, run_dir: Path, preset: Path, learner: str, actor_id: str = "robot") -> None:
        super().__init__(run_dir.with_suffix(".log"))
        self.run_dir = run_dir
        self.actor_id = actor_id
        self.oracle_path = run_dir.with_suffix(".oracle.jsonl")
        self.killed: set[str] = set()  # incarnations
        self.kills_s: dict[str, float] = {}  # the moments, on the monotonic clock
        self._preset = preset
        self._learner = learner

    def start(self, *flags: str, clock_offset_s: float = 0.0, **environment: str) -> None:
        arguments = ["benchmarks.fault_matrix.witness", str(self.oracle_path), str(clock_offset_s)]
        arguments += ["--preset", str(self._preset), "--run-dir", str(self.run_dir), "--learner", self._learner]
        self.spawn([*arguments, "--actor-id", self.actor_id, *flags], **environment)

    def steps(self) -> list[ExecutedStep]:
        return read_oracle(self.oracle_path)

    def wait_for_steps(self, count: int) -> None:
        """Wait until this process has executed `count` steps more than there are now."""
        goal = self._num_steps() + count
        wait_until(lambda: self._num_steps() >= goal or not self.is_running, f"{count} steps of {self.log_path}")
        if not self.is_running:
            raise ProgramError(f"the actor ended: {self.output[-2000:]}")

    def kill_in_action(self) -> float:
        """kill -9, and note which incarnation died of it; return the moment, on the monotonic clock."""
        if not self.is_running:
            raise ProgramError(f"the actor ended by itself: {self.output[-2000:]}")
        self.kill()
        moment_s = time.monotonic()
        self.note_death(moment_s)
        return moment_s

    def note_death(self, moment_s: float) -> None:
        """Take it that the newest incarnation did not end by itself, but at this moment."""
        steps = self.steps()
        if steps:
            self.killed.add(steps[-1].incarnation)
            self.kills_s.setdefault(steps[-1].incarnation, moment_s)

    def finish(self) -> None:
        """Ask it to end if it runs, then have a last process send what is still in the spool."""
        if self.is_running:
            code = self.stop()
            if code != 0:
                raise ProgramError(f"the actor ended with code {code}: {self.output[-2000:]}")
        if self.num_spooled():
            # With its training steps done already it makes none, and ends when the spool is empty.
            self.start("--demonstrations", "0", "--max-env-steps", "1")
            self.wait()
        left = self.num_spooled()
        if left:
            raise ProgramError(f"{left} records stay in the spool: {self.output[-2000:]}")

    def num_spooled(self) -> int:
        """Records in the spool of an actor that does not run. Raises ProgramError when it is damaged."""
        path = self.run_dir / "spool.sqlite"
        if not path.exists():
            return 0
        check_database(path)
        with closing(sqlite3.connect(path)) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM records").fetchone()[0])

    def _num_steps(self) -> int:
        return self.oracle_path.read_bytes().count(b"\n") if self.oracle_path.exists() else 0


class Link:
    """One actor, one ingest and a proxy between them, none of them started yet."""

    def __init__(self, folder: Path, preset_text: str = STATE_PRESET) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.preset = folder / "preset.toml"
        self.preset.write_text(preset_text)
        self.ingest = IngestEnd(folder / "learner", self.preset)
        self.proxy = FaultProxy(self.ingest.address)
        self.actor = ActorEnd(folder / "actor", self.preset, self.proxy.address)

    def compare(self) -> Comparison:
        return compare(self.actor.steps(), read_log(self.ingest.run_dir), self.actor.killed)

    def close(self) -> None:
        self.actor.kill()
        self.ingest.kill()
        self.proxy.close()


def check_database(path: Path) -> None:
    """Raise ProgramError unless SQLite finds the file whole."""
    with closing(sqlite3.connect(path, timeout=30.0)) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
    if verdict != "ok":
        raise ProgramError(f"{path} is damaged: {verdict}")
