"""One thread that writes the log for all streams: whatever came during a commit goes into the next one.

Every stream is served in each round, and with a bounded share, so that an actor which floods the learner fills its own
inbox, where its reader then waits, and delays the others by no more than that share.
"""

import logging
import os
import shutil
import sqlite3
import threading
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from policy.episode_log import EpisodeLog
from policy.errors import CgpoError, GapError, QuarantineFullError
from policy.failpoints import failpoint
from policy.log_records import Appended, EncodedRecord

logger = logging.getLogger(__name__)

_SHARE = 32  # records of one stream in one commit
_CAPACITY = 2 * _SHARE  # of an inbox: the next share arrives during a commit


class LogUnavailableError(CgpoError):
    """The disk takes no data at the moment."""


@dataclass
class Acknowledgement:
    """Everything of `incarnation` below next_sequence is on the disk; `refused` of what this covers in quarantine."""

    incarnation: str
    next_sequence: int
    refused: int = 0
    refusal: str = ""  # of the last of them


class Inbox:
    """What one stream brought and what became of it. One thread puts, one takes acknowledgements."""

    def __init__(self, lock: threading.Lock, arrived: threading.Condition) -> None:
        self._arrived = arrived
        self._changed = threading.Condition(lock)
        self._records: deque[EncodedRecord] = deque()
        self._acknowledgements: deque[Acknowledgement] = deque()
        self._uncommitted = 0
        self._is_ended = False  # nothing more will come
        self._is_closed = False  # nobody wants the outcome any more
        self._error: CgpoError | None = None

    def put(self, record: EncodedRecord) -> bool:
        """Hand over a record; waits while the inbox is full. Returns whether it was taken."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._records) < _CAPACITY or self._is_closed or self._error)
            if self._is_closed or self._error:
                return False
            self._records.append(record)
            self._uncommitted += 1
            self._arrived.notify()
            return True

    def end(self, error: CgpoError | None = None) -> None:
        """Say that nothing more comes; `error` is raised by `take` after all before it is acknowledged."""
        with self._changed:
            self._is_ended = True
            self._error = self._error or error
            self._changed.notify_all()

    def take(self, timeout_s: float) -> list[Acknowledgement] | None:
        """Return what was committed since the last call, an empty list after timeout_s, None at the end.

        Raises the error that ended the stream.
        """
        with self._changed:
            self._changed.wait_for(self._has_news, timeout_s)
            if self._acknowledgements:
                taken = list(self._acknowledgements)
                self._acknowledgements.clear()
                return taken
            if self._error is not None and not self._uncommitted:
                raise self._error
            is_over = self._is_closed or (self._is_ended and not self._uncommitted)
            return None if is_over else []

    def close(self) -> None:
        """Drop what is not committed yet; the actor sends it again."""
        with self._changed:
            self._is_closed = True
            self._records.clear()
            self._changed.notify_all()

    def _has_news(self) -> bool:
        if self._acknowledgements or self._is_closed:
            return True
        return (self._is_ended or self._error is not None) and not self._uncommitted

    @property
    def is_drained(self) -> bool:
        """Whether the committer need not look here again. Under the lock."""
        return self._is_closed or (self._is_ended and not self._records)

    def pick(self) -> list[EncodedRecord]:
        """Take the stream's share of the next commit. Under the lock."""
        picked = [self._records.popleft() for _ in range(min(_SHARE, len(self._records)))]
        if picked:
            self._changed.notify_all()
        return picked

    def _add(self, new: Acknowledgement) -> None:
        """Put an acknowledgement to those that wait, or into the last one: an actor may never read any."""
        last = self._acknowledgements[-1] if self._acknowledgements else None
        if last is None or last.incarnation != new.incarnation:
            self._acknowledgements.append(new)
            return
        last.next_sequence = max(last.next_sequence, new.next_sequence)
        last.refused += new.refused
        last.refusal = new.refusal or last.refusal

    def settle(self, count: int, acknowledgements: Iterable[Acknowledgement], error: CgpoError | None) -> None:
        """Tell what became of `count` records; after an error the stream ends. Under the lock."""
        self._uncommitted -= count
        for acknowledgement in acknowledgements:
            self._add(acknowledgement)
        if error is not None:
            self._error = error
            self._uncommitted -= len(self._records)
            self._records.clear()
        self._changed.notify_all()


@dataclass
class _Share:
    """One stream's part of a commit."""

    inbox: Inbox
    records: list[EncodedRecord]
    acknowledgements: list[Acknowledgement] = field(default_factory=list)
    error: CgpoError | None = None

    def settle(self, appended: Appended) -> None:
        """Read off what became of these records. A gap ends the stream at the record that does not follow."""
        by_incarnation: dict[str, Acknowledgement] = {}
        for record in self.records:
            record_id = record.record_id
            gap = appended.gaps.get((record_id.actor_id, record_id.incarnation))
            if gap is not None:
                self.error = GapError(gap)
                continue
            acknowledgement = by_incarnation.setdefault(
                record_id.incarnation, Acknowledgement(record_id.incarnation, record_id.sequence + 1)
            )
            acknowledgement.next_sequence = max(acknowledgement.next_sequence, record_id.sequence + 1)
        for record_id, reason in appended.refused:
            acknowledged = by_incarnation.get(record_id.incarnation)  # None: another's, or before a gap
            if acknowledged is not None and record_id.actor_id == self.records[0].record_id.actor_id:
                acknowledged.refused += 1
                acknowledged.refusal = reason
        self.acknowledgements = list(by_incarnation.values())


class Committer:
    """Commits what the inboxes hold, in turn, in one transaction for all."""

    def __init__(self, log: EpisodeLog, directory: Path, min_free_bytes: int = 0) -> None:
        """`directory` is on the log's disk, of which min_free_bytes stay free."""
        self._log = log
        self._directory = directory
        self._min_free_bytes = min_free_bytes
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._inboxes: list[Inbox] = []
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._thread.start()

    def open_inbox(self) -> Inbox:
        inbox = Inbox(self._lock, self._arrived)
        with self._lock:
            self._inboxes.append(inbox)
        return inbox

    def close(self) -> None:
        """Finish the commit under way and end the thread. Close the inboxes before."""
        with self._arrived:
            self._is_closing = True
            self._arrived.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while shares := self._next_shares():
                self._commit(shares)
                with self._lock:
                    for share in shares:
                        share.inbox.settle(len(share.records), share.acknowledgements, share.error)
        except BaseException:
            # Without this thread every stream would wait for ever; a new process loses nothing.
            logger.critical("the log's writer failed, ending this process", exc_info=True)
            os._exit(1)

    def _next_shares(self) -> list[_Share]:
        """Wait for records and return each stream's share; none when closing."""
        with self._arrived:
            while not self._is_closing:
                picked = [(inbox, inbox.pick()) for inbox in self._inboxes]
                shares = [_Share(inbox, records) for inbox, records in picked if records]
                self._inboxes = [inbox for inbox in self._inboxes if not inbox.is_drained]
                if shares:
                    return shares
                self._arrived.wait()
            return []

    def _commit(self, shares: list[_Share]) -> None:
        try:
            self._check_room()
            failpoint("ingest.before_commit")
            appended = self._log.append_encoded(record for share in shares for record in share.records)
            failpoint("ingest.after_commit")
        except QuarantineFullError as error:
            if len(shares) > 1:  # whose records fill it must not cost the others theirs
                for share in shares:
                    self._commit([share])
            else:
                shares[0].error = error
        except (sqlite3.Error, OSError, LogUnavailableError) as error:
            problem = LogUnavailableError(f"the learner's episode log takes no data: {error}")
            logger.error("%s. Actors keep their steps and try again.", problem)
            for share in shares:
                share.error = problem
        else:
            _log_refusals(appended)
            for share in shares:
                share.settle(appended)

    def _check_room(self) -> None:
        free_bytes = shutil.disk_usage(self._directory).free if self._min_free_bytes else 0
        if free_bytes < self._min_free_bytes:
            raise LogUnavailableError(
                f"{free_bytes / 1e9:.2f} GB are free on the disk of {self._directory.absolute()}, below the floor of "
                f"{self._min_free_bytes / 1e9:.2f} GB (learner.min_free_gb). Free some space"
            )


def _log_refusals(appended: Appended) -> None:
    """Say what a commit refused, in a line for each actor: one may send thousands in a second."""
    counts = Counter(record_id.actor_id for record_id, _ in appended.refused)
    last = {record_id.actor_id: (record_id.sequence, reason) for record_id, reason in appended.refused}
    for actor_id, count in counts.items():
        sequence, reason = last[actor_id]
        logger.error("%d records of %s are in quarantine, the last is %d: %s", count, actor_id, sequence, reason)
