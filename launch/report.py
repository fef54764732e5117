"""What a finished run leaves for people: summary.json, report.md, learning_curve.png and the videos in one place."""

import copy
import json
import logging
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from actor.accounting import human_time
from launch.curve import draw_learning_curve
from launch.people import human_section, stages_section
from launch.progress import Progress, intervention_share
from policy.episode_log import EpisodeLog
from policy.errors import CgpoError
from policy.revision import read_revision

logger = logging.getLogger(__name__)

_MANY_OVERRUNS = 0.05  # of the steps

# Every key that summary.json promises; a value that is not known stays null.
_EMPTY: dict[str, Any] = {
    "task": None,
    "preset": None,
    "algorithm": None,
    "seed": None,
    "wall_s": None,
    "env_steps": None,
    "episodes": None,
    "updates": None,
    "updates_per_s": None,
    "control": {"period_ms": {"p50": None, "p99": None, "max": None}, "overruns": None},
    "link": {"sent": None, "acked": None, "lost": None, "duplicated": None, "bytes_per_transition": None},
    "weights": {"version": None, "staleness_s": {"p50": None, "p95": None}},
    "intervention": {"steps": None, "fraction": None},
    "eval": {
        "episodes": None,
        "successes": None,
        "success_rate": None,
        "wilson_low": None,
        "wilson_high": None,
        "mean_return": None,
        "mean_length": None,
    },
}


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What only the launcher knows about a run."""

    title: str
    task: str
    preset: str
    algorithm: str
    seed: int
    command: str
    wall_s: float
    interrupted: bool
    failure: str  # why the run ended early; empty when it did not
    pace: float = 1.0  # multiple of real time in training
    notes: tuple[str, ...] = ()  # what a reader must know of the configuration to believe the figures


def write_report(directory: Path, facts: RunFacts) -> dict[str, Any]:
    """Write summary.json, report.md and learning_curve.png, link the videos; returns the summary."""
    progress = Progress(directory)
    progress.update()
    summary = summarise(directory, facts, progress)
    (directory / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    videos = _link_videos(directory)
    (directory / "report.md").write_text(render_report(summary, facts, progress, videos))
    draw_learning_curve(progress, facts.title, directory / "learning_curve.png")
    return summary


def summarise(directory: Path, facts: RunFacts, progress: Progress) -> dict[str, Any]:
    """Merge what launcher, actor and learner know. Counters of an actor that died come from its episode lines."""
    summary: dict[str, Any] = copy.deepcopy(_EMPTY)
    learner = _read_json(directory / "learner" / "learner_summary.json")
    actor = _read_json(directory / "actor" / "actor_summary.json") or _from_episodes(progress)
    _fill(summary, actor)
    _fill(summary, {name: learner.get(name) for name in ("updates", "updates_per_s")})
    _fill(summary["link"], _log_statistics(directory / "learner" / "log.sqlite", actor))
    for name in ("task", "preset", "algorithm", "seed", "interrupted", "failure"):
        summary[name] = getattr(facts, name)
    summary["notes"] = list(facts.notes)
    summary["wall_s"] = round(facts.wall_s, 1)
    summary["unknown"] = _null_keys(summary)
    return summary


def render_report(summary: Mapping[str, Any], facts: RunFacts, progress: Progress, videos: Sequence[str]) -> str:
    """Return report.md: the verdict first, then figures, how to repeat the run, and what it left."""
    lines = [f"# {verdict(summary)}", ""]
    if facts.failure:
        lines += [f"**The run ended early: {facts.failure}.** The end of its log says why.", ""]
    notes = [*facts.notes, *_overrun_note(summary, facts)]
    if notes:
        lines += [*(f"- {note}" for note in notes), ""]
    lines += ["![learning curve](learning_curve.png)", "", "## Figures", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in _figures(summary, len(progress.demonstrations))]
    lines += _interim_evaluations(progress)
    lines += human_section(progress)
    lines += stages_section(progress.stage_changes)
    if summary["unknown"]:
        why = "the run was stopped before they were measured" if facts.interrupted else "no process wrote them"
        lines += ["", "## Not known", "", f"{', '.join(f'`{key}`' for key in summary['unknown'])}: {why}."]
    lines += ["", "## How to repeat it", "", "```", facts.command, "```", ""]
    lines += [f"- {fact}" for fact in _environment()]
    lines += [
        "",
        "## What is here",
        "",
        "- `summary.json`: the figures above, for programs",
        "- `config.toml`: every configuration value of this run; `--preset` takes it",
        "- `actor/`, `learner/`: episodes, metrics, episode log, weights, checkpoints",
        "- `actor.log`, `learner.log`: what both programs said",
    ]
    lines += [f"- `videos/{name}`" for name in videos] or [
        "- no videos: only the final evaluation is filmed, and `actor.log` says what went wrong with drawing, if it did"
    ]
    return "\n".join(lines) + "\n"


def _interim_evaluations(progress: Progress) -> list[str]:
    rows = [row for row in progress.evaluations if row["kind"] == "interim"]
    if not rows:
        return []
    head = [
        "",
        "## Evaluations during training",
        "",
        "| environment steps | weights | success |",
        "| --- | --- | --- |",
    ]
    return head + [
        f"| {row['env_steps']:,} | {row['weights_version']} | {row['successes']} of {row['episodes']} |" for row in rows
    ]


def verdict(summary: Mapping[str, Any]) -> str:
    """Say in one line what the run showed."""
    evaluation = summary["eval"]
    what = f"{summary['task']}, {summary['algorithm']}, seed {summary['seed']}"
    if not evaluation["episodes"]:
        if summary["interrupted"]:
            reason = "the run was interrupted"
        elif summary["failure"] or summary.get("stopped", True):
            reason = "the run ended early"
        else:
            reason = "as none was asked for,"
        return f"{what}: no final evaluation, {reason} after {summary['env_steps'] or 0:,} environment steps"
    requested = evaluation.get("requested_episodes") or 0
    partial = f", stopped before all {requested} were done" if evaluation["episodes"] < requested else ""
    return (
        f"{what}: {evaluation['successes']} of {evaluation['episodes']} unassisted evaluation episodes succeeded, "
        f"{_percent(evaluation['success_rate'])} (95 % interval {_percent(evaluation['wilson_low'])} to "
        f"{_percent(evaluation['wilson_high'])}){partial}"
    )


def _figures(summary: Mapping[str, Any], demonstrations: int) -> list[tuple[str, str]]:
    control, link, weights = summary["control"], summary["link"], summary["weights"]
    evaluation, human = summary["eval"], summary["intervention"]
    period, staleness = control["period_ms"], weights["staleness_s"]
    figures = [
        ("wall time", f"{_form(summary['wall_s'] / 60, '.1f')} min"),
        ("environment steps", _form(summary["env_steps"], ",d")),
        ("episodes", f"{_form(summary['episodes'], ',d')}, {demonstrations} of them demonstrations"),
        (
            "updates",
            f"{_form(summary['updates'], ',d')} at {_form(summary['updates_per_s'], '.1f')} per second of work",
        ),
        ("human steps in training episodes", f"{_form(human['steps'], ',d')} ({_percent(human['fraction'])})"),
        ("evaluation: mean return", _form(evaluation["mean_return"], ".2f")),
        ("evaluation: mean length", f"{_form(evaluation['mean_length'], '.1f')} steps"),
        (
            "control period p50 / p99 / max",
            f"{_form(period['p50'], '.1f')} / {_form(period['p99'], '.1f')} / {_form(period['max'], '.1f')} ms, "
            f"{_form(control['overruns'], ',d')} overruns",
        ),
        (
            "transitions sent / acknowledged / lost / duplicated",
            " / ".join(_form(link[name], ",d") for name in ("sent", "acked", "lost", "duplicated")),
        ),
        ("bytes per transition", _form(link["bytes_per_transition"], ",.0f")),
        ("last weights version", _form(weights["version"], ",d")),
        ("age of weights in use p50 / p95", f"{_form(staleness['p50'], '.1f')} / {_form(staleness['p95'], '.1f')} s"),
    ]
    by_actor = link.get("records_by_actor", {})
    if len(by_actor) > 1:
        figures.append(("records of each actor", ", ".join(f"{name} {count:,}" for name, count in by_actor.items())))
    if link.get("refused"):
        figures.append(("records that the learner put into quarantine", _form(link["refused"], ",d")))
    for name, what in (
        ("discarded_episodes", "episodes discarded by the operator"),
        ("aborted_episodes", "episodes that a camera ended"),
        ("stale_image_steps", "steps that saw an old image"),
    ):
        if summary.get(name):
            figures.append((what, _form(summary[name], ",d")))
    if summary.get("reward_sources"):
        judged = ", ".join(f"{count:,} by {source}" for source, count in summary["reward_sources"].items())
        figures.append(("episodes judged", judged))
    return figures


def _overrun_note(summary: Mapping[str, Any], facts: RunFacts) -> list[str]:
    """Return what to think of the figures when a loop in real time was often late; a simulation waits otherwise."""
    overruns, steps = summary["control"]["overruns"], summary["env_steps"]
    if facts.pace != 1.0 or not overruns or overruns < _MANY_OVERRUNS * steps:
        return []
    return [
        f"**Late control loop.** {overruns:,} of {steps:,} control periods ({overruns / steps:.0%}) were late: this "
        "computer was too busy or too slow for real time, and the arm holds after three late periods in a row. In "
        "simulation another `actor.pace` lets the robot wait."
    ]


def _form(value: float | None, form: str) -> str:
    return "?" if value is None else format(int(value) if form.endswith("d") else value, form)


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.0f} %"


def _environment() -> list[str]:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "mujoco", "numpy", "grpcio"))
    return [
        f"commit {read_revision() or 'unknown'}",
        f"Python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} CPU cores",
        versions,
    ]


def _link_videos(directory: Path) -> list[str]:
    recorded = directory / "actor" / "videos"
    videos = directory / "videos"
    if recorded.is_dir() and not videos.exists():
        videos.symlink_to(Path("actor") / "videos")
    return sorted(path.name for path in videos.glob("*.mp4"))


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in `path`, empty when the file is missing or was cut off by a crash."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return content


def _log_statistics(log_path: Path, actor: Mapping[str, Any]) -> dict[str, Any]:
    """Count what is neither in the episode log nor still in the actor's spool, and what the log holds twice."""
    if not log_path.exists():
        return {}
    try:
        log = EpisodeLog(log_path, read_only=True)
        streams = log.statistics()
        log.close()
    except CgpoError as error:
        logger.warning("transitions lost and duplicated are not known: %s", error)
        return {}
    link = actor.get("link", {})
    stored = sum(stream.distinct for stream in streams)
    # The log may be ahead of what the actor heard: the last acknowledgements of a learner that died never arrived.
    by_actor: Counter[str] = Counter()
    for stream in streams:
        by_actor[stream.actor_id] += stream.records
    return {
        **({"records_by_actor": dict(by_actor)} if by_actor else {}),
        "lost": max(0, link["offered"] - link["pending"] - stored) if "offered" in link else None,
        "duplicated": sum(stream.duplicated for stream in streams),
    }


def _from_episodes(progress: Progress) -> dict[str, Any]:
    episodes = progress.episodes
    if not episodes:
        return {"env_steps": 0, "episodes": 0}
    return {
        "env_steps": episodes[-1]["env_steps"],
        "episodes": len(episodes),
        "weights": {"version": episodes[-1]["weights_version"]},
        "intervention": {
            "steps": sum(row["intervention_steps"] for row in episodes),
            "fraction": intervention_share(episodes),
        },
        "human_time": human_time(episodes),
        "reward_sources": dict(Counter(row["reward_source"] for row in episodes)),
    }


def _fill(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for name, value in source.items():
        if isinstance(value, Mapping) and isinstance(target.get(name), dict):
            _fill(target[name], value)
        elif value is not None or name not in target:
            target[name] = value


def _null_keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of what is null; a table of nothing but nulls counts as one."""
    keys: list[str] = []
    for name, value in values.items():
        if _is_null(value):
            keys.append(f"{prefix}{name}")
        elif isinstance(value, Mapping):
            keys += _null_keys(value, f"{prefix}{name}.")
    return keys


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and all(map(_is_null, value.values())))
