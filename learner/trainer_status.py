"""What the trainer is doing, in RUN_DIR/trainer.json: ingest forwards it to the actors, people read it.

Needs no torch. The trainer writes it every second; a file that has become old says that the trainer is gone.
"""

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from policy.files import replace_file

logger = logging.getLogger(__name__)

_PERIOD_S = 1.0  # at which the trainer writes; also how long it must have waited to be "waiting"
_LOG_PERIOD_S = 30.0
_LIFETIME_S = 10.0  # longer than a step or a checkpoint should take, shorter than a person waits
_NAME = "trainer.json"
_NUM_BYTES = 4096  # always the same: one block, which can be written again when the disk has no other left
_ALARM_LENGTH = _NUM_BYTES // 8
_STATES = ("training", "waiting", "down")

TrainerState = Literal["training", "waiting", "down"]


@dataclass(frozen=True)
class TrainerStatus:
    """`alarm` is for people: what is wrong and what to do; empty while nothing is."""

    learner_step: int
    state: TrainerState
    alarm: str = ""


def write_status(run_dir: Path, status: TrainerStatus) -> None:
    """Replace RUN_DIR/trainer.json whole, without waiting for the disk: after a power loss nobody needs it.

    On a full disk, which people must hear of, it is written over; then a reader may, once in a long while, see it torn.
    Raises OSError when neither can be done.
    """
    path = run_dir / _NAME
    # The system's monotonic clock is the same in every process of a machine, and no one sets it.
    text = json.dumps({**asdict(status), "alarm": status.alarm[:_ALARM_LENGTH], "monotonic_s": time.monotonic()})
    data = text.encode().ljust(_NUM_BYTES)
    try:
        replace_file(path, data)
    except OSError:
        with path.open("r+b", buffering=0) as file:
            file.write(data)


def read_status(run_dir: Path) -> TrainerStatus:
    """Return what the trainer wrote last; state "down" when that is older than 10 s, unreadable or was never written.

    One that is down keeps the step and the alarm it ended with.
    """
    try:
        raw = json.loads((run_dir / _NAME).read_bytes())
        status = TrainerStatus(int(raw["learner_step"]), raw["state"], str(raw["alarm"]))
        age_s = time.monotonic() - float(raw["monotonic_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return TrainerStatus(0, "down")
    is_alive = 0 <= age_s <= _LIFETIME_S and status.state in _STATES  # a negative age: the machine has restarted
    return status if is_alive else TrainerStatus(status.learner_step, "down", status.alarm)


class StatusReporter:
    """The trainer's side: writes every second and at every change, and logs once in 30 s why it waits."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._alarms: dict[str, str] = {}
        self._learner_step = read_status(run_dir).learner_step
        self._written: TrainerStatus | None = None
        self._can_write = True
        self._logged_reason = ""
        self._next_write_s = self._next_log_s = self._last_step_s = -math.inf
        self._write("waiting", time.monotonic())

    def set_alarm(self, subject: str, text: str) -> None:
        """Raise or change the alarm about `subject`, and log it."""
        if self._alarms.get(subject) != text:
            logger.error("%s", text)
        self._alarms[subject] = text

    def clear_alarms(self, *subjects: str) -> None:
        for subject in subjects:
            self._alarms.pop(subject, None)

    def report(self, learner_step: int, waiting_for: str = "") -> None:
        """Say where training is; `waiting_for` is what the next learner step needs, empty when it is done now.

        Its first sentence says for what, and does not change while that goes on.
        """
        now_s = time.monotonic()
        self._learner_step = learner_step
        if not waiting_for:
            self._last_step_s = now_s
        is_waiting = now_s - self._last_step_s >= _PERIOD_S  # not the short pauses that a limited ratio makes
        reason = waiting_for.partition(".")[0]
        if is_waiting and (now_s >= self._next_log_s or reason != self._logged_reason):
            self._next_log_s, self._logged_reason = now_s + _LOG_PERIOD_S, reason
            logger.info("learner step %d waits: %s", learner_step, waiting_for)
        self._write("waiting" if is_waiting else "training", now_s)

    def close(self, learner_step: int) -> None:
        """Leave the step and the alarms for those who ask why the trainer is down."""
        self._learner_step = learner_step
        self._write("down", math.inf)

    def _write(self, state: TrainerState, now_s: float) -> None:
        share = _ALARM_LENGTH // max(1, len(self._alarms))  # or the first would leave no room for the others
        alarms = " ".join(text if len(text) < share else f"{text[: share - 2]}…" for text in self._alarms.values())
        status = TrainerStatus(self._learner_step, state, alarms)
        was = self._written
        is_new = was is None or (was.state, was.alarm) != (status.state, status.alarm)
        if not is_new and now_s < self._next_write_s:
            return
        self._next_write_s = now_s + _PERIOD_S
        self._written = status
        try:
            write_status(self._run_dir, status)
        except OSError as error:
            if self._can_write:
                logger.error("cannot write the trainer's status: %s. Others take it to be down.", error)
            self._can_write = False
        else:
            self._can_write = True
