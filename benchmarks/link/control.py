"""The period of a real actor's control loop: learner up, learner killed again and again, no learner at all."""

import contextlib
import json
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.link.bench import Bench
from benchmarks.link.processes import GaveUpError, Ingest, start
from benchmarks.link.report import Section, Table, Target
from learner.algorithms import make_algorithm
from learner.config import LearnerConfig
from policy.cli import config_from_preset
from policy.config import load_preset
from policy.spec import Specs
from policy.weights import serialise

_PRESET = "sim_quick"
_TASK = "peg_in_hole"
_RATE_HZ = 20.0
_KILL_EVERY_S = 2.0
_PUBLISH_EVERY_S = 2.5
_END_LIMIT_S = 60.0
_TARGET = 1.10
_CASES = ("learner up", "learner killed every 2 s", "no learner")


def control(bench: Bench) -> Section:
    seconds = 8.0 if bench.is_quick else 40.0
    rows, ratios = [], {}
    for case in _CASES:
        row, ratios[case] = _run(bench, case, seconds)
        rows.append(row)
    worst = max(ratios[case] for case in _CASES[1:])
    return Section(
        "Control period",
        f"`python -m actor --preset {_PRESET} --task {_TASK} --control-rate-hz {_RATE_HZ:.0f}` on the twin in "
        f"lock-step, at real pace, {seconds:.0f} s each: periods of its control loop (nominal {1e3 / _RATE_HZ:.0f} "
        "ms). The learner is ingest, which is all that an actor sees of one, and new weights every "
        f"{_PUBLISH_EVERY_S} s; it is killed with kill -9 and started again at once. The policy acts on every step, "
        "and the scripted operator overrules it. The machine is shared by all of them. The plain scheme has no "
        "control loop of its own to measure; its unary calls, made in the loop, would add their time to a period, "
        "and it makes them elsewhere.",
        [Table(["learner", "steps", "p50, ms", "p99, ms", "max, ms", "p99 / period", "kills", "left in spool"], rows)],
        [
            Target(
                "control period: p99 at most 1.10 of nominal with the learner down", f"{worst:.3f}", worst <= _TARGET
            )
        ],
    )  # fmt: skip


def _run(bench: Bench, case: str, seconds: float) -> tuple[list[str], float]:
    """Return the table's row and p99 over the nominal period."""
    folder = bench.fresh_folder()
    config = config_from_preset(LearnerConfig, "learner", load_preset(_PRESET))
    with contextlib.ExitStack() as running:
        ingest = running.enter_context(contextlib.closing(Ingest(folder / "learner", None, policy=config.policy)))
        ingest.start().wait_until_ready()  # for a port that the actor knows
        if case == "no learner":
            ingest.close()
        actor = _start_actor(folder, ingest.address, seconds)
        running.callback(_end, actor)
        learner = _Learner(ingest, config, is_killed=case == _CASES[1])
        if case != "no learner":
            running.enter_context(contextlib.closing(learner))
            learner.start()
        try:
            code = actor.wait(seconds + _END_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise GaveUpError(f"the actor does not end by itself: {_tail(folder / 'actor.log')}") from error
        if code != 0:
            raise GaveUpError(f"the actor ended with code {code}: {_tail(folder / 'actor.log')}")
        learner.check()
    summary = json.loads((folder / "actor" / "actor_summary.json").read_text())
    period = summary["control"]["period_ms"]
    ratio = period["p99"] * _RATE_HZ / 1e3
    cells = [f"{period['p50']:.2f}", f"{period['p99']:.2f}", f"{period['max']:.2f}", f"{ratio:.3f}", str(learner.kills)]
    steps, pending = summary["env_steps"], summary["link"]["offered"] - summary["link"]["acked"]
    return [case, str(steps), *cells, str(pending)], ratio


def _start_actor(folder: Path, address: str, seconds: float) -> subprocess.Popen[str]:
    command = [
        "actor", "--preset", _PRESET, "--task", _TASK, "--backend", "twin", "--control-rate-hz", f"{_RATE_HZ:g}",
        "--pace", "1", "--learner", address, "--run-dir", str(folder / "actor"), "--demonstrations", "0",
        "--max-env-steps", "0", "--max-minutes", f"{seconds / 60:.3f}", "--eval-episodes", "0",
        "--eval-every-steps", "0", "--max-steps-per-version", "0", "--videos", "0",
        "--intervention.probability", "1", "--intervention.latest-start", "0.05",
        "--intervention.decay-steps", "1000000",
    ]  # fmt: skip
    with (folder / "actor.log").open("w") as log:
        return start(command, log, stdout=log)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _tail(path: Path) -> str:
    return path.read_text()[-400:]


class _Learner:
    """Publishes weights that fit, as a trainer would, and kills ingest as asked. A thread of its own."""

    def __init__(self, ingest: Ingest, config: LearnerConfig, *, is_killed: bool) -> None:
        self._ingest = ingest
        self._config = config
        self._is_killed = is_killed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="learner", daemon=True)
        self._error: Exception | None = None
        self.kills = 0

    def start(self) -> None:
        self._thread.start()

    def check(self) -> None:
        """Raise what ended the thread before its time."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self._error = error

    def _work(self) -> None:
        specs_path = self._ingest.run_dir / "specs.json"
        while not specs_path.exists() and not self._stop.wait(0.1):
            pass
        if self._stop.is_set():
            return
        algorithm = make_algorithm(replace(self._config, device="cpu"), Specs.from_json(specs_path.read_text()))
        tensors, version = algorithm.policy_tensors(), 0
        next_kill_s = next_publish_s = time.monotonic()
        while not self._stop.wait(0.05):
            if time.monotonic() >= next_publish_s:
                version += 1
                changed = {name: tensor * (1 + 1e-6 * version) for name, tensor in tensors.items()}  # or it is not sent
                self._ingest.weights.publish(serialise(changed), version, learner_step=version)
                next_publish_s += _PUBLISH_EVERY_S
            if self._is_killed and time.monotonic() >= next_kill_s:
                self._ingest.kill()
                self._ingest.start()
                self.kills += 1
                next_kill_s += _KILL_EVERY_S
