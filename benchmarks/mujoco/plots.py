"""Pictures of a task: learning curves beside published ones, and the critic contrast."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed; must come before pyplot

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from benchmarks.mujoco import references
from benchmarks.mujoco.groups import NAMES, Group
from policy.files import make_folder

# Okabe and Ito's colours, distinct also to colour-blind readers.
_COLORS = {
    "cgpo": "#d55e00",
    "sac": "#0072b2",
    "td3": "#56b4e9",
    "tqc": "#009e73",
    "qvpo": "#cc79a7",
    "dipo": "#e69f00",
}
_GREY = "#6b6b6b"
_DASHES = ("-", "--", "-.", (0, (1, 1)))  # of an algorithm's variants
_MARKERS = ("", "s", "^", "D")  # the same where dashes mean something else
_LABEL_GAP = 0.055  # of the axes' height, between two labels

Points = list[tuple[int, float]]
Dashes = str | tuple[int, tuple[int, int]]


def draw_task(task: str, groups: Sequence[Group], folder: Path) -> list[Path]:
    """Write the pictures of a task into `folder` and return their paths."""
    make_folder(folder)
    pictures = [folder / "learning_curves.png"]
    _draw_learning_curves(task, groups, pictures[0])
    measured = [group for group in groups if any(curve.measured("contrast") for curve in group.curves)]
    if measured:
        pictures.append(folder / "critic_contrast.png")
        _draw_contrast(task, measured, pictures[1])
    return pictures


def common_points(series: Sequence[Points]) -> list[tuple[int, list[float]]]:
    """Return the values of all seeds at each step that all of them have."""
    tables = [dict(points) for points in series]
    steps = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    return [(step, [table[step] for table in tables]) for step in steps]


def _draw_learning_curves(task: str, groups: Sequence[Group], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(11, 5.5), layout="constrained")
    ends: list[tuple[float, str, str]] = []
    for group, color, number in _styled(groups):
        series = [curve.returns(group.headline) for curve in group.curves]
        end = _draw_band(axes, [points for points in series if points], color, _DASHES[number])
        if end is not None:
            ends.append((end, f"{group.label}, K_e {group.headline}, n = {len(group.curves)}", color))
    last_step = max(curve.env_step for group in groups for curve in group.curves)
    axes.set_xlim(0, last_step)
    handles = [
        Line2D([], [], color=_GREY, lw=2, label="mean over n seeds, band from the least to the greatest"),
        Line2D([], [], color=_GREY, lw=0.7, alpha=0.6, label="one seed"),
        *_draw_published(axes, task, last_step),
    ]
    _label_ends(axes, ends)
    axes.set_title(f"{task}: mean return of an evaluation", loc="left", fontsize=12)
    axes.set_ylabel("return")
    _finish(axes)
    figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize=8, ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_contrast(task: str, groups: Sequence[Group], path: Path) -> None:
    """Draw max minus mean of 64 samples' values, and the guided action's value minus that mean (CGPO Eq 9, Fig 9)."""
    figure, (absolute, relative) = plt.subplots(2, 1, sharex=True, figsize=(11, 7.5), layout="constrained")
    for axes, is_relative in ((absolute, False), (relative, True)):
        ends: list[tuple[float, str, str]] = []
        for group, color, number in _styled(groups):
            for column, what, dashes in (("contrast", "best sample", "-"), ("guided_contrast", "guided action", "--")):
                series = [
                    _contrast(curve.measured(column), curve.measured("value_std"), is_relative)
                    for curve in group.curves
                ]
                drawn = [points for points in series if points]
                end = _draw_band(axes, drawn, color, dashes, _MARKERS[number])
                if end is not None:
                    ends.append((end, f"{group.label}: {what}", color))
        axes.set_xlim(0, max(curve.env_step for group in groups for curve in group.curves))
        _label_ends(axes, ends)
        _finish(axes)
    absolute.set_title(
        f"{task}: critic contrast, value above the mean of the policy's samples", loc="left", fontsize=12
    )
    absolute.set_ylabel("discounted return")
    relative.set_ylabel("share of the values' standard\ndeviation over states and samples")
    absolute.set_xlabel("")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _contrast(points: Points, spread: Points, is_relative: bool) -> Points:
    if not is_relative:
        return points
    at = dict(spread)
    return [(step, value / at[step]) for step, value in points if at.get(step)]


def _draw_band(axes: Axes, series: Sequence[Points], color: str, dashes: Dashes, marker: str = "") -> float | None:
    """Draw seeds, their mean and range; return where the line ends, None if there is nothing to draw."""
    if not series:
        return None
    if len(series) > 1:
        for points in series:
            axes.plot(*zip(*points, strict=True), color=color, lw=0.7, alpha=0.45, ls=dashes)
    common = common_points(series)
    if not common:
        return series[0][-1][1]
    steps = [step for step, _ in common]
    means = [statistics.fmean(values) for _, values in common]
    axes.plot(steps, means, color=color, lw=2, ls=dashes, marker="o" if len(common) == 1 else marker, markersize=4)
    if len(series) > 1:
        lows, highs = [min(values) for _, values in common], [max(values) for _, values in common]
        axes.fill_between(steps, lows, highs, color=color, alpha=0.15, lw=0)
    return means[-1]


def _draw_published(axes: Axes, task: str, last_step: int) -> list[Line2D]:
    """Draw the published curves as far as ours reach; return what the legend says of them."""
    handles = []
    for algorithm, returns in references.zoo_curves(task).items():
        points = [pair for pair in zip(references.CURVE_STEPS, returns, strict=True) if pair[0] <= last_step]
        if points:
            steps, values = zip(*points, strict=True)
            label = f"{NAMES[algorithm]}, published: Stable-Baselines3, v3, one run"
            handles += axes.plot(
                steps,
                values,
                color=_COLORS[algorithm],
                ls=":",
                lw=1,
                marker="o",
                mfc="white",
                ms=6,
                zorder=3,
                label=label,
            )
    return handles


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's label beside its end, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    ordered = sorted(ends)
    heights = spread_out([(end - low) / (high - low) for end, _, _ in ordered], _LABEL_GAP)
    for height, (_, label, color) in zip(heights, ordered, strict=True):
        axes.annotate(
            label, (1.0, height), (6, 0), xycoords="axes fraction", textcoords="offset points", color=color,
            va="center", fontsize=9, annotation_clip=False,
        )  # fmt: skip


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights apart by at least `gap`, no further up than 1 as long as there is room below."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    limit = 1.0
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - gap
    return placed


def _styled(groups: Sequence[Group]) -> list[tuple[Group, str, int]]:
    """Give each algorithm its colour and number its variants; where there is one algorithm, colour its variants."""
    if len({group.first.algorithm for group in groups}) == 1:
        colors = [*_COLORS.values()]
        return [
            (group, colors[index % len(colors)], index // len(colors) % len(_DASHES))
            for index, group in enumerate(groups)
        ]
    seen: dict[str, int] = {}
    styled = []
    for group in groups:
        number = seen[group.first.algorithm] = seen.get(group.first.algorithm, -1) + 1
        styled.append((group, _COLORS.get(group.first.algorithm, _GREY), number % len(_DASHES)))
    return styled


def _finish(axes: Axes) -> None:
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.6g}"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
