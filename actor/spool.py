"""The spool: every step goes to this disk first and stays until the learner has it on its own.

The control loop offers and goes on. One thread owned by the spool does all writing: it commits what was offered and
deletes what was acknowledged, several of both per transaction when they come faster than the disk.
"""

import logging
import queue
import secrets
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from policy.database import open_database
from policy.transition import Recordable, RecordId
from policy.wire import record_to_message

logger = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE records (
    position INTEGER PRIMARY KEY AUTOINCREMENT,  -- in the order of offering; never used again, even when all is sent
    incarnation TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    payload BLOB NOT NULL,  -- a cgpo.v1.Record
    UNIQUE (incarnation, sequence)
)
"""
_GROUP = 64  # offers and acknowledgements in one transaction
_RETRY_S = 1.0


def new_incarnation() -> str:
    """Return a name for this process that no other has and that sorts by start time."""
    now_ns = time.time_ns()
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_ns // 1_000_000_000))
    return f"{moment}.{now_ns % 1_000_000_000:09d}Z-{secrets.token_hex(4)}"


@dataclass(frozen=True)
class SpooledRecord:
    """A record that waits for its acknowledgement."""

    position: int
    incarnation: str
    sequence: int
    payload: bytes  # a cgpo.v1.Record


@dataclass(frozen=True)
class _Offer:
    sequence: int
    payload: bytes


@dataclass(frozen=True)
class _Acknowledgement:
    incarnation: str
    next_sequence: int  # everything below may go


class Spool:
    """A durable queue of transitions from one control loop to one link.

    Records that earlier incarnations left in the same file come first. `offer` is for one thread, the control loop's;
    everything else may be called from any.
    """

    def __init__(self, path: Path, actor_id: str, incarnation: str, written_before: int | None = None) -> None:
        """Open the spool of this actor. Raises ConfigError when another actor process has it open.

        written_before: what `written` was when the incarnation began; goes on after the last record that a process of
        it, which may have been killed, committed here. Without it the incarnation is new.
        """
        self._path = path
        self._actor_id = actor_id
        self._incarnation = incarnation
        self._offered = 0
        self._connection = open_database(path, _SCHEMA, is_exclusive=True)
        self._inherited: int = self._connection.execute("SELECT COUNT(*) FROM records").fetchone()[0]
        if self._inherited:
            logger.info("%d steps of earlier runs are still in %s and will be sent first", self._inherited, path)
        self._committed = 0
        self._acknowledged = 0
        self._error: str | None = None
        self._is_closing = threading.Event()
        self._inbox: queue.SimpleQueue[_Offer | _Acknowledgement | None] = queue.SimpleQueue()  # put never blocks
        self._changed = threading.Condition()  # one user of the connection at a time; notified after each commit
        self._first_sequence = 0 if written_before is None else self.written - written_before
        self._writer = threading.Thread(target=self._write, name="spool", daemon=True)
        self._writer.start()

    def offer(self, body: Recordable) -> int:
        """Keep a transition or mark and return its sequence number. Copies it; waits for no disk and no network.

        Raises WireError, with nothing kept, for a transition above the size limit.
        """
        sequence = self.next_sequence
        message = record_to_message(RecordId(self._actor_id, self._incarnation, sequence), body)
        self._inbox.put(_Offer(sequence, message.SerializeToString()))
        self._offered += 1
        return sequence

    @property
    def offered(self) -> int:
        """Transitions offered to this object."""
        return self._offered

    @property
    def next_sequence(self) -> int:
        """Sequence number of the next record to be offered."""
        return self._first_sequence + self._offered

    @property
    def written(self) -> int:
        """Records that processes with this file ever committed, those included that are sent and deleted.

        The difference between two moments is the number of records committed between them, whatever killed whom.
        """
        with self._changed:
            row = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'records'").fetchone()
            return int(row[0]) if row else 0

    @property
    def pending(self) -> int:
        """Transitions that the learner has not acknowledged, those of earlier incarnations included."""
        return self._inherited + self._offered - self._acknowledged

    @property
    def acknowledged(self) -> int:
        """Transitions that the learner acknowledged and that were deleted here."""
        return self._acknowledged

    @property
    def error(self) -> str | None:
        """Why the disk takes nothing at the moment; None when all is well. Steps wait in memory meanwhile."""
        return self._error

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything offered so far is on the disk; return whether it is."""
        offered = self._offered
        with self._changed:
            return self._changed.wait_for(lambda: self._committed >= offered, timeout_s)

    def incarnations(self) -> list[str]:
        """Return the incarnations of all records on disk, oldest first."""
        with self._changed:
            rows = self._connection.execute(
                "SELECT incarnation FROM records GROUP BY incarnation ORDER BY MIN(position)"
            )
            return [incarnation for (incarnation,) in rows]

    def read_after(self, position: int, limit: int, timeout_s: float = 0.0) -> list[SpooledRecord]:
        """Return up to `limit` committed records after `position`, oldest first; wait up to timeout_s for the first."""
        with self._changed:
            deadline_s = time.monotonic() + timeout_s
            while True:
                rows = self._connection.execute(
                    "SELECT position, incarnation, sequence, payload FROM records WHERE position > ? "
                    "ORDER BY position LIMIT ?",
                    (position, limit),
                ).fetchall()
                remaining_s = deadline_s - time.monotonic()
                if rows or remaining_s <= 0:
                    return [SpooledRecord(*row) for row in rows]
                self._changed.wait(remaining_s)

    def acknowledge(self, incarnation: str, next_sequence: int) -> None:
        """Let the records of `incarnation` below `next_sequence` go: the learner has them. Never blocks."""
        self._inbox.put(_Acknowledgement(incarnation, next_sequence))

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until the learner has acknowledged everything; return whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: self.pending == 0, timeout_s)

    def close(self) -> None:
        """Commit what was offered and close the file. A disk that still fails loses those steps, with an error."""
        self._is_closing.set()
        self._inbox.put(None)
        self._writer.join()
        with self._changed:
            self._connection.close()

    def _write(self) -> None:
        is_open = True
        while is_open:
            group = [self._inbox.get()]
            while len(group) < _GROUP and not self._inbox.empty():
                group.append(self._inbox.get())
            is_open = None not in group
            self._commit_until_done([item for item in group if item is not None])

    def _commit_until_done(self, group: list[_Offer | _Acknowledgement]) -> None:
        while True:
            try:
                self._commit(group)
            except sqlite3.Error as error:
                self._report(f"cannot write {self._path}: {error}")
            else:
                if self._error is not None:
                    logger.warning("%s takes steps again", self._path)
                    self._error = None
                return
            if self._is_closing.wait(_RETRY_S):
                lost = sum(isinstance(item, _Offer) for item in group)
                logger.critical("%d steps could not be written to %s and end with this process", lost, self._path)
                return

    def _commit(self, group: list[_Offer | _Acknowledgement]) -> None:
        offers = [item for item in group if isinstance(item, _Offer)]
        acknowledged = 0
        with self._changed:
            with self._connection:
                self._connection.executemany(
                    "INSERT INTO records (incarnation, sequence, payload) VALUES (?, ?, ?)",
                    [(self._incarnation, offer.sequence, offer.payload) for offer in offers],
                )
                for item in group:
                    if isinstance(item, _Acknowledgement):
                        acknowledged += self._connection.execute(
                            "DELETE FROM records WHERE incarnation = ? AND sequence < ?",
                            (item.incarnation, item.next_sequence),
                        ).rowcount
            self._committed += len(offers)
            self._acknowledged += acknowledged
            self._changed.notify_all()

    def _report(self, error: str) -> None:
        if error != self._error:
            logger.error("%s. Steps wait in memory until it works again: free some space or check the disk.", error)
        self._error = error
