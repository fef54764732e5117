"""The spool: every step goes to this disk first and stays until the learner has it on its own.

The control loop offers and goes on. One thread owned by the spool does all writing: it commits what was offered, then
deletes what was acknowledged, each with several per transaction when they come faster than the disk. Demonstrations
pass into the archive before they are deleted.
"""

import contextlib
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

_GROUP = 64  # offers in one transaction, and rows in memory on their way to the archive
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
            busy_timeout_s=2.0,
        )
        self._reader = SpoolReader(self._connection, path, actor_id)
        try:
            claim(self._connection, path, actor_id)
            self._newest = NewestEpisode.read(self._connection)
            self._end_before = {} if self._newest is None else {self._newest.incarnation: self._newest.next_sequence}
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
        self._waiting: list[Offered] = []  # taken from the inbox and not committed; the writer's own, like the next two
        self._deletable: dict[str, int] = {}  # acknowledged, by incarnation: everything below this sequence
        self._next_archiving_s = 0.0
        self._archive_problem: str | None = None
        self._error: str | None = None
        self._is_closing = threading.Event()
        self._inbox: queue.SimpleQueue[Offered | _Acknowledgement | None] = queue.SimpleQueue()  # put never blocks
        self._changed = threading.Condition()  # one user of the connection at a time; notified after each commit
        self._look()
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
    def path(self) -> Path:
        return self._path

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

    @property
    def archive_problem(self) -> str | None:
        """Why demonstrations that the learner has pile up here: their archive takes none."""
        return self._archive_problem

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything offered so far is on the disk; return whether it is."""
        offered = self._offered
        with self._changed:
            return self._changed.wait_for(lambda: self._committed >= offered, timeout_s)

    def oldest_sequences(self) -> dict[str, int]:
        """Return the sequence of the oldest record on disk of each incarnation, the oldest incarnation first.

        The process before this one is named first even when all it recorded is sent: nobody else can know that it is
        dead. Its sequence is then that of the record it did not come to.
        """
        with self._changed:
            rows = self._connection.execute(
                "SELECT incarnation, MIN(sequence) FROM records GROUP BY incarnation ORDER BY MIN(position)"
            )
            return self._end_before | dict(rows.fetchall())

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
        """Write what comes until the spool is closed. Nothing else ends this: what fails is said and tried again."""
        is_last = False
        while not is_last:
            is_last = self._is_closing.is_set()  # everything is in the inbox by then
            self._take()
            problem = ""
            # Apart from one another: what the learner has makes room in a file that takes nothing more.
            for work in (self._commit_waiting, self._let_go, self._look):
                try:
                    work()
                except Exception as error:  # whatever it is: what was not written is still in memory
                    problem = problem or f"cannot write {self._path}: {error}"
            self._note(problem)
            if problem and not is_last:
                self._is_closing.wait(_RETRY_S)
        if self._waiting:
            logger.critical(
                "%d steps could not be written to %s and end with this process", len(self._waiting), self._path
            )

    def _take(self) -> None:
        """Wait a moment for something to write, and take all that came."""
        must_not_wait = self._waiting or self._error or self._is_closing.is_set()
        with contextlib.suppress(queue.Empty):
            item = self._inbox.get(timeout=0.0 if must_not_wait else _IDLE_S)
            while True:
                if isinstance(item, Offered):
                    self._waiting.append(item)
                elif item is not None:
                    known = self._deletable.get(item.incarnation, 0)
                    self._deletable[item.incarnation] = max(known, item.next_sequence)
                item = self._inbox.get_nowait()

    def _commit_waiting(self) -> None:
        """Commit what was offered, strictly in order: a hole in a stream of records would be there for ever."""
        while self._waiting:
            self._commit(self._waiting[:_GROUP])
            failpoint("spool.after_commit")

    def _commit(self, offers: list[Offered]) -> None:
        newest = self._newest
        for offer in offers:
            newest = NewestEpisode.after(newest, self._incarnation, offer)
        rows = [offer.row(RecordId(self._actor_id, self._incarnation, offer.sequence)) for offer in offers]
        with self._changed:
            with self._connection:
                self._connection.executemany(INSERT_RECORD, rows)
                if newest is not None:
                    newest.write(self._connection)
                failpoint("spool.before_commit")
            self._newest = newest
            self._committed += len(offers)
            del self._waiting[: len(offers)]
            self._changed.notify_all()

    def _let_go(self) -> None:
        """Delete what the learner has, its demonstrations archived first; what cannot be archived stays."""
        if not self._deletable or (time.monotonic() < self._next_archiving_s and not self._is_closing.is_set()):
            return
        archived, problem = {}, None
        for incarnation, next_sequence in self._deletable.items():
            try:
                self._archive_below(incarnation, next_sequence)
            except (CgpoError, OSError, sqlite3.Error) as error:
                problem = f"demonstrations stay in {self._path}, because their archive takes none: {error}"
            else:
                archived[incarnation] = next_sequence
        if problem is not None:
            self._next_archiving_s = time.monotonic() + _RETRY_S
            if problem != self._archive_problem:
                logger.error("%s. It is tried again until it takes them.", problem)
        self._archive_problem = problem
        self._delete(archived)

    def _delete(self, acknowledged: dict[str, int]) -> None:
        if not acknowledged:
            return
        with self._changed:
            deleted = 0
            with self._connection:
                for name in acknowledged.items():
                    query = "DELETE FROM records WHERE incarnation = ? AND sequence < ?"
                    deleted += self._connection.execute(query, name).rowcount
            for incarnation in acknowledged:
                del self._deletable[incarnation]
            self._acknowledged += deleted
            self._changed.notify_all()

    def _archive_below(self, incarnation: str, next_sequence: int) -> None:
        position = 0
        while self._archive is not None:
            with self._changed:
                records = self._reader.select(
                    "is_demonstration AND incarnation = ? AND sequence < ? AND position > ? ORDER BY position LIMIT ?",
                    incarnation,
                    next_sequence,
                    position,
                    _GROUP,
                )
            if not records:
                return
            self._archive.append([encoded for _, encoded in records])
            position = records[-1][0].position

    def _look(self) -> None:
        self._room.look(self._unused_bytes)

    def _unused_bytes(self) -> int:
        """Return the room within the file."""
        with self._changed:
            (pages,) = self._connection.execute("PRAGMA freelist_count").fetchone()
            (page_bytes,) = self._connection.execute("PRAGMA page_size").fetchone()
        return int(pages * page_bytes)

    def _note(self, problem: str) -> None:
        """Keep what keeps steps from the disk, empty for nothing, and say it when it is new."""
        if problem and problem != self._error:
            logger.error("%s. Steps wait in memory until it works again: free some space or check the disk.", problem)
        elif self._error and not problem:
            logger.warning("%s takes steps again", self._path)
        self._error = problem or None
