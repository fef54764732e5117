"""The table of all runs beside the paper's and other people's numbers, from the curves that are kept as CSV files.

    python -m benchmarks.mujoco.table --out runs/mujoco                                  writes runs/mujoco/results.md
    python -m benchmarks.mujoco.table --out runs/mujoco --write benchmarks/results/mujoco.md
    python -m benchmarks.mujoco.table --write benchmarks/results/mujoco.md               again, from what is kept there

FILE.md is made of the curves in the folder FILE alone, to which those of --out are copied before: it grows run by run.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase

from benchmarks.mujoco import references
from benchmarks.mujoco.curves import Curve, keep, read_kept, read_runs, short_name
from benchmarks.mujoco.groups import NAMES, Group, group_curves
from benchmarks.mujoco.packages import require
from benchmarks.mujoco.references import Reported
from policy.cli import run_main
from policy.errors import ConfigError
from policy.files import make_folder, replace_file

_REVISION_SHOWN = 12  # characters of it


# --- Markdown ---------------------------------------------------------------------------------------------------------


def render(curves: Sequence[Curve], pictures: dict[str, list[Path]], command: str) -> str:
    """Return the document; `pictures` are of each task, relative to where the document will be."""
    tasks = group_curves(curves)
    waiting = [curve.path.with_suffix("").as_posix() for curve in curves if not curve.rows]
    lines = ["# MuJoCo tasks", "", *_introduction(command)]
    if waiting:
        lines += ["", f"Without an evaluation yet, and so not in the tables: {', '.join(waiting)}."]
    for task, groups in tasks.items():
        lines += ["", f"## {short_name(task)}", "", *_results(task, groups), "", *_same_steps(task, groups)]
        for picture in pictures.get(task, []):
            lines += ["", f"![{short_name(task)}: {picture.stem.replace('_', ' ')}]({picture.as_posix()})"]
            if picture.stem == "critic_contrast":
                lines += ["", _probes(groups)]
    lines += ["", "## Configurations", "", *_configurations(tasks)]
    lines += ["", "## Tasks' versions", "", references.VERSIONS.strip(), "", "## Runs", "", *_runs(tasks)]
    return "\n".join([*lines, ""])


def _introduction(command: str) -> list[str]:
    return [
        "Return of an evaluation: mean over its episodes, 10 unless the command says otherwise, with actions that are",
        "the best of K_e samples by the critic. **Best so far**: largest return of all evaluations, which is biased",
        "upwards, the more so the more evaluations there are. **Last 10 %**: mean over the last tenth of the",
        "evaluations. Both for each seed, then mean ± standard deviation (n - 1) over seeds. K_e in bold is the one of",
        "every evaluation; the others are evaluated more rarely. SAC, TD3 and TQC have one action, K_e = 1; so has",
        "DIPO, whose samples hardly differ when it is evaluated, unless `dipo.evaluation_noise` is set. **Unequal**:",
        "the seeds of a row were asked for different numbers of steps.",
        "",
        "*Reduced* marks values of a smaller network, chain, batch or number of samples than the algorithm's",
        "`paper_mujoco` preset has, made for a CPU; they are not the paper's algorithm at its size.",
        "",
        f"Paper's column: {references.PAPER_SOURCE}. Its K_e is not stated, and it is the best of 1,000,000 steps:",
        "beside a shorter run it says where the way leads, not what should be there already. It stands beside rows",
        "alone that differ from the preset in size at most.",
        "",
        f"`{command}` writes this file from the curves beside it.",
    ]


def _results(task: str, groups: Sequence[Group]) -> list[str]:
    paper = references.paper_best(task)
    notes: dict[str, str] = {}
    rows = []
    for group in groups:
        mark = " (reduced)" if group.first.is_reduced else ""
        for count in group.candidates:
            if not group.num_evaluations(count):
                continue
            is_headline = count == group.headline
            rows.append(
                [
                    group.name if is_headline else "",
                    f"`{group.first.preset}`" if is_headline else "",
                    f"`{group.first.digest}`" if is_headline else "",
                    f"{len(group.best(count))}",
                    _steps(group) if is_headline else "",
                    f"**{count}**" if is_headline else f"{count}",
                    _range(group.num_evaluations(count)),
                    f"{spread(group.best(count))}{mark}",
                    f"{spread(group.last_tenth(count))}{mark}",
                    _papers_cell(group, paper, notes) if is_headline else "",
                ]
            )
    head = ["algorithm", "preset", "configuration", "seeds", "steps", "K_e", "evaluations", "best so far", "last 10 %"]
    lines = markdown_table([*head, "paper: v3, K_e unknown, best in 1,000,000 steps"], rows)
    if notes:
        lines += ["", *(f"({letter}) {note}." for note, letter in notes.items())]
    missing = {name: value for name, value in paper.items() if name not in {group.first.algorithm for group in groups}}
    if missing:
        values = ", ".join(f"{NAMES[name]} {_reported(value)}" for name, value in missing.items())
        lines += ["", f"In the paper and not run here: {values}."]
    return lines


def _papers_cell(group: Group, paper: Mapping[str, Reported], notes: dict[str, str]) -> str:
    """Return the paper's value; `notes` gets a letter for what is otherwise there."""
    value, note = paper.get(group.first.algorithm), references.PAPER_SETTINGS.get(group.first.algorithm)
    if value is None or not group.is_papers:
        return "-"
    if note is None:
        return _reported(value)
    return f"{_reported(value)} ({notes.setdefault(note, ascii_lowercase[len(notes)])})"


def _probes(groups: Sequence[Group]) -> str:
    """Say on which states the contrast was measured."""
    probes: dict[str, list[str]] = {}
    for group in groups:
        for curve in group.curves:
            if points := curve.measured("contrast"):
                count = curve.protocol.get("probe_states", "an unknown number")
                step = points[0][0]
                random = ", all of random actions" if step <= curve.values["replay.training_starts"] else ""
                probes.setdefault(f"{count} after {step:,} steps{random}", []).append(group.label)
    drawn = "; ".join(f"{what} ({', '.join(dict.fromkeys(labels))})" for what, labels in probes.items())
    return f"Critic contrast on states that were drawn from the replay once, and kept: {drawn}."


def _configurations(tasks: Mapping[str, Sequence[Group]]) -> list[str]:
    groups = {group.first.digest + group.first.variant: group for own in tasks.values() for group in own}
    rows = []
    for group in groups.values():
        changes = (f"`{name}` {value} (paper's: {paper})" for name, (value, paper) in group.first.differences.items())
        every, episodes = (group.first.protocol.get(name, 0) for name in ("evaluation_every", "episodes"))
        rows.append(
            [
                f"`{group.first.digest}`",
                group.label,
                f"`{group.first.preset}`",
                f"{episodes} episodes every {every:,} steps, K_e = {group.headline}",
                ", ".join(changes) or "-",
            ]
        )
    return markdown_table(
        ["configuration", "algorithm", "preset", "evaluation", "otherwise than in the `paper_mujoco` preset"], rows
    )


def _same_steps(task: str, groups: Sequence[Group]) -> list[str]:
    """Return the comparison with published curves at the steps that at least one of our runs has reached."""
    steps = [step for step in references.CURVE_STEPS if any(group.at(step, group.headline) for group in groups)]
    if not steps:
        return [f"No run has reached {references.CURVE_STEPS[0]:,} steps yet."]
    rows = []
    for group in groups:
        cells = []
        for step in steps:
            values = group.at(step, group.headline)
            is_part = 0 < len(values) < len(group.curves)
            cells.append(spread(values) + (f" ({len(values)} of {len(group.curves)} seeds)" if is_part else ""))
        rows.append([f"{group.label}, K_e = {group.headline}", *cells])
    zoo, authors = references.zoo_curves(task), references.td3_authors_curve(task)
    for algorithm, returns in zoo.items():
        at = dict(zip(references.CURVE_STEPS, returns, strict=True))
        rows.append([f"*{NAMES[algorithm]}, published (1)*", *(_number(at[step]) for step in steps)])
    if authors:
        rows.append(["*TD3, published (2)*", *(_reported(authors.get(step), "±") for step in steps)])
    lines = ["Return at the same number of steps:", "", *markdown_table(["", *(f"{step:,}" for step in steps)], rows)]
    if zoo:
        lines += ["", f"(1) {references.ZOO_SOURCE}. (2) {references.TD3_AUTHORS_SOURCE}."]
    return lines


def _runs(tasks: dict[str, list[Group]]) -> list[str]:
    curves = [curve for groups in tasks.values() for group in groups for curve in group.curves]
    rows = [
        [
            curve.path.with_suffix("").as_posix(),
            f"{curve.env_step:,}" if curve.is_finished else f"{curve.env_step:,}, unfinished",
            _number(max(value for _, value in curve.returns(curve.candidates[0]))),
            _number(statistics.median(speeds)) if (speeds := [v for _, v in curve.measured("updates_per_s")]) else "-",
            f"{curve.rows[-1]['wall_s'] / 3600:.1f}" if "wall_s" in curve.rows[-1] else "-",
            f"{curve.rows[-1].get('skipped_steps', 0):.0f}",
            ", ".join(dict.fromkeys(_revision(start.get("revision", "")) for start in curve.starts)) or "-",
        ]
        for curve in curves
    ]
    head = ["run", "steps", "best", "updates/s (median)", "hours", "updates left out", "revision"]
    return [*markdown_table(head, rows), "", *commands_of(curves)]


def commands_of(curves: Iterable[Curve]) -> list[str]:
    """Return a block with the commands that the runs were last started with, those of several seeds as one."""
    seeds: dict[tuple[str, str], set[str]] = {}
    for curve in curves:
        if curve.starts:
            command, place = curve.starts[-1]["command"], _place(curve)
            own = command.index("--seeds") + 1 if "--seeds" in command[:-1] else 0
            seed = command[own] if own else ""
            rest = shlex.join("{seeds}" if own and index == own else word for index, word in enumerate(command))
            seeds.setdefault((rest.replace("'{seeds}'", "{seeds}"), place), set()).add(seed)
    lines = [
        f"{command.replace('{seeds}', ','.join(sorted(own, key=lambda seed: (len(seed), seed))))}   # {place}"
        for (command, place), own in seeds.items()
    ]
    said = "Commands of these runs, as last started, for the presets of the revision at their ends:"
    return [said, "", "```", *lines, "```"]


def _place(curve: Curve) -> str:
    return f"{_machine(curve)}, revision {_revision(curve.starts[-1].get('revision', ''))}"


def _machine(curve: Curve) -> str:
    start = curve.starts[-1]
    return f"{start.get('device', '?')}, {start.get('threads', '?')} threads, {start.get('machine', '?')}"


def _revision(revision: str) -> str:
    commit, _, rest = revision.partition("-")
    return commit[:_REVISION_SHOWN] + (f"-{rest}" if rest else "") or "unknown"


def _steps(group: Group) -> str:
    reached = _range([curve.env_step for curve in group.curves])
    if len({curve.steps for curve in group.curves}) > 1:
        reached += ", **unequal**"
    unfinished = [curve for curve in group.curves if not curve.is_finished]
    if not unfinished:
        return reached
    return f"{reached} of {max(curve.steps for curve in group.curves):,}, **{len(unfinished)} unfinished**"


def _range(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if len(set(values)) == 1 else f"{min(values):,} to {max(values):,}"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; one seed has none."""
    if not values:
        return "-"
    deviation = f" ± {_number(statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{_number(statistics.fmean(values))}{deviation}"


def _reported(value: Reported | float | None, sign: str = "") -> str:
    if not isinstance(value, Reported):
        return "-" if value is None else _number(value)
    return f"{value.mean:,.0f} ± {value.std:,.0f}" if sign else f"{value.mean:,.1f} ({value.std:,.1f})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


# --- command line -----------------------------------------------------------------------------------------------------


def write_results(out: Path | None, document: Path) -> list[Curve]:
    """Keep the runs of `out`, then write document and pictures from all that is kept beside it; return those curves."""
    require("matplotlib")
    from benchmarks.mujoco.plots import draw_task  # matplotlib takes a second

    folder = document.with_suffix("")
    if out is not None:
        keep(read_runs(out), folder)
    curves = read_kept(folder)
    if not curves:
        raise ConfigError(f"there is no run in {out or folder}: give --out the folder that runs were told to use")
    pictures = {
        task: [
            path.relative_to(document.parent) for path in draw_task(short_name(task), groups, folder / short_name(task))
        ]
        for task, groups in group_curves(curves).items()
    }
    make_folder(document.parent)
    command = f"python -m benchmarks.mujoco.table --write {document.name if document.is_absolute() else document}"
    replace_file(document, render(curves, pictures, command).encode())
    return curves


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mujoco.table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, help="folder of runs to take up")
    parser.add_argument("--write", type=Path, metavar="FILE.md", help="document (default: OUT/results.md)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    document = options.write or (options.out and options.out / "results.md")
    if document is None:
        parser.error("give --out, --write or both")
    curves = write_results(options.out, document)
    unfinished = sum(not curve.is_finished for curve in curves)
    print(f"{document}: {len(curves)} runs" + (f", {unfinished} of them unfinished" if unfinished else ""))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
