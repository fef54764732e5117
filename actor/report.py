"""What the actor says about its work: episode lines, the episode log of a run folder, and the summary's numbers."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from actor.loop import EpisodeTally
from actor.protocol_stages import Stage
from policy.errors import ConfigError

_RECENT_EPISODES = 20  # over which an episode's duration is measured

EpisodeKind = Literal["demonstration", "training"]


@dataclass(frozen=True, kw_only=True)
class EpisodeReport:
    """One finished episode."""

    episode: int  # 0, 1, ... within the run folder, over restarts of the actor
    kind: EpisodeKind
    stage: Stage | None  # what it was for; None: the stages are off
    is_success: bool
    reward_source: str  # who judged its last step: task, classifier or human
    length: int  # steps
    episode_return: float
    duration_s: float  # wall time, resets included
    robot_s: float  # time on the robot: steps over control rate
    human_s: float  # the part of it in which a human drove
    interventions: int  # number of take-overs
    intervention_steps: int
    human_steps: int  # interventions and demonstrations
    clipped_steps: int  # steps that the safety gate changed
    stale_image_steps: int  # steps that observed an image older than cameras.stale_after_s
    weights_version: int
    weights_age_s: float  # in its last step, since the learner published them; 0 for version 0
    backlog: int  # transitions that the learner had not acknowledged at its end
    stopped: bool  # closed early by a stop request
    is_discarded: bool  # the operator's word: nothing is learned from it
    is_aborted: bool  # cameras, robot or a fault ended it
    weights_lag_steps: int = 0  # in its last step, learner steps that the learner was ahead of the weights
    slept_s: float = 0.0  # of duration_s, until the ends of control periods

    @property
    def is_counted(self) -> bool:
        """Whether it was run to an end that says something."""
        return not (self.stopped or self.is_discarded or self.is_aborted)


def episode_report(
    number: int,
    kind: EpisodeKind,
    tally: EpisodeTally,
    *,
    stage: Stage | None,
    duration_s: float,
    slept_s: float,
    control_rate_hz: float,
    backlog: int,
) -> EpisodeReport:
    return EpisodeReport(
        episode=number,
        kind=kind,
        stage=stage,
        is_success=tally.is_success,
        reward_source=tally.reward_source,
        length=tally.length,
        episode_return=tally.episode_return,
        duration_s=duration_s,
        slept_s=slept_s,
        robot_s=tally.length / control_rate_hz,
        human_s=tally.human_steps / control_rate_hz,
        interventions=tally.interventions,
        intervention_steps=tally.intervention_steps,
        human_steps=tally.human_steps,
        clipped_steps=tally.clipped_steps,
        stale_image_steps=tally.stale_image_steps,
        weights_version=tally.weights_version,
        weights_age_s=tally.weights_ages_s[-1] if tally.weights_ages_s else 0.0,
        weights_lag_steps=tally.weights_lags_steps[-1] if tally.weights_lags_steps else 0,
        backlog=backlog,
        stopped=tally.stopped,
        is_discarded=tally.is_discarded,
        is_aborted=tally.interruption is not None,
    )


def episode_line(report: EpisodeReport, loop_p99_ms: float) -> str:
    """Return the line shown after each episode. Its seconds are the robot's."""
    percent = 100 * report.intervention_steps / max(1, report.length)
    parts = [
        f"{'demo' if report.kind == 'demonstration' else 'ep'} {report.episode:03d} {_verdict(report)} "
        f"{report.robot_s:.1f} s",
        *([str(report.stage)] if report.stage else []),
        f"interv {report.interventions} ({percent:.0f} %)",
        f"return {report.episode_return:.1f}",
        f"policy v{report.weights_version}{_staleness(report)}",
        f"loop p99 {loop_p99_ms:.0f} ms",
        f"backlog {report.backlog}",
    ]
    if report.stale_image_steps:
        parts.append(f"stale images {report.stale_image_steps}")
    return "  ".join(parts)


def _staleness(report: EpisodeReport) -> str:
    if not report.weights_version:
        return ""
    return f" ({report.weights_age_s:.1f} s, {report.weights_lag_steps} steps old)"


def _verdict(report: EpisodeReport) -> str:
    if report.is_discarded:
        return "DISCARDED"
    if report.is_aborted:
        return "ABORTED"
    return "SUCCESS" if report.is_success else "STOPPED" if report.stopped else "FAILURE"


def append_json_line(path: Path, record: Any) -> None:
    """Append a dataclass or a dictionary as one JSON line, readable as soon as this returns."""
    with path.open("a") as file:
        file.write(json.dumps(record if isinstance(record, dict) else asdict(record)) + "\n")


def read_episodes(path: Path) -> list[EpisodeReport]:
    """Return the episodes that earlier processes of this run finished.

    Removes what a crash left of a last line, so that the next one starts on its own. Raises ConfigError when another
    line is no episode.
    """
    drop_torn_line(path)
    if not path.exists():
        return []
    try:
        return [_episode_of(json.loads(line)) for line in path.read_text().splitlines()]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is not the episode list of this version of the actor: {error}. Choose another --run-dir, or move "
            "that one away."
        ) from error


def _episode_of(row: dict[str, Any]) -> EpisodeReport:
    report = EpisodeReport(**row)
    return replace(report, stage=Stage(report.stage) if report.stage else None)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a file of JSON lines; none when there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def drop_torn_line(path: Path) -> None:
    """Cut a file of lines after its last complete one."""
    if path.exists():
        complete, newline, torn = path.read_bytes().rpartition(b"\n")
        if torn:
            os.truncate(path, len(complete) + len(newline))


def intervention_figures(episodes: Iterable[EpisodeReport]) -> dict[str, float]:
    """Return steps corrected by a human in training episodes, and their share of all training steps."""
    training = [episode for episode in episodes if episode.kind == "training"]
    steps = sum(episode.intervention_steps for episode in training)
    return {"steps": steps, "fraction": steps / max(1, sum(episode.length for episode in training))}


def typical_duration_s(episodes: Sequence[EpisodeReport], pace: float, next_pace: float) -> float:
    """Return what the latest episodes that the policy drove alone, at `pace`, would take on average at next_pace.

    Wall time, 0 without episodes. Those tell how long it takes, or how long it fails; before there are any, training
    episodes or demonstrations serve. Paces as actor.rate.RateKeeper's: at 0 nothing is waited for.
    """
    training = [episode for episode in episodes if episode.kind == "training"]
    alone = [episode for episode in training if episode.intervention_steps == 0]
    recent = (alone or training or episodes)[-_RECENT_EPISODES:]
    return sum(_duration_s(episode, pace, next_pace) for episode in recent) / max(1, len(recent))


def _duration_s(episode: EpisodeReport, pace: float, next_pace: float) -> float:
    """The same episode at another pace: its periods last as long as the work in them or as that pace wants."""
    work_s = max(0.0, episode.robot_s / pace - episode.slept_s) if pace > 0 else 0.0
    periods_s = episode.robot_s / next_pace if next_pace > 0 else 0.0
    return episode.duration_s - episode.slept_s - work_s + max(work_s, periods_s)


def percentiles(values: Sequence[float] | Sequence[int]) -> dict[str, float]:
    """Return p50 and p95; zeros for no values."""
    p50, p95 = np.percentile(values, [50, 95]) if values else (0.0, 0.0)
    return {"p50": float(p50), "p95": float(p95)}


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step, so that a reader never sees half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
