"""python -m learner: start ingest and trainer, keep both alive, stop both together.

Two processes, because a crash, an out-of-memory or a slow import of the trainer must never stop intake. A third one
retrains the success classifier where that is asked for; without it training goes on.
"""

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from learner.algorithms import ALGORITHMS
from learner.config import LearnerConfig
from learner.import_log import import_logs
from learner.run_lock import sole_use_of
from policy.cli import parse_config, run_main
from policy.config import to_json
from policy.errors import (
    EXIT_CONFIG,
    EXIT_CORRUPT_FILE,
    EXIT_DIVERGED,
    EXIT_INTERRUPTED,
    EXIT_MISMATCH,
    EXIT_OK,
    EXIT_PORT_IN_USE,
    unknown_name,
)
from policy.files import replace_durably
from policy.process import die_with_parent

logger = logging.getLogger("learner")

# A restart would end the same way.
_FATAL = {EXIT_CONFIG, EXIT_PORT_IN_USE, EXIT_CORRUPT_FILE, EXIT_MISMATCH, EXIT_DIVERGED}
_RESTART_PAUSES_S = (0.0, 1.0, 2.0, 4.0, 8.0)  # before each restart within the window; after them it has failed
_RESTART_WINDOW_S = 600.0
_STOP_GRACE_S = 30.0
_POLL_PERIOD_S = 0.05


@dataclass
class Child:
    """A supervised process: restarted when it dies, unless its exit code says that a person must act."""

    name: str
    command: Callable[[], list[str]]
    process: subprocess.Popen[bytes] | None = None
    died_s: float | None = None
    restarts_s: list[float] = field(default_factory=list)
    is_optional: bool = False  # it stays down where another one would end the learner
    has_given_up: bool = False

    def start(self) -> None:
        self.died_s = None
        self.process = subprocess.Popen(self.command(), preexec_fn=die_with_parent)

    def check(self) -> int | None:
        """Restart the process if it died; return an exit code when it must not be restarted."""
        assert self.process is not None
        code = self.process.poll()
        if code is None or self.has_given_up:
            return None
        if code in _FATAL:
            return self._give_up(code)
        now_s = time.monotonic()
        self.restarts_s = [moment for moment in self.restarts_s if now_s - moment < _RESTART_WINDOW_S]
        num_restarts = len(self.restarts_s)
        if num_restarts == len(_RESTART_PAUSES_S):
            logger.error("%s died %d times within %.0f s, giving up", self.name, num_restarts + 1, _RESTART_WINDOW_S)
            return self._give_up(code if code > 0 else 1)
        pause_s = _RESTART_PAUSES_S[num_restarts]
        if self.died_s is None:
            self.died_s = now_s
            logger.warning("%s ended with code %d, starting it again in %.0f s", self.name, code, pause_s)
        if now_s - self.died_s >= pause_s:
            self.restarts_s.append(now_s)
            self.start()
        return None

    def _give_up(self, code: int) -> int | None:
        if not self.is_optional:
            return code
        self.has_given_up = True
        logger.error("%s stays down (exit code %d, see above); everything else goes on", self.name, code)
        return None

    def stop(self, at_once: threading.Event) -> None:
        """End the process: ask, and kill it when that takes too long or `at_once` is set."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + _STOP_GRACE_S
        while self.process.poll() is None:
            if at_once.wait(_POLL_PERIOD_S) or time.monotonic() > deadline_s:
                logger.error("killing %s, which has not finished", self.name)
                self.process.kill()
                self.process.wait()


def main() -> int:
    config = parse_config(
        LearnerConfig,
        "learner",
        sys.argv[1:],
        "The learner: takes transitions from actors, trains, publishes policy weights.",
        example="python -m learner --preset sim_quick --port 50051 --run-dir runs/learner",
        default_preset="paper_robot",
    )
    if config.algorithm not in ALGORITHMS:
        raise unknown_name("algorithm", config.algorithm, list(ALGORITHMS))
    return supervise(config)


def supervise(config: LearnerConfig) -> int:
    """Run both processes until SIGTERM or SIGINT, or until one of them must not be restarted.

    A second signal kills them: all that ingest has acknowledged is in the log, training has its last checkpoint.
    """
    stop, at_once = threading.Event(), threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: (at_once if stop.is_set() else stop).set())
    # Before anything is written: a trainer that starts again reads the configuration from the run folder.
    with sole_use_of(config.run_dir, "learner.lock"):
        code = _supervise(config, stop, at_once)
    return EXIT_INTERRUPTED if at_once.is_set() else code


def _supervise(config: LearnerConfig, stop: threading.Event, at_once: threading.Event) -> int:
    import_logs(config)
    config_path = write_config(config)
    ready_path = config.run_dir / "ingest.json"
    ready_path.unlink(missing_ok=True)  # of an earlier learner that was killed
    ingest = Child("ingest", lambda: ingest_command(config, config_path, ready_path))
    trainer = Child("trainer", lambda: [sys.executable, "-m", "learner.trainer", str(config_path)])
    children = [ingest, trainer]
    if config.classifier.retrain:
        watch = [sys.executable, "-m", "learner.reward_classifier", "watch", str(config_path)]
        children.append(Child("classifier", lambda: watch, is_optional=True))
    try:
        for child in children:
            child.start()
        while not stop.wait(_POLL_PERIOD_S):
            for child in children:
                code = child.check()
                if code is not None:
                    return code
    finally:
        for child in reversed(children):  # ingest last: it takes data until the end
            if child.process is not None:
                child.stop(at_once)
    return EXIT_OK


def write_config(config: LearnerConfig) -> Path:
    """Save the resolved configuration with the run; both processes read it from there."""
    path = config.run_dir / "config.json"
    replace_durably(path, to_json(config).encode())
    replace_durably(config.run_dir / "policy.json", config.policy.to_json().encode())
    return path


def ingest_command(config: LearnerConfig, config_path: Path, ready_path: Path) -> list[str]:
    """Return the command that starts ingest; started again, it listens where the actors know it."""
    port = config.port
    if port == 0 and ready_path.exists():
        port = int(json.loads(ready_path.read_text())["address"].rpartition(":")[2])
    command = [sys.executable, "-m", "learner.ingest", "--run-dir", str(config.run_dir), "--host", config.host]
    command += ["--port", str(port), "--policy-json", str(config_path.with_name("policy.json"))]
    command += ["--max-actors", str(config.max_actors), "--min-free-gb", str(config.min_free_gb)]
    if config.credentials is not None:
        command += ["--credentials", str(config.credentials)]
    return [*command, "--insecure-lab-network"] if config.insecure_lab_network else command


if __name__ == "__main__":
    sys.exit(run_main(main))
