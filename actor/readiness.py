"""Whether the next episode may begin: its steps need room, and the policy's weights must not be too old.

Asked between episodes only. An episode that has begun goes on to its end, whatever happens.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actor.link import Link
from actor.policy_runner import PolicyRunner
from actor.report import append_json_line, drop_torn_line
from actor.spool import Spool

logger = logging.getLogger(__name__)

_PERIOD_S = 10.0  # between two times that the same wait is said


class Readiness:
    """Waits, with the arm held, until nothing speaks against the next episode."""

    def __init__(
        self, spool: Spool, link: Link, policy: PolicyRunner, max_weights_age_s: float, say: Callable[[str], None]
    ) -> None:
        """max_weights_age_s: 0 never waits for weights."""
        self._spool = spool
        self._link = link
        self._policy = policy
        self._max_weights_age_s = max_weights_age_s
        self._say = say

    def wait(self, hold: Callable[[str], None], should_stop: Callable[[], bool], *, needs_weights: bool) -> None:
        """Return when the next episode may begin, or a stop is asked for. Says why it waits, at once and repeatedly.

        hold(reason) lets the arm hold for a moment.
        """
        start_s, next_s = time.monotonic(), 0.0
        while (obstacle := self._obstacle(needs_weights)) and not should_stop():
            now_s = time.monotonic()
            if now_s >= next_s:
                next_s = now_s + _PERIOD_S
                logger.warning("no episode begins: %s", obstacle)
                self._say(f"HOLD: no episode begins, for {now_s - start_s:.0f} s now: {obstacle}")
            hold(obstacle)
        if next_s and not obstacle:
            self._say(f"the next episode begins, after {time.monotonic() - start_s:.0f} s of waiting")

    def keep_line(self, path: Path, record: Any, hold: Callable[[str], None], should_stop: Callable[[], bool]) -> bool:
        """Append a line to a file of the run; while the disk takes none the arm holds, as in `wait`.

        Returns whether the file has it: a stop request ends the attempts. A process that starts again here counts these
        lines.
        """
        next_s = 0.0
        while True:
            try:
                append_json_line(path, record)
                return True
            except OSError as error:
                problem = f"{path} takes no line: {error}. Free some space there, or check the disk"
                drop_torn_line(path)
            now_s = time.monotonic()
            if now_s >= next_s:
                next_s = now_s + _PERIOD_S
                self._say(f"HOLD: {problem}")
            if should_stop():
                return False
            hold(problem)

    def _obstacle(self, needs_weights: bool) -> str:
        return self._spool.obstacle or (self._old_weights() if needs_weights else "")

    def _old_weights(self) -> str:
        """Return why the weights are too old to begin with; empty when they are not."""
        if not self._max_weights_age_s:
            return ""
        self._policy.swap_if_newer()
        age_s, learner = self._policy.weights_age_s, self._link.statistics
        # A trainer that waits for data gets none from an actor that waits for weights.
        if age_s <= self._max_weights_age_s or (learner.is_connected and learner.trainer_state == "waiting"):
            return ""
        if not learner.is_connected:
            cause = f"the learner is not connected ({learner.last_error or 'no answer yet'}): start it, or mend the way"
        elif learner.trainer_state == "down":
            cause = "the learner's trainer does not run: its log says why"
        else:
            cause = f"the learner is connected, its trainer {learner.trainer_state}: its log says what it does"
        return (
            f"the policy's weights, version {self._policy.weights_version}, are {age_s:.0f} s old, above "
            f"actor.max_weights_age_s = {self._max_weights_age_s:g}, and {self._policy.weights_lag_steps} learner "
            f"steps behind; {cause}. Newer weights end this wait; to go on with these, start again with "
            "--max-weights-age-s 0"
        )
