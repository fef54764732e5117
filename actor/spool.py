"""The spool: every step goes to this disk first and stays until the learner has it on its own.

The control loop offers and goes on. One thread owned by the spool does all writing: it commits what was offered and
deletes what was acknowledged, several of both per transaction when they come faster than the disk. Demonstrations pass
into the archive before they are deleted.
"""

import logging
import queue
import secrets
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from actor.archive import DemonstrationArchive
from actor.disk_room import DiskRoom
from actor.spool_reader import SpooledRecord, SpoolReader, damaged_file
from actor.spool_schema import (
    FORMAT,
    INSERT_RECORD,
    SCHEMA,
    ClosedEpisode,
    NewestEpisode,
    Offered,
    claim,
    make_mark,
    migrate_from_2,
)
from policy.database import open_database
from policy.errors import CgpoError, ConfigError
from policy.failpoints import failpoint
from policy.transition import ActionSource, EpisodeMark, MarkKind, Recordable, RecordId, Transition
from policy.wire import encode_body

logger = logging.getLogger(__name__)

_GROUP = 64  # offers and acknowledgements in one transaction, and rows in memory on their way to the archive
_RETRY_S = 1.0
_IDLE_S = 1.0  # without anything to write, the thread wakes to see how much room there is


def new_incarnation() -> str:
    """Return a name for this process that no other has and that sorts by start time."""
    now_ns = time.time_ns()
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_ns // 1_000_000_000))
    return f"{moment}.{now_ns % 1_000_000_000:09d}Z-{secrets.token_hex(4)}"


@dataclass(frozen=True)
class _Acknowledgement:
    incarnation: str
    next_sequence: int  # everything below may go


class Spool:
    """A durable queue of transitions from one control loop to one link.

    Records that earlier incarnations left in the same file come first. `offer` is for one thread, the control loop's;
    everything else may be called from any.
    """

    def __init__(
        self,
        path: Path,
        actor_id: str,
        incarnation: str,
        *,
        archive: DemonstrationArchive | None = None,
        min_free_gb: float = 0.0,
        undecided: tuple[str, int] | None = None,
    ) -> None:
        """Open the spool of this actor, and close the episode in which the process before ended, if it did: once.

        The episode gets a mark under its own incarnation: ABORTED when its last step had not come, DISCARD, complete
        or not, when it is the `undecided` (incarnation, episode). `archive` is closed with the spool. min_free_gb: with
        less room than this, no episode should begin; 0 does not look. Raises ConfigError when another actor process has
        the file open, CorruptFileError when it is damaged.
        """
        self._path = path
        self._actor_id = actor_id
        self._incarnation = incarnation
        self._archive = archive
        self._room = DiskRoom(path, min_free_gb)
        self._demonstrations: set[int] = set()  # episodes of this incarnation in which a person began to demonstrate
        self._connection = open_database(
            path,
            SCHEMA,
            format_version=FORMAT,
            migrations={2: lambda connection: migrate_from_2(connection, actor_id)},
            is_exclusive=True,
        )
        self._reader = SpoolReader(self._connection, path, actor_id)
        try:
            claim(self._connection, path, actor_id)
            self._newest = NewestEpisode.read(self._connection)
            self._closed_episode = self._close_episode_before(undecided)
            self._inherited: int = self._connection.execute("SELECT COUNT(*) FROM records").fetchone()[0]
        except ConfigError:
            self._connection.close()
            raise
        except sqlite3.OperationalError as error:
            self._connection.close()
            raise ConfigError(f"cannot use {path}: {error}. Free some space, or check the disk.") from error
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise damaged_file(path, error) from error
        if self._inherited:
            logger.info("%d steps of earlier runs are still in %s and will be sent first", self._inherited, path)
        self._offered = 0
        self._committed = 0
        self._acknowledged = 0
        self._error: str | None = None
        self._is_closing = threading.Event()
        self._inbox: queue.SimpleQueue[Offered | _Acknowledgement | None] = queue.SimpleQueue()  # put never blocks
        self._changed = threading.Condition()  # one user of the connection at a time; notified after each commit
        self._room.look(self._unused_bytes)
        self._writer = threading.Thread(target=self._write, name="spool", daemon=True)
        self._writer.start()

    def offer(self, body: Recordable) -> int:
        """Keep a transition or mark and return its sequence number. Copies it; waits for no disk and no network.

        Raises WireError, with nothing kept, for a transition above the size limit.
        """
        sequence, data = self._offered, encode_body(body)
        if isinstance(body, Transition) and body.source is ActionSource.HUMAN_DEMONSTRATION:
            self._demonstrations.add(body.episode)
        self._inbox.put(
            Offered(
                sequence=sequence,
                episode=body.episode,
                step=body.step,
                mark=body.kind if isinstance(body, EpisodeMark) else None,
                is_last=isinstance(body, Transition) and body.is_last,
                is_demonstration=body.episode in self._demonstrations,
                body=data,
            )
        )
        self._offered += 1
        return sequence

    @property
    def closed_episode(self) -> ClosedEpisode | None:
        """The episode of an earlier process that opening this spool gave a mark."""
        return self._closed_episode

    @property
    def offered(self) -> int:
        """Transitions offered to this object."""
        return self._offered

    @property
    def pending(self) -> int:
        """Transitions that the learner has not acknowledged, those of earlier incarnations included."""
        return self._inherited + self._offered - self._acknowledged

    @property
    def acknowledged(self) -> int:
        """Transitions that the learner acknowledged and that were deleted here."""
        return self._acknowledged

    @property
    def obstacle(self) -> str | None:
        """Why no episode should begin: the disk takes nothing, so that steps wait in memory, or is nearly full."""
        return self._error or self._room.shortage

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
        """Return up to `limit` committed records after `position`, oldest first; wait up to timeout_s for the first.

        A record that the disk has damaged is moved aside; a bookmark that says so has its place. Raises
        CorruptFileError for a file that SQLite itself cannot read any more, sqlite3.Error for what may pass.
        """
        with self._changed:
            deadline_s = time.monotonic() + timeout_s
            while True:
                records = self._reader.select("position > ? ORDER BY position LIMIT ?", position, limit)
                remaining_s = deadline_s - time.monotonic()
                if records or remaining_s <= 0:
                    return [record for record, _ in records]
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
        if self._is_closing.is_set():
            return
        self._is_closing.set()
        self._inbox.put(None)
        self._writer.join()
        with self._changed:
            self._connection.close()
        if self._archive is not None:
            self._archive.close()

    def _close_episode_before(self, undecided: tuple[str, int] | None) -> ClosedEpisode | None:
        """Mark the episode in which the process before ended, and forget it in the same transaction."""
        newest, self._newest = self._newest, None
        if newest is None:
            return None
        assert newest.incarnation != self._incarnation, "an incarnation is one process"
        is_undecided = undecided == (newest.incarnation, newest.episode)
        closed = None
        with self._connection:
            self._connection.execute("DELETE FROM newest_episode")
            if newest.num_steps and (newest.is_open or is_undecided):
                closed = ClosedEpisode(newest.num_steps, MarkKind.DISCARD if is_undecided else MarkKind.ABORTED)
                mark = make_mark(newest.episode, newest.last_step, closed.kind, "the process ended during this episode")
                offered = Offered(
                    sequence=newest.next_sequence,
                    episode=newest.episode,
                    step=newest.last_step,
                    mark=closed.kind,
                    is_last=False,
                    is_demonstration=newest.is_demonstration,
                    body=encode_body(mark),
                )
                record_id = RecordId(self._actor_id, newest.incarnation, newest.next_sequence)
                self._connection.execute(INSERT_RECORD, offered.row(record_id))
        if closed is not None:
            logger.warning("episode %d of incarnation %s: %s", newest.episode, newest.incarnation, closed.sentence)
        return closed

    def _write(self) -> None:
        try:
            self._write_until_closed()
        except BaseException as error:
            self._error = f"the thread that writes {self._path} ended: {error!r}"
            logger.critical("%s. Steps stay in memory: end this process.", self._error)
            raise

    def _write_until_closed(self) -> None:
        is_open = True
        while is_open:
            try:
                group = [self._inbox.get(timeout=_IDLE_S)]
            except queue.Empty:
                group = []
            while group and len(group) < _GROUP and not self._inbox.empty():
                group.append(self._inbox.get())
            is_open = None not in group
            self._commit_until_done([item for item in group if item is not None])
            if group:
                failpoint("spool.after_commit")
            self._room.look(self._unused_bytes)

    def _commit_until_done(self, group: list[Offered | _Acknowledgement]) -> None:
        offers = [item for item in group if isinstance(item, Offered)]
        acknowledgements = [item for item in group if isinstance(item, _Acknowledgement)]
        while offers or acknowledgements:
            try:
                acknowledgements = self._archive_before_deletion(acknowledgements)
                self._commit(offers, acknowledgements)
            except Exception as error:  # whatever it is: the steps stay, it is said, and tried again
                self._report(f"cannot write {self._path}: {error}")
            else:
                if self._error is not None:
                    logger.warning("%s takes steps again", self._path)
                    self._error = None
                return
            self._room.look(self._unused_bytes)
            if self._is_closing.wait(_RETRY_S):
                if offers:
                    logger.critical(
                        "%d steps could not be written to %s and end with this process", len(offers), self._path
                    )
                return

    def _commit(self, offers: list[Offered], acknowledgements: list[_Acknowledgement]) -> None:
        newest = self._newest
        for offer in offers:
            newest = NewestEpisode.after(newest, self._incarnation, offer)
        rows = [offer.row(RecordId(self._actor_id, self._incarnation, offer.sequence)) for offer in offers]
        with self._changed:
            deleted = 0
            with self._connection:
                self._connection.executemany(INSERT_RECORD, rows)
                if newest is not None and newest != self._newest:
                    newest.write(self._connection)
                for acknowledged in acknowledgements:
                    deleted += self._connection.execute(
                        "DELETE FROM records WHERE incarnation = ? AND sequence < ?",
                        (acknowledged.incarnation, acknowledged.next_sequence),
                    ).rowcount
                failpoint("spool.before_commit")
            self._newest = newest
            self._committed += len(offers)
            self._acknowledged += deleted
            self._changed.notify_all()

    def _archive_before_deletion(self, acknowledgements: list[_Acknowledgement]) -> list[_Acknowledgement]:
        """Put the demonstrations that are to be deleted into the archive; return what may be deleted.

        What could not be archived stays: acknowledgements are cumulative, and the next one tries again.
        """
        if self._archive is None:
            return acknowledgements
        archived = []
        for acknowledged in acknowledgements:
            try:
                self._archive_below(acknowledged, self._archive)
            except (CgpoError, OSError, sqlite3.Error) as error:
                logger.error("demonstrations stay in %s, because their archive takes none: %s", self._path, error)
            else:
                archived.append(acknowledged)
        return archived

    def _archive_below(self, acknowledged: _Acknowledgement, archive: DemonstrationArchive) -> None:
        position = 0
        while True:
            with self._changed:
                records = self._reader.select(
                    "is_demonstration AND incarnation = ? AND sequence < ? AND position > ? ORDER BY position LIMIT ?",
                    acknowledged.incarnation,
                    acknowledged.next_sequence,
                    position,
                    _GROUP,
                )
            if not records:
                return
            archive.append([encoded for _, encoded in records])
            position = records[-1][0].position

    def _unused_bytes(self) -> int:
        """Return the room within the file."""
        with self._changed:
            (pages,) = self._connection.execute("PRAGMA freelist_count").fetchone()
            (page_bytes,) = self._connection.execute("PRAGMA page_size").fetchone()
        return int(pages * page_bytes)

    def _report(self, error: str) -> None:
        if error != self._error:
            logger.error("%s. Steps wait in memory until it works again: free some space or check the disk.", error)
        self._error = error
