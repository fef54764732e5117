"""What the trainer is doing, in RUN_DIR/trainer.json: ingest forwards it to the actors, people read it.

Needs no torch. The trainer writes it every second; a file that has become old says that the trainer is gone.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from policy.files import replace_file

PERIOD_S = 1.0  # at which the trainer writes
_LIFETIME_S = 10.0  # longer than a step or a checkpoint should take, shorter than a person waits
_NAME = "trainer.json"
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

    Raises OSError, as on a full disk.
    """
    # The system's monotonic clock is the same in every process of a machine, and no one sets it.
    text = json.dumps({**asdict(status), "monotonic_s": time.monotonic()})
    replace_file(run_dir / _NAME, text.encode())


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
