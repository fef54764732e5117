"""The tables of the spool's file, and how a file of an earlier release becomes one of this."""

import logging
import sqlite3
import time
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from cgpo_proto import link_pb2
from google.protobuf.message import DecodeError

from policy.errors import ConfigError, CorruptFileError
from policy.transition import ActionSource, EpisodeMark, MarkKind, RecordId
from policy.wire import record_crc32

logger = logging.getLogger(__name__)

FORMAT = 3

_TABLES = (
    """
CREATE TABLE records (
    position INTEGER PRIMARY KEY AUTOINCREMENT,  -- in the order of offering; never used again, even when all is sent
    incarnation TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    is_mark INTEGER NOT NULL,           -- an EpisodeMark, not a Transition
    episode INTEGER NOT NULL,
    step INTEGER NOT NULL,
    is_demonstration INTEGER NOT NULL,  -- goes into the archive before it is deleted
    crc32 INTEGER NOT NULL,             -- of name and body, see policy/wire.py
    body BLOB NOT NULL,                 -- a cgpo.v1.Body
    UNIQUE (incarnation, sequence)
)""",
    """
CREATE TABLE damaged (                  -- what the disk made of records that can no longer be sent
    incarnation TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    is_mark INTEGER NOT NULL,
    episode INTEGER NOT NULL,
    step INTEGER NOT NULL,
    crc32 INTEGER NOT NULL,
    body BLOB NOT NULL
)""",
    """
CREATE TABLE newest_episode (
    row INTEGER PRIMARY KEY CHECK (row = 0),  -- there is one at most
    incarnation TEXT NOT NULL,
    next_sequence INTEGER NOT NULL,
    episode INTEGER NOT NULL,
    last_step INTEGER NOT NULL,
    num_steps INTEGER NOT NULL,
    is_open INTEGER NOT NULL,
    is_demonstration INTEGER NOT NULL
)""",
    """
CREATE TABLE owner (
    row INTEGER PRIMARY KEY CHECK (row = 0),
    actor_id TEXT NOT NULL                    -- whose records these are: their checksums cover it
)""",
)
SCHEMA = ";".join(_TABLES)

INSERT_RECORD = (
    "INSERT INTO records (incarnation, sequence, is_mark, episode, step, is_demonstration, crc32, body) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_READ_GROUP = 64  # rows of an old file in memory at once


@dataclass(frozen=True)
class Offered:
    """A record as the control loop gave it: encoded, and what the spool must know of it."""

    sequence: int
    episode: int
    step: int
    mark: MarkKind | None  # None: a transition
    is_last: bool  # a transition that ends its episode
    is_demonstration: bool
    body: bytes

    def row(self, record_id: RecordId) -> tuple[str, int, bool, int, int, bool, int, bytes]:
        """Return the values of INSERT_RECORD, with the checksum."""
        return (
            record_id.incarnation,
            record_id.sequence,
            self.mark is not None,
            self.episode,
            self.step,
            self.is_demonstration,
            record_crc32(record_id, self.body),
            self.body,
        )


@dataclass(frozen=True)
class ClosedEpisode:
    """An episode in which a process ended, and which the next one gave a mark."""

    num_steps: int
    kind: MarkKind

    @property
    def sentence(self) -> str:
        return (
            f"the process before ended in an episode: its {self.num_steps} steps are stored, marked as "
            f"{'discarded' if self.kind is MarkKind.DISCARD else 'aborted'}"
        )


@dataclass(frozen=True)
class NewestEpisode:
    """The last episode of which something was committed, and where its incarnation is."""

    incarnation: str
    next_sequence: int  # of the incarnation
    episode: int
    last_step: int
    num_steps: int
    is_open: bool  # its last step did not end it, and nobody said anything that does
    is_demonstration: bool

    @staticmethod
    def read(connection: sqlite3.Connection) -> "NewestEpisode | None":
        row = connection.execute(
            "SELECT incarnation, next_sequence, episode, last_step, num_steps, is_open, is_demonstration "
            "FROM newest_episode"
        ).fetchone()
        if row is None:
            return None
        incarnation, next_sequence, episode, last_step, num_steps, is_open, is_demonstration = row
        return NewestEpisode(
            incarnation, next_sequence, episode, last_step, num_steps, bool(is_open), bool(is_demonstration)
        )

    def write(self, connection: sqlite3.Connection) -> None:
        connection.execute("REPLACE INTO newest_episode VALUES (0, ?, ?, ?, ?, ?, ?, ?)", astuple(self))

    @staticmethod
    def after(newest: "NewestEpisode | None", incarnation: str, offered: Offered) -> "NewestEpisode":
        """Return what one more record of this incarnation makes of it."""
        next_sequence = offered.sequence + 1
        if newest is None or newest.incarnation != incarnation:
            newest = NewestEpisode(incarnation, next_sequence, offered.episode, offered.step, 0, False, False)
        is_same = newest.episode == offered.episode
        if offered.mark is not None:
            closes = is_same and offered.mark is not MarkKind.BOOKMARK
            return replace(newest, next_sequence=next_sequence, is_open=newest.is_open and not closes)
        num_steps = newest.num_steps + 1 if is_same else 1
        return NewestEpisode(
            incarnation,
            next_sequence,
            offered.episode,
            offered.step,
            num_steps,
            not offered.is_last,
            offered.is_demonstration,
        )


def migrate_from_2(connection: sqlite3.Connection, actor_id: str) -> None:
    """Bring a file of format 2, whose rows are whole Record messages of protocol 2, to this format.

    Raises CorruptFileError when a row is no such message.
    """
    # Each statement by itself: executescript would end the transaction that this is a part of.
    connection.execute("ALTER TABLE records RENAME TO records_2")
    for table in _TABLES:
        connection.execute(table)
    newest: NewestEpisode | None = None
    demonstrations: set[tuple[str, int]] = set()
    owner = actor_id
    count, position = 0, 0
    while rows := connection.execute(
        "SELECT position, incarnation, sequence, payload FROM records_2 WHERE position > ? ORDER BY position LIMIT ?",
        (position, _READ_GROUP),
    ).fetchall():
        for _, incarnation, sequence, payload in rows:
            offered, owner = _offered(sequence, payload), link_pb2.Record.FromString(payload).actor_id
            episode = (incarnation, offered.episode)
            if offered.is_demonstration:
                demonstrations.add(episode)
            offered = replace(offered, is_demonstration=episode in demonstrations)
            newest = NewestEpisode.after(newest, incarnation, offered)
            connection.execute(INSERT_RECORD, offered.row(RecordId(owner, incarnation, sequence)))
        count, position = count + len(rows), rows[-1][0]
    if newest is not None:
        newest.write(connection)
    connection.execute("INSERT INTO owner VALUES (0, ?)", (owner,))
    connection.execute("DROP TABLE records_2")
    logger.info("the spool of an earlier release was brought to format %d, with %d records", FORMAT, count)


def _offered(sequence: int, payload: bytes) -> Offered:
    """Read a Record of protocol 2: its fields 4 and 5 are those of the present Body, 1 to 3 its name."""
    try:
        message = link_pb2.Body.FromString(payload)
        mark = MarkKind(message.mark.kind) if message.WhichOneof("body") == "mark" else None
    except (DecodeError, ValueError) as error:
        raise CorruptFileError(
            f"record {sequence} of a spool of format 2 cannot be read: {error}. Move the spool away, or start the "
            "release that wrote it once more."
        ) from error
    message.DiscardUnknownFields()
    content = message.mark if mark else message.transition
    return Offered(
        sequence=sequence,
        episode=content.episode,
        step=content.step,
        mark=mark,
        is_last=message.transition.terminated or message.transition.truncated,
        is_demonstration=int(message.transition.source) == ActionSource.HUMAN_DEMONSTRATION,
        body=message.SerializeToString(),
    )


def claim(connection: sqlite3.Connection, path: Path, actor_id: str) -> None:
    """Make the spool this actor's. Raises ConfigError when it holds records of another actor id."""
    row = connection.execute("SELECT actor_id FROM owner").fetchone()
    if row is None or row[0] != actor_id:
        newest = NewestEpisode.read(connection)
        (count,) = connection.execute("SELECT COUNT(*) FROM records").fetchone()
        if row is not None and (count or (newest is not None and newest.is_open)):
            raise ConfigError(
                f"{path} holds {count} records of actor {row[0]!r} that the learner has not acknowledged, and this is "
                f"actor {actor_id!r}. Start with --actor-id {row[0]} until they are sent, or choose another --run-dir."
            )
        with connection:
            connection.execute("REPLACE INTO owner VALUES (0, ?)", (actor_id,))


def make_mark(episode: int, step: int, kind: MarkKind, note: str) -> EpisodeMark:
    """Return a mark that is made now."""
    return EpisodeMark(episode=episode, step=step, kind=kind, wall_time_s=time.time(), note=note)
