"""The reading side of the spool: every record is checked, and one that the disk damaged gives way to a bookmark."""

import logging
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from actor.spool_schema import make_mark
from policy.errors import CorruptFileError
from policy.log_records import EncodedRecord
from policy.transition import MarkKind, RecordId
from policy.wire import encode_body, record_crc32

logger = logging.getLogger(__name__)

_COLUMNS = "position, incarnation, sequence, is_mark, episode, step, crc32, body"
_DAMAGED_COLUMNS = "incarnation, sequence, is_mark, episode, step, crc32, body"


@dataclass(frozen=True)
class SpooledRecord:
    """A record that waits for its acknowledgement. Its checksum is right."""

    position: int
    record_id: RecordId
    crc32: int  # of name and body
    body: bytes  # a cgpo.v1.Body


class SpoolReader:
    """Reads the records of one actor's spool. Whoever calls it has the connection to itself meanwhile."""

    def __init__(self, connection: sqlite3.Connection, path: Path, actor_id: str) -> None:
        self._connection = connection
        self._path = path
        self._actor_id = actor_id

    def select(self, condition: str, *values: str | int) -> list[tuple[SpooledRecord, EncodedRecord]]:
        """Return the records that an SQL condition names: each as what is sent, and as what is archived.

        Raises CorruptFileError for a file that SQLite itself cannot read any more, sqlite3.Error for what may pass.
        """
        try:
            rows = self._connection.execute(f"SELECT {_COLUMNS} FROM records WHERE {condition}", values).fetchall()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise damaged_file(self._path, error) from error
        try:
            return [self._checked(*row) for row in rows]
        except (TypeError, ValueError) as error:  # values that a column never holds
            raise damaged_file(self._path, error) from error

    def _checked(
        self,
        position: int,
        incarnation: str,
        sequence: int,
        is_mark: int,
        episode: int,
        step: int,
        crc32: int,
        body: bytes,
    ) -> tuple[SpooledRecord, EncodedRecord]:
        record_id = RecordId(self._actor_id, incarnation, sequence)
        if record_crc32(record_id, body) != crc32:
            body = self._replace(position, record_id, episode, step, "a mark" if is_mark else f"step {step}")
            crc32, is_mark = record_crc32(record_id, body), True
        return (
            SpooledRecord(position, record_id, crc32, body),
            EncodedRecord(record_id, bool(is_mark), episode, step, body),
        )

    def _replace(self, position: int, record_id: RecordId, episode: int, step: int, what: str) -> bytes:
        """Move a damaged record aside, and return the body of the bookmark that has its place."""
        logger.critical(
            "record %d of incarnation %s, %s of episode %d, was damaged by the disk of %s. It is kept in the table "
            "`damaged`, and a bookmark goes to the learner in its place. Check the disk.",
            record_id.sequence,
            record_id.incarnation,
            what,
            episode,
            self._path,
        )
        note = f"lost: {what} of episode {episode}, which the disk damaged in the actor's spool"
        body = encode_body(make_mark(episode, step, MarkKind.BOOKMARK, note))
        with self._connection:
            self._connection.execute(
                f"INSERT INTO damaged ({_DAMAGED_COLUMNS}) SELECT {_DAMAGED_COLUMNS} FROM records WHERE position = ?",
                (position,),
            )
            self._connection.execute(
                "UPDATE records SET is_mark = 1, crc32 = ?, body = ? WHERE position = ?",
                (record_crc32(record_id, body), body, position),
            )
        return body


def damaged_file(path: Path, error: Exception) -> CorruptFileError:
    return CorruptFileError(
        f"{path} is damaged: {error}. Move it away to start a new one; `sqlite3 FILE .recover` reads what can still be "
        "read of it."
    )
