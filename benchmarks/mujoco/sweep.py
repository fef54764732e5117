"""Many runs of benchmarks.mujoco, and the table of all that there is when they have ended.

    python -m benchmarks.mujoco.sweep --tasks HalfCheetah-v4 Hopper-v4 --algorithms cgpo sac tqc qvpo --seeds 0-2 \\
        --steps 100000 --reduced --out runs/mujoco --jobs 2

Started again it goes on: what is finished is skipped, what was interrupted is resumed. With --ray-address the runs are
spread over the cores and GPUs of a cluster (learner.cluster). What follows -- is given to every run as it is. A run
that cannot be done, such as one of a task that does not exist, is refused before any begins.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.mujoco.__main__ import settings_of
from benchmarks.mujoco.packages import require
from benchmarks.mujoco.settings import default_preset, full_task_name, parse_seeds, variant_name
from benchmarks.mujoco.table import write_results
from learner.cluster import SweepConfig, SweepRun, run_sweep
from policy.cli import help_text, run_main
from policy.errors import ConfigError

ALONE = "benchmarks.mujoco itself: a sweep trains each seed alone"
_INSTEAD = {
    "--task": "--tasks", "--algorithm": "--algorithms", "--seeds": "--seeds", "--steps": "--steps", "--out": "--out",
    "--set": "--set", "--reduced": "--reduced", "--preset": "--reduced and --set", "--population": ALONE,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is run."""

    tasks: tuple[str, ...]
    """Gymnasium's names; without a version v4."""
    algorithms: tuple[str, ...] = ("cgpo", "sac", "tqc", "qvpo")
    """cgpo, sac, td3, tqc, qvpo, dipo."""
    seeds: str = "0-2"
    """Such as 0-4 or 0,3."""
    steps: int = 100_000
    """Environment steps of each run."""
    out: Path = Path("runs/mujoco")
    """Folder of all runs; their logs are in its folder logs, the table in results.md."""
    reduced: bool = False
    """The smaller presets for a CPU, where an algorithm has one."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE [KEY=VALUE ...]")] = ()
    """Values of the presets that are set differently for all."""
    sweep: Annotated[SweepConfig, tyro.conf.arg(name="")] = field(default_factory=SweepConfig)


def make_run(
    *, task: str, preset: str, algorithm: str, seed: int, steps: int, out: Path, overrides: Sequence[str] = (),
    more: Sequence[str] = (), name: str = "",
) -> SweepRun:  # fmt: skip
    """Return one run of benchmarks.mujoco for a sweep; finished when its summary says that it has all its steps.

    Raises what benchmarks.mujoco would for its command, also where its folder holds another run.
    """
    command = [sys.executable, "-m", "benchmarks.mujoco", "--task", task, "--algorithm", algorithm]
    command += ["--preset", preset, "--seeds", str(seed), "--steps", str(steps), "--out", str(out), "--resume"]
    command += ["--set", *overrides] if overrides else []
    command += more
    ((settings,),) = settings_of([*command[3:], "--device", "cpu"])  # this machine may lack the GPU that the run's has
    from benchmarks.mujoco.training import Host, is_finished  # imports gymnasium, which settings_of has found

    ask = partial(is_finished, [settings], Host(out=out, steps=steps))
    ask()  # refuses a folder that holds another run
    return SweepRun(
        name=name or f"{full_task_name(task)}-{algorithm}-{variant_name(preset, overrides)}-s{seed}",
        command=tuple(command),
        is_finished=ask,
    )


def make_runs(options: Options, more: Sequence[str] = ()) -> list[SweepRun]:
    """Return the runs of a sweep: all algorithms of one task and seed before the next seed."""
    return [
        make_run(
            task=task,
            preset=default_preset(algorithm, is_reduced=options.reduced),
            algorithm=algorithm,
            seed=seed,
            steps=options.steps,
            out=options.out,
            overrides=options.set,
            more=more,
        )
        for seed in parse_seeds(options.seeds)
        for task in options.tasks
        for algorithm in options.algorithms
    ]


def split_arguments(arguments: Sequence[str], instead: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the arguments before "--", less what run_main looks at itself, and those after it.

    Raises ConfigError where the latter have an option of `instead`, or its beginning: it would make other runs of them
    than the sweep looks for. The value says what to use.
    """
    words = list(arguments)
    end = words.index("--") if "--" in words else len(words)
    more = words[end + 1 :]
    for word in more:
        name = word.partition("=")[0]
        for option, other in instead.items():
            if len(name) > len("--") and option.startswith(name):
                where = " before --" if other.startswith("--") else ""
                raise ConfigError(f"{word} after -- would change which runs there are: use {other}{where}")
    return [word for word in words[:end] if word != "--debug"], more


def main() -> int:
    own, more = split_arguments(sys.argv[1:], _INSTEAD)
    options = tyro.cli(
        Options,
        prog="python -m benchmarks.mujoco.sweep",
        args=own,
        description=help_text(
            "Do many runs of benchmarks.mujoco, and write the table. Started again, it goes on.",
            example="python -m benchmarks.mujoco.sweep --tasks Hopper-v4 --seeds 0-2 --reduced --jobs 2 -- --threads 1",
        ),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    require("matplotlib")  # for the table's pictures, hours later
    failed = run_sweep(make_runs(options, more), options.out / "logs", options.sweep)
    if any(options.out.glob("*/*/*/seed_*/curve.csv")):
        write_results(options.out, options.out / "results.md")
        print(f"the table is in {options.out / 'results.md'}")
    if failed:
        print(f"failed: {', '.join(failed)}; see their logs in {options.out / 'logs'}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_main(main))
