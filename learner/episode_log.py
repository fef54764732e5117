"""The episode log: every transition that ever arrived, in order of arrival, once. The truth that replay caches.

It is a table of one SQLite database rather than a file of records beside an index, because data and index must never
disagree: one commit makes a batch durable, its uniqueness checked and its place known, or leaves no trace of it. SQLite
recovers that state after any crash, readers in other processes see whole commits only, and anyone can inspect a run
with `sqlite3`. Rows are only ever appended.

Ingest writes; the trainer and reports read, each with an EpisodeLog of their own.
"""

import logging
import sqlite3
import threading
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from policy.database import open_database
from policy.errors import CorruptFileError, WireError
from policy.spec import Specs
from policy.transition import EpisodeMark, Recordable, RecordId
from policy.wire import body_from_bytes, body_to_bytes

logger = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE records (
    position INTEGER PRIMARY KEY,  -- 1, 2, ... without gaps
    actor_id TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    is_mark INTEGER NOT NULL,      -- an EpisodeMark, not a Transition
    episode INTEGER NOT NULL,
    step INTEGER NOT NULL,
    payload BLOB NOT NULL,         -- a cgpo.v1.Record without its id
    crc32 INTEGER NOT NULL,        -- of payload
    UNIQUE (actor_id, incarnation, sequence)
)
"""


@dataclass(frozen=True)
class LogEntry:
    """One record and its place in the log."""

    position: int
    record_id: RecordId
    body: Recordable


@dataclass(frozen=True, kw_only=True)
class StreamStatistics:
    """What the log holds of one actor incarnation. Sequences count from 0, so max_sequence + 1 were sent at least."""

    actor_id: str
    incarnation: str
    records: int
    distinct: int  # sequences
    distinct_steps: int  # marks, and (episode, step) pairs: a step sent under two sequences would show here
    min_sequence: int
    max_sequence: int

    @property
    def lost(self) -> int:
        """Transitions missing before the last one that arrived."""
        return self.max_sequence + 1 - self.distinct

    @property
    def duplicated(self) -> int:
        return self.records - self.distinct_steps


class EpisodeLog:
    """The log at `path`. Any thread may call it; `specs` is needed to read records, for nothing else."""

    def __init__(self, path: Path, specs: Specs | None = None, *, read_only: bool = False) -> None:
        """Open the log, creating it unless read_only. Raises ConfigError or CorruptFileError (see open_database)."""
        self._path = path
        self._specs = specs
        self._lock = threading.Lock()
        self._connection = open_database(path, _SCHEMA, read_only=read_only)

    def append(self, records: Iterable[tuple[RecordId, Recordable]]) -> int:
        """Store all records that are new, durably, in one transaction; return how many those were.

        Repeated records are passed over, so senders may resend whatever is in doubt. Raises WireError, with nothing
        stored, when a record does not continue its incarnation's sequence. An incarnation that the log does not know
        may begin anywhere: its earlier records then went to another log, and `lost` counts them.
        """
        with self._lock, self._connection:
            rows = []
            stored: dict[tuple[str, str], range] = {}
            for record_id, body in records:
                stream = (record_id.actor_id, record_id.incarnation)
                held = stored[stream] if stream in stored else self._held(*stream)
                if record_id.sequence in held:
                    continue
                if held and record_id.sequence != held.stop:
                    raise WireError(
                        f"record {record_id.sequence} of {record_id.actor_id}, incarnation {record_id.incarnation},"
                        f" does not follow: the log holds {held.start} to {held.stop - 1} and needs {held.stop} next"
                    )
                if not held and record_id.sequence > 0:
                    logger.warning(
                        "%s, incarnation %s, begins at record %d here: those before went to another log",
                        *stream,
                        record_id.sequence,
                    )
                stored[stream] = range(held.start if held else record_id.sequence, record_id.sequence + 1)
                payload = body_to_bytes(body)
                identity = (*stream, record_id.sequence, isinstance(body, EpisodeMark), body.episode, body.step)
                rows.append((*identity, payload, zlib.crc32(payload)))
            self._connection.executemany(
                "INSERT INTO records (actor_id, incarnation, sequence, is_mark, episode, step, payload, crc32) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
        return len(rows)

    def next_sequence(self, actor_id: str, incarnation: str) -> int:
        """Return the sequence after the newest that is stored; 0 for an unknown incarnation."""
        with self._lock:
            return self._held(actor_id, incarnation).stop

    def read_after(self, position: int, limit: int) -> list[LogEntry]:
        """Return up to `limit` entries after `position`, oldest first; position 0 is the log's beginning.

        Raises CorruptFileError when a row is not what was written, WireError when it is not of the log's specs.
        """
        assert self._specs is not None, "this log was opened without specs"
        with self._lock:
            rows = self._connection.execute(
                "SELECT position, actor_id, incarnation, sequence, payload, crc32 FROM records "
                "WHERE position > ? ORDER BY position LIMIT ?",
                (position, limit),
            ).fetchall()
        return [self._entry(row, self._specs) for row in rows]

    def count(self) -> int:
        with self._lock:
            (count,) = self._connection.execute("SELECT COUNT(*) FROM records").fetchone()
        return int(count)

    def statistics(self) -> list[StreamStatistics]:
        """Return what is stored of each incarnation, in order of their names."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT actor_id, incarnation, COUNT(*), COUNT(DISTINCT sequence), "
                "COUNT(DISTINCT CASE WHEN is_mark THEN -1 - sequence ELSE episode << 32 | step END), "
                "MIN(sequence), MAX(sequence) "
                "FROM records GROUP BY actor_id, incarnation ORDER BY actor_id, incarnation"
            ).fetchall()
        return [
            StreamStatistics(
                actor_id=actor_id,
                incarnation=incarnation,
                records=records,
                distinct=distinct,
                distinct_steps=distinct_steps,
                min_sequence=first,
                max_sequence=last,
            )
            for actor_id, incarnation, records, distinct, distinct_steps, first, last in rows
        ]

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _held(self, actor_id: str, incarnation: str) -> range:
        """Return the sequences stored of an incarnation, which have no gaps."""
        first, last = self._connection.execute(
            "SELECT MIN(sequence), MAX(sequence) FROM records WHERE actor_id = ? AND incarnation = ?",
            (actor_id, incarnation),
        ).fetchone()
        return range(0) if last is None else range(first, last + 1)

    def _entry(self, row: sqlite3.Row, specs: Specs) -> LogEntry:
        position, actor_id, incarnation, sequence, payload, crc32 = row
        if zlib.crc32(payload) != crc32:
            raise CorruptFileError(
                f"{self._path}: the payload at position {position} does not match its checksum. The disk or something "
                "on it damaged the file: restore it from a backup, or start a run in another folder."
            )
        return LogEntry(position, RecordId(actor_id, incarnation, sequence), body_from_bytes(payload, specs))
