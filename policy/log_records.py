"""What goes into an episode log, and what it tells about its content."""

import time
import zlib
from dataclasses import dataclass, field

from policy.transition import EpisodeMark, Recordable, RecordId
from policy.wire import encode_body

Stream = tuple[str, str]
"""(actor_id, incarnation)"""

Episode = tuple[str, str, int]
"""(actor_id, incarnation, episode)"""


@dataclass(frozen=True)
class LogEntry:
    """One record and its place in the log."""

    position: int
    record_id: RecordId
    body: Recordable


@dataclass(frozen=True, kw_only=True)
class StreamStatistics:
    """What came from one actor incarnation, imported records left out.

    Sequences count from 0, so max_sequence + 1 were sent at least.
    """

    actor_id: str
    incarnation: str
    records: int
    distinct: int  # sequences
    distinct_steps: int  # marks, and (episode, step) pairs: a step sent under two sequences would show here
    min_sequence: int
    max_sequence: int
    quarantined: int  # sequences that are in quarantine instead

    @property
    def lost(self) -> int:
        """Transitions missing before the last one that arrived."""
        return self.max_sequence + 1 - self.distinct - self.quarantined

    @property
    def duplicated(self) -> int:
        return self.records - self.distinct_steps


@dataclass(frozen=True)
class EncodedRecord:
    """A record whose body is already encoded (policy.wire.encode_body)."""

    record_id: RecordId
    is_mark: bool
    episode: int
    step: int
    payload: bytes
    is_oldest: bool = False  # the oldest of its incarnation that its actor still has
    refusal: str = ""  # why it must not be learned from, and goes into quarantine

    @staticmethod
    def of(record_id: RecordId, body: Recordable) -> "EncodedRecord":
        """Encode a record. Raises WireError beyond MAX_TRANSITION_BYTES."""
        return EncodedRecord(record_id, isinstance(body, EpisodeMark), body.episode, body.step, encode_body(body))


@dataclass(frozen=True)
class Appended:
    """What became of records that were to be stored."""

    new: int
    refused: list[tuple[RecordId, str]]  # those of them that are in quarantine, and why
    gaps: dict[Stream, str]  # incarnations that cannot go on with what was given


@dataclass(frozen=True)
class QuarantinedRecord:
    """A record that was refused, with the bytes of its body as they came."""

    record_id: RecordId
    reason: str
    wall_time_s: float
    payload: bytes


@dataclass
class Plan:
    """What one transaction writes."""

    rows: list[tuple[object, ...]] = field(default_factory=list)
    checksums: dict[RecordId, int] = field(default_factory=dict)  # of the rows
    quarantined: list[tuple[str, str, int, str, float, bytes]] = field(default_factory=list)
    refused: list[tuple[RecordId, str]] = field(default_factory=list)
    gaps: dict[Stream, str] = field(default_factory=dict)

    def add(self, record: EncodedRecord) -> None:
        crc32 = zlib.crc32(record.payload)
        name = (record.record_id.actor_id, record.record_id.incarnation, record.record_id.sequence)
        self.rows.append((*name, record.is_mark, record.episode, record.step, record.payload, crc32))
        self.checksums[record.record_id] = crc32

    def quarantine(self, record: EncodedRecord, reason: str) -> None:
        name = (record.record_id.actor_id, record.record_id.incarnation, record.record_id.sequence)
        self.quarantined.append((*name, reason, time.time(), record.payload))
        self.refused.append((record.record_id, reason))
