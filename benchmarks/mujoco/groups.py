"""Runs of the same configuration, measured alike: the rows of the table and the lines of the pictures."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from benchmarks.mujoco.curves import Curve
from benchmarks.mujoco.values import is_reduction

NAMES = {"cgpo": "CGPO", "sac": "SAC", "td3": "TD3", "tqc": "TQC", "qvpo": "QVPO", "dipo": "DIPO"}
_MOST_OFF_STEP = 0.05  # an evaluation this share of the step earlier still counts as one at the step


@dataclass(frozen=True)
class Group:
    """The seeds of one task, algorithm and variant, of the same configuration, measured alike."""

    curves: tuple[Curve, ...]
    mark: str = ""
    """What tells it from a group of the same task whose label would be the same."""

    @property
    def first(self) -> Curve:
        return self.curves[0]

    @property
    def name(self) -> str:
        """Algorithm, and what was set differently from its preset."""
        name = NAMES.get(self.first.algorithm, self.first.algorithm)
        return ", ".join([name, *self.first.overrides])

    @property
    def label(self) -> str:
        label = f"{self.name} (reduced)" if self.first.is_reduced else self.name
        return f"{label} [{self.mark}]" if self.mark else label

    @property
    def is_papers(self) -> bool:
        """Whether it is the paper's algorithm, at its size or a smaller one."""
        changes = self.first.differences.items()
        return not self.first.overrides and all(is_reduction(name, *pair) for name, pair in changes)

    @property
    def candidates(self) -> tuple[int, ...]:
        """K_e of all its runs, the headline first."""
        return tuple(dict.fromkeys(count for curve in self.curves for count in curve.candidates))

    @property
    def headline(self) -> int:
        """K_e of every evaluation."""
        return self.candidates[0]

    def best(self, candidates: int) -> list[float]:
        """Return each seed's best evaluation so far."""
        return [max(values) for values in self._returns(candidates)]

    def last_tenth(self, candidates: int) -> list[float]:
        """Return each seed's mean over the last tenth of its evaluations, at least one."""
        return [statistics.fmean(values[-math.ceil(len(values) / 10) :]) for values in self._returns(candidates)]

    def num_evaluations(self, candidates: int) -> list[int]:
        return [len(values) for values in self._returns(candidates)]

    def at(self, step: int, candidates: int) -> list[float]:
        """Return the seeds' returns at the last evaluation at `step` or shortly before it; not all may be there yet."""
        found = []
        for curve in self.curves:
            near = [value for at, value in curve.returns(candidates) if (1 - _MOST_OFF_STEP) * step < at <= step]
            found += near[-1:]
        return found

    def _returns(self, candidates: int) -> list[list[float]]:
        every = ([value for _, value in curve.returns(candidates)] for curve in self.curves)
        return [values for values in every if values]


def group_curves(curves: Iterable[Curve]) -> dict[str, list[Group]]:
    """Return the groups of each task, in the order of NAMES; curves without an evaluation are left out."""
    order = [*NAMES]

    def key(curve: Curve) -> tuple[str, int, str, str, str]:
        rank = order.index(curve.algorithm) if curve.algorithm in order else len(order)
        return curve.task, rank, curve.algorithm, curve.variant, curve.digest

    measured = sorted((curve for curve in curves if curve.rows), key=lambda curve: (*key(curve), curve.seed))
    groups = [Group(tuple(members)) for _, members in groupby(measured, key)]
    labels = Counter((group.first.task, group.label) for group in groups)
    told_apart = [
        replace(group, mark=group.first.digest) if labels[group.first.task, group.label] > 1 else group
        for group in groups
    ]
    return {task: list(own) for task, own in groupby(told_apart, lambda group: group.first.task)}
