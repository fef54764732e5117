"""How sure a comparison of success rates, times and motions is. Exact where that is possible; no torch.

Checked against hand-computed values in tests/unit/test_statistics.py.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_NORMAL_QUANTILE_95 = 1.959964
_MOST_EXACT_PAIRS = 16  # 65,536 sign patterns; above, as many random ones
_PATTERNS = 1 << _MOST_EXACT_PAIRS
_SAME = 1e-9  # relative: what rounding may make of two equal sums


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a success rate; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    z2 = _NORMAL_QUANTILE_95**2
    rate = successes / trials
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _NORMAL_QUANTILE_95 * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, min(rate, centre - half)), min(
        1.0, max(rate, centre + half)
    )  # rounding must not leave the rate out


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test for paired successes.

    Args:
        only_first: pairs in which only the first of the two succeeded.
        only_second: pairs in which only the second did. If both are equally good, either kind is as likely: the p-value
            is that of a fair coin. Pairs with equal outcomes say nothing. 1 without any differing pair.
    """
    differing = only_first + only_second
    tail = sum(math.comb(differing, count) for count in range(min(only_first, only_second) + 1))
    return min(1.0, math.ldexp(tail, 1 - differing))


def fisher_exact(successes: tuple[int, int], trials: tuple[int, int]) -> float:
    """Return the two-sided p-value of Fisher's exact test for two success rates without pairs.

    Sums the hypergeometric probabilities of all tables with the same margins that are no likelier than this one.
    """
    total, total_successes = sum(trials), sum(successes)
    lowest, highest = max(0, total_successes - trials[1]), min(trials[0], total_successes)
    # Numbers of ways, as integers: equal ones compare equal, whatever the division would round.
    ways = [
        math.comb(trials[0], first) * math.comb(trials[1], total_successes - first)
        for first in range(lowest, highest + 1)
    ]
    observed = ways[successes[0] - lowest]
    return sum(way for way in ways if way <= observed) / math.comb(total, total_successes)


def sign_flip_test(differences: Sequence[float]) -> float:
    """Return the two-sided p-value that paired differences have mean 0, by flipping their signs.

    If the two of a pair may be exchanged, each difference is as likely with the other sign: the p-value is the share of
    sign patterns whose sum is at least as far from 0 as the observed one. All patterns up to 16 pairs; beyond that
    65,536 random ones (a fixed seed, so that it repeats) and the observed one (Phipson and Smyth 2010). 1 without
    pairs.
    """
    if not differences:
        return 1.0
    values = np.asarray(differences, dtype=np.float64)
    limit = abs(values.sum()) - _SAME * np.abs(values).sum()
    if len(values) <= _MOST_EXACT_PAIRS:
        patterns = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ values) >= limit))
    signs = np.random.default_rng(0).integers(2, size=(_PATTERNS, len(values)), dtype=np.int8)
    as_far = int(np.count_nonzero(np.abs((1 - 2 * signs) @ values) >= limit))
    return (as_far + 1) / (_PATTERNS + 1)


def rms_jerk(samples: NDArray[np.floating], period_s: float) -> float | None:
    """Return the root of the mean squared norm of the third difference of `samples` (T, D), over period_s cubed.

    sqrt(mean_k |x[k+3] - 3 x[k+2] + 3 x[k+1] - x[k]|^2) / period_s^3: m/s^3 for positions in m. None for fewer than
    four samples. It grows with the sampling rate wherever motion is rougher than the samples: compare equal rates only.
    """
    if len(samples) < 4:
        return None
    third = np.diff(np.asarray(samples, dtype=np.float64), n=3, axis=0)
    return float(np.sqrt(np.mean(np.sum(third**2, axis=1)))) / float(period_s**3)
