"""The learning curve of a run as a picture."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed; must come before pyplot

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from actor.accounting import RATE_EPISODES, intervention_rates
from launch.progress import SUCCESS_WINDOW, Progress, Row, is_unassisted

_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#6b6b6b"  # distinct also to colour-blind readers
_STAGE_COLORS = {"guidance": _ORANGE, "exploration": _BLUE, "correction": "#f0c24a", "demonstration": "#cc79a7"}
_FEWEST_FOR_A_RATE = 5  # a mean over fewer episodes only jumps


def draw_learning_curve(progress: Progress, title: str, path: Path) -> None:
    """Write a PNG over env steps: success with evaluations, the human share with the stages, the learner's values."""
    figure, (success, human, values) = plt.subplots(
        3, 1, sharex=True, figsize=(8, 8), height_ratios=[3, 1, 1.5], layout="constrained"
    )
    _draw_success(success, progress)
    _draw_human_share(human, progress)
    _draw_values(values, progress)
    success.set_title(title, loc="left", fontsize=12)
    values.set_xlabel("environment steps")
    demonstrations = [row["env_steps"] for row in _initial_demonstrations(progress)]
    for axes in (success, human, values):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_xlim(left=0)
        if demonstrations:
            axes.axvspan(0, demonstrations[-1], color=_GREY, alpha=0.12, lw=0)
    if demonstrations:
        success.annotate(
            "demonstrations", (demonstrations[-1] / 2, 0.5), rotation=90, color=_GREY, ha="center", va="center"
        )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _initial_demonstrations(progress: Progress) -> list[Row]:
    return list(itertools.takewhile(lambda row: row["kind"] == "demonstration", progress.episodes))


def _draw_success(axes: Axes, progress: Progress) -> None:
    unassisted = [row for row in progress.episodes if is_unassisted(row)]
    if len(unassisted) >= _FEWEST_FOR_A_RATE:
        rates = _over_window(unassisted, lambda rows: sum(row["is_success"] for row in rows) / len(rows))
        axes.plot(
            [row["env_steps"] for row in unassisted][_FEWEST_FOR_A_RATE - 1 :],
            rates[_FEWEST_FOR_A_RATE - 1 :],
            color=_BLUE,
            label=f"training episodes without human help, mean of last {SUCCESS_WINDOW}",
        )
    evaluations = [row for row in progress.evaluations if row["episodes"]]
    for kind, marker, size, fill in (("interim", "o", 5, "white"), ("final", "D", 8, _ORANGE)):
        rows = [row for row in evaluations if row["kind"] == kind]
        if rows:
            axes.errorbar(
                [row["env_steps"] for row in rows],
                [row["success_rate"] for row in rows],
                yerr=[
                    [max(0.0, row["success_rate"] - row["wilson_low"]) for row in rows],  # at 0 and 1 rounding
                    [max(0.0, row["wilson_high"] - row["success_rate"]) for row in rows],  # may turn the sign
                ],
                fmt=marker,
                markersize=size,
                markerfacecolor=fill,
                color=_ORANGE,
                capsize=3,
                label=f"{kind} evaluation, 95 % interval",
            )
    axes.set_ylabel("success rate")
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    if axes.has_data():
        axes.legend(loc="best", frameon=True, framealpha=0.9, fontsize=9)
    else:
        axes.text(
            0.5, 0.5, "too few unassisted episodes for a curve", transform=axes.transAxes, ha="center", color=_GREY
        )


def _draw_human_share(axes: Axes, progress: Progress) -> None:
    rates = intervention_rates(progress.episodes)
    training = [row for row in progress.episodes if row["kind"] == "training"]
    if rates:
        first = training[0]["env_steps"] - training[0]["length"]
        edges = [first, *(env_steps for env_steps, _ in rates)]
        axes.stairs([rate for _, rate in rates], edges, fill=True, color=_GREEN, alpha=0.35)
        axes.stairs([rate for _, rate in rates], edges, color=_GREEN)
    axes.set_ylabel(f"human share of\n{RATE_EPISODES} episodes")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    _draw_stages(axes, progress)


def _draw_stages(axes: Axes, progress: Progress) -> None:
    """Draw a band for each run of episodes of one stage along the top of the axes."""
    named: set[str] = set()
    start = 0
    for stage, group in itertools.groupby(progress.episodes, key=lambda row: row["stage"]):
        end = list(group)[-1]["env_steps"]
        if stage is not None:
            label = None if stage in named else stage
            axes.axvspan(start, end, ymin=0.9, color=_STAGE_COLORS[stage], lw=0, label=label)
            named.add(stage)
        start = end
    if named:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.35), ncols=4, frameon=False, fontsize=8)


def _draw_values(axes: Axes, progress: Progress) -> None:
    for key, label, color in (("q_mean", "mean Q", _BLUE), ("target_advantage_mean", "guided advantage", _ORANGE)):
        rows = [row for row in progress.metrics if row.get(key) is not None]
        if rows:
            axes.plot([row["env_steps"] for row in rows], [row[key] for row in rows], color=color, label=label, lw=1.2)
    axes.set_ylabel("scaled return")
    if axes.has_data():
        axes.legend(loc="best", frameon=True, framealpha=0.9, fontsize=9, ncols=2)


def _over_window(rows: Sequence[Row], value: Callable[[Sequence[Row]], float]) -> list[float]:
    return [value(rows[max(0, end - SUCCESS_WINDOW) : end]) for end in range(1, len(rows) + 1)]
