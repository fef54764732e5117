"""The episode log: every transition that ever arrived, in order of arrival, once. The truth that replay caches.

It is a table of one SQLite database rather than a file of records beside an index, because data and index must never
disagree: one commit makes a batch durable, its uniqueness checked and its place known, or leaves no trace of it. SQLite
recovers that state after any crash, readers in other processes see whole commits only, and anyone can inspect a run
with `sqlite3`. Rows are only ever appended.

Ingest writes; the trainer and reports read, each with an EpisodeLog of their own. Before ingest starts, import_log.py
may copy records of earlier runs into the log; the table `imports` says which positions came from where.
"""

import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Sequence, Set
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

_COLUMNS = "actor_id, incarnation, sequence, is_mark, episode, step, payload, crc32"
_IMPORTS_SCHEMA = """
CREATE TABLE IF NOT EXISTS imports (
    first_position INTEGER PRIMARY KEY,
    last_position INTEGER NOT NULL,
    source TEXT NOT NULL,          -- the log that these positions were copied from
    wall_time_s REAL NOT NULL
)
"""  # made by the first import, so that a log without one has the format that it always had
_IS_IMPORTED = "EXISTS (SELECT 1 FROM imports WHERE position BETWEEN first_position AND last_position)"
_COPY_GROUP = 256  # rows in memory at once

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
        self._imported = self._imported_streams()

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
                if record_id.sequence in held or (stream in self._imported and self._has(record_id)):
                    continue
                if held and record_id.sequence != held.stop and stream not in self._imported:  # imports leave gaps
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
            self._connection.executemany(f"INSERT INTO records ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        return len(rows)

    def copy_from(self, others: Sequence[tuple["EpisodeLog", Set[Episode] | None]]) -> list[int]:
        """Append the others' records of the given episodes (None: all), marks included, where they are new here.

        One transaction: all or nothing. Returns how many came from each. They keep their ids and their order. Rows are
        copied as they are: read the others through before, which checks each.
        """
        counts = []
        with self._lock, self._connection:
            self._connection.execute(_IMPORTS_SCHEMA)
            for other, episodes in others:
                before = self._last_position()
                self._copy_rows(other, episodes)
                counts.append(self._last_position() - before)
                if counts[-1]:
                    self._connection.execute(
                        "INSERT INTO imports VALUES (?, ?, ?, ?)",
                        (before + 1, before + counts[-1], str(other._path.absolute()), time.time()),
                    )
        with self._lock:
            self._imported = self._imported_streams()
        return counts

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
        """Return what came from each incarnation, in order of their names; imported records came from none."""
        came_here = f"WHERE NOT {_IS_IMPORTED} " if self._imported else ""
        with self._lock:
            rows = self._connection.execute(
                "SELECT actor_id, incarnation, COUNT(*), COUNT(DISTINCT sequence), "
                "COUNT(DISTINCT CASE WHEN is_mark THEN -1 - sequence ELSE episode << 32 | step END), "
                "MIN(sequence), MAX(sequence) "
                f"FROM records {came_here}GROUP BY actor_id, incarnation ORDER BY actor_id, incarnation"
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
        """Return the sequences that came from an incarnation.

        They have no gaps, but for what was imported before; the actor may go on after the last of them in any case.
        """
        came_here = f" AND NOT {_IS_IMPORTED}" if (actor_id, incarnation) in self._imported else ""
        first, last = self._connection.execute(
            f"SELECT MIN(sequence), MAX(sequence) FROM records WHERE actor_id = ? AND incarnation = ?{came_here}",
            (actor_id, incarnation),
        ).fetchone()
        return range(0) if last is None else range(first, last + 1)

    def _has(self, record_id: RecordId) -> bool:
        row = self._connection.execute(
            "SELECT 1 FROM records WHERE actor_id = ? AND incarnation = ? AND sequence = ?",
            (record_id.actor_id, record_id.incarnation, record_id.sequence),
        ).fetchone()
        return row is not None

    def _last_position(self) -> int:
        (last,) = self._connection.execute("SELECT COALESCE(MAX(position), 0) FROM records").fetchone()
        return int(last)

    def _imported_streams(self) -> set[tuple[str, str]]:
        if not self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'imports'").fetchone():
            return set()
        rows = self._connection.execute(
            "SELECT DISTINCT actor_id, incarnation FROM imports "
            "JOIN records ON position BETWEEN first_position AND last_position"
        )
        return set(rows.fetchall())

    def _copy_rows(self, other: "EpisodeLog", episodes: Set[Episode] | None) -> None:
        with other._lock:
            rows = other._connection.execute(f"SELECT {_COLUMNS} FROM records ORDER BY position")
            while group := rows.fetchmany(_COPY_GROUP):
                self._connection.executemany(
                    f"INSERT INTO records ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                    "ON CONFLICT (actor_id, incarnation, sequence) DO NOTHING",
                    [row for row in group if episodes is None or (row[0], row[1], row[4]) in episodes],
                )

    def _entry(self, row: sqlite3.Row, specs: Specs) -> LogEntry:
        position, actor_id, incarnation, sequence, payload, crc32 = row
        if zlib.crc32(payload) != crc32:
            raise CorruptFileError(
                f"{self._path}: the payload at position {position} does not match its checksum. The disk or something "
                "on it damaged the file: restore it from a backup, or start a run in another folder."
            )
        return LogEntry(position, RecordId(actor_id, incarnation, sequence), body_from_bytes(payload, specs))
