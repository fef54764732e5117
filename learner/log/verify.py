"""`verify`: every row of a log read and checked, in one snapshot, by code that shares nothing with what wrote it."""

import contextlib
import sqlite3
import time
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from learner.log.folder import read_specs
from learner.log.source import has_table
from policy.database import open_database
from policy.errors import ConfigError, CorruptFileError, WireError
from policy.log_records import Episode, Stream
from policy.spec import Specs
from policy.transition import EpisodeMark, RecordId
from policy.wire import decode_body

_SHOWN = 10  # problems of a kind
_INTEGRITY_LIMIT = 20  # what SQLite itself lists


@dataclass(frozen=True)
class Row:
    """One row of `records`, as it lies there."""

    position: int
    record_id: RecordId
    is_mark: bool
    episode: int
    step: int
    payload: bytes
    crc32: int

    @property
    def stream(self) -> Stream:
        return self.record_id.actor_id, self.record_id.incarnation


@dataclass
class Report:
    """What was found. Problems are kept by what they mean."""

    path: Path
    rows: int = 0
    num_bytes: int = 0  # of bodies
    episodes: int = 0
    streams: int = 0
    imported: int = 0
    unfinished: int = 0  # episodes without a last step
    not_from_start: int = 0  # records that went elsewhere before the first of their incarnation came here
    quarantined: Counter[str] = field(default_factory=Counter)  # actor -> records
    duration_s: float = 0.0
    problems: dict[str, list[str]] = field(default_factory=dict)  # meaning -> places, the first ones
    counts: Counter[str] = field(default_factory=Counter)  # meaning -> all of them

    def add(self, meaning: str, place: str) -> None:
        self.counts[meaning] += 1
        places = self.problems.setdefault(meaning, [])
        if len(places) < _SHOWN:
            places.append(place)

    @property
    def count(self) -> int:
        return self.counts.total()

    def text(self) -> str:
        """Return what a person reads: problems first, then figures."""
        lines = []
        for meaning, places in self.problems.items():
            lines += [f"WRONG: {meaning}", *(f"  {place}" for place in places)]
            if self.counts[meaning] > len(places):
                lines.append(f"  and {self.counts[meaning] - len(places):,} more")
        rate = f", {self.rows / self.duration_s:,.0f} rows/s" if self.duration_s else ""
        lines += [
            f"{self.path}: {'sound' if not self.problems else f'{self.count} problems'}",
            f"{self.rows:,} rows ({self.num_bytes / 1e6:,.1f} MB of bodies, {self.imported:,} imported) of "
            f"{self.episodes:,} episodes, checked in {self.duration_s:.1f} s{rate}",
            f"incarnations: {self.streams:,}",
        ]
        if self.unfinished:
            lines.append(f"episodes without a last step, under way or their actor ended in them: {self.unfinished:,}")
        if self.not_from_start:
            lines.append(f"records that went to another log before the first that came here: {self.not_from_start:,}")
        refused = ", ".join(f"{actor} {count:,}" for actor, count in sorted(self.quarantined.items()))
        lines.append(f"quarantine: {refused or 'empty'}{' (show --quarantine says why)' if refused else ''}")
        return "\n".join(lines) + "\n"


@dataclass
class _StreamState:
    """How far an incarnation has been read."""

    began_later: bool  # its first record here is not its first
    sequence: int = -1  # of its newest record
    episode: int = -1  # newest with a step
    step: int = -1
    step_sequence: int = -1  # of that step
    marked_episode: int = -1  # of its newest mark


def verify_log(path: Path, *, allows_gaps: bool) -> Report:
    """Check the log at `path`, whatever is written to it meanwhile; `allows_gaps` for an archive of chosen episodes.

    Raises ConfigError when it cannot be opened, CorruptFileError when it is no database of this format.
    """
    start_s = time.monotonic()
    report = Report(path)
    try:
        specs: Specs | None = read_specs(path.parent)
    except (ConfigError, CorruptFileError) as error:
        specs = None
        report.add("the specs beside the log cannot be read: its records cannot either", str(error))
    with contextlib.closing(open_database(path, "", read_only=True)) as connection:
        try:
            connection.execute("BEGIN")  # what is committed from now on is not seen
            for (line,) in connection.execute(f"PRAGMA integrity_check({_INTEGRITY_LIMIT})"):
                if line != "ok":
                    report.add("the database itself is damaged: the disk, or whatever copied the file", line)
            _Check(connection, report, specs, allows_gaps).run()
        except sqlite3.DatabaseError as error:
            place = f"after {report.rows} rows SQLite says: {error}"
            report.add("the database itself is damaged: nothing behind this place was read", place)
    report.duration_s = time.monotonic() - start_s
    return report


class _Check:
    """Reads the rows in order and remembers, for each incarnation, where it stands."""

    def __init__(self, connection: sqlite3.Connection, report: Report, specs: Specs | None, allows_gaps: bool) -> None:
        self._connection = connection
        self._report = report
        self._specs = specs
        self._allows_gaps = allows_gaps
        self._streams: dict[Stream, _StreamState] = {}
        self._all_streams: set[Stream] = set()
        self._streams_with_gaps: set[Stream] = set()  # imported in part
        self._ended: dict[Episode, bool] = {}
        self._imports = self._read_imports()
        self._quarantined = self._read_quarantine()

    def run(self) -> None:
        previous = 0
        for row in self._rows():
            if row.position != previous + 1:
                place = f"position {row.position} follows {previous}"
                self._report.add("rows were removed: a log only grows, and trainers count its rows", place)
            previous = row.position
            self._report.rows += 1
            self._report.num_bytes += len(row.payload)
            self._check_order(row)
            self._check_content(row)
            self._all_streams.add(row.stream)
        self._check_repetitions()
        self._report.streams = len(self._all_streams)
        self._report.episodes = len(self._ended)
        self._report.unfinished = sum(not has_ended for has_ended in self._ended.values())

    def _rows(self) -> Iterator[Row]:
        rows = self._connection.execute(
            "SELECT position, actor_id, incarnation, sequence, is_mark, episode, step, payload, crc32 FROM records "
            "ORDER BY position"
        )
        for position, actor_id, incarnation, sequence, is_mark, episode, step, payload, crc32 in rows:
            record_id = RecordId(actor_id, incarnation, sequence)
            yield Row(position, record_id, bool(is_mark), episode, step, payload, crc32)

    def _read_imports(self) -> list[tuple[int, int]]:
        if not has_table(self._connection, "imports"):
            return []
        return self._connection.execute("SELECT first_position, last_position FROM imports").fetchall()

    def _read_quarantine(self) -> dict[Stream, list[int]]:
        """Return the sequences that are in quarantine and not in the log, in order; counts all."""
        sequences: dict[Stream, list[int]] = {}
        if has_table(self._connection, "quarantine"):
            for actor_id, incarnation, sequence, is_held in self._connection.execute(
                "SELECT q.actor_id, q.incarnation, q.sequence, r.position IS NOT NULL FROM quarantine AS q "
                "LEFT JOIN records AS r USING (actor_id, incarnation, sequence) ORDER BY q.sequence"
            ):
                self._report.quarantined[actor_id] += 1
                if not is_held:
                    sequences.setdefault((actor_id, incarnation), []).append(sequence)
        return sequences

    def _check_content(self, row: Row) -> None:
        """Checksum, body, and the columns that repeat what the body says."""
        if zlib.crc32(row.payload) != row.crc32:
            self._report.add("a body does not match its checksum: it changed after it was written", _place(row))
            return
        if self._specs is None:
            return
        try:
            body = decode_body(row.payload, self._specs)
        except WireError as error:
            self._report.add("a body is not one of the specs beside the log", f"{_place(row)}: {error}")
            return
        said = (isinstance(body, EpisodeMark), body.episode, body.step)
        if said != (row.is_mark, row.episode, row.step):
            self._report.add(
                "a row says something else about its record than the record itself",
                f"{_place(row)}: mark, episode and step in the row {row.is_mark, row.episode, row.step}, "
                f"in the body {said}",
            )
        if not isinstance(body, EpisodeMark) and body.is_last:
            self._ended[*row.stream, row.episode] = True

    def _check_order(self, row: Row) -> None:
        """Whether the record continues its incarnation, and its step the episode.

        Imported records keep the order of the log that they came from, so only those that came here are looked at.
        """
        if not row.is_mark:
            self._ended.setdefault((*row.stream, row.episode), False)
        if any(first <= row.position <= last for first, last in self._imports):
            self._report.imported += 1
            self._streams_with_gaps.add(row.stream)
            return
        sequence = row.record_id.sequence
        state = self._streams.get(row.stream)
        if state is None:
            state = self._streams[row.stream] = _StreamState(began_later=sequence > 0)
            if not self._may_have_gaps(row.stream):
                self._report.not_from_start += self._absent(row.stream, -1, sequence)
        elif sequence <= state.sequence:
            self._report.add("records of an incarnation are not in the order in which they were made", _place(row))
        elif not self._may_have_gaps(row.stream) and self._absent(row.stream, state.sequence, sequence):
            place = f"{_place(row)}: the one before it here is {state.sequence}"
            self._report.add("records are missing, though their actor was told that they are stored", place)
        state.sequence = sequence
        if row.is_mark:
            state.marked_episode = row.episode
        else:
            self._check_step(row, state)

    def _check_step(self, row: Row, state: _StreamState) -> None:
        """Numbers of steps begin at 0 and rise; a pause leaves one out."""
        if row.episode < state.episode:
            self._report.add("an episode goes on after a later one began", _place(row))
        elif row.episode == state.episode:
            if row.step <= state.step:
                self._report.add("the steps of an episode are not in their order", _place(row))
            elif self._ended[*row.stream, row.episode]:
                self._report.add("a step comes after its episode's last one", _place(row))
        elif row.step > 0 and not self._may_begin_later(row, state):
            self._report.add("an episode begins in its middle: it was joined with another, or lost steps", _place(row))
        state.episode, state.step, state.step_sequence = row.episode, row.step, row.record_id.sequence

    def _may_begin_later(self, row: Row, state: _StreamState) -> bool:
        """Whether its first steps may have gone to another log or into quarantine, or a mark says what became of them.

        The actor sends a bookmark in place of a record that its disk has damaged.
        """
        between = row.record_id.sequence - state.step_sequence - 1
        return (
            self._may_have_gaps(row.stream)
            or (state.began_later and state.episode < 0)
            or state.marked_episode == row.episode
            or self._absent(row.stream, state.step_sequence, row.record_id.sequence) < between
        )

    def _may_have_gaps(self, stream: Stream) -> bool:
        return self._allows_gaps or stream in self._streams_with_gaps

    def _absent(self, stream: Stream, after: int, before: int) -> int:
        """Return how many sequences between two are not in quarantine."""
        refused = self._quarantined.get(stream, [])
        return before - after - 1 - (bisect_left(refused, before) - bisect_left(refused, after + 1))

    def _check_repetitions(self) -> None:
        rows = self._connection.execute(
            "SELECT actor_id, incarnation, episode, step, COUNT(*), MIN(position), MAX(position) FROM records "
            "WHERE NOT is_mark GROUP BY actor_id, incarnation, episode, step HAVING COUNT(*) > 1"
        )
        for actor_id, incarnation, episode, step, count, first, last in rows:
            place = f"{actor_id}, incarnation {incarnation}, episode {episode}, step {step}: {count} times, positions "
            self._report.add("a step is in the log under several sequences", f"{place}{first} to {last}")


def _place(row: Row) -> str:
    name = row.record_id
    what = "mark of " if row.is_mark else ""
    return (
        f"position {row.position}: record {name.sequence} of {name.actor_id}, incarnation {name.incarnation}, "
        f"{what}episode {row.episode}, step {row.step}"
    )
