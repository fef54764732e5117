"""Statistics of an evaluation against values worked out by hand."""

import math

import numpy as np
import pytest

from actor.statistics import fisher_exact, mcnemar_exact, rms_jerk, sign_flip_test, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(16, 20, 0.584, 0.919), (13, 20, 0.433, 0.819), (0, 10, 0.0, 0.278), (10, 10, 0.722, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-4)


def test_the_interval_holds_the_rate_to_the_last_bit() -> None:
    for trials in range(1, 101):
        for successes in (0, 1, trials - 1, trials):
            low, high = wilson_interval(successes, trials)
            assert 0 <= low <= successes / trials <= high <= 1


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),  # 2 (1 + 6 + 15 + 20) / 64 > 1
        (5, 0, 2 / 32),
        (1, 8, 2 * (1 + 9) / 512),
        (8, 1, 2 * (1 + 9) / 512),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
    ],
)
def test_mcnemar_is_a_coin_over_the_differing_pairs(only_first: int, only_second: int, expected: float) -> None:
    assert mcnemar_exact(only_first, only_second) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    [
        # Fisher's lady tasting tea: 4 of 4 cups, and 3 of 4; tables weigh 1, 16, 36, 16, 1 of 70.
        ((4, 0), (4, 4), 2 / 70),
        ((3, 1), (4, 4), 34 / 70),
        ((2, 2), (4, 4), 1.0),
        # Margins 3 + 5, 4 successes: k of the 3 weigh C(3,k) C(5,4-k) = 5, 30, 30, 5 of 70.
        ((3, 1), (3, 5), 10 / 70),
        ((0, 0), (5, 7), 1.0),
        ((5, 7), (5, 7), 1.0),
        ((0, 0), (0, 0), 1.0),
    ],
)
def test_fisher_sums_the_tables_no_likelier(
    successes: tuple[int, int], trials: tuple[int, int], expected: float
) -> None:
    assert fisher_exact(successes, trials) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([], 1.0),
        ([0.3], 1.0),
        ([1.0, 2.0, 3.0], 2 / 8),  # only +++ and --- reach 6
        ([1.0, -2.0, 3.0], 6 / 8),  # sums 6, 4, 2, 0 with either sign; |2| and more
        ([0.1, 0.2, -0.3], 1.0),  # sums to 0, or nearly in floating point
        ([0.0, 0.0, 0.0], 1.0),
        ([1.0] * 10, 2 / 1024),
    ],
)
def test_sign_flips_by_hand(differences: list[float], expected: float) -> None:
    assert sign_flip_test(differences) == expected


def test_many_pairs_are_sampled_repeatably_and_close_to_the_exact_value() -> None:
    # All ones: |sum| >= 8 of 20 means at least 14 or at most 6 signs alike.
    differences = [1.0] * 14 + [-1.0] * 6
    exact = 2 * sum(math.comb(20, count) for count in range(7)) / 2**20
    sampled = sign_flip_test(differences)
    assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact / 65_536))
    assert sign_flip_test(differences) == sampled
    assert sign_flip_test([1.0] * 60) == 1 / 65_537  # never 0: the observed pattern is one of them


def test_jerk_of_a_cubic_is_its_third_derivative() -> None:
    times_s = np.arange(12) * 0.05
    position = np.stack([2 * times_s**3, 1 - times_s**3, 4 * times_s**2 - times_s], axis=1)  # jerk (12, -6, 0) m/s^3
    assert rms_jerk(position, 0.05) == pytest.approx(math.sqrt(12**2 + 6**2), rel=1e-6)
    assert rms_jerk(np.arange(20.0)[:, None] ** 2, 0.1) == pytest.approx(0.0, abs=1e-6)
    assert rms_jerk(position[:3], 0.05) is None


def test_jerk_by_hand() -> None:
    # Third differences of 0 0 0 1 0: 1 and -3 - 0 = -3 (0 - 3 * 1 + 3 * 0 - 0).
    assert rms_jerk(np.array([[0.0], [0.0], [0.0], [1.0], [0.0]]), 0.1) == pytest.approx(math.sqrt(5.0) * 1000)
