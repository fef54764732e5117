"""python -m benchmarks.soak: the link at ten times a robot's rate, for long; does the memory of either end grow?

One actor process with a real spool and link, and a real ingest process, which is killed and started again now and then.
Weights are published all the while. Prints a table, and a growth per hour by least squares: that of the actor over the
whole run after its warm-up, that of ingest within the lives of its processes. The run's files are deleted at the end.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from actor.link import Link
from actor.spool import Spool, new_incarnation
from benchmarks.link.processes import POLICY, GaveUpError, Ingest, start, wait_for
from benchmarks.link.workload import IMAGE_PX, Workload
from benchmarks.runs import machine
from policy.episode_log import EpisodeLog
from policy.revision import read_revision
from policy.weights import serialise

CONTROL_RATE_HZ = 20.0
DRAIN_LIMIT_S = 120.0
PUBLISH_PERIOD_S = 5.0
WEIGHTS_VALUES = 250_000  # 1 MB
_MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    """What both processes were like at one moment."""

    elapsed_s: float
    actor_bytes: int
    ingest_bytes: int
    records: int  # in the log
    life: int  # of ingest: 0, 1, ...


@dataclass
class Soak:
    """What was measured, and what became of the records."""

    samples: list[Sample] = field(default_factory=list)
    offered: int = 0
    logged: int = 0
    lost: int = 0
    duplicated: int = 0
    reconnects: int = 0

    def actor_growth(self, warm_up_s: float) -> float:
        """Return bytes per second."""
        late = [sample for sample in self.samples if sample.elapsed_s > warm_up_s]
        return slope([[(sample.elapsed_s, sample.actor_bytes) for sample in late]])

    def ingest_growth(self, warm_up_s: float) -> float:
        """Return bytes per second, each process's warm-up left out."""
        lives = []
        for _, group in itertools.groupby(self.samples, lambda sample: sample.life):
            life = list(group)
            began_s = life[0].elapsed_s
            lives.append([(s.elapsed_s, s.ingest_bytes) for s in life if s.elapsed_s > began_s + warm_up_s])
        return slope(lives)


def slope(groups: list[list[tuple[float, int]]]) -> float:
    """Return the least-squares slope that all groups of points share, each with a height of its own."""
    centred = [np.asarray(group, np.float64) - np.mean(group, axis=0) for group in groups if len(group) > 1]
    if not centred:
        raise ValueError("too few samples after the warm-up: run longer")
    points = np.concatenate(centred)
    return float(points[:, 0] @ points[:, 1] / (points[:, 0] @ points[:, 0]))


def soak(folder: Path, seconds: float, rate_hz: float, restarts: int, kind: str = "png") -> Soak:
    """Run both ends for `seconds`, then let everything arrive. Raises GaveUpError when it does not."""
    result = Soak()
    ingest = Ingest(folder / "learner", None).start().wait_until_ready()
    command = ["benchmarks.soak", "--act-for", ingest.address, "--folder", str(folder / "actor")]
    with (folder / "actor.log").open("w") as log:
        actor = start(
            [*command, "--rate-hz", str(rate_hz), "--kind", kind], log, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    reader: EpisodeLog | None = None
    try:
        wait_for((folder / "learner" / "log.sqlite").exists, "the log")
        reader = EpisodeLog(folder / "learner" / "log.sqlite", read_only=True)
        wait_for(reader.count, "the first record")
        _watch(ingest, actor, reader, result, seconds, restarts)
        reply, _ = actor.communicate(timeout=2 * DRAIN_LIMIT_S)  # closes its input, which ends its steps
        if actor.returncode:
            raise GaveUpError((folder / "actor.log").read_text()[-2000:])
        result.offered, result.reconnects = (json.loads(reply)[key] for key in ("offered", "reconnects"))
        (stream,) = reader.statistics()
        result.logged, result.lost, result.duplicated = stream.records, stream.lost, stream.duplicated
    finally:
        actor.kill()
        actor.wait()
        if reader is not None:
            reader.close()
        ingest.close()
    return result


def _watch(
    ingest: Ingest, actor: "subprocess.Popen[str]", reader: EpisodeLog, result: Soak, seconds: float, restarts: int
) -> None:
    began_s, life, published = time.monotonic(), 0, 0
    period_s = min(1.0, seconds / 40)
    while (elapsed_s := time.monotonic() - began_s) < seconds:
        if elapsed_s > (life + 1) * seconds / (restarts + 1):
            ingest.kill()
            ingest.start().wait_until_ready()
            life += 1
        if elapsed_s >= published * PUBLISH_PERIOD_S:
            published += 1
            weights = serialise({"weight": torch.full((WEIGHTS_VALUES,), float(published))})
            ingest.weights.publish(weights, version=published, learner_step=published)
        result.samples.append(
            Sample(
                elapsed_s=elapsed_s,
                actor_bytes=psutil.Process(actor.pid).memory_info().rss,
                ingest_bytes=psutil.Process(ingest.pid).memory_info().rss,
                records=reader.count(),
                life=life,
            )
        )
        time.sleep(period_s)


def act(address: str, folder: Path, rate_hz: float, kind: str) -> None:
    """Be the actor: offer steps until the input ends, then wait until the learner has them all."""
    workload = Workload(kind, _pictures())
    incarnation = new_incarnation()
    spool = Spool(folder / "spool.sqlite", "actor-0", incarnation)
    link = Link(address, spool, workload.specs, POLICY, "actor-0", incarnation, folder / "weights")
    link.start()
    is_over = _ends_with_its_input()
    began_s = time.monotonic()
    for index in itertools.count():
        if is_over.wait(max(0.0, began_s + index / rate_hz - time.monotonic())):
            break
        spool.offer(workload.transition(index))
    is_drained = link.close(DRAIN_LIMIT_S)
    if not is_drained:
        sys.exit(f"{spool.pending} records were not acknowledged: {link.refusal or link.statistics.last_error}")
    print(json.dumps({"offered": spool.offered, "reconnects": link.statistics.reconnects}))
    spool.close()


def _ends_with_its_input() -> threading.Event:
    is_over = threading.Event()

    def read() -> None:
        sys.stdin.read()
        is_over.set()

    threading.Thread(target=read, name="input", daemon=True).start()
    return is_over


def _pictures() -> NDArray[np.uint8]:
    """Return images (25, 2, H, W, 3) that PNG takes about half off: a gradient with a sensor's noise."""
    rng = np.random.default_rng(0)
    gradient = np.linspace(40, 200, IMAGE_PX)[:, None, None]
    noisy = gradient + rng.normal(0, 2.0, (25, 2, IMAGE_PX, IMAGE_PX, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def table(result: Soak, rows: int = 12) -> str:
    lines = ["| minute | actor, MiB | ingest, MiB | records in the log | ingest process |", "| ---: " * 5 + "|"]
    for index in np.linspace(0, len(result.samples) - 1, rows).round().astype(int):
        sample = result.samples[index]
        lines.append(
            f"| {sample.elapsed_s / 60:.1f} | {sample.actor_bytes / _MIB:.1f} | {sample.ingest_bytes / _MIB:.1f} | "
            f"{sample.records} | {sample.life + 1} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of steps (default: %(default)s)")
    parser.add_argument("--rate-multiple", type=float, default=10.0, help="of 20 Hz (default: %(default)s)")
    parser.add_argument("--restarts", type=int, default=4, help="of the learner (default: %(default)s)")
    parser.add_argument("--kind", default="png", choices=("raw", "png", "jpeg", "state"), help="of record")
    parser.add_argument("--folder", type=Path, help="for the run's files (default: a temporary one)")
    parser.add_argument("--act-for", help=argparse.SUPPRESS)
    parser.add_argument("--rate-hz", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.act_for:
        act(arguments.act_for, arguments.folder, arguments.rate_hz, arguments.kind)
        return
    seconds = 60 * arguments.minutes
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = soak(
            Path(folder), seconds, CONTROL_RATE_HZ * arguments.rate_multiple, arguments.restarts, arguments.kind
        )
        num_bytes = (Path(folder) / "learner" / "log.sqlite").stat().st_size
    warm_up_s = seconds / (arguments.restarts + 1) / 3
    per_hour = 3600 / _MIB
    print(f"`python -m benchmarks.soak {' '.join(sys.argv[1:])}`, {machine()}, revision {read_revision()[:12]}\n")
    print(table(result))
    print(
        f"\n{result.offered} records offered at {result.offered / seconds:.0f} Hz, "
        f"{num_bytes / result.logged / 1e3:.1f} kB each in the log; {result.logged} logged, {result.lost} lost, "
        f"{result.duplicated} twice; {result.reconnects} reconnections. Growth after a warm-up of {warm_up_s:.0f} s: "
        f"actor {result.actor_growth(warm_up_s) * per_hour:+.1f} MiB/h, "
        f"ingest {result.ingest_growth(warm_up_s) * per_hour:+.1f} MiB/h."
    )


if __name__ == "__main__":
    main()
