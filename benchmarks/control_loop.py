"""The control loop at real pace: a robot behind Deoxys' door beside the twin in lock-step, with a learner training.

    python -m benchmarks.control_loop                 # all of it, over an hour
    python -m benchmarks.control_loop --cells deoxys-20-pixels-priority-20 --minutes 5
    python -m benchmarks.control_loop --tables        # from the runs that are there

Each cell is three programs, started as a lab would: launch/learner.sh (at nice 10: in a lab it has a machine of its
own), `python -m robot.backends.twin.nuc` in place of the NUC where the backend is deoxys, and launch/actor.sh. With
pixels both cameras stream all the time; from the NUC's room as a camera would, in the twin they are drawn on demand.
"""

import argparse
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.runs import machine
from policy.revision import read_revision

TASK = "peg_in_hole"
TRAINING_STEPS = {10: 500, 20: 2000}  # by rate, of the cells without images: at 20 Hz an episode has twice the steps
RESULTS = Path(__file__).parent / "results" / "control_loop.md"
_START_LIMIT_S = 120.0
_END_LIMIT_S = 60.0


@dataclass(frozen=True)
class Cell:
    """One run."""

    backend: str
    rate_hz: int
    kind: str  # state or pixels
    priority: int = 0  # actor.realtime_priority

    @property
    def name(self) -> str:
        return f"{self.backend}-{self.rate_hz}-{self.kind}" + (f"-priority-{self.priority}" if self.priority else "")


CELLS = [
    Cell(backend, rate_hz, kind, priority)
    for kind in ("state", "pixels")
    for rate_hz in (10, 20)
    for backend in ("deoxys", "twin")
    for priority in (0, 20)
]


def actor_command(cell: Cell, folder: Path, port: int, minutes: float) -> list[str]:
    command = [
        "launch/actor.sh", "--preset", "sim_quick" if cell.kind == "state" else "sim_pixels", "--task", TASK,
        "--backend", cell.backend, "--control-rate-hz", str(cell.rate_hz), "--pace", "1", "--eval-pace", "1",
        "--learner", f"127.0.0.1:{port}", "--run-dir", str(folder / "actor"), "--seed", "0",
        "--max-minutes", f"{minutes:g}", "--max-steps-per-version", "0", "--eval-every-steps", "0",
        "--max-env-steps", str(TRAINING_STEPS[cell.rate_hz] if cell.kind == "state" else 0),
        "--eval-episodes", "20" if cell.kind == "state" else "0", "--videos", "0",
    ]  # fmt: skip
    if cell.priority:
        command += ["--realtime-priority", str(cell.priority)]
    if cell.backend == "deoxys":
        room = (folder / "room").read_text()
        command += ["--deoxys.network", str(folder / "network.yml"), "--deoxys.reset-speed-m-s", "0.25", "--room", room]
        for camera in ("wrist", "third-person"):
            command += [f"--cameras.{camera}.driver", "room", f"--cameras.{camera}.device", room]
    return command


def run_cell(cell: Cell, folder: Path, minutes: float) -> None:
    """Run one cell into `folder`; what was there is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    learner_port, room_port = free_ports(2)
    preset = "sim_quick" if cell.kind == "state" else "sim_pixels"
    learner = [
        "nice", "-n", "10", "launch/learner.sh", "--preset", preset, "--port", str(learner_port),
        "--run-dir", str(folder / "learner"), "--seed", "0",
    ]  # fmt: skip
    with contextlib.ExitStack() as running:
        if cell.backend == "deoxys":
            room = f"127.0.0.1:{room_port}"
            (folder / "room").write_text(room)
            nuc = [
                sys.executable, "-m", "robot.backends.twin.nuc", "--scene", TASK, "--room", room,
                "--write-network", str(folder / "network.yml"),
            ]  # fmt: skip
            running.enter_context(program(nuc, folder / "nuc.log"))
            wait_until((folder / "network.yml").exists, "the twin NUC")
        running.enter_context(program(learner, folder / "learner.log"))
        wait_until((folder / "learner" / "ingest.json").exists, "the learner")
        command = actor_command(cell, folder, learner_port, minutes)
        (folder / "command.txt").write_text(f"{read_revision()[:7]}: {' '.join(command)}")
        with (folder / "actor.log").open("wb") as log:
            code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    print(f"{cell.name}: {'done' if code == 0 else f'ended with code {code}, see {folder}'}", flush=True)


@contextlib.contextmanager
def program(command: list[str], log_path: Path) -> Iterator[None]:
    """Run a program beside the actor; ask it to end afterwards."""
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_END_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until(condition: Any, what: str) -> None:
    deadline_s = time.monotonic() + _START_LIMIT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise SystemExit(f"{what} does not start; see its log")
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now, each with three free ones above it in all likelihood."""
    with contextlib.ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]


COLUMNS = (
    *(
        "robot",
        "Hz",
        "cameras",
        "priority",
        "p50, ms",
        "p99, ms",
        "p99 / period",
        "max, ms",
        "overruns",
        "faults",
        "clipped",
    ),
    *("unassisted", "env steps", "human share", "updates", "staleness p95, s", "lost"),
)


def row(cell: Cell, folder: Path) -> str:
    """Return the table's line of one finished run."""
    summary = json.loads((folder / "actor" / "actor_summary.json").read_text())
    learner = json.loads((folder / "learner" / "learner_summary.json").read_text())
    control, period_ms, evaluation = summary["control"], 1e3 / cell.rate_hz, summary["eval"]
    period = control["period_ms"]
    cells = [
        {"deoxys": "twin NUC, through Deoxys", "twin": "twin, in lock-step"}[cell.backend],
        cell.rate_hz,
        "both" if cell.kind == "pixels" else "none",
        cell.priority or "ordinary",
        f"{period['p50']:.2f}",
        f"{period['p99']:.2f}",
        f"{period['p99'] / period_ms:.3f}",
        f"{period['max']:.1f}",
        control["overruns"],
        summary["safety"]["faults"],
        sum(summary["safety"]["clips"].values()),
        f"{evaluation['successes']}/{evaluation['episodes']}" if evaluation["episodes"] else "none",
        summary["env_steps"],
        f"{summary['intervention']['fraction']:.0%}",
        learner["updates"],
        f"{summary['weights']['staleness_s']['p95']:.1f}",
        summary["link"]["offered"] - summary["link"]["acked"],
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def write_tables(out: Path) -> None:
    done = [cell for cell in CELLS if (out / cell.name / "actor" / "actor_summary.json").exists()]
    commands = [(out / cell.name / "command.txt").read_text().replace(str(out), "DIR") for cell in done]
    text = [
        "# The control loop at real pace",
        "",
        f"Task {TASK}, seed 0, on {machine()}; `python -m benchmarks.control_loop`.",
        "",
        *("| " + " | ".join(cells) + " |" for cells in (COLUMNS, ["---"] * len(COLUMNS))),
        *(row(cell, out / cell.name) for cell in done),
        "",
        *("Revision and command of the actor:", "", "```", *commands, "```", ""),
    ]
    RESULTS.write_text("\n".join(text))
    print("\n".join(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/control_loop"))
    parser.add_argument("--minutes", type=float, default=10.0, help="of each cell")
    parser.add_argument("--cells", nargs="*", default=[cell.name for cell in CELLS], metavar="CELL")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    options = parser.parse_args()
    if not options.tables:
        for cell in CELLS:
            if cell.name in options.cells:
                run_cell(cell, options.out / cell.name, options.minutes)
    write_tables(options.out)


if __name__ == "__main__":
    main()
