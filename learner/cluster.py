"""Sweeps: many runs, one by one, several at a time, or with ray over a cluster. The only module that imports ray.

A run is a command with a name and a check whether it is finished. Finished ones are skipped; one that died, or that a
killed sweep left behind, is started again with --resume. The calling thread does it all and sleeps while runs work.

    python -m learner.cluster RUNS.jsonl --out runs/sweep --jobs 2

RUNS.jsonl has a line for each run: {"name": "a", "command": ["python", "-m", ...], "finished": "FILE THAT IT LEAVES"}.
"""

import contextlib
import json
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import tyro

from learner.run_process import STOP_GRACE_S, ThisMachine, last_lines, lock_path, start_process
from policy.cli import help_text, run_main
from policy.errors import (
    EXIT_CONFIG,
    EXIT_CORRUPT_FILE,
    EXIT_DIVERGED,
    EXIT_INTERRUPTED,
    EXIT_MISMATCH,
    EXIT_OK,
    CgpoError,
    ConfigError,
)
from policy.files import make_folder

logger = logging.getLogger(__name__)

_FINAL = {EXIT_CONFIG, EXIT_CORRUPT_FILE, EXIT_DIVERGED, EXIT_MISMATCH}  # started again, it would end the same way
_POLL_PERIOD_S = 0.05
_PREDECESSOR_S = 60.0  # a run whose sweep was killed writes its last checkpoint
_SEEN_AFTER_S = 60.0  # what another machine wrote to a network file system
_NAMES_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How the runs of a sweep are spread out."""

    jobs: int = 0
    """Runs at a time; 0 is one on this machine, and with ray as many as its resources allow."""
    retries: int = 2
    """Times that a run which dies is started again, counted anew when the sweep is."""
    retry_pause_s: float = 10.0
    """Time before that; twice as long before each further one. Other runs go on meanwhile."""
    ray_address: str = ""
    """Hand the runs to ray: "local" for the cores of this machine, or the address of a cluster (HOST:PORT, or "auto"
    on one of its machines). All machines need this folder, the runs' folders and .venv under the same paths. Ray sends
    its own messages as pickles: let nobody into its network whom you would not let run programs."""
    cpus_per_run: float = 1.0
    """CPU cores that ray keeps for each run."""
    gpus_per_run: float = 0.0
    """GPUs that ray keeps for each run; 0.25 puts four runs on one."""

    def __post_init__(self) -> None:
        if min(self.jobs, self.retries, self.retry_pause_s) < 0:
            raise ConfigError(
                f"jobs = {self.jobs}, retries = {self.retries} and retry_pause_s = {self.retry_pause_s} cannot be "
                "negative"
            )
        if self.cpus_per_run <= 0 or self.gpus_per_run < 0:
            raise ConfigError(
                f"cpus_per_run = {self.cpus_per_run} must be positive, gpus_per_run = {self.gpus_per_run} not negative"
            )


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One run: what starts it, and how to see that nothing is left to do."""

    name: str
    """Of its log, LOGS/NAME.log; unique in the sweep."""
    command: tuple[str, ...]
    """Run in the current folder; with --resume after it when it was started before."""
    is_finished: Callable[[], bool]
    """Asked before each start and after each end; what it says counts, not the exit code."""


class SweepStoppedError(CgpoError):
    """A signal ended the sweep before its runs were finished."""

    exit_code = EXIT_INTERRUPTED


class _Place(Protocol):
    """Where runs are executed. A handle stands for one that was started."""

    seen_after_s: float
    """How long after its end a run may still seem unfinished."""

    def start(self, command: Sequence[str], log_path: Path) -> Any:
        """Return None while the run's last start still works."""

    def exit_code(self, handle: Any) -> int | None:
        """Return None while it runs."""

    def end(self, handles: Sequence[Any]) -> None:
        """Ask all to end, and end them when that takes too long."""


@dataclass
class _Task:
    run: SweepRun
    log_path: Path
    starts: int = 0
    not_before_s: float = 0.0
    locked_since_s: float | None = None
    ended_s: float | None = None
    handle: Any = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.run.name


def run_sweep(runs: Sequence[SweepRun], logs: Path, config: SweepConfig) -> list[str]:
    """Bring every run to its end and return the names of those that failed for good.

    Standard output and errors of a run are added to `logs`/NAME.log. A run keeps LOGS/NAME.lock until its last process
    has ended: a new sweep waits for what a killed one left behind, and fails what another sweep still works on when it
    has done the others. Must be called from the main thread. Raises SweepStoppedError after SIGINT or SIGTERM, when all
    runs have ended, and ConfigError for two runs of one name, or ray that is asked for and not installed.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ConfigError(f"two runs of the sweep have the same name: {', '.join(sorted(names))}")
    make_folder(logs)
    waiting = [_Task(run, (logs / f"{run.name}.log").absolute()) for run in runs if not _is_done_before(run)]
    if not waiting:
        return []
    with _stop_on_signals() as stop:
        place: _Place = _Ray(config) if config.ray_address else ThisMachine()
        jobs = config.jobs or (len(waiting) if config.ray_address else 1)
        return _work_off(waiting, place, jobs, config, stop)


def _is_done_before(run: SweepRun) -> bool:
    if not run.is_finished():
        return False
    logger.info("%s is finished already", run.name)
    return True


def _work_off(waiting: list[_Task], place: _Place, jobs: int, config: SweepConfig, stop: threading.Event) -> list[str]:
    active: list[_Task] = []
    failed: list[str] = []
    try:
        while (waiting or active) and not stop.is_set():
            _start_due(waiting, active, place, jobs)
            if not active:
                failed += _given_up(waiting)
            stop.wait(_POLL_PERIOD_S)
            for task in list(active):
                code = place.exit_code(task.handle)
                if code is None or _may_have_finished(task, code, place):
                    continue
                active.remove(task)
                if task.run.is_finished():
                    logger.info("%s is finished; %d more", task.name, len(waiting) + len(active))
                elif _may_go_on(task, code, config):
                    waiting.insert(0, task)
                else:
                    failed.append(task.name)
    finally:
        place.end([task.handle for task in active])
    if stop.is_set():
        names = [task.name for task in [*active, *waiting]]
        left = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
        raise SweepStoppedError(f"stopped, {len(names)} unfinished: {left}. The same command goes on from there.")
    return failed


def _start_due(waiting: list[_Task], active: list[_Task], place: _Place, jobs: int) -> None:
    """Move to `active` what can be started, and forget what another sweep has finished meanwhile."""
    for task in [task for task in waiting if task.not_before_s <= time.monotonic()]:
        if len(active) >= jobs:
            return
        if _is_done_before(task.run):
            waiting.remove(task)
        elif _start(task, place):
            waiting.remove(task)
            active.append(task)
        elif task.locked_since_s is None:
            task.locked_since_s = time.monotonic()
            logger.info("%s: waiting for its last start, which still holds %s", task.name, lock_path(task.log_path))


def _given_up(waiting: list[_Task]) -> list[str]:
    """Return the names of what is locked, and removed from `waiting`, if nothing else is left and it took too long."""
    locked_since_s = [task.locked_since_s for task in waiting if task.locked_since_s is not None]
    if len(locked_since_s) < len(waiting) or time.monotonic() - max(locked_since_s, default=0) < _PREDECESSOR_S:
        return []
    for task in waiting:
        logger.error(
            "%s: giving it up, something has worked on it for more than %.0f s: another sweep, or a run that a killed "
            "one left behind. Stop that one, or give this sweep another folder.", task.name, _PREDECESSOR_S,
        )  # fmt: skip
    names = [task.name for task in waiting]
    waiting.clear()
    return names


def _start(task: _Task, place: _Place) -> bool:
    """Return whether it could be: not while something else works on the run."""
    command = task.run.command
    if task.log_path.exists() and "--resume" not in command:  # it was started before
        command = (*command, "--resume")
    task.handle = place.start(command, task.log_path)
    if task.handle is None:
        return False
    task.starts += 1
    task.locked_since_s = task.ended_s = None
    logger.info("%s: %s", task.name, shlex.join(command))
    return True


def _may_have_finished(task: _Task, code: int, place: _Place) -> bool:
    """Whether a run that says it went well is still to be given time to look finished."""
    task.ended_s = task.ended_s or time.monotonic()
    return code == EXIT_OK and time.monotonic() - task.ended_s < place.seen_after_s and not task.run.is_finished()


def _may_go_on(task: _Task, code: int, config: SweepConfig) -> bool:
    """Report a run that ended too early, with the end of its log; return whether it may be started again, note when."""
    if code == EXIT_OK:
        logger.error(
            "%s: giving it up, it says that all is done (exit code 0) and what shows that it is finished is not there. "
            "Its command writes to another place than the sweep looks at, or does less than the sweep expects.",
            task.name,
        )
        may_go_on = False
    else:
        may_go_on = code not in _FINAL and task.starts <= config.retries
        pause_s = config.retry_pause_s * 2 ** (task.starts - 1)
        task.not_before_s = time.monotonic() + pause_s
        what_now = f"starting it again in {pause_s:.0f} s" if may_go_on else "giving it up"
        logger.warning(
            "%s ended with code %d before it was finished, start %d of %d: %s",
            task.name, code, task.starts, config.retries + 1, what_now,
        )  # fmt: skip
    logger.warning("the end of %s:", task.log_path)
    for line in last_lines(task.log_path):
        logger.warning("    %s", line)
    return may_go_on


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    stop = threading.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: stop.set()) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


# --- ray --------------------------------------------------------------------------------------------------------------


class _Ray:
    """Each run is one ray task that starts the command where ray has room for it, and waits for its end."""

    seen_after_s = _SEEN_AFTER_S

    def __init__(self, config: SweepConfig) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # report nothing about this lab to ray's makers
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                f"ray_address = {config.ray_address!r} needs the package ray: launch/setup.sh cluster (on all "
                "machines). Without ray_address the runs are done on this machine."
            ) from error
        self._ray = ray
        on_term = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=config.ray_address, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(
                f"no ray at {config.ray_address!r}: {error}. Start it there with `ray start --head`, or use 'local'."
            ) from error
        signal.signal(signal.SIGTERM, on_term)  # ray has put its own there, which ends this process at once
        self._task = ray.remote(num_cpus=config.cpus_per_run, num_gpus=config.gpus_per_run, max_retries=0)(_run_to_end)
        logger.info("ray has %s", {name: count for name, count in ray.cluster_resources().items() if ":" not in name})

    def start(self, command: Sequence[str], log_path: Path) -> Any:
        return self._task.remote(list(command), str(log_path), os.getcwd())

    def exit_code(self, handle: Any) -> int | None:
        ready, _ = self._ray.wait([handle], timeout=0)
        if not ready:
            return None
        try:
            return int(self._ray.get(handle))
        except self._ray.exceptions.RayError as error:  # its machine or ray's worker is gone
            logger.warning("ray lost a run: %s", str(error).splitlines()[0])
            return 1

    def end(self, handles: Sequence[Any]) -> None:
        for handle in handles:
            self._ray.cancel(handle)  # raises KeyboardInterrupt in _run_to_end
        if handles:
            self._ray.wait(list(handles), num_returns=len(handles), timeout=STOP_GRACE_S)
        self._ray.shutdown()  # kills what is left


def _run_to_end(command: list[str], log_path: str, folder: str) -> int:
    """What ray calls on the machine that it has chosen."""
    os.chdir(folder)
    try:
        deadline_s = time.monotonic() + _PREDECESSOR_S
        while (process := start_process(command, Path(log_path))) is None:
            if time.monotonic() > deadline_s:
                raise ConfigError(f"something has worked on this run for {_PREDECESSOR_S:.0f} s: another sweep?")
            time.sleep(_POLL_PERIOD_S)
        try:
            while process.poll() is None:  # ray's interrupt does not wake whoever waits in the kernel
                time.sleep(_POLL_PERIOD_S)
        except KeyboardInterrupt:  # the sweep is being stopped
            process.terminate()
        return process.wait()
    except (CgpoError, OSError) as error:
        with Path(log_path).open("a") as log:
            log.write(f"error: {error}\n")
        return EXIT_CONFIG


# --- command line -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CommandLine:
    runs: tyro.conf.Positional[Path]
    """File with a line of JSON for each run: name, command, finished (a file that exists when it is)."""
    sweep: Annotated[SweepConfig, tyro.conf.arg(name="")] = field(default_factory=SweepConfig)
    out: Path = Path("runs/sweep")
    """Folder of the runs' logs."""


def read_runs(path: Path) -> list[SweepRun]:
    """Read the runs of a sweep from a file. Raises ConfigError naming the line that is not one."""
    runs = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            fields = json.loads(line)
            finished, command = Path(fields["finished"]), tuple(map(str, fields["command"]))
            runs.append(SweepRun(name=fields["name"], command=command, is_finished=finished.exists))
        except (ValueError, LookupError, TypeError) as error:
            example = '{"name": "a", "command": ["python", "-m", "x"], "finished": "a/done"}'
            raise ConfigError(f"{path}, line {number}: {error!r}. A line reads {example}.") from error
    return runs


def main() -> int:
    line = tyro.cli(
        _CommandLine,
        prog="python -m learner.cluster",
        args=[word for word in sys.argv[1:] if word != "--debug"],  # which run_main looks at
        description=help_text(
            "Do many runs: one by one, several at a time, or with ray over a cluster. Started again, it goes on.",
            example="python -m learner.cluster RUNS.jsonl --out runs/sweep --jobs 2",
        ),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    failed = run_sweep(read_runs(line.runs), line.out, line.sweep)
    if failed:
        logger.error("failed: %s; see their logs in %s", ", ".join(failed), line.out)
    return 1 if failed else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_main(main))
