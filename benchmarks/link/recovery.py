"""How soon work goes on after a process was killed, and how fast a spool that waited is emptied."""

import contextlib
import signal
import subprocess
import time
from pathlib import Path

import psutil

from benchmarks.link.bench import Bench
from benchmarks.link.processes import Actor, Ingest, LogReader, sending, start, wait_for
from benchmarks.link.report import Section, Table, Target, spread
from learner.config import LearnerConfig
from policy.cli import config_from_preset
from policy.config import load_preset
from policy.episode_log import EpisodeLog
from policy.wire import encode_body

_TARGET_INGEST_S, _TARGET_TRAINER_S, _TARGET_DRAIN = 2.0, 60.0, 15.0
_PRESET = "sim_quick"
_TRAINING_STARTS = 100
_DRAIN_RATE_HZ = 20.0


def recovery(bench: Bench) -> Section:
    """From kill -9 to work."""
    ingest_s, losses = _ingest_recovery(bench, 1 if bench.is_quick else 6)
    rows = [["ingest, started again at once: first new row in the log", spread(ingest_s, 2), losses]]
    targets = [
        Target(
            "ingest: first new row within 2 s of kill -9",
            f"{max(ingest_s):.2f} s at worst",
            max(ingest_s) <= _TARGET_INGEST_S,
        )
    ]
    if not bench.is_quick:
        trainer_s = _trainer_recovery(bench, 3)
        rows.append(["trainer, started again by the supervisor: first update", spread(trainer_s, 1), ""])
        measured = f"{max(trainer_s):.1f} s at worst"
        targets.append(
            Target("trainer: first update within 60 s of kill -9", measured, max(trainer_s) <= _TARGET_TRAINER_S)
        )
    return Section(
        "Recovery from kill -9",
        f"Seconds, median (range). An actor sends at 20 Hz all the while. Trainer: preset {_PRESET}, state alone, with "
        "checkpoints every 2 s. The plain scheme has nothing to compare: its actor's threads end with the "
        "connection, and what they had not sent is lost.",
        [Table(["what", "s", "after all kills"], rows)],
        targets,
    )


def _ingest_recovery(bench: Bench, trials: int) -> tuple[list[float], str]:
    times = []
    with bench.connected(bench.workload("jpeg")) as (ingest, actor), contextlib.closing(LogReader(ingest)) as reader:
        with sending(actor, 20.0):
            for trial in range(trials):
                actor.connect()
                time.sleep(0.7 + 0.1 * trial)
                ingest.kill()
                killed_s = time.monotonic()
                while reader.read():  # what was there before
                    pass
                ingest.start()
                times.append(wait_for(reader.read, "a new row") - killed_s)
        actor.drain()
        return times, _losses(ingest, len(actor.offered_s))


def _losses(ingest: Ingest, offered: int) -> str:
    with contextlib.closing(EpisodeLog(ingest.run_dir / "log.sqlite", read_only=True)) as log:
        stored, duplicated = log.count(), sum(stream.duplicated for stream in log.statistics())
    return f"{offered} offered, {offered - stored} lost, {duplicated} duplicated"


def _trainer_recovery(bench: Bench, trials: int) -> list[float]:
    folder, workload, times = bench.fresh_folder(), bench.workload("state"), []
    run_dir = folder / "learner"
    policy = config_from_preset(LearnerConfig, "learner", load_preset(_PRESET)).policy
    command = ["learner", "--preset", _PRESET, "--run-dir", str(run_dir), "--port", "0", "--metrics-every", "1"]
    command += ["--checkpoint-period-s", "2", "--learner-steps-per-transition", "0"]
    command += ["--replay.training-starts", str(_TRAINING_STARTS)]
    with (folder / "learner.log").open("w") as log, contextlib.ExitStack() as running:
        supervisor = start(command, log)
        running.callback(_end, supervisor)
        metrics, ingest = run_dir / "metrics.jsonl", Ingest(run_dir, workload.specs, policy=policy)
        wait_for(ingest.is_listening, "the learner")
        actor = running.enter_context(
            contextlib.closing(Actor(folder / "actor", ingest.address, workload, policy=policy))
        )
        actor.connect()
        for _ in range(2 * _TRAINING_STARTS):
            actor.offer()
        running.enter_context(sending(actor, 20.0))
        wait_for(lambda: _size(metrics) > 0, "the first update")
        for _ in range(trials):
            time.sleep(4.0)  # past a checkpoint
            trainer = _child(supervisor, "learner.trainer")
            trainer.kill()
            killed_s = time.monotonic()
            trainer.wait(10)
            times.append(_wait_for_line(metrics) - killed_s)
    return times


def _wait_for_line(path: Path) -> float:
    """Wait for a new line; a trainer that resumes may first replace the file by one that ends earlier."""
    before = path.stat()

    def has_grown() -> bool:
        nonlocal before
        now = path.stat()
        if now.st_ino != before.st_ino:
            before = now
        return now.st_size > before.st_size

    return wait_for(has_grown, f"a new line in {path.name}", poll_s=0.005)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _child(parent: subprocess.Popen[str], module: str) -> psutil.Process:
    return next(child for child in psutil.Process(parent.pid).children() if module in child.cmdline())


def _end(supervisor: subprocess.Popen[str]) -> None:
    supervisor.send_signal(signal.SIGTERM)
    try:
        supervisor.wait(30)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()


def drain(bench: Bench) -> Section:
    """How fast a spool that waited for its learner is emptied."""
    seconds, repeats = (3.0, 1) if bench.is_quick else (120.0, 2)
    rows, targets = [], []
    for kind in ("raw", "jpeg"):
        runs = [_drain(bench, kind, seconds) for _ in range(repeats)]
        from_start = [seconds / whole_s for whole_s, _, _ in runs]
        from_first = [seconds / flow_s for _, flow_s, _ in runs]
        size = _body_bytes(bench, kind)
        rows.append([kind, f"{size / 1e3:.1f}", spread(from_start, 1), spread(from_first, 1), runs[-1][2]])
        if kind == "raw":
            measured = f"{min(from_start):.1f} at worst"
            promise = f"a spool of {_DRAIN_RATE_HZ:.0f} Hz x {size / 1024:.0f} KiB drains at 15 x real time or faster"
            targets.append(Target(promise, measured, min(from_start) >= _TARGET_DRAIN))
    return Section(
        "Draining a spool",
        f"{seconds:.0f} s of steps at {_DRAIN_RATE_HZ:.0f} Hz are spooled with no learner; then it is started. "
        "Multiples of real time, until the last acknowledgement: from the start of ingest's process, with its "
        "imports and the link's wait between two attempts, and from the first record in the log. Median (range) of "
        f"{repeats}.",
        [Table(["images", "kB a step", "from the start, x", "from the first record, x", "in the log"], rows)],
        targets,
    )


def _drain(bench: Bench, kind: str, seconds: float) -> tuple[float, float, str]:
    """Return the seconds from the learner's start, those from the first record in the log, and what got there."""
    folder, workload = bench.fresh_folder(), bench.workload(kind)
    with contextlib.ExitStack() as running:
        ingest = running.enter_context(contextlib.closing(Ingest(folder / "learner", workload.specs)))
        ingest.start().wait_until_ready()  # once, for a port that the actor knows
        ingest.close()
        actor = running.enter_context(contextlib.closing(Actor(folder / "actor", ingest.address, workload)))
        for _ in range(round(seconds * _DRAIN_RATE_HZ)):
            actor.offer()
        actor.spool.flush(60.0)
        reader = running.enter_context(contextlib.closing(LogReader(ingest)))
        began_s = time.monotonic()
        ingest.start()
        first_s = wait_for(reader.read, "the first record")
        actor.drain()
        ended_s = time.monotonic()
        return ended_s - began_s, ended_s - first_s, _losses(ingest, len(actor.offered_s))


def _body_bytes(bench: Bench, kind: str) -> int:
    return len(encode_body(bench.workload(kind).transition(0)))
