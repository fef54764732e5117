"""The episode log: every transition that ever arrived, in order of arrival, once. The truth that replay caches.

It is a table of one SQLite database rather than a file of records beside an index, because data and index must never
disagree: one commit makes a batch durable, its uniqueness checked and its place known, or leaves no trace of it. SQLite
recovers that state after any crash, readers in other processes see whole commits only, and anyone can inspect a run
with `sqlite3`. Rows are only ever appended.

Ingest writes; the trainer and reports read, each with an EpisodeLog of their own. Refused records lie beside it in the
table `quarantine`. Before ingest starts, import_log.py may copy records of earlier runs into the log; the table
`imports` says which positions came from where. An actor's archive of demonstrations is such a log as well.
"""

import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path

from policy.database import open_database
from policy.errors import CorruptFileError, QuarantineFullError, WireError
from policy.log_records import (
    Appended,
    EncodedRecord,
    Episode,
    LogEntry,
    Plan,
    QuarantinedRecord,
    Stream,
    StreamStatistics,
)
from policy.spec import Specs
from policy.transition import Recordable, RecordId
from policy.wire import decode_body

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
    payload BLOB NOT NULL,         -- a cgpo.v1.Body, the very bytes that the actor made
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

MAX_QUARANTINE_BYTES = 256 << 20
_QUARANTINE_ROW_BYTES = 200  # beside payload and reason: a refused record without content takes room as well
_QUARANTINE_SCHEMA = """
CREATE TABLE IF NOT EXISTS quarantine (
    actor_id TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    reason TEXT NOT NULL,
    wall_time_s REAL NOT NULL,
    payload BLOB NOT NULL,         -- the body as it came
    UNIQUE (actor_id, incarnation, sequence)
)
"""  # made by the first refusal, as `imports` by the first import
_IS_NAMED = "actor_id = ? AND incarnation = ? AND sequence = ?"


_RESTORE = "The disk or something on it damaged the file: restore it from a backup, or start a run in another folder."


class EpisodeLog:
    """The log at `path`. Any thread may call it; `specs` is needed to read records, for nothing else."""

    def __init__(
        self,
        path: Path,
        specs: Specs | None = None,
        *,
        read_only: bool = False,
        allows_gaps: bool = False,
        busy_timeout_s: float = 30.0,
    ) -> None:
        """Open the log, creating it unless read_only. Raises ConfigError or CorruptFileError (see open_database).

        allows_gaps: for an archive of chosen episodes, whose sequences are not dense. busy_timeout_s: see
        open_database.
        """
        self._path = path
        self._allows_gaps = allows_gaps
        self._specs = specs
        self._lock = threading.Lock()
        self._connection = open_database(path, _SCHEMA, read_only=read_only, busy_timeout_s=busy_timeout_s)
        self._imported = self._imported_streams()
        self._has_quarantine = self._table_exists("quarantine")
        self._quarantine_bytes = 0 if read_only else self._read_quarantine_bytes()

    def append(self, records: Iterable[tuple[RecordId, Recordable]]) -> int:
        """Encode and store all records that are new, durably, in one transaction; return how many those were.

        Otherwise like `append_encoded`, but nothing is stored, and WireError raised, unless all can be.
        """
        encoded = [EncodedRecord.of(record_id, body) for record_id, body in records]
        with self._lock, self._connection:
            plan = self._plan(encoded)
            for problem in (*plan.gaps.values(), *(reason for _, reason in plan.refused)):
                raise WireError(problem)
            self._insert(plan)
        return len(plan.rows)

    def append_encoded(self, records: Iterable[EncodedRecord]) -> Appended:
        """Store all records that are new, durably, in one transaction; those with a refusal go into quarantine.

        Repeated records are passed over, so senders may resend whatever is in doubt; a repeated name with another
        content goes into quarantine. A record that does not continue its incarnation's sequence is not stored, nor are
        those of the incarnation that follow it; an incarnation that the log does not know may begin anywhere, because
        its earlier records went to another log then, and `lost` counts them. Raises QuarantineFullError, with nothing
        stored, when the quarantine has no room left.
        """
        with self._lock:
            with self._connection:
                plan = self._plan(records)
                quarantine_bytes = self._insert(plan)
            # Not before it is committed: the next try must not count it again, or look into a table that is not there.
            self._has_quarantine |= bool(plan.quarantined)
            self._quarantine_bytes = quarantine_bytes
        return Appended(len(plan.rows), plan.refused, plan.gaps)

    def _plan(self, records: Iterable[EncodedRecord]) -> Plan:
        """Decide what becomes of each record; changes nothing."""
        plan, stored = Plan(), dict[Stream, range]()
        for record in records:
            record_id = record.record_id
            stream = (record_id.actor_id, record_id.incarnation)
            if stream in plan.gaps:
                continue
            held = stored[stream] if stream in stored else self._held(*stream)
            may_have_gaps = self._allows_gaps or stream in self._imported
            if record_id.sequence in held or (may_have_gaps and self._has(record_id)):
                self._judge_repetition(record, plan)
                continue
            follows = record_id.sequence == held.stop or (record.is_oldest and record_id.sequence > held.stop)
            if held and not follows and not may_have_gaps:
                plan.gaps[stream] = (
                    f"record {record_id.sequence} of {record_id.actor_id}, incarnation {record_id.incarnation},"
                    f" does not follow: the log holds {held.start} to {held.stop - 1} and needs {held.stop} next"
                )
                continue
            if record_id.sequence > held.stop and not may_have_gaps:
                logger.warning(
                    "%s, incarnation %s, goes on at record %d here and not at %d: those between went to another log, "
                    "or this one is an older copy. `python -m learner.log verify` counts them as missing.",
                    *stream,
                    record_id.sequence,
                    held.stop,
                )
            stored[stream] = range(held.start if held else record_id.sequence, record_id.sequence + 1)
            if record.refusal:
                plan.quarantine(record, record.refusal)
            else:
                plan.add(record)
        return plan

    def _judge_repetition(self, record: EncodedRecord, plan: Plan) -> None:
        """Refuse another content under a name that is taken; repeat a refusal whose acknowledgement may be lost."""
        record_id = record.record_id
        key = (record_id.actor_id, record_id.incarnation, record_id.sequence)
        if record_id in plan.checksums:
            row: tuple[int] | None = (plan.checksums[record_id],)
        else:
            row = self._connection.execute(f"SELECT crc32 FROM records WHERE {_IS_NAMED}", key).fetchone()
        if row is None:
            reason = dict(plan.refused).get(record_id) or self._refusal_of(key)
            if reason:
                plan.refused.append((record_id, reason))
        elif row[0] != zlib.crc32(record.payload):
            plan.quarantine(
                record,
                f"record {record_id.sequence} of {record_id.actor_id}, incarnation {record_id.incarnation}, came again "
                "with another content: the one that came first stays. Two actors share a name, or a copied spool "
                "went on by itself",
            )

    def _refusal_of(self, key: tuple[str, str, int]) -> str:
        """Return why a record is in quarantine, an empty text if it is not."""
        if not self._has_quarantine:
            return ""
        row = self._connection.execute(f"SELECT reason FROM quarantine WHERE {_IS_NAMED}", key).fetchone()
        return str(row[0]) if row else ""

    def _insert(self, plan: Plan) -> int:
        """Write what is planned; return how many bytes the quarantine has then."""
        self._connection.executemany(f"INSERT INTO records ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", plan.rows)
        num_bytes = self._quarantine_bytes
        if not plan.quarantined:
            return num_bytes
        self._connection.execute(_QUARANTINE_SCHEMA)
        for row in plan.quarantined:
            query = "INSERT INTO quarantine VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
            is_new = self._connection.execute(query, row).rowcount == 1
            *_, reason, _, payload = row
            num_bytes += is_new * (len(payload) + len(reason) + _QUARANTINE_ROW_BYTES)
        if num_bytes > MAX_QUARANTINE_BYTES:
            raise QuarantineFullError(
                f"{self._path}: the quarantine of refused records has {num_bytes} bytes, above its limit of "
                f"{MAX_QUARANTINE_BYTES}. The last refusal: {plan.refused[-1][1]}. Actors keep their steps. Mend what "
                "sends them; `python -m learner.log show --quarantine` shows what was refused."
            )
        return num_bytes

    def _read_quarantine_bytes(self) -> int:
        if not self._has_quarantine:
            return 0
        (num_bytes,) = self._connection.execute(
            f"SELECT COALESCE(SUM(LENGTH(payload) + LENGTH(reason) + {_QUARANTINE_ROW_BYTES}), 0) FROM quarantine"
        ).fetchone()
        return int(num_bytes)

    def quarantine(self) -> list[QuarantinedRecord]:
        """Return all refused records in the order of their arrival."""
        with self._lock:
            if not self._table_exists("quarantine"):
                return []
            rows = self._connection.execute(
                "SELECT actor_id, incarnation, sequence, reason, wall_time_s, payload FROM quarantine ORDER BY rowid"
            ).fetchall()
        return [QuarantinedRecord(RecordId(*row[:3]), *row[3:]) for row in rows]

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
        try:
            with self._lock:
                rows = self._connection.execute(
                    "SELECT position, actor_id, incarnation, sequence, payload, crc32 FROM records "
                    "WHERE position > ? ORDER BY position LIMIT ?",
                    (position, limit),
                ).fetchall()
        except sqlite3.OperationalError:  # what may pass: a disk that is busy or full
            raise
        except sqlite3.DatabaseError as error:
            raise CorruptFileError(f"{self._path} cannot be read: {error}. {_RESTORE}") from error
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
            quarantined = self._quarantined_sequences()
        return [
            StreamStatistics(
                actor_id=actor_id,
                incarnation=incarnation,
                records=records,
                distinct=distinct,
                distinct_steps=distinct_steps,
                min_sequence=first,
                max_sequence=last,
                quarantined=sum(sequence < last for sequence in quarantined.get((actor_id, incarnation), ())),
            )
            for actor_id, incarnation, records, distinct, distinct_steps, first, last in rows
        ]

    def _quarantined_sequences(self) -> dict[Stream, list[int]]:
        """Return the sequences of each incarnation that are in quarantine and not in the log."""
        sequences: dict[Stream, list[int]] = {}
        if self._table_exists("quarantine"):
            rows = self._connection.execute(
                "SELECT q.actor_id, q.incarnation, q.sequence FROM quarantine AS q LEFT JOIN records AS r "
                "USING (actor_id, incarnation, sequence) WHERE r.position IS NULL"
            )
            for actor_id, incarnation, sequence in rows:
                sequences.setdefault((actor_id, incarnation), []).append(sequence)
        return sequences

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _held(self, actor_id: str, incarnation: str) -> range:
        """Return the sequences that came from an incarnation; the actor goes on after the last of them.

        They have no gaps, but where records were imported: then this is the last of them alone, and `_has` tells of the
        others. Reads a few rows however many came: each commit asks.
        """
        stream = (actor_id, incarnation)
        is_imported = stream in self._imported
        came_here = f" AND NOT {_IS_IMPORTED}" if is_imported else ""
        sources = [f"records WHERE actor_id = ? AND incarnation = ?{came_here}"]
        if self._has_quarantine:
            sources.append("quarantine WHERE actor_id = ? AND incarnation = ?")
        last = max(self._ends("MAX", sources, stream), default=None)
        if last is None:
            return range(0)
        return range(last if is_imported else min(self._ends("MIN", sources, stream)), last + 1)

    def _ends(self, function: str, sources: list[str], stream: Stream) -> Iterator[int]:
        """Ask each for its MIN or MAX: alone these read one end of an index, both in one query all of it."""
        for source in sources:
            (end,) = self._connection.execute(f"SELECT {function}(sequence) FROM {source}", stream).fetchone()
            if end is not None:
                yield int(end)

    def _has(self, record_id: RecordId) -> bool:
        key = (record_id.actor_id, record_id.incarnation, record_id.sequence)
        tables = ("records", "quarantine") if self._has_quarantine else ("records",)
        return any(
            self._connection.execute(f"SELECT 1 FROM {table} WHERE {_IS_NAMED}", key).fetchone() for table in tables
        )

    def _table_exists(self, name: str) -> bool:
        found = self._connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,))
        return found.fetchone() is not None

    def _last_position(self) -> int:
        (last,) = self._connection.execute("SELECT COALESCE(MAX(position), 0) FROM records").fetchone()
        return int(last)

    def _imported_streams(self) -> set[tuple[str, str]]:
        if not self._table_exists("imports"):
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
        if not isinstance(payload, bytes) or zlib.crc32(payload) != crc32:
            raise CorruptFileError(
                f"{self._path}: the payload at position {position} does not match its checksum. {_RESTORE}"
            )
        return LogEntry(position, RecordId(actor_id, incarnation, sequence), decode_body(payload, specs))
