"""Control rate: absolute deadlines on the monotonic clock, and a histogram of the periods that came out."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Bins grow by 0.1 % from 1 us, so that a quantile is right to 0.1 %, and the memory is the same after a minute and a
# month.
_SHORTEST_S = 1e-6
_GROWTH = 1.001
_NUM_BINS = 20_000  # up to 8 minutes
_LATE_PERIODS = 1.5  # a period longer than this many nominal ones is late
LAPSE_S = 0.3  # in a longer one nobody was at the arm's helm


@dataclass(frozen=True)
class PeriodStatistics:
    """Periods of a control loop, in ms; zeros before the first one."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    overruns: int  # deadlines that had passed before the loop's work was done
    count: int


class RateKeeper:
    """Ends each control period at its deadline.

    Deadlines are absolute, so that the time the work takes does not lengthen the period and errors do not add up. After
    an overrun the next deadline counts from now: late periods are never followed by a burst of short ones.
    """

    def __init__(
        self,
        period_s: float,
        pace: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """pace is the multiple of real time: 1 on a robot; in a simulator also 2, or 0 for as fast as possible."""
        self._nominal_s = period_s / pace if pace > 0 else 0.0
        self._is_real_time = pace == 1.0
        self._clock = clock
        self._sleep = sleep
        self._bins = np.zeros(_NUM_BINS, dtype=np.int64)
        self._max_s = 0.0
        self._slept_s = 0.0
        self._overruns = 0
        self._late_in_a_row = 0
        self._has_lapsed = False
        self.start()

    def start(self) -> None:
        """Begin a period now. Call it before an episode's first step: time between episodes is nobody's period."""
        self._previous_s = self._clock()
        self._deadline_s = self._previous_s + self._nominal_s
        self._late_in_a_row = 0
        self._has_lapsed = False

    def wait(self) -> None:
        """Sleep until the present period's deadline and begin the next one."""
        now_s = self._clock()
        if self._nominal_s > 0:
            if now_s > self._deadline_s:
                self._overruns += 1
                self._deadline_s = now_s
            else:
                done_s = now_s
                self._sleep(self._deadline_s - done_s)
                now_s = self._clock()
                self._slept_s += now_s - done_s
            self._deadline_s += self._nominal_s
        self._record(now_s - self._previous_s)
        self._previous_s = now_s

    @property
    def slept_s(self) -> float:
        """Time since construction in which nothing was left to do but to wait for a deadline."""
        return self._slept_s

    @property
    def late_in_a_row(self) -> int:
        """Number of latest periods, without a break, that were longer than 1.5 nominal ones.

        Always 0 at another pace than real time: a simulated robot waits for its commands, so nothing is late.
        """
        return self._late_in_a_row

    @property
    def has_lapsed(self) -> bool:
        """Whether the latest period was longer than LAPSE_S and than 1.5 nominal ones; never at another pace."""
        return self._has_lapsed

    def statistics(self) -> PeriodStatistics:
        """Return the figures since construction."""
        return PeriodStatistics(
            p50_ms=self._quantile_ms(0.50),
            p99_ms=self._quantile_ms(0.99),
            max_ms=self._max_s * 1e3,
            overruns=self._overruns,
            count=int(self._bins.sum()),
        )

    def _record(self, period_s: float) -> None:
        index = int(math.log(max(period_s, _SHORTEST_S) / _SHORTEST_S, _GROWTH))
        self._bins[min(index, _NUM_BINS - 1)] += 1
        self._max_s = max(self._max_s, period_s)
        is_late = self._is_real_time and period_s > _LATE_PERIODS * self._nominal_s
        self._late_in_a_row = self._late_in_a_row + 1 if is_late else 0
        self._has_lapsed = is_late and period_s > LAPSE_S

    def _quantile_ms(self, quantile: float) -> float:
        total = int(self._bins.sum())
        if total == 0:
            return 0.0
        index = int(np.searchsorted(np.cumsum(self._bins), quantile * total))
        return min(_SHORTEST_S * _GROWTH ** (index + 1), self._max_s) * 1e3
