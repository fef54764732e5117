"""The paper's robot protocol on the twin: CGPO against HIL-SERL's SAC, same demonstrations, stages, budget and seeds.

`python -m benchmarks.real_protocol_twin` runs what is not in --out yet, two runs at a time, and writes the tables to
benchmarks/results/real_protocol_twin.md. Demonstrations are recorded once for each task, variant and seed; every
algorithm gets them by --from-log. Stopped at any time it goes on with the next missing run.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks.real_protocol_tables import GOAL, STEPS_PER_VERSION, Result, differences, each_run, pooled
from benchmarks.runs import interim_evaluations, machine, read_summary, run_missing

RESULTS = Path(__file__).parent / "results" / "real_protocol_twin.md"

_DIFFUSION = {"paper_robot": "paper_robot", "paper_robot_small": "paper_robot_small"}
_PRESETS = {  # of each algorithm under each protocol
    "cgpo": _DIFFUSION,
    "hil_serl_sac": {"paper_robot": "hil_serl_sac", "paper_robot_small": "hil_serl_sac_small"},
    "bc": _DIFFUSION,
}
_VARIANTS = {
    "state": ("actor.pixels=false", "policy.encoder=none"),
    "pixels": ("actor.pixels=true", "policy.encoder=resnet10", "replay.image_storage=maps"),
}
_DEMONSTRATE_ONLY = ("max_env_steps=1", "eval_episodes=0", "training_starts=1000000000", "guidance_episodes=0")
_EVAL_EVERY_STEPS = 250  # training steps; from state ten episodes take at most 3 s of a core
_WALL_LIMIT_MIN = 600


@dataclass(frozen=True)
class Options:
    tasks: tuple[str, ...]
    variants: tuple[str, ...]
    algorithms: tuple[str, ...]
    seeds: tuple[int, ...]
    preset: str
    learner_steps: int
    steps_per_transition: float
    demonstrations: int
    encoder_weights: str
    overrides: tuple[str, ...]
    out: Path

    def protocol(self, variant: str) -> list[str]:
        """Return the settings that all runs of a variant share."""
        encoder = [f"policy.encoder_weights={self.encoder_weights}"] if variant == "pixels" else []
        common = [
            "stages.enabled=true",
            "intervention.demonstration_noise=0.1",
            "pace=0.0",
            "eval_pace=0.0",
            "videos=0",
        ]
        return [*_VARIANTS[variant], *encoder, *common]

    def budget(self) -> list[str]:
        """Return the settings that end each run with the weights of its last learner step, and bound the robot's.

        The learner may not exceed its ratio to transitions, the actor not the inverse; 50 learner steps make a version.
        """
        per_version = int(STEPS_PER_VERSION / self.steps_per_transition)
        return [
            f"max_learner_steps={self.learner_steps}",
            f"max_version={self.learner_steps // STEPS_PER_VERSION + 1}",  # the first is published before any step
            f"learner_steps_per_transition={self.steps_per_transition}",
            f"max_steps_per_version={per_version}",
            f"eval_every_steps={_EVAL_EVERY_STEPS}",
            "interim_eval_episodes=10",
            "eval_episodes=50",
        ]


@dataclass(frozen=True)
class Case:
    """One run of the table."""

    task: str
    variant: str
    algorithm: str
    seed: int

    @property
    def group(self) -> tuple[str, str, str]:
        return self.task, self.variant, self.algorithm

    def folder(self, options: Options) -> Path:
        return options.out / f"{self.task}_{self.variant}_{self.algorithm}_seed{self.seed}"

    def demonstrations(self, options: Options) -> Path:
        return options.out / f"demonstrations_{self.task}_{self.variant}_seed{self.seed}"

    def recording(self, options: Options) -> list[str]:
        """Return the command that records the demonstrations. No algorithm has a part in them."""
        given = [f"actor.demonstrations={options.demonstrations}", *_DEMONSTRATE_ONLY]
        settings = [*options.protocol(self.variant), *options.overrides, *given]
        return self._command(_PRESETS["cgpo"][options.preset], self.demonstrations(options), settings)

    def command(self, options: Options) -> list[str]:
        algorithm = [f"algorithm={self.algorithm}", f"actor.demonstrations={options.demonstrations}"]
        settings = [*options.protocol(self.variant), *options.budget(), *algorithm, *options.overrides]
        preset = _PRESETS[self.algorithm][options.preset]
        command = self._command(preset, self.folder(options), settings)
        return [*command, "--from-log", str(self.demonstrations(options))]

    def _command(self, preset: str, folder: Path, settings: Sequence[str]) -> list[str]:
        command = ["launch/sim.sh", "--task", self.task, "--preset", preset, "--seed", str(self.seed)]
        return [*command, "--max-minutes", str(_WALL_LIMIT_MIN), "--out", str(folder), "--set", *settings]


def main() -> None:
    parsed = _parser().parse_args()
    options = Options(
        tasks=tuple(parsed.tasks.split(",")),
        variants=tuple(parsed.variants.split(",")),
        algorithms=tuple(parsed.algorithms.split(",")),
        seeds=_seeds(parsed.seeds),
        preset=parsed.preset,
        learner_steps=parsed.learner_steps,
        steps_per_transition=parsed.learner_steps_per_transition,
        demonstrations=parsed.demonstrations,
        encoder_weights=parsed.encoder_weights,
        overrides=tuple(parsed.overrides),
        out=parsed.out,
    )
    named = product(options.tasks, options.variants, options.algorithms, options.seeds)
    cases = [Case(*names) for names in named]
    for names, known in ((options.variants, _VARIANTS), (options.algorithms, _PRESETS)):
        if unknown := set(names) - set(known):
            sys.exit(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    if not parsed.report_only:
        os.environ["OMP_NUM_THREADS"] = "1"  # a core each
        recordings = {case.demonstrations(options): case.recording(options) for case in cases}
        # Seed by seed, so that a benchmark that is stopped half-way has compared something.
        runs = {case.folder(options): case.command(options) for case in sorted(cases, key=lambda case: case.seed)}
        for commands in (recordings, runs):
            _set_aside_unfinished(commands)
            run_missing(commands, parsed.jobs)
    parsed.report.write_text(render(cases, options, parsed.jobs))
    print(f"wrote {parsed.report}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="peg_in_hole,cube_stacking", help="default: %(default)s")
    parser.add_argument("--variants", default="state", help=f"of {','.join(_VARIANTS)}; default: %(default)s")
    parser.add_argument(
        "--algorithms", default="cgpo,hil_serl_sac", help=f"of {','.join(_PRESETS)}; default: %(default)s"
    )
    parser.add_argument("--seeds", default="0-2", help="0-2 or 0,1,2; default: %(default)s")
    parser.add_argument(
        "--preset",
        default="paper_robot_small",
        choices=_DIFFUSION,
        help="protocol and networks; the baseline's preset goes with it; default: %(default)s",
    )
    parser.add_argument("--learner-steps", type=int, default=15_000, help="of each run; default: %(default)s")
    parser.add_argument(
        "--learner-steps-per-transition", type=float, default=3.0, help="sets the robot's steps; default: %(default)s"
    )
    parser.add_argument("--demonstrations", type=int, default=20, help="before training; default: %(default)s")
    parser.add_argument(
        "--encoder-weights", default="random", help="SHA-256 of the pixel variant's backbone, or random"
    )
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], help="KEY=VALUE for every run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs/real_protocol"), help="default: %(default)s")
    parser.add_argument("--report", type=Path, default=RESULTS, help="file of the tables; default: %(default)s")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    return parser


def _seeds(text: str) -> tuple[int, ...]:
    first, dash, last = text.partition("-")
    return tuple(range(int(first), int(last) + 1)) if dash else tuple(map(int, text.split(",")))


def _set_aside_unfinished(folders: Iterable[Path]) -> None:
    """Rename folders of runs that were stopped, killed or failed: launch/sim.sh starts in new ones only."""
    for folder in folders:
        if folder.exists() and not _is_finished(folder):
            number = sum(1 for _ in folder.parent.glob(f"{folder.name}.unfinished*"))
            folder.rename(folder.with_name(f"{folder.name}.unfinished{number}"))


def _is_finished(folder: Path) -> bool:
    if not (folder / "summary.json").exists():
        return False
    summary = read_summary(folder)
    return not summary["interrupted"] and not summary["failure"]


def render(cases: Sequence[Case], options: Options, jobs: int) -> str:
    """Return the Markdown document for all runs of `cases` that are finished."""
    results = [
        Result(
            case.group,
            case.seed,
            folder,
            read_summary(folder),
            read_summary(case.demonstrations(options)),
            interim_evaluations(folder),
            _PRESETS[case.algorithm]["paper_robot"],
        )
        for case in cases
        if ((folder := case.folder(options)) / "summary.json").exists()
    ]
    complete = [result for result in results if result.is_complete]
    lines = [
        "# The robot protocol on the twin: CGPO and HIL-SERL's SAC",
        "",
        *_introduction(options, jobs, len(cases), len(complete)),
        "",
        "## All seeds together",
        "",
        *pooled(complete),
        "",
        "## Each run",
        "",
        *each_run(complete),
    ]
    lines += [
        f"\n**Not in the tables:** `{result.folder.name}` "
        f"{result.summary['failure'] or 'was stopped before its last evaluation'}."
        for result in results
        if not result.is_complete
    ]
    lines += ["", "## What differs from the full presets", "", *differences(complete)]
    finished = [case for case in cases if (case.folder(options) / "summary.json").exists()]
    commands = dict.fromkeys(shlex.join(case.recording(options)) for case in finished)
    lines += ["", "## Commands", "", "```", _own_command(options, jobs), "", "# which runs", *commands]
    lines += [shlex.join(case.command(options)) for case in finished]
    return "\n".join([*lines, "```", ""])


def _introduction(options: Options, jobs: int, wanted: int, complete: int) -> list[str]:
    return [
        f"Protocol `{options.preset}` with {options.demonstrations} demonstrations of the scripted operator, recorded "
        "once for each task, variant and seed and given to every algorithm; then the four intervention stages, the "
        f"scripted operator helping; {options.learner_steps:,} learner steps; last, 50 unassisted episodes on "
        "placements that no training run draws. Rewards are the simulator's ground truth.",
        "",
        f"- {complete} of {wanted} runs are here. Measured on {machine()}, {jobs} runs at a time, one thread each.",
        "- Brackets: 95 % Wilson interval. Over several seeds it takes episodes for independent, which those of one "
        "policy are not: it is too narrow for what another seed would give.",
        f'- "to {GOAL:.0%}": the first interim evaluation (10 unassisted episodes after each {_EVAL_EVERY_STEPS} '
        f"environment steps) with {GOAL:.0%} success or more, in environment steps after the demonstrations and "
        "learner steps of the weights. With 10 episodes that is a coarse measure. "
        "Interim steps are in no budget and in no buffer; the table counts "
        "them.",
        "- Human minutes are minutes of control steps at the task's rate, demonstrations included. Simulation runs as "
        "fast as learner and processor let it: wall time is not robot time.",
    ]


def _own_command(options: Options, jobs: int) -> str:
    return shlex.join(["python", "-m", "benchmarks.real_protocol_twin", *_own_arguments(options), "--jobs", str(jobs)])


def _own_arguments(options: Options) -> Iterator[str]:
    yield from ("--tasks", ",".join(options.tasks), "--variants", ",".join(options.variants))
    yield from ("--algorithms", ",".join(options.algorithms), "--seeds", ",".join(map(str, options.seeds)))
    yield from ("--preset", options.preset, "--learner-steps", str(options.learner_steps))
    yield from ("--learner-steps-per-transition", str(options.steps_per_transition))
    yield from ("--demonstrations", str(options.demonstrations), "--out", str(options.out))
    if "pixels" in options.variants:
        yield from ("--encoder-weights", options.encoder_weights)
    if options.overrides:
        yield from ("--set", *options.overrides)


if __name__ == "__main__":
    main()
