"""The paper's robot protocol on the twin: CGPO against HIL-SERL's SAC, same demonstrations, stages, budget and seeds.

`python -m benchmarks.real_protocol_twin` runs what is not in --out yet, two runs at a time, and writes the tables to
benchmarks/results/real_protocol_twin.md. Stopped at any time it goes on with the next missing run. Demonstrations come
from the scripted operator and depend on task, variant and seed alone; the report says whether the logs agree.
"""

import argparse
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

from benchmarks.real_protocol_tables import (
    GOAL,
    STEPS_PER_VERSION,
    Result,
    demonstrations_agree,
    differences,
    each_run,
    motion,
    pooled,
)
from benchmarks.runs import interim_evaluations, machine, read_summary, run_missing

RESULTS = Path(__file__).parent / "results" / "real_protocol_twin.md"

_DIFFUSION = {"paper_robot": "paper_robot", "sim_quick": "sim_quick"}
_PRESETS = {  # of each algorithm, by the sizes of networks and batch
    "cgpo": _DIFFUSION,
    "hil_serl_sac": {"paper_robot": "hil_serl_sac", "sim_quick": "sim_quick_sac"},
    "bc": _DIFFUSION,
}
_VARIANTS = {
    "state": ("pixels=false", "encoder=none"),
    "pixels": (
        "pixels=true",
        "encoder=resnet10",
        "image_storage=maps",
        "image_feature_dim=64",
        "spatial_blocks=4",
    ),
}
# Table 3 where sim_quick departs from it, and the four stages. A simulation need not wait for a clock.
_PROTOCOL = ("stages.enabled=true", "replay.capacity=20000", "pace=0", "eval_pace=0", "videos=1")


@dataclass(frozen=True)
class Budget:
    """Of one run."""

    learner_steps: int
    env_steps: int  # of training; demonstrations come on top
    eval_every_steps: int
    interim_episodes: int
    final_episodes: int
    max_minutes: int  # of wall time, whatever steps were made by then

    def settings(self) -> list[str]:
        """Return the settings that make the learner and the robot end together: neither may run ahead of the other."""
        return [
            f"max_learner_steps={self.learner_steps}",
            f"learner_steps_per_transition={1.05 * self.learner_steps / self.env_steps:g}",
            f"max_env_steps={self.env_steps}",
            f"max_steps_per_version={round(STEPS_PER_VERSION * self.env_steps / self.learner_steps)}",
            f"eval_every_steps={self.eval_every_steps}",
            f"interim_eval_episodes={self.interim_episodes}",
            f"actor.eval_episodes={self.final_episodes}",
        ]


_BUDGETS = {"state": Budget(15_000, 15_000, 1_000, 20, 50, 60), "pixels": Budget(5_000, 5_000, 1_250, 10, 20, 13)}


@dataclass(frozen=True)
class Options:
    preset: str
    budgets: Mapping[str, Budget]  # by variant
    encoder_weights: str
    overrides: tuple[str, ...]
    out: Path


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

    def command(self, options: Options) -> list[str]:
        encoder = [f"encoder_weights={options.encoder_weights}"] if self.variant == "pixels" else []
        settings = [
            *_PROTOCOL,
            *options.budgets[self.variant].settings(),
            *_VARIANTS[self.variant],
            *encoder,
            f"algorithm={self.algorithm}",
            *options.overrides,
        ]
        command = ["launch/sim.sh", "--task", self.task, "--preset", _PRESETS[self.algorithm][options.preset]]
        command += ["--seed", str(self.seed), "--max-minutes", str(options.budgets[self.variant].max_minutes)]
        return [*command, "--out", str(self.folder(options)), "--set", *settings]


@dataclass(frozen=True)
class Match:
    """Two final policies of one task, variant and seed, blind on the same start states, for times and smoothness."""

    first: Case
    second: Case

    def folder(self, options: Options) -> Path:
        algorithms = f"{self.first.algorithm}_or_{self.second.algorithm}"
        return options.out / f"{self.first.task}_{self.first.variant}_{algorithms}_seed{self.first.seed}"

    def report(self, options: Options) -> Path:
        return self.folder(options) / "report.json"

    def command(self, options: Options) -> list[str]:
        command = ["launch/evaluate.sh", "--checkpoint", str(self.first.folder(options))]
        command += ["--against", str(self.second.folder(options)), "--task", self.first.task, "--preset", "sim_quick"]
        command += [
            "--pixels" if self.first.variant == "pixels" else "--no-pixels",
            "--seed",
            "100",
            "--episodes",
            "20",
        ]
        return [*command, "--eval-pace", "0", "--no-film", "--out", str(self.folder(options))]


def main() -> None:
    parsed = _parser().parse_args()
    budgets = {
        variant: replace(
            budget,
            learner_steps=parsed.learner_steps or budget.learner_steps,
            env_steps=parsed.env_steps or budget.env_steps,
        )
        for variant, budget in _BUDGETS.items()
    }
    options = Options(parsed.preset, budgets, parsed.encoder_weights, tuple(parsed.overrides), parsed.out)
    variants, algorithms = parsed.variants.split(","), parsed.algorithms.split(",")
    for names, known in ((variants, _VARIANTS), (algorithms, _PRESETS)):
        if unknown := set(names) - set(known):
            sys.exit(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    named = product(parsed.tasks.split(","), variants, algorithms, _seeds(parsed.seeds))
    cases = [Case(*names) for names in named]
    if not parsed.report_only:
        os.environ["OMP_NUM_THREADS"] = "1"  # a core each
        # Seed by seed, so that a benchmark that is stopped half-way has compared something.
        runs = {case.folder(options): case.command(options) for case in sorted(cases, key=lambda case: case.seed)}
        _set_aside_unfinished(runs)
        run_missing(runs, parsed.jobs)
        matches = {match.folder(options): match.command(options) for match in _matches(cases, options)}
        run_missing(matches, parsed.jobs, result="report.json")
    parsed.report.write_text(render(cases, options, parsed.jobs))
    print(f"wrote {parsed.report}")


def _matches(cases: Sequence[Case], options: Options) -> list[Match]:
    """Return the pairs of finished runs that differ in nothing but the algorithm."""
    finished = [case for case in cases if _is_finished(case.folder(options))]
    return [
        Match(first, second)
        for first, second in combinations(finished, 2)
        if replace(first, algorithm=second.algorithm) == second
    ]


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
        default="sim_quick",
        choices=_DIFFUSION,
        help="sizes of networks and batch; the baseline's preset goes with it; default: %(default)s",
    )
    budgets = ", ".join(f"{budget.learner_steps} ({variant})" for variant, budget in _BUDGETS.items())
    parser.add_argument("--learner-steps", type=int, help=f"of each run; default: {budgets}")
    budgets = ", ".join(f"{budget.env_steps} ({variant})" for variant, budget in _BUDGETS.items())
    parser.add_argument("--env-steps", type=int, help=f"of training, of each run; default: {budgets}")
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
        *_introduction(options, jobs, cases, complete),
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
    reports = _match_reports(cases, options)
    if reports:
        lines += ["", "## Time and smoothness", "", *_MATCHES_NOTE, "", *motion(reports)]
    lines += ["", "## What differs from the full presets", "", *differences(complete), "", "## Commands", "", "```"]
    lines += [
        shlex.join(["python", "-m", "benchmarks.real_protocol_twin", *sys.argv[1:]]),
        "",
        "# the runs, as they were started",
    ]
    lines += [_recorded(result.folder) for result in results]
    matches = _matches(cases, options)
    lines += [shlex.join(match.command(options)) for match in matches if match.report(options).exists()]
    return "\n".join([*lines, "```", ""])


def _recorded(folder: Path) -> str:
    """Return the command that a run was really started with, but its folder, and its revision, from its own report."""
    lines = (folder / "report.md").read_text().splitlines()
    command = next(line for line in lines if line.startswith("launch/sim.sh"))
    command = re.sub(r" --out \S+", "", command)
    return f"{command}  # {next(line for line in lines if line.startswith('- commit'))[2:]}"


def _match_reports(cases: Sequence[Case], options: Options) -> dict[str, dict[str, Any]]:
    """Return the reports of actor.evaluate by who met whom."""
    reports = {}
    for match in _matches(cases, options):
        path = match.report(options)
        if path.exists():
            label = f"{match.first.algorithm} / {match.second.algorithm} | {match.first.seed}"
            reports[f"{match.first.task} | {match.first.variant} | {label}"] = json.loads(path.read_text())
    return reports


_MATCHES_NOTE = (
    "Final policies of one seed against each other with `python -m actor.evaluate`: 20 start states that neither was "
    "trained on, the same for both, blind. Means over successes; p of the sign-flip test over start states that both "
    "solve. Jerk: root mean square of the measured position's third difference over the control period cubed.",
)


def _introduction(options: Options, jobs: int, cases: Sequence[Case], complete: Sequence[Result]) -> list[str]:
    variants = dict.fromkeys(case.variant for case in cases)
    budgets = (
        f"{variant}: {budget.learner_steps:,} learner steps, {budget.env_steps:,} environment steps after the "
        f"demonstrations, interim evaluations of {budget.interim_episodes} episodes every {budget.eval_every_steps:,} "
        f"steps, {budget.final_episodes} episodes last; at most {budget.max_minutes} min"
        for variant in variants
        if (budget := options.budgets[variant])
    )
    return [
        f"Networks and batch of `{options.preset}`, protocol of Table 3: 20 demonstrations of the scripted operator, "
        "the same for every algorithm; then the four intervention stages, the scripted operator helping; last, "
        "unassisted episodes on placements that no training run draws. Rewards are the simulator's ground truth.",
        "",
        *(f"- Budget, {budget}." for budget in budgets),
        f"- {len(complete)} of {len(cases)} runs are here. Measured on {machine()}, about {jobs} runs at a time, one "
        "thread each.",
        *([f"- Backbone of the pixel runs: `{options.encoder_weights}`."] if "pixels" in variants else []),
        f"- {demonstrations_agree(complete)}",
        "- Brackets: 95 % Wilson interval. Over several seeds it takes episodes for independent, which those of one "
        "policy are not: it is too narrow for what another seed would give.",
        f'- "to {GOAL:.0%}": the first interim evaluation with {GOAL:.0%} success or more, in environment steps after '
        "the demonstrations and learner steps of the weights. Interim steps are in no budget and in no buffer; the "
        "table counts them.",
        "- Human minutes are minutes of control steps at the task's rate, demonstrations included. Simulation runs as "
        "fast as learner and processor let it: wall time is not robot time.",
    ]


if __name__ == "__main__":
    main()
