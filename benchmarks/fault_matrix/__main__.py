"""Kill -9 of actor and ingest, a hundred times each, with freezes and resets between; what became of every step.

    python -m benchmarks.fault_matrix                  # 100 kills of each side, ten minutes
    python -m benchmarks.fault_matrix --kills 5 --results /dev/stdout

The actor is `python -m actor` on the fake robot at 20 Hz and real pace, with two raw images of 128 x 128 pixels, 98 kB
a step; its environment writes down what it does. Ingest is started again at once, as the supervisor does.
"""

import argparse
import itertools
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.fault_matrix.ends import PIXELS_PRESET, Link, wait_until
from benchmarks.fault_matrix.oracle import Comparison, ExecutedStep
from benchmarks.runs import machine
from policy.revision import read_revision

RESULTS = Path(__file__).parents[1] / "results" / "fault_matrix.md"
PERIOD_S = 0.05
_LAPSE_S = 0.3
_LONGEST_WAIT_S = 1.0  # before the next fault
_BLIND = 0.25  # share of kills after which nobody waits for a recovery: the next may come in its middle
_ROUNDS_PER_RESET = 5
_ROUNDS_PER_FREEZE = 10

_HEAD = """# Fault matrix: actor and ingest killed again and again

The actor's environment writes each step down when the robot has made it, before the spool hears of it. At the end the
learner's log is compared with that: episode, step, and a hash of observation and action.

`python -m benchmarks.fault_matrix --kills {kills} --seed {seed}` at {revision}, on {machine}; {minutes:.1f} minutes.
Actor at 20 Hz and real pace with two raw images, on the same machine as the learner and whatever else ran there: its
load average over the last 15 minutes was {load:.1f}.

| | |
| --- | --- |"""


@dataclass
class Measured:
    """Durations in seconds."""

    ingest_recovery: list[float] = field(default_factory=list)  # kill to the first new row
    actor_recovery: list[float] = field(default_factory=list)  # kill to the new process's first step
    first_row: list[float] = field(default_factory=list)  # kill of the actor to the first row that its successor wrote
    frozen_ingest: list[float] = field(default_factory=list)  # SIGSTOP to the actor's giving up the connection
    frozen_actor: list[float] = field(default_factory=list)
    freezes: list[tuple[float, float]] = field(default_factory=list)  # of the actor, monotonic
    resets: int = 0


class Matrix:
    """The faults, drawn from one seed, on a running link."""

    def __init__(self, link: Link, seed: int) -> None:
        self.link = link
        self.measured = Measured()
        self._rng = random.Random(seed)
        self._seeds = itertools.count()

    def run(self, kills: int) -> None:
        """Kill either side so many times, then let everything arrive."""
        self.link.ingest.start()
        self._start_actor()
        self.link.actor.wait_for_steps(1)
        for number in range(1, kills + 1):
            self._wait()
            self._kill_ingest()
            self._wait()
            self._kill_actor()
            if number % _ROUNDS_PER_RESET == 0:
                self._wait()
                self.link.proxy.reset()
                self.measured.resets += 1
            if number % _ROUNDS_PER_FREEZE == 0:
                self._freeze_ingest()
                self._freeze_actor()
            if number % 10 == 0:
                print(f"{number} kills of each side, {self.link.ingest.num_logged} records logged", flush=True)
        self.link.actor.wait_for_steps(1)
        self.link.actor.finish()
        self.link.ingest.check_log()

    def _start_actor(self) -> None:
        self.link.actor.start("--seed", str(next(self._seeds)))

    def _wait(self) -> None:
        time.sleep(self._rng.uniform(0.0, _LONGEST_WAIT_S))

    def _is_blind(self) -> bool:
        return self._rng.random() < _BLIND

    def _kill_ingest(self) -> None:
        ingest, is_blind = self.link.ingest, self._is_blind()
        if not is_blind:
            self.link.actor.wait_for_steps(1)  # so that there is something to log
        ingest.kill()
        start_s, before = time.monotonic(), ingest.num_logged
        if is_blind:
            self._wait()
        ingest.start()
        if not is_blind:
            wait_until(lambda: ingest.num_logged > before, "the first row after a kill of ingest")
            self.measured.ingest_recovery.append(time.monotonic() - start_s)

    def _kill_actor(self) -> None:
        actor, ingest, is_blind = self.link.actor, self.link.ingest, self._is_blind()
        start_s = actor.kill_in_action()
        self._start_actor()
        if is_blind:
            return
        actor.wait_for_steps(1)
        self.measured.actor_recovery.append(time.monotonic() - start_s)
        incarnation = actor.steps()[-1].incarnation
        wait_until(lambda: ingest.has_steps_of(incarnation), "the first row after a kill of the actor")
        self.measured.first_row.append(time.monotonic() - start_s)

    def _freeze_ingest(self) -> None:
        self._await_connection()
        ended, start_s = self.link.proxy.up.num_ended, time.monotonic()
        self.link.ingest.send(signal.SIGSTOP)
        wait_until(lambda: self.link.proxy.up.num_ended > ended, "the actor's notice of a frozen learner")
        self.measured.frozen_ingest.append(time.monotonic() - start_s)
        self.link.ingest.send(signal.SIGCONT)

    def _freeze_actor(self) -> None:
        self._await_connection()
        ended, start_s = self.link.proxy.down.num_ended, time.monotonic()
        self.link.actor.send(signal.SIGSTOP)
        wait_until(lambda: self.link.proxy.down.num_ended > ended, "the learner's notice of a frozen actor")
        self.measured.frozen_actor.append(time.monotonic() - start_s)
        self.link.actor.send(signal.SIGCONT)
        self.measured.freezes.append((start_s, time.monotonic()))

    def _await_connection(self) -> None:
        """Wait until a step that is made from now on is logged: rows alone may still come of a connection that was."""
        self.link.actor.wait_for_steps(1)
        step = self.link.actor.steps()[-1]
        wait_until(lambda: self.link.ingest.has_step(step), "a connection")


def periods_s(steps: Sequence[ExecutedStep], freezes: Sequence[tuple[float, float]]) -> Iterator[float]:
    """Yield the time between each two steps of one episode, where nobody had frozen the actor."""
    for before, after in itertools.pairwise(steps):
        is_frozen = any(before.monotonic_s < end and start < after.monotonic_s for start, end in freezes)
        if (before.incarnation, before.episode) == (after.incarnation, after.episode) and not is_frozen:
            yield after.monotonic_s - before.monotonic_s


def report(matrix: Matrix, comparison: Comparison, kills: int, seed: int, duration_s: float) -> str:
    """Return the results as a document."""
    steps, measured = matrix.link.actor.steps(), matrix.measured
    periods_ms = 1e3 * np.array(list(periods_s(steps, measured.freezes)))
    p50_ms, p99_ms = np.percentile(periods_ms, [50, 99])
    kills_s = matrix.link.actor.kills_s
    ages_s = [kills_s[incarnation] - tail[0].monotonic_s for incarnation, tail in comparison.tails.items()]
    lost_tail = sum(map(len, comparison.tails.values()))
    rows = [
        ("kill -9 of ingest, of the actor", f"{kills}, {kills}"),
        ("kills of the actor in an incarnation that had made a step", f"{len(kills_s)}"),
        (
            "SIGSTOP of ingest, of the actor; resets",
            f"{len(measured.frozen_ingest)}, {len(measured.frozen_actor)}; {measured.resets}",
        ),
        ("steps that the robot made", f"{len(steps)}"),
        ("of these in the log, equal in every value and in order", f"{comparison.committed}"),
        ("**lost**", f"**{comparison.lost}**"),
        ("**duplicated**", f"**{comparison.duplicated}**"),
        ("**reordered**", f"**{comparison.reordered}**"),
        ("altered; in the log and never made", f"{comparison.altered}; {comparison.unexpected}"),
        (
            "steps that died with a killed actor before their commit",
            f"{lost_tail}, at most {longest(comparison)} a kill",
        ),
        ("the oldest of them, before the kill", f"{1e3 * max(ages_s, default=0.0):.0f} ms"),
        ("control period p50, p99, max", f"{p50_ms:.1f}, {p99_ms:.1f}, {periods_ms.max():.0f} ms"),
        ("p99 / nominal period", f"{p99_ms / (1e3 * PERIOD_S):.3f}"),
        (f"periods above {_LAPSE_S} s, of {len(periods_ms)}", f"{int((periods_ms > 1e3 * _LAPSE_S).sum())}"),
        ("ingest: kill to the first new row", spread(measured.ingest_recovery)),
        ("actor: kill to the next process's first step", spread(measured.actor_recovery)),
        ("actor: kill to that process's first row", spread(measured.first_row)),
        ("frozen ingest noticed by the actor", spread(measured.frozen_ingest)),
        ("frozen actor noticed by ingest", spread(measured.frozen_actor)),
    ]
    head = _HEAD.format(
        kills=kills,
        seed=seed,
        revision=read_revision()[:7],
        machine=machine(),
        minutes=duration_s / 60,
        load=os.getloadavg()[2],
    )
    return "\n".join([head, *(f"| {name} | {value} |" for name, value in rows), ""])


def longest(comparison: Comparison) -> int:
    return max(map(len, comparison.tails.values()), default=0)


def spread(durations_s: Sequence[float]) -> str:
    if not durations_s:
        return "not measured"
    p50_s, p99_s = np.percentile(durations_s, [50, 99])
    return f"p50 {p50_s:.2f}, p99 {p99_s:.2f}, max {max(durations_s):.2f} s of {len(durations_s)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each side (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/fault_matrix"), help="emptied first; kept after a fault")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to write (default: %(default)s)")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    start_s = time.monotonic()
    link = Link(options.out, PIXELS_PRESET)
    matrix = Matrix(link, options.seed)
    try:
        matrix.run(options.kills)
        comparison = link.compare()
        text = report(matrix, comparison, options.kills, options.seed, time.monotonic() - start_s)
    finally:
        link.close()
    print(text)
    options.results.write_text(text)
    if comparison.faults:
        print(f"FAULTS: {comparison.faults}. Everything is in {options.out}.")
        return 1
    shutil.rmtree(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
