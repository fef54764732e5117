"""Both ends of the link at ten times a robot's rate: everything arrives, and neither end's memory grows with it.

A short form of benchmarks/soak.py, with a bound that a leak of every sixth record exceeds.
"""

from pathlib import Path

import pytest

from benchmarks.soak import slope, soak

SECONDS = 16.0
RATE_HZ = 200.0  # of records of about 60 kB: 12 MB/s
WARM_UP_S = 4.0
MAX_GROWTH_BYTES_PER_S = 2_000_000.0  # over so few seconds, noise reaches 0.4 MB/s


def test_memory_stays_flat_at_ten_times_the_rate_while_the_learner_is_killed(tmp_path: Path) -> None:
    result = soak(tmp_path, SECONDS, RATE_HZ, restarts=1)
    assert result.offered > SECONDS * RATE_HZ / 4, "too slow to say anything"
    assert (result.logged, result.lost, result.duplicated) == (result.offered, 0, 0)
    assert result.reconnects >= 1
    assert result.actor_growth(WARM_UP_S) < MAX_GROWTH_BYTES_PER_S
    assert result.ingest_growth(WARM_UP_S) < MAX_GROWTH_BYTES_PER_S


def test_the_slope_is_that_within_the_lives_of_processes() -> None:
    first = [(float(second), 1000 + 30 * second) for second in range(10)]
    second = [(float(second), 10 + 30 * second) for second in range(20, 30)]
    assert slope([first, second]) == pytest.approx(30.0)
    with pytest.raises(ValueError, match="run longer"):
        slope([[(0.0, 1)]])
