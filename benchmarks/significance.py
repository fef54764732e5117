"""What the seeds of two variants say about the difference between them."""

import math
import statistics
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence

from benchmarks.mujoco.curves import Curve
from benchmarks.mujoco.groups import Group

SIGNIFICANT = 0.05
"""Chance below which a difference counts."""


def area(curve: Curve, candidates: int) -> float:
    """Return the mean return of all evaluations: the area under the curve over its length."""
    return statistics.fmean(value for _, value in curve.returns(candidates))


def chance(values: Sequence[float], others: Sequence[float]) -> float:
    """Return how often the ranks would be shared out this unevenly by chance alone: the exact rank-sum test, two-sided.

    Of n values in all, each of the ways to choose which `len(values)` are the first is equally likely (Mann, Whitney).
    """
    pooled = sorted([*values, *others])
    # Twice a rank, so that those of equal values, the mean of theirs, are whole numbers too.
    rank = {value: bisect_left(pooled, value) + bisect_right(pooled, value) + 1 for value in pooled}
    ways: list[Counter[int]] = [Counter({0: 1})] + [Counter() for _ in values]  # of each size: subsets by sum of ranks
    for value in pooled:
        for size in range(len(values), 0, -1):
            ways[size] += Counter({total + rank[value]: count for total, count in ways[size - 1].items()})
    centre = len(values) * (len(pooled) + 1)
    off = abs(sum(rank[value] for value in values) - centre)
    uneven = sum(count for total, count in ways[-1].items() if abs(total - centre) >= off)
    return uneven / math.comb(len(pooled), len(values))


def verdict(values: Sequence[float], others: Sequence[float]) -> str:
    """Say whether values are better or worse than others more clearly than chance would often have it."""
    if 2 / math.comb(len(values) + len(others), len(values)) >= SIGNIFICANT:
        return "too few seeds"
    probability = chance(values, others)
    if probability >= SIGNIFICANT:
        return f"not told apart ({probability:.0%})"
    pairs_won = sum((value > other) - (value < other) for value in values for other in others)
    return f"**{'better' if pairs_won > 0 else 'worse'}** ({probability:.1%})"


def compare(group: Group, other: Group) -> tuple[str, str]:
    """Return the verdict on the area under the curve, and that of pairs; none while not all have been evaluated at the
    same steps."""
    curves = [(curve, each.headline) for each in (group, other) for curve in each.curves]
    if len({tuple(step for step, _ in curve.returns(count)) for curve, count in curves}) > 1:
        return "not at the same steps", ""
    own, others = ({curve.seed: area(curve, each.headline) for curve in each.curves} for each in (group, other))
    pairs = [(own[seed], others[seed]) for seed in own.keys() & others.keys()]
    return verdict([*own.values()], [*others.values()]), seed_by_seed(pairs)


def seed_by_seed(pairs: Sequence[tuple[float, float]]) -> str:
    """Say in how many pairs the first is lower, and how often a fair coin is as one-sided: the exact sign test."""
    lower, higher = sum(value < other for value, other in pairs), sum(value > other for value, other in pairs)
    count = lower + higher
    if not count:
        return "no pair differs" if pairs else "no pair"
    tail = sum(math.comb(count, fewer) for fewer in range(min(lower, higher) + 1))
    return f"lower in {lower} of {count} ({min(1, 2 * tail / 2**count):.1%})"
