"""What the operator must hear about the learner: that it is away, that it refuses steps, that it raises an alarm."""

import time
from collections.abc import Callable

from actor.link import Link
from actor.spool import Spool

_PERIOD_S = 10.0


class LearnerNews:
    """Says what is new. Asked between episodes."""

    def __init__(self, link: Link, spool: Spool, learner: str, say: Callable[[str], None]) -> None:
        """learner: its address, as configured."""
        self._link = link
        self._spool = spool
        self._learner = learner
        self._say = say
        self._next_absence_s = time.monotonic()
        self._said_alarm = ""
        self._said_refused = 0
        self._said_archive: str | None = None

    def tell(self) -> None:
        """Say each alarm and each refusal once, and now and then that steps pile up."""
        statistics, now_s = self._link.statistics, time.monotonic()
        if statistics.alarm != self._said_alarm:
            self._said_alarm = statistics.alarm
            self._say(
                f"ALARM of the learner: {statistics.alarm}" if statistics.alarm else "the learner's alarm is over"
            )
        if statistics.refused > self._said_refused:
            self._said_refused = statistics.refused
            self._say(f"ALARM: {self.refusals()}")
        if self._spool.archive_problem != self._said_archive:
            self._said_archive = self._spool.archive_problem
            self._say(f"ALARM: {self._said_archive}" if self._said_archive else "demonstrations are archived again")
        if statistics.is_connected or self._link.refusal is not None or now_s < self._next_absence_s:
            return
        self._next_absence_s = now_s + _PERIOD_S
        self._say(
            f"learner {self._learner} is not connected ({statistics.last_error or 'no answer yet'}): "
            f"{self._spool.pending} steps wait in the spool, the actor goes on"
        )

    def refusals(self) -> str:
        """Return what is to be said about refused records; empty when there are none."""
        statistics = self._link.statistics
        if not statistics.refused:
            return ""
        return (
            f"the learner refused {statistics.refused} records and learns nothing from them; they are in its "
            f"quarantine (python -m learner.log show --quarantine). The last: {statistics.last_refusal}"
        )
