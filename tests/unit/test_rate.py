"""The rate keeper on a virtual clock."""

import pytest

from actor.rate import RateKeeper


class VirtualTime:
    """A clock that only work and sleep move."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def clock(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        assert duration_s >= 0
        self.now_s += duration_s


@pytest.fixture
def time() -> VirtualTime:
    return VirtualTime()


def run(time: VirtualTime, keeper: RateKeeper, work_s: list[float]) -> list[float]:
    """Return when each period ended, from the start."""
    keeper.start()
    start_s = time.now_s
    ends = []
    for duration_s in work_s:
        time.now_s += duration_s
        keeper.wait()
        ends.append(time.now_s - start_s)
    return ends


def test_work_does_not_lengthen_the_period(time: VirtualTime) -> None:
    keeper = RateKeeper(0.1, 1.0, time.clock, time.sleep)
    ends = run(time, keeper, [0.01, 0.09, 0.05, 0.0])
    assert ends == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert keeper.slept_s == pytest.approx(0.4 - 0.15)
    statistics = keeper.statistics()
    assert (statistics.overruns, statistics.count) == (0, 4)
    assert statistics.p50_ms == pytest.approx(100, rel=0.01)


def test_sleep_that_oversleeps_does_not_shift_later_deadlines(time: VirtualTime) -> None:
    keeper = RateKeeper(0.1, 1.0, time.clock, lambda duration_s: time.sleep(duration_s + 0.002))
    assert run(time, keeper, [0.05] * 50)[-1] == pytest.approx(5.002)


def test_no_burst_of_short_periods_follows_an_overrun(time: VirtualTime) -> None:
    keeper = RateKeeper(0.1, 1.0, time.clock, time.sleep)
    ends = run(time, keeper, [0.35, 0.01, 0.01])
    assert ends == pytest.approx([0.35, 0.45, 0.55])
    assert keeper.statistics().overruns == 1
    assert keeper.statistics().max_ms == pytest.approx(350)


def test_late_periods_in_a_row_are_counted_until_one_is_in_time(time: VirtualTime) -> None:
    keeper = RateKeeper(0.1, 1.0, time.clock, time.sleep)
    run(time, keeper, [0.12, 0.16, 0.2])
    assert keeper.late_in_a_row == 2  # 0.12 s is an overrun, but not 1.5 periods
    time.now_s += 0.01
    keeper.wait()
    assert keeper.late_in_a_row == 0


def test_nothing_is_late_for_a_simulation_that_waits(time: VirtualTime) -> None:
    keeper = RateKeeper(0.1, 2.0, time.clock, time.sleep)
    run(time, keeper, [1.0] * 5)
    assert keeper.late_in_a_row == 0
    assert keeper.statistics().overruns == 5


def test_pace_scales_the_period_and_zero_never_sleeps(time: VirtualTime) -> None:
    assert run(time, RateKeeper(0.1, 4.0, time.clock, time.sleep), [0.01, 0.01]) == pytest.approx([0.025, 0.05])
    lock_step = RateKeeper(0.1, 0.0, time.clock, time.sleep)
    assert run(time, lock_step, [0.003, 0.5]) == pytest.approx([0.003, 0.503])
    statistics = lock_step.statistics()
    assert statistics.max_ms == pytest.approx(500)
    assert statistics.overruns == 0
    assert lock_step.late_in_a_row == 0


def test_time_between_episodes_is_no_period(time: VirtualTime) -> None:
    keeper = RateKeeper(0.1, 1.0, time.clock, time.sleep)
    run(time, keeper, [0.01])
    time.now_s += 30.0
    run(time, keeper, [0.01])
    assert keeper.statistics().max_ms == pytest.approx(100)
    assert keeper.statistics().overruns == 0


def test_quantiles_are_right_to_one_percent(time: VirtualTime) -> None:
    keeper = RateKeeper(0.1, 0.0, time.clock, time.sleep)
    run(time, keeper, [0.001 * (index + 1) for index in range(1000)])
    statistics = keeper.statistics()
    assert statistics.p50_ms == pytest.approx(500, rel=0.012)
    assert statistics.p99_ms == pytest.approx(990, rel=0.012)
    assert statistics.p99_ms <= statistics.max_ms


def test_no_periods_give_zeros(time: VirtualTime) -> None:
    statistics = RateKeeper(0.1, 1.0, time.clock, time.sleep).statistics()
    assert (statistics.p50_ms, statistics.p99_ms, statistics.max_ms, statistics.count) == (0, 0, 0, 0)
