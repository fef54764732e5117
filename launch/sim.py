"""python -m launch.sim: learner and actor on this machine, watched until the last evaluation, then a report."""

import json
import shlex
import signal
import socket
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from actor.config import ActorConfig
from actor.tasks import TASKS
from launch.processes import Child, describe_exit, wait_for
from launch.progress import Display
from launch.report import RunFacts, verdict, write_report
from learner.algorithms import ALGORITHMS
from learner.config import LearnerConfig
from learner.import_log import count_demonstrations
from policy import config as config_module
from policy.cli import config_from_preset, help_text, run_main
from policy.errors import EXIT_INTERRUPTED, CgpoError, ConfigError, unknown_name
from policy.files import make_folder
from robot.backends import BACKENDS

_START_LIMIT_S = 60.0  # until the learner listens
_GRACE_S = 90.0  # for each program to finish: above what the learner grants its own two processes


@dataclass(frozen=True)
class Options:
    task: str = "peg_in_hole"
    """Task to learn."""
    pixels: bool = False
    """Learn from the images of two cameras and the arm's own measurements instead of the objects' poses, whatever the
    preset says."""
    preset: str = ""
    """Name of a file in launch/presets (without .toml), or the path of one. Empty: sim_quick, with --pixels
    sim_pixels."""
    from_log: tuple[Path, ...] = ()
    """Earlier runs whose demonstrations are reused: their folders. The scripted operator then gives only those that are
    missing to actor.demonstrations."""
    max_minutes: float = 20.0
    """Time for demonstrations, training and evaluations."""
    seed: int = 0
    """Seed of learner and actor."""
    out: str = ""
    """Folder for the results; it must not hold another run. Empty: runs/TASK-DATE-TIME."""
    overrides: Annotated[
        tuple[tuple[str, ...], ...],
        tyro.conf.arg(name="set", metavar="KEY=VALUE [KEY=VALUE ...]"),
        tyro.conf.UseAppendAction,
    ] = ()
    """Set any configuration value, over the preset and the options above. A key is a dotted path such as
    learner.cgpo.guidance.type, or any tail of one that is unique, such as guidance.type."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Run:
    """A run that is fully decided."""

    directory: Path
    preset: str
    learner: LearnerConfig
    actor: ActorConfig

    @property
    def config_path(self) -> Path:
        return self.directory / "config.toml"


class ChildFailedError(CgpoError):
    """A program of the run ended before its time, or never got ready."""

    def __init__(self, child: Child, what: str, exit_code: int) -> None:
        self.exit_code = max(exit_code, 1)
        self.summary = f"the {child.name} {what}"
        super().__init__(f"{self.summary}. The end of {child.log_path}:\n{child.last_lines()}")


class StopRequest:
    """Counts Ctrl-C and SIGTERM: the first asks both programs to finish, the second ends them at once."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1


def main() -> int:
    options = tyro.cli(
        Options,
        prog="launch/sim.sh",
        description=help_text(
            "Train on the simulated robot: start a learner and an actor on this machine, show their progress, end with "
            "an unassisted evaluation, and write summary.json, report.md, learning_curve.png, config.toml and videos.",
            example="launch/sim.sh --max-minutes 20 --seed 0 --out runs/first --set guidance.type=none",
        ),
        config=(tyro.conf.FlagCreatePairsOff,),  # --no-pixels would promise to undo what a preset says
    )
    stop = StopRequest()
    run = resolve(options)
    make_folder(run.directory)
    run.config_path.write_text(config_module.to_toml({"learner": run.learner, "actor": run.actor}))
    started_s = time.monotonic()
    title = f"{run.actor.task}, {run.preset}, {run.learner.algorithm}, seed {run.actor.seed}"
    failure = supervise(run, title, stop)
    facts = RunFacts(
        title=title,
        task=run.actor.task,
        preset=run.preset,
        algorithm=run.learner.algorithm,
        seed=run.actor.seed,
        command=shlex.join(["launch/sim.sh", *sys.argv[1:]]),
        wall_s=time.monotonic() - started_s,
        interrupted=stop.count > 0,
        failure=failure.summary if failure else "",
        pace=run.actor.pace,
        notes=notes(run),
    )
    summary = write_report(run.directory, facts)
    print(f"{verdict(summary)}\nreport: {run.directory / 'report.md'}")
    if failure:
        raise failure
    return EXIT_INTERRUPTED if stop.count else 0


def resolve(options: Options) -> Run:
    """Turn options into both programs' configurations. Raises ConfigError for anything that makes no sense."""
    directory = Path(options.out or f"runs/{options.task}-{time.strftime('%Y%m%d-%H%M%S')}")
    if (directory / "config.toml").exists():
        raise ConfigError(f"{directory} already holds a run. Choose another folder with --out, or remove that one.")
    assignments = [
        f"actor.task={json.dumps(options.task)}",
        *(["actor.pixels=true"] if options.pixels else []),
        f"actor.max_minutes={options.max_minutes}",
        f"actor.seed={options.seed}",
        f"learner.seed={options.seed}",
        f"learner.from_log={json.dumps([str(path) for path in options.from_log])}",
        f"learner.port={free_port()}",
        *(assignment for group in options.overrides for assignment in group),
    ]
    preset = options.preset or ("sim_pixels" if options.pixels else "sim_quick")
    tables = config_module.apply_overrides(config_module.load_preset(preset), assignments, override_keys())
    tables["learner"] |= {"run_dir": str(directory / "learner"), "host": "127.0.0.1"}
    tables["actor"] |= {"run_dir": str(directory / "actor"), "learner": f"127.0.0.1:{tables['learner']['port']}"}
    learner = config_from_preset(LearnerConfig, "learner", tables)
    actor = config_from_preset(ActorConfig, "actor", tables)
    reused = count_demonstrations(learner.from_log)
    actor = replace(actor, demonstrations=max(0, actor.demonstrations - reused))
    for kind, name, registry in (
        ("task", actor.task, TASKS),
        ("backend", actor.backend, BACKENDS),
        ("algorithm", learner.algorithm, ALGORITHMS),
    ):  # before anything is written or started
        if name not in registry:
            raise unknown_name(kind, name, list(registry))
    if actor.pixels and actor.policy.encoder == "none":
        raise ConfigError(
            f"preset {preset!r} has no image encoder, which --pixels needs: choose the preset sim_pixels, or add "
            "--set policy.encoder=resnet10 policy.encoder_weights=SHA256 (docs/encoder.md)"
        )
    return Run(directory, preset, learner, actor)


def notes(run: Run) -> tuple[str, ...]:
    """Return what a reader must know of the configuration to believe the report's figures."""
    found = []
    if run.learner.from_log:
        logs = ", ".join(f"`{path}`" for path in run.learner.from_log)
        found.append(f"Demonstrations of earlier runs were reused: {logs}.")
    if run.actor.pixels:
        size_px = run.actor.cameras.image_size_px
        found.append(
            f"Learned from two cameras of {size_px} x {size_px} pixels and the arm's own measurements, without the "
            "objects' poses."
        )
        if run.actor.policy.encoder_weights == "random":
            found.append(
                '**Random image encoder.** The frozen ResNet-10 has random weights (`encoder_weights = "random"`), '
                "which know nothing of images; only its small heads learn. The figures say little about what a trained "
                "encoder reaches (docs/encoder.md has how to get one)."
            )
    return tuple(found)


def override_keys() -> list[str]:
    """Return every key that --set accepts: all but those that the launcher itself decides."""
    keys = [f"policy.{key}" for key in config_module.valid_keys(config_module.PolicyConfig)]
    for section, cls in (("learner", LearnerConfig), ("actor", ActorConfig)):
        own = [key for key in config_module.valid_keys(cls) if not key.startswith("policy.")]
        keys += [f"{section}.{key}" for key in own if key not in ("run_dir", "host", "learner")]
    return keys


def free_port() -> int:
    """Return a port that nobody listens on now; both programs must know it before they start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def supervise(run: Run, title: str, stop: StopRequest) -> ChildFailedError | None:
    """Run both programs until the actor is done, a stop is asked for or one of them dies; return what went wrong."""
    children: list[Child] = []
    with Display(title, run.directory, run.actor.max_minutes) as display:

        def start(name: str) -> None:
            arguments = [name, "--preset", str(run.config_path)]
            children.append(Child(name, arguments, run.directory / f"{name}.log", display.line))

        def is_over() -> bool:
            display.refresh()
            return stop.count > 0 or any(child.exit_code() is not None for child in children)

        try:
            start("learner")
            ready = run.learner.run_dir / "ingest.json"
            wait_for(lambda: ready.exists() or is_over(), _START_LIMIT_S)
            if ready.exists() and not is_over():
                display.line(f"learner listens on {run.actor.learner}, starting the actor")
                start("actor")
                wait_for(is_over)
            return None if stop.count else _failure_among(children)
        finally:
            for child in reversed(children):  # the actor first: its last steps must reach the learner
                _finish(child, stop, display)


def _failure_among(children: list[Child]) -> ChildFailedError | None:
    """Return why a run that nobody stopped came to its end; None when the actor finished its work."""
    learner, *others = children
    code = learner.exit_code()
    if code is not None:
        return ChildFailedError(learner, f"{describe_exit(code)} before the actor was done", code)
    if not others:
        return ChildFailedError(learner, f"does not listen after {_START_LIMIT_S:.0f} s", 1)
    code = others[0].exit_code()
    return ChildFailedError(others[0], describe_exit(code), code) if code else None


def _finish(child: Child, stop: StopRequest, display: Display) -> None:
    """Ask a program to end; end it, with all it started, when it takes too long or Ctrl-C comes a second time."""
    if child.exit_code() is None:
        display.line(f"asking the {child.name} to save its work and end")
        child.interrupt()
    if not wait_for(lambda: child.exit_code() is not None or stop.count > 1, _GRACE_S):
        display.line(f"the {child.name} did not end within {_GRACE_S:.0f} s, it is killed")
    child.kill()


if __name__ == "__main__":
    sys.exit(run_main(main))
