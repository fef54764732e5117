"""What the actor says about its work: episode lines, the episode log of a run folder, and the summary's numbers."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from policy.errors import ConfigError

EpisodeKind = Literal["demonstration", "training"]


@dataclass(frozen=True, kw_only=True)
class EpisodeReport:
    """One finished episode."""

    episode: int  # 0, 1, ... within the run folder, over restarts of the actor
    kind: EpisodeKind
    is_success: bool
    length: int  # steps
    episode_return: float
    duration_s: float  # wall time
    interventions: int  # number of take-overs
    intervention_steps: int
    clipped_steps: int  # steps that the safety gate changed
    weights_version: int
    weights_age_s: float  # in its last step, since the learner published them; 0 for version 0
    backlog: int  # transitions that the learner had not acknowledged at its end
    stopped: bool  # closed early by a stop request


def episode_line(report: EpisodeReport, control_rate_hz: float, loop_p99_ms: float) -> str:
    """Return the line shown after each episode. Its seconds are the robot's: steps over control rate."""
    percent = 100 * report.intervention_steps / max(1, report.length)
    verdict = "SUCCESS" if report.is_success else "STOPPED" if report.stopped else "FAILURE"
    return "  ".join(
        [
            f"{'demo' if report.kind == 'demonstration' else 'ep'} {report.episode:03d} {verdict} "
            f"{report.length / control_rate_hz:.1f} s",
            f"interv {report.interventions} ({percent:.0f} %)",
            f"return {report.episode_return:.1f}",
            f"policy v{report.weights_version}",
            f"loop p99 {loop_p99_ms:.0f} ms",
            f"backlog {report.backlog}",
        ]
    )


def append_json_line(path: Path, record: Any) -> None:
    """Append a dataclass as one JSON line, readable as soon as this returns."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def read_episodes(path: Path) -> list[EpisodeReport]:
    """Return the episodes that earlier processes of this run finished.

    Removes what a crash left of a last line, so that the next one starts on its own. Raises ConfigError when another
    line is no episode.
    """
    drop_torn_line(path)
    if not path.exists():
        return []
    try:
        return [EpisodeReport(**json.loads(line)) for line in path.read_text().splitlines()]
    except (json.JSONDecodeError, TypeError) as error:
        raise ConfigError(
            f"{path} is not the episode list of this version of the actor: {error}. Choose another --run-dir, or move "
            "that one away."
        ) from error


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


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p50 and p95; zeros for no values."""
    p50, p95 = np.percentile(values, [50, 95]) if values else (0.0, 0.0)
    return {"p50": float(p50), "p95": float(p95)}


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step, so that a reader never sees half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)
