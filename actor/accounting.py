"""Human time: how long a person drove the robot, in which stage, and against what the paper reports. No torch."""

from collections.abc import Iterable, Mapping
from typing import Any

PAPER_HUMAN_MINUTES = 20.0
PAPER_ROBOT_MINUTES = 60.0
"""The paper's figures for one training run: about 20 minutes of human help in about an hour (section 5.3)."""

RATE_EPISODES = 10  # training episodes to each point of the intervention-rate curve

Row = Mapping[str, Any]  # a line of episodes.jsonl (actor.report.EpisodeReport)


def stage_name(row: Row) -> str:
    """Return an episode's stage; without stages, what kind of episode it is."""
    return row["stage"] or ("demonstrations" if row["kind"] == "demonstration" else "training")


def human_time(rows: Iterable[Row]) -> dict[str, Any]:
    """Return times on the robot in s, in total and by stage in the order of their first episodes.

    Episodes that were discarded count too: the person spent that time. Pauses are nobody's driving.
    """
    episodes = list(rows)
    by_stage: dict[str, list[Row]] = {}
    for row in episodes:
        by_stage.setdefault(stage_name(row), []).append(row)
    return {**_times(episodes), "stages": {name: _times(of_stage) for name, of_stage in by_stage.items()}}


def _times(rows: list[Row]) -> dict[str, Any]:
    demonstration_s = sum(row["human_s"] for row in rows if row["kind"] == "demonstration")
    human_s, robot_s = sum(row["human_s"] for row in rows), sum(row["robot_s"] for row in rows)
    unaided = [row for row in rows if row["kind"] == "training" and row["intervention_steps"] == 0]
    return {
        "episodes": len(rows),
        "unaided_episodes": len(unaided),
        "unaided_successes": sum(row["is_success"] for row in unaided),
        "robot_s": robot_s,
        "human_s": human_s,
        "demonstration_s": demonstration_s,
        "intervention_s": human_s - demonstration_s,
        "share": human_s / robot_s if robot_s else None,
    }


def intervention_rates(rows: Iterable[Row]) -> list[tuple[int, float]]:
    """Return (env_steps at its end, share of human steps) of each RATE_EPISODES training episodes; the last may be few.

    Rows need `env_steps`, the steps on the robot up to each row's end.
    """
    training = [row for row in rows if row["kind"] == "training" and row["length"]]
    groups = [training[start : start + RATE_EPISODES] for start in range(0, len(training), RATE_EPISODES)]
    return [
        (group[-1]["env_steps"], sum(row["intervention_steps"] for row in group) / sum(row["length"] for row in group))
        for group in groups
    ]
