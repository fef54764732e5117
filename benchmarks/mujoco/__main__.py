"""Learning curves on Gymnasium's MuJoCo tasks.

    python -m benchmarks.mujoco --task HalfCheetah-v4 --algorithm cgpo --seeds 0-4 --steps 1000000 --out runs/mujoco

Each seed is a run with a folder of its own below --out: config.json, curve.csv with a row for each evaluation, and at
the end summary.json. Seeds are trained one after another, or with --population all at once in one process. A run that
was stopped or killed goes on with --resume, as if nothing had happened; a finished one is skipped.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from benchmarks.mujoco.packages import require
from benchmarks.mujoco.settings import (
    Protocol,
    RunSettings,
    default_preset,
    full_task_name,
    parse_counts,
    parse_seeds,
    resolve_config,
)
from learner.config import LearnerConfig
from policy.cli import run_main
from policy.errors import EXIT_INTERRUPTED, ConfigError, DivergedError
from policy.failpoints import failpoint

_CANDIDATES = (1, 4, 32)  # K_e of the paper's comparison: none, CGPO's, QVPO's
_DEFAULTS = Protocol()
_PROBE_STATES = {"cuda": 256}  # where they cost little


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parse(arguments)
    runs = _runs(options)
    from benchmarks.mujoco import training  # imports gymnasium, which _runs has found

    stop = _stop_at_signals()
    host = training.Host(
        out=options.out,
        steps=options.steps,
        command=["python", "-m", "benchmarks.mujoco", *arguments],
        checkpoint_period_s=60 * options.checkpoint_minutes,
        should_stop=stop.is_set,
    )
    diverged: DivergedError | None = None
    for run in runs:
        names = ", ".join(str(host.out / each.folder) for each in run)
        if training.is_finished(run, host):
            print(f"{names}: finished already", flush=True)
            continue
        failpoint("mujoco.start")
        try:
            training.train(run, host, is_resumed=options.resume)
        except training.Stopped:
            _say_how_to_go_on(arguments)
            return EXIT_INTERRUPTED
        except DivergedError as error:
            print(f"{error}", flush=True)
            diverged = error
        else:
            print(f"{names}: finished", flush=True)
    if diverged is not None:
        raise diverged
    return 0


class _Stop:
    """Set by the first Ctrl-C or SIGTERM; the second one ends the process at once."""

    def __init__(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def __call__(self, number: int, _: FrameType | None) -> None:
        self._is_set = True
        signal.signal(number, signal.SIG_DFL)
        print("stopping: writing a checkpoint (once more ends at once)", file=sys.stderr, flush=True)


def _stop_at_signals() -> _Stop:
    stop = _Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return stop


def _say_how_to_go_on(arguments: Sequence[str]) -> None:
    import shlex

    again = [*arguments, *([] if "--resume" in arguments else ["--resume"])]
    print(f"stopped; go on with\n  {shlex.join(['python', '-m', 'benchmarks.mujoco', *again])}", flush=True)


def settings_of(arguments: Sequence[str]) -> list[list[RunSettings]]:
    """Return what a command line asks for, one process's worth of seeds after the other.

    Raises ConfigError for what cannot be run, and SystemExit with the usage for what is no option.
    """
    return _runs(_parse(arguments))


def _runs(options: argparse.Namespace) -> list[list[RunSettings]]:
    """Return the settings of each process's worth of work: one seed, or a population of them."""
    require("gymnasium", "mujoco")
    from benchmarks.mujoco.environments import make_environment

    task = full_task_name(options.task)
    make_environment(task).close()  # an unknown task is refused before anything is written
    if options.preset and options.reduced:
        raise ConfigError("--preset names the values itself: leave --reduced out, or --preset")
    preset = options.preset or default_preset(options.algorithm, is_reduced=options.reduced)
    seeds = parse_seeds(options.seeds)
    overrides = tuple(override for group in options.set for override in group)
    common = {"algorithm": options.algorithm, "device": options.device, "threads": options.threads}
    config = resolve_config(preset, overrides, **common)
    every = [
        RunSettings(
            task=task,
            preset=preset,
            overrides=overrides,
            config=replace(config, seed=seed),
            protocol=_protocol(options, config),
            population=seeds if options.population else (),
        )
        for seed in seeds
    ]
    return [every] if options.population else [[each] for each in every]


def _protocol(options: argparse.Namespace, config: LearnerConfig) -> Protocol:
    own = config.policy.behavior_candidates
    candidates = (own,) if options.candidates is None else parse_counts(options.candidates)
    more = tuple(count for count in _CANDIDATES if count not in candidates)
    return Protocol(
        evaluation_every=options.evaluation_every,
        episodes=options.episodes,
        candidates=candidates,
        more_candidates=more if options.more_candidates is None else parse_counts(options.more_candidates),
        more_every=options.more_every,
        probe_states=_PROBE_STATES.get(config.device, _DEFAULTS.probe_states),
    )


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mujoco", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--task", required=True, help="Gymnasium's name, such as Hopper-v4 or Hopper-v5; without a version v4")
    add("--algorithm", default="cgpo", help="cgpo, sac, td3, tqc, qvpo or dipo (default: %(default)s)")
    add("--seeds", default="0", help="such as 0-4 or 0,3 (default: %(default)s)")
    add("--steps", type=_positive, default=1_000_000, help="environment steps of each run (default: %(default)s)")
    add("--out", type=Path, required=True, help="folder of all runs")
    add("--resume", action="store_true", help="go on with runs that were stopped or killed; begin those that are new")
    add("--preset", default="", help="a preset's name or path (default: the algorithm's paper_mujoco)")
    add("--reduced", action="store_true", help="smaller diffusion policies and critics, for a CPU (reduced_mujoco)")
    add("--set", nargs="+", action="append", default=[], metavar="KEY=VALUE", help="change values of the preset")
    add("--population", action="store_true", help="train all seeds at once as one batch, for a GPU")
    add("--threads", type=_positive, default=1, help="CPU threads of PyTorch (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--evaluation-every", type=_positive, default=_DEFAULTS.evaluation_every, help="steps (default: %(default)s)")
    add("--episodes", type=_positive, default=_DEFAULTS.episodes, help="of an evaluation (default: %(default)s)")
    add("--candidates", help="K_e at every evaluation; the first gives best and last return (default: K_b; 1 for SAC, "
        "TD3, TQC and, unless dipo.evaluation_noise is set, DIPO)")  # fmt: skip
    add("--more-candidates", help="K_e at some evaluations and the last; '' for none (default: what is left of 1,4,32)")
    add("--more-every", type=_positive, default=_DEFAULTS.more_every, help="... every so many (default: %(default)s)")
    add("--checkpoint-minutes", type=float, default=5.0, help="between checkpoints, besides one after each evaluation")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


if __name__ == "__main__":
    sys.exit(run_main(main))
