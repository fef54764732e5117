"""The learning curve of a run as a picture."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed; must come before pyplot

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from launch.progress import SUCCESS_WINDOW, Progress, Row, intervention_share, is_unassisted

_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#6b6b6b"  # distinct also to colour-blind readers
_FEWEST_FOR_A_RATE = 5  # a mean over fewer episodes only jumps


def draw_learning_curve(progress: Progress, title: str, path: Path) -> None:
    """Write a PNG: success with evaluations, share of human steps, and the learner's values, all over env steps."""
    figure, (success, human, values) = plt.subplots(
        3, 1, sharex=True, figsize=(8, 8), height_ratios=[3, 1, 1.5], layout="constrained"
    )
    _draw_success(success, progress)
    _draw_human_share(human, progress)
    _draw_values(values, progress)
    success.set_title(title, loc="left", fontsize=12)
    values.set_xlabel("environment steps")
    demonstrations = [row["env_steps"] for row in progress.demonstrations]
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
        axes.legend(loc="lower right", frameon=True, framealpha=0.9, fontsize=9)
    else:
        axes.text(
            0.5, 0.5, "too few unassisted episodes for a curve", transform=axes.transAxes, ha="center", color=_GREY
        )


def _draw_human_share(axes: Axes, progress: Progress) -> None:
    training = [row for row in progress.episodes if row["kind"] == "training"]
    shares = _over_window(training, lambda rows: intervention_share(rows) or 0.0)
    axes.fill_between([row["env_steps"] for row in training], shares, color=_GREEN, alpha=0.35, lw=0)
    axes.plot([row["env_steps"] for row in training], shares, color=_GREEN)
    axes.set_ylabel("human share\nof steps")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))


def _draw_values(axes: Axes, progress: Progress) -> None:
    for key, label, color in (("q_mean", "mean Q", _BLUE), ("target_advantage_mean", "guided advantage", _ORANGE)):
        rows = [row for row in progress.metrics if row.get(key) is not None]
        if rows:
            axes.plot([row["env_steps"] for row in rows], [row[key] for row in rows], color=color, label=label, lw=1.2)
    axes.set_ylabel("scaled return")
    if axes.has_data():
        axes.legend(loc="upper left", frameon=True, framealpha=0.9, fontsize=9, ncols=2)


def _over_window(rows: Sequence[Row], value: Callable[[Sequence[Row]], float]) -> list[float]:
    return [value(rows[max(0, end - SUCCESS_WINDOW) : end]) for end in range(1, len(rows) + 1)]
