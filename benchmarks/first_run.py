"""Peg in hole on the twin, as a newcomer runs it: CGPO, its ablations, cloning and no learning, one table.

`python -m benchmarks.first_run --out runs/first_run` runs what is not in that folder yet and writes the table to
benchmarks/results/first_run.md. One line takes five to six minutes on two cores; --only picks lines.
"""

import argparse
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.runs import interim_evaluations, machine, read_summary

RESULTS = Path(__file__).parent / "results" / "first_run.md"

_LITERAL_CRITIC = ("critic_layer_norm=false", "reward_scale=1.0", "human_targets=false", "bc_warmup_steps=0")
_CLONING = ("algorithm=bc", "demonstration_fraction=1.0", "intervention.probability=0.0")
_ALONE = ("intervention.probability=0.0",)
_NO_ACTOR_CRITIC = ("behavior_candidates=1", "entropy_reduction=mean")
_FEW = "demonstrations=2"
_NO_LEARNING = ("demonstrations=0", "max_env_steps=1", "training_starts=1000000", "intervention.probability=0.0")


@dataclass(frozen=True)
class Line:
    """One run of the table."""

    name: str
    what: str
    seed: int = 0
    settings: tuple[str, ...] = ()

    def command(self, directory: Path) -> list[str]:
        arguments = ["launch/sim.sh", "--max-minutes", "20", "--seed", str(self.seed), "--out", str(directory)]
        return [*arguments, *(["--set", *self.settings] if self.settings else [])]


LINES = (
    *(Line(f"cgpo_seed{seed}", f"CGPO, seed {seed}", seed) for seed in range(3)),
    Line("unguided", "targets without guidance", settings=("guidance.type=none",)),
    Line("literal_critic", "CGPO as printed: no LayerNorm, reward scale 1, no human targets", settings=_LITERAL_CRITIC),
    Line("bc", "behaviour cloning of the same 20 demonstrations", settings=_CLONING),
    Line("untrained", "no learning at all", settings=_NO_LEARNING),
    Line("no_actor_critic", "no critic on the actor: K_b = 1, `mean` entropy reduction", settings=_NO_ACTOR_CRITIC),
    Line("cgpo_alone", "CGPO, 20 demonstrations, nobody intervenes", settings=_ALONE),
    Line("cgpo_few", "CGPO, 2 demonstrations, nobody intervenes", settings=(_FEW, *_ALONE)),
    Line("bc_few", "behaviour cloning of the same 2 demonstrations", settings=(_FEW, *_CLONING)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/first_run"), help="folder of the runs")
    parser.add_argument("--only", nargs="*", choices=[line.name for line in LINES], help="lines to run")
    options = parser.parse_args()
    for line in LINES:
        directory = options.out / line.name
        if (directory / "summary.json").exists() or (options.only and line.name not in options.only):
            continue
        print(f"== {line.what}: {shlex.join(line.command(directory))}", flush=True)
        subprocess.run(line.command(directory), stdout=subprocess.DEVNULL, check=True)
        print(_row(line, directory), flush=True)
    RESULTS.write_text(render(options.out))
    print(f"wrote {RESULTS}")


def render(out: Path) -> str:
    """Return the Markdown document for all runs that are in `out`."""
    finished = [line for line in LINES if (out / line.name / "summary.json").exists()]
    rows = [_row(line, out / line.name) for line in finished]
    commands = [f"{shlex.join(line.command(out / line.name))}   # {line.what}" for line in finished]
    return "\n".join(
        [
            "# First run: peg in hole on the twin",
            "",
            "Preset `sim_quick`, task `peg_in_hole` (1 mm radial clearance, 100 steps at 10 Hz), 50 unassisted",
            "evaluation episodes on placements that no training run draws. Brackets: 95 % Wilson interval. Interim:",
            "successes of 10 unassisted episodes after about 1,000, 2,000, ... training steps. Every line is one run.",
            "",
            f"Measured on {machine()}.",
            "",
            "| run | success of 50 | mean length, steps | interim, of 10 | env steps | updates | updates/s "
            "| human share | period p50 / p99, ms | lost / twice | wall, min |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "Commands, in the order of the table; `python -m benchmarks.first_run` runs them all:",
            "",
            "```",
            *commands,
            "```",
            "",
        ]
    )


def _row(line: Line, directory: Path) -> str:
    summary = read_summary(directory)
    evaluation, link, period = summary["eval"], summary["link"], summary["control"]["period_ms"]
    interim = [row["successes"] for row in interim_evaluations(directory)]
    cells = [
        line.what,
        f"{evaluation['successes']} ({evaluation['wilson_low']:.0%} to {evaluation['wilson_high']:.0%})",
        f"{evaluation['mean_length']:.1f}",
        " ".join(map(str, interim)) or "-",
        summary["env_steps"],
        summary["updates"],
        summary["updates_per_s"],
        f"{summary['intervention']['fraction'] or 0:.0%}",
        f"{period['p50']:.1f} / {period['p99']:.1f}",
        f"{link['lost']} / {link['duplicated']}",
        f"{summary['wall_s'] / 60:.1f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
