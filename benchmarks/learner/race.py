"""Timing several things in turns, so that whatever else the machine does meets all of them alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

_TURN_S = 0.2  # shorter calls are repeated within a turn: a learner does not empty its caches after each update either
_MIN_ROUNDS = 3


@dataclass(frozen=True)
class Clock:
    """wall: what passes. cpu: what this process ran, which other processes do not lengthen; for one thread."""

    device: str
    is_wall: bool = True

    def now(self) -> float:
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() if self.is_wall else time.process_time()

    def time(self, call: Callable[[], object], repeats: int) -> float:
        """Return the seconds that `repeats` calls take together."""
        begin_s = self.now()
        for _ in range(repeats):
            call()
        return self.now() - begin_s


@dataclass(frozen=True)
class Times:
    """Seconds of one call, one entry for each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)


def race(calls: Mapping[str, Callable[[], object]], clock: Clock, seconds: float) -> dict[str, Times]:
    """Call each in turn, round after round for `seconds` of wall time, at least three rounds.

    Each is called twice before, unmeasured.
    """
    repeats = {}
    for name, call in calls.items():
        clock.time(call, 1)
        repeats[name] = max(1, math.ceil(_TURN_S / clock.time(call, 1)))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end_s = time.perf_counter() + seconds
    names = list(calls)
    while len(taken[names[0]]) < _MIN_ROUNDS or time.perf_counter() < end_s:
        for name in names:
            taken[name].append(clock.time(calls[name], repeats[name]) / repeats[name])
        names.reverse()  # nobody always follows the same one
    return {name: Times(tuple(durations_s)) for name, durations_s in taken.items()}


def median_ratio(numerator: Times, denominator: Times) -> float:
    """Return the median over the rounds of how many times longer the first took than the second in the same round."""
    pairs: Sequence[tuple[float, float]] = list(zip(numerator.seconds, denominator.seconds, strict=True))
    return statistics.median(above / below for above, below in pairs)
