"""Keeps a simulation that is faster than real time from outrunning its learner. Never used on a robot."""

import time
from collections.abc import Callable

_POLL_S = 0.02
_MENTION_AFTER_S = 3.0


class VersionThrottle:
    """A budget of training steps that each published version of the weights tops up.

    It waits between episodes, and never for ever: after max_wait_s one more episode may start, so that neither a
    learner that still waits for its first transitions nor one that is gone can stop the actor.
    """

    def __init__(
        self,
        steps_per_version: int,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """steps_per_version = 0 never waits."""
        self._steps_per_version = steps_per_version
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._sleep = sleep
        self._budget = steps_per_version
        self._version: int | None = None

    def spend(self, steps: int) -> None:
        """Account for training steps made."""
        self._budget -= steps

    def wait(
        self,
        newest_version: Callable[[], int],
        should_stop: Callable[[], bool],
        mention: Callable[[], None] = lambda: None,
    ) -> None:
        """Wait until there is budget for another episode; call mention() once when that takes long."""
        start_s = self._clock()
        deadline_s, is_mentioned = start_s + self._max_wait_s, False
        while self._steps_per_version > 0:
            self._top_up(newest_version())
            if self._budget > 0 or should_stop() or self._clock() >= deadline_s:
                return
            if not is_mentioned and self._clock() - start_s >= _MENTION_AFTER_S:
                is_mentioned = True
                mention()
            self._sleep(_POLL_S)

    def _top_up(self, version: int) -> None:
        if self._version is not None and version > self._version:
            self._budget += (version - self._version) * self._steps_per_version
        self._version = version
