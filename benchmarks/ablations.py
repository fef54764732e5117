"""CGPO with one thing changed at a time: which of its parts matter on a task.

    python -m benchmarks.ablations --list
    python -m benchmarks.ablations --only none naive --seeds 0-4 --out runs/ablations --jobs 2
    python -m benchmarks.ablations --task Pendulum-v1 --only none naive vbase_zero --seeds 2-9 --out runs/ablations
    python -m benchmarks.ablations --task HalfCheetah-v4 --steps 100000 --out runs/ablations

Every variant is a run of benchmarks.mujoco with some values set differently from the base, so all that is said there of
evaluation and resume holds here. Started again, it goes on; then it writes OUT/ablations_TASK.md, or --write FILE.md,
from the curves that it keeps beside that.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.mujoco.curves import Curve, keep, read_kept, read_runs, short_name
from benchmarks.mujoco.groups import Group, group_curves
from benchmarks.mujoco.settings import full_task_name, parse_seeds, resolve_config
from benchmarks.mujoco.sweep import ALONE, make_run, split_arguments
from benchmarks.mujoco.table import commands_of, markdown_table, spread
from benchmarks.point_reach import NOISY_TASK as NOISY_REACH
from benchmarks.point_reach import TASK as POINT_REACH
from benchmarks.significance import SIGNIFICANT, area, compare
from learner.cluster import SweepConfig, SweepRun, run_sweep
from learner.config import LearnerConfig
from policy.cli import help_text, run_main
from policy.errors import ConfigError, unknown_name
from policy.files import make_folder, replace_file

BASE = "base"
_COLUMNS = ("variant", "what", "seeds", "area", "against", "verdict", "seed by seed", "last 10 %")
_VERDICT = _COLUMNS.index("verdict")
_INSTEAD = {
    **{name: name for name in ("--task", "--preset", "--seeds", "--steps", "--out", "--set")},
    "--algorithm": "benchmarks.mujoco.sweep: these are variants of CGPO",
    "--reduced": "--preset",
    "--population": ALONE,
}


@dataclass(frozen=True)
class Variant:
    """What is set differently from what it is compared with."""

    name: str
    what: str
    overrides: tuple[str, ...]
    against: str = BASE
    """The variant that it differs from in one thing."""


@dataclass(frozen=True)
class Plan:
    """How a task is run unless the command line says otherwise."""

    preset: str
    steps: int
    more: tuple[str, ...]
    """Further options of benchmarks.mujoco."""


_SMALL = "benchmarks/reduced_point_reach.toml"
_PLANS = {
    POINT_REACH: Plan(
        preset=_SMALL,
        steps=4_000,
        more=("--evaluation-every", "250", "--episodes", "50", "--more-candidates", ""),
    ),
    NOISY_REACH: Plan(
        preset=_SMALL,
        steps=4_000,
        more=("--evaluation-every", "500", "--more-candidates", ""),
    ),
    "Pendulum-v1": Plan(
        preset=_SMALL,
        steps=6_000,
        more=("--evaluation-every", "500", "--more-candidates", ""),
    ),
}
_OTHER = Plan(preset="reduced_mujoco", steps=100_000, more=("--more-candidates", ""))


def variants(base: LearnerConfig) -> list[Variant]:
    """Return the variants of a CGPO configuration, section by section as the paper's ablations and beyond.

    A value that the base has already makes no variant. Shares of the chain stand for the paper's G of 5, 10, 15 of 20.
    """
    policy, cgpo = base.policy, base.cgpo
    steps = policy.denoising_steps
    few, many = max(1, round(steps / 4)), round(3 * steps / 4)
    every = [
        Variant("none", "no guidance: the target is one unguided sample", ("cgpo.guidance.type=none",)),
        Variant("naive", "guidance that adds the scaled gradient", ("cgpo.guidance.type=naive",)),
        Variant(
            "none_best_of_64",
            "no guidance: the target is the best of 64 samples, as in QVPO",
            ("cgpo.guidance.type=none", "cgpo.guidance.best_of=64"),
        ),
        *(
            Variant(f"rho_{rate:g}", f"guidance rate {rate:g}", (f"cgpo.guidance.rate={rate}",))
            for rate in (0.35, 0.65, 0.95)
            if rate != cgpo.guidance.rate
        ),
        *(
            Variant(f"steps_{count}", f"the last {count} of {steps} steps guided", (f"cgpo.guidance.steps={count}",))
            for count in (few, many)
            if count != cgpo.guidance.steps
        ),
        *(
            Variant(f"clip_{rule}", f"gradient rule {rule} at the bounds", (f"cgpo.guidance.clip_grad={rule}",))
            for rule in ("projected", "hard", "ste", "none")
            if rule != cgpo.guidance.clip_grad
        ),
        Variant(
            "x0_gradient", "gradient at the clean action only, not through the denoiser",
            ("cgpo.guidance.through_denoiser=false",),
        ),
        Variant("no_ddqn", "the target critic chooses and values the next action", ("cgpo.critic.ddqn=false",)),
        Variant("no_truncation", "no quantile is dropped (k = 0)", ("policy.drop_quantiles=0",)),
        Variant(
            "twin_scalar",
            "SAC's critic, which bundles: two networks, one value each, none truncated, the smaller one counts",
            ("cgpo.critic.type=twin_scalar", "policy.num_critics=2", "policy.num_quantiles=1",
             "policy.drop_quantiles=0"),
        ),
        Variant("vbase_zero", "no base value: weights are the target's own value", ("cgpo.vbase=zero",)),
        Variant("vbase_sampled", "base value is the mean over 16 samples", ("cgpo.vbase=sampled",)),
        *(
            Variant(f"target_candidates_{count}", f"K_t = {count}", (f"cgpo.critic.target_candidates={count}",))
            for count in (1, 4)
            if count != cgpo.critic.target_candidates
        ),
        *_entropy_variants(base),
    ]  # fmt: skip
    return every


def _entropy_variants(base: LearnerConfig) -> list[Variant]:
    """The entropy term, and K_b, by which its random actions are left out."""
    policy, cgpo = base.policy, base.cgpo
    if cgpo.entropy_reduction == "mean":
        entropy = Variant("entropy_concat", "entropy term as in QVPO's code", ("cgpo.entropy_reduction=concat",))
        eq_19 = Variant(BASE, "", ())
    else:
        entropy = Variant("entropy_mean", "entropy term as Eq 19 prints it", ("cgpo.entropy_reduction=mean",))
        eq_19 = entropy
    return [
        entropy,
        # Raw samples, of which the other entropy term would make one in eight a random action.
        Variant(
            "behavior_candidates_1", "K_b = 1, with the entropy term of Eq 19",
            ("policy.behavior_candidates=1", *eq_19.overrides), against=eq_19.name,
        ),
        *(
            Variant(f"behavior_candidates_{count}", f"K_b = {count}", (f"policy.behavior_candidates={count}",))
            for count in (4, 32)
            if count != policy.behavior_candidates
        ),
    ]  # fmt: skip


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared."""

    task: str = POINT_REACH
    """Gymnasium's name; without a version v4. The small ones (the default, benchmarks.point_reach:NoisyReach-v0 and
    Pendulum-v1) take less than a minute a run on an idle core, the paper's, such as HalfCheetah-v4, half an hour."""
    only: tuple[str, ...] = ()
    """Names from --list; what they are compared with is run too. Without it all of them."""
    seeds: str = "0-4"
    """Such as 0-4 or 0,3. Fewer than four of each cannot tell a difference from chance."""
    steps: int = 0
    """Environment steps of each run; 0 takes 4,000 of the default task and NoisyReach, 6,000 of Pendulum-v1, 100,000 of
    any other."""
    preset: str = ""
    """The base, a preset of CGPO; without one the task's, which is reduced_mujoco for all but the small ones."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE [KEY=VALUE ...]")] = ()
    """Values of the preset that are set differently for all."""
    out: Path = Path("runs/ablations")
    """Folder of all runs; their logs are in its folder logs."""
    write: Path | None = None
    """Where to write the table (default: OUT/ablations_TASK.md)."""
    list: bool = False
    """Print the variants and what they change, and run nothing."""
    render: bool = False
    """Write the table from the curves that are kept beside it, and run nothing."""
    sweep: Annotated[SweepConfig, tyro.conf.arg(name="")] = field(default_factory=SweepConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", full_task_name(self.task))  # as the runs have it

    @property
    def plan(self) -> Plan:
        return _PLANS.get(self.task, _OTHER)

    @property
    def short_task(self) -> str:
        return short_name(self.task)

    @property
    def base_preset(self) -> str:
        return self.preset or self.plan.preset


def base_config(options: Options) -> LearnerConfig:
    return resolve_config(options.base_preset, options.set, algorithm="cgpo", device="cpu", threads=1)


def chosen_variants(options: Options) -> list[Variant]:
    """Return the base and the variants that were asked for, each after what it is compared with.

    Raises ConfigError for an unknown name.
    """
    base = Variant(BASE, "CGPO as the preset has it", ())
    every = {variant.name: variant for variant in variants(base_config(options))}
    for name in options.only:
        if name not in every:
            raise unknown_name("variant", name, list(every))
    names = [BASE]
    for name in options.only or every:
        names += [every[name].against, name]
    every[BASE] = base
    return [every[name] for name in dict.fromkeys(names)]


def make_runs(options: Options, chosen: Sequence[Variant], more: Sequence[str] = ()) -> list[SweepRun]:
    """Return the runs: all variants of one seed before the next seed.

    All are evaluated with the base's number of candidates, also those that collect with another one.
    """
    evaluated = ("--candidates", str(base_config(options).policy.behavior_candidates))
    return [
        make_run(
            name=f"{variant.name}-s{seed}",
            task=options.task,
            preset=options.base_preset,
            algorithm="cgpo",
            seed=seed,
            steps=options.steps or options.plan.steps,
            out=options.out,
            overrides=(*options.set, *variant.overrides),
            more=(*options.plan.more, *evaluated, *more),
        )
        for seed in parse_seeds(options.seeds)
        for variant in chosen
    ]


# --- table ------------------------------------------------------------------------------------------------------------


def render(options: Options, chosen: Sequence[Variant], curves: Sequence[Curve]) -> str:
    """Return the document for the runs of one task that are there, finished or not."""
    preset = Path(options.base_preset).stem
    ours = [group for group in group_curves(curves).get(options.task, []) if group.first.preset == preset]
    by_overrides = {group.first.overrides: group for group in ours}
    if len(by_overrides) < len(ours):
        raise ConfigError(
            f"seeds of one variant on {options.task} were run with different values of {preset}, or evaluated "
            f"differently: {', '.join(group.label for group in ours if group.mark)}. Give each an --out of its own."
        )
    every = {variant.name: by_overrides.get((*options.set, *variant.overrides)) for variant in chosen}
    groups = {name: group for name, group in every.items() if group is not None}
    if BASE not in groups:
        raise ConfigError(
            f"no run of the base on {options.task} has an evaluation yet, there is nothing to compare with"
        )
    rows = [_row(variant, groups) for variant in chosen if variant.name in groups]
    compared = [curve for group in groups.values() for curve in group.curves]
    lines = [
        f"# Ablations on {options.short_task}",
        "",
        f"Preset `{options.base_preset}`{' (smaller than the paper)' if 'reduced' in options.base_preset else ''}"
        + (f" with {', '.join(f'`{each}`' for each in options.set)}" if options.set else "")
        + f", {max(curve.steps for curve in groups[BASE].curves):,} steps, K_e = {groups[BASE].headline}.",
        "Mean ± standard deviation (n - 1) over seeds. `--list` says what each variant sets.",
        "",
        "**Area**, the mean return of all evaluations, is what variants are judged by, declared before they were run:",
        "it rewards learning sooner and learning more. **Last 10 %** of the evaluations is there to be looked at.",
        "",
        f"*Better* and *worse*: chance alone would make so large a difference in less than {SIGNIFICANT:.0%} of all",
        f"comparisons; how often, stands in brackets (exact two-sided rank-sum test over seeds). {_false_alarms(rows)}",
        "*Not told apart* is no proof that a part does not matter, only that these runs do not show it.",
        "**Seed by seed** judges nothing, but is to be looked at: runs of a seed begin in the same states, with",
        "the same networks where they have one shape, so they make pairs. In how many of them the area is lower",
        "than in *against*, and how often a coin is as one-sided.",
        "",
        *markdown_table(_COLUMNS, rows),
    ]
    absent = [name for name in every if name not in groups]
    if absent:
        lines += ["", f"Not run yet: {', '.join(absent)}."]
    unfinished = [curve for curve in compared if not curve.is_finished]
    if unfinished:
        lines += ["", f"**{len(unfinished)} of these runs are unfinished**; their figures are of what there is so far."]
    return "\n".join([*lines, "", *commands_of(compared), ""])


def _false_alarms(rows: Sequence[Sequence[str]]) -> str:
    verdicts = [row[_VERDICT] for row in rows if row[_VERDICT].endswith(")")]
    if not verdicts:
        return ""
    found = sum(verdict.startswith("**") for verdict in verdicts)
    return (
        f"If no variant differed, up to {SIGNIFICANT * len(verdicts):.2f} of these {len(verdicts)} would be expected "
        f"to seem to; {found} {'does' if found == 1 else 'do'}."
    )


def _row(variant: Variant, groups: Mapping[str, Group]) -> list[str]:
    group, other = groups[variant.name], groups.get(variant.against)
    is_base = variant.name == BASE
    compared = ("", "") if is_base else compare(group, other) if other else ("not run yet", "")
    return [
        variant.name,
        variant.what,
        f"{len(group.curves)}",
        spread([area(curve, group.headline) for curve in group.curves]),
        "" if is_base else variant.against,
        *compared,
        spread(group.last_tenth(group.headline)),
    ]


def list_variants(options: Options) -> str:
    chosen = chosen_variants(options)
    width, what = max(len(variant.name) for variant in chosen), max(len(variant.what) for variant in chosen)
    return "\n".join(f"{each.name:{width}}  {each.what:{what}}  {' '.join(each.overrides)}".rstrip() for each in chosen)


def main() -> int:
    own, more = split_arguments(sys.argv[1:], _INSTEAD)
    options = tyro.cli(
        Options,
        prog="python -m benchmarks.ablations",
        args=own,
        description=help_text(
            "Run CGPO with one thing changed at a time, and compare. What follows -- is given to every run.",
            example="python -m benchmarks.ablations --only none naive --seeds 0-4 --jobs 2",
        ),
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if options.list:
        print(list_variants(options))
        return 0
    chosen = chosen_variants(options)
    document = options.write or options.out / f"ablations_{options.short_task}.md"
    folder = document.with_suffix("")
    failed = []
    if not options.render:
        failed = run_sweep(make_runs(options, chosen, more), options.out / "logs", options.sweep)
        keep(read_runs(options.out), folder)
    make_folder(document.parent)
    replace_file(document, render(options, chosen, read_kept(folder)).encode())
    print(f"the table is in {document}")
    if failed:
        print(f"failed: {', '.join(failed)}; see their logs in {options.out / 'logs'}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_main(main))
