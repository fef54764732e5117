"""What the link has done and heard so far, for the operator and the summary."""

from dataclasses import dataclass
from typing import Literal

TrainerState = Literal["unknown", "training", "waiting", "down"]


@dataclass(kw_only=True)
class LinkStatistics:
    """Counters of one link. One thread of it writes each field."""

    sent: int = 0  # records, those sent again included
    bytes_sent: int = 0  # of their bodies
    acked: int = 0  # records that the learner holds durably, refused ones included
    refused: int = 0  # of these: put into the learner's quarantine, and not learned from
    last_refusal: str = ""
    reconnects: int = 0
    is_connected: bool = False
    last_error: str = ""  # stays after a reconnection
    clock_offset_s: float = 0.0  # the learner's clock minus this one, as measured when the connection began
    learner_step: int = 0  # the newest that was heard of
    trainer_state: TrainerState = "unknown"  # unknown: not connected, or not said yet
    alarm: str = ""  # what the learner wants a person to look at
