"""Plots of an evaluation. Imported only where matplotlib is installed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from actor.trials import Trial

_COLORS = {"A": "#0072b2", "B": "#d55e00"}  # distinct also to colour-blind readers
_GREY = "#9a9a9a"
_TITLES = {
    "cycle_time_s": "cycle time, s",
    "ee_jerk_m_s3": "jerk of the end effector, m/s³",
    "action_jerk_s3": "jerk of the actions, 1/s³",
}
_SPREAD = 0.12  # half the width of a strip of points


def draw_success(path: Path, report: Mapping[str, Any]) -> None:
    """Draw each policy's success rate with its interval."""
    figure = Figure(figsize=(3.2 + 0.8 * len(report["policies"]), 3.4), layout="constrained")
    axes = figure.subplots()
    for column, (label, figures) in enumerate(report["policies"].items()):
        rate = figures["success_rate"]
        interval = [[max(0.0, rate - figures["wilson_low"])], [max(0.0, figures["wilson_high"] - rate)]]
        axes.errorbar([column], [rate], yerr=interval, fmt="o", color=_COLORS[label], capsize=6, markersize=8)
        count = f"{figures['successes']} of {figures['episodes']}"
        axes.annotate(count, (column, rate), xytext=(12, -4), textcoords="offset points")
    _name_columns(axes, list(report["policies"]))
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("success without help, 95 % interval")
    figure.savefig(path, dpi=130)


def draw_motion(path: Path, report: Mapping[str, Any], trials: Sequence[tuple[str, Trial]]) -> None:
    """Draw cycle times and jerk of the successful trials; a line joins two that began at the same start state."""
    labels = list(report["policies"])
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(_TITLES)), _TITLES.items(), strict=True):
        by_start: dict[int, list[tuple[float, float]]] = {}
        for column, label in enumerate(labels):
            points = [
                (trial.start, getattr(trial, name))
                for policy, trial in trials
                if policy == label and trial.is_success and getattr(trial, name) is not None
            ]
            xs = column + _spread(len(points))
            values = [value for _, value in points]
            axes.scatter(xs, values, s=18, color=_COLORS[label], alpha=0.75, zorder=3)
            for x, (start, value) in zip(xs, points, strict=True):
                by_start.setdefault(start, []).append((x, value))
            if values:
                axes.hlines(
                    np.median(values), column - 0.3, column + 0.3, color=_COLORS[label], lw=6, alpha=0.3, zorder=2
                )
            else:
                axes.annotate("no success", (column, 0.5), xycoords=("data", "axes fraction"), ha="center", color=_GREY)
        for joined in by_start.values():
            axes.plot([x for x, _ in joined], [value for _, value in joined], color=_GREY, lw=0.6, alpha=0.6)
        _name_columns(axes, labels)
        axes.set_title(title, loc="left", fontsize=10)
        axes.margins(y=0.1)
        axes.set_ylim(bottom=0)
        if not by_start:
            axes.set_yticks([])
    figure.suptitle("successful trials; bar: median, line: same start state", fontsize=9, color="#555555")
    figure.savefig(path, dpi=130)


def _name_columns(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)


def _spread(count: int) -> NDArray[np.float64]:
    """Return offsets that keep points of one column apart, in the order of the trials."""
    return np.linspace(-_SPREAD, _SPREAD, count) if count > 1 else np.zeros(count)
