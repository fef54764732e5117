"""What a run cost its people: the report's sections on human time and on the intervention stages."""

from collections.abc import Mapping, Sequence
from typing import Any

from actor.accounting import PAPER_HUMAN_MINUTES, PAPER_ROBOT_MINUTES, RATE_EPISODES, human_time, intervention_rates
from launch.progress import Progress, Row


def human_section(progress: Progress) -> list[str]:
    """Return the report's section on human time; nothing without episodes."""
    times = human_time(progress.episodes)
    if not times["episodes"]:
        return []
    rows = [_row(name, stage) for name, stage in times["stages"].items()]
    if len(rows) > 1:
        rows.append(_row("**all**", times))
    rates = ", ".join(f"{rate:.0%}" for _, rate in intervention_rates(progress.episodes))
    return [
        "",
        "## Human time",
        "",
        f"A human drove {_minutes(times['human_s'])} of {_minutes(times['robot_s'])} min on the robot "
        f"({_share(times)}). The paper reports about {PAPER_HUMAN_MINUTES:.0f} of {PAPER_ROBOT_MINUTES:.0f} min "
        f"({PAPER_HUMAN_MINUTES / PAPER_ROBOT_MINUTES:.0%}). These are minutes of control steps; resets, evaluations "
        "and whatever the simulation saves by running faster are not in them.",
        "",
        "| | episodes | solved without help | robot min | demonstrations min | interventions min | human share |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"Share of human steps in each {RATE_EPISODES} training episodes: {rates or 'no training episodes'}.",
    ]


def _row(name: str, times: Mapping[str, Any]) -> str:
    unaided = f"{times['unaided_successes']} of {times['unaided_episodes']}" if times["unaided_episodes"] else "-"
    minutes = [_minutes(times[key]) for key in ("robot_s", "demonstration_s", "intervention_s")]
    return f"| {' | '.join([name, str(times['episodes']), unaided, *minutes, _share(times)])} |"


def _minutes(duration_s: float) -> str:
    return f"{duration_s / 60:.1f}"


def _share(times: Mapping[str, Any]) -> str:
    return "?" if times["share"] is None else f"{times['share']:.0%}"


def stages_section(changes: Sequence[Row]) -> list[str]:
    """Return the report's section on changes of stage; nothing when there were none."""
    if not changes:
        return []
    return [
        "",
        "## Stages",
        "",
        "The paper names the four stages and gives no thresholds; those are ours (`[actor.stages]` in `config.toml`).",
        "",
        "| after episode | environment steps | from | to | why |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {row['episode']} | {row['env_steps']:,} | {row['from']} | {row['to']} | {row['reason']} |"
            for row in changes
        ),
    ]
