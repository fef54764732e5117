"""Exactly once: spool, committer and log against a model, while connections and both sides die at any moment.

The spools, the archive, the check of records, the committer and the log are the real ones. The network is the rules:
they hand records over or lose them, and acknowledgements likewise.
"""

import contextlib
import shutil
import sqlite3
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cgpo_proto import link_pb2
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actor.archive import DemonstrationArchive
from actor.spool import Spool
from learner.committer import Acknowledgement, Committer, Inbox
from learner.link_servicer import _Reader
from learner.sessions import Session
from policy.episode_log import EpisodeLog
from policy.errors import WireError
from policy.log_records import EncodedRecord
from policy.transition import ActionSource, EpisodeMark, MarkKind, Recordable, RecordId
from policy.wire import decode_body, encode_body, make_record, record_crc32
from tests.transitions import SPECS, make_transition

HANG_LIMIT_S = 60.0
ACTORS = ("robot-0", "robot-1")
actors = st.sampled_from(ACTORS)
few = st.integers(1, 5)

Rows = dict[RecordId, bytes]


_deaths: list[int] = []  # of committers: each would have ended its process


def wait_until(condition: Any) -> None:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition():
        assert not _deaths, "the committer died"
        assert time.monotonic() < deadline_s, "hangs"
        time.sleep(0.0005)


def crash_image(path: Path, target: Path) -> None:
    """Copy a database as a power loss would leave it: what is committed lies in the file or its write-ahead log."""
    for suffix in ("", "-wal"):
        if path.with_name(path.name + suffix).exists():
            shutil.copyfile(path.with_name(path.name + suffix), target.with_name(target.name + suffix))


@dataclass
class Connection:
    """One stream from an actor: what is on its way, and what came back."""

    inbox: Inbox
    position: int = 0  # in the spool
    is_alive: bool = True  # the learner still reads what was sent; the actor may be gone
    has_gap: bool = False  # a record of it was lost alone
    sent: deque[bytes] = field(default_factory=deque)
    acknowledgements: deque[Acknowledgement] = field(default_factory=deque)


@dataclass
class Actor:
    """One robot's computer: its spool and archive, and the model of what was committed to the spool."""

    spool: Spool
    incarnation: str
    path: Path
    processes: int = 1
    episode: int = 0
    step: int = 0  # of the episode
    is_open: bool = False  # the episode has steps, and neither a last one nor a verdict
    connection: Connection | None = None
    committed: Rows = field(default_factory=dict)
    bad: set[RecordId] = field(default_factory=set)  # of these: no learner can accept them
    demonstrations: set[RecordId] = field(default_factory=set)


class Delivery(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        shared_memory = Path("/dev/shm")  # every commit waits for the disk otherwise
        self.folder = Path(tempfile.mkdtemp(dir=shared_memory if shared_memory.is_dir() else None))
        self.log_path = self.folder / "log.sqlite"
        self.learners = 0
        self.connections: list[tuple[str, Connection]] = []
        self.conflicts: set[RecordId] = set()
        self.actors: dict[str, Actor] = {}

    @initialize()
    def start(self) -> None:
        self._start_learner()
        for actor_id in ACTORS:
            path = self.folder / f"{actor_id}.0.sqlite"
            self.actors[actor_id] = Actor(self._open_spool(path, actor_id, "p0"), "p0", path)

    # The actors' side

    @rule(actor_id=actors, count=few, is_demonstration=st.booleans(), ends=st.booleans())
    def act(self, actor_id: str, count: int, is_demonstration: bool, ends: bool) -> None:
        """Go on with the episode, or begin one."""
        actor = self.actors[actor_id]
        source = ActionSource.HUMAN_DEMONSTRATION if is_demonstration else ActionSource.POLICY
        for index in range(count):
            is_last = ends and index == count - 1
            body = make_transition(actor.step, is_last=is_last, episode=actor.episode, source=source)
            self._offer(actor_id, body, is_demonstration)
            actor.step, actor.is_open = actor.step + 1, not is_last
        if ends:
            actor.episode, actor.step = actor.episode + 1, 0

    @rule(actor_id=actors)
    def offer_what_no_learner_accepts(self, actor_id: str) -> None:
        actor = self.actors[actor_id]
        self._offer(actor_id, make_transition(actor.step, episode=actor.episode, reward=float("inf")), False, bad=True)
        actor.step, actor.is_open = actor.step + 1, True

    @rule(actor_id=actors, kind=st.sampled_from([MarkKind.SUCCESS, MarkKind.BOOKMARK]))
    def mark(self, actor_id: str, kind: MarkKind) -> None:
        actor = self.actors[actor_id]
        mark = EpisodeMark(episode=actor.episode, step=max(0, actor.step - 1), kind=kind, wall_time_s=1.0)
        self._offer(actor_id, mark, False)
        if kind is MarkKind.SUCCESS:
            actor.is_open = False

    @rule(actor_id=actors)
    def connect(self, actor_id: str) -> None:
        """Say Hello. What an earlier connection still has on its way may arrive later, its acknowledgements never."""
        actor = self.actors[actor_id]
        for incarnation in actor.spool.oldest_sequences():
            self._acknowledge(actor_id, incarnation, self.log.next_sequence(actor_id, incarnation))
        actor.connection = Connection(self.committer.open_inbox())
        self.connections.append((actor_id, actor.connection))

    @rule(actor_id=actors, count=st.integers(1, 8))
    def send(self, actor_id: str, count: int) -> None:
        actor = self.actors[actor_id]
        if actor.connection is None or not actor.connection.is_alive:
            return
        for record in actor.spool.read_after(actor.connection.position, count):
            actor.connection.position = record.position
            message = make_record(record.record_id, record.body, record.crc32)
            actor.connection.sent.append(message.SerializeToString())

    @rule(actor_id=actors)
    def hear_acknowledgements(self, actor_id: str) -> None:
        connection = self.actors[actor_id].connection
        while connection is not None and connection.acknowledgements:
            acknowledged = connection.acknowledgements.popleft()
            self._acknowledge(actor_id, acknowledged.incarnation, acknowledged.next_sequence)

    @rule(actor_id=actors, acted=few, delivered=few, hears=st.booleans())
    def work(self, actor_id: str, acted: int, delivered: int, hears: bool) -> None:
        """What happens nearly all the time: steps are sent, some arrive, and some acknowledgements come back."""
        self.act(actor_id, acted, is_demonstration=False, ends=False)
        if self.actors[actor_id].connection is None:
            self.connect(actor_id)
        self.send(actor_id, acted)
        connection = self.actors[actor_id].connection
        assert connection is not None
        self._deliver(connection, delivered)
        if hears:
            self.hear_acknowledgements(actor_id)

    @rule(actor_id=actors, is_crash=st.booleans())
    def restart_actor(self, actor_id: str, is_crash: bool) -> None:
        actor = self.actors[actor_id]
        name = f"p{actor.processes}"
        before, path = actor.path, actor.path
        if is_crash:
            path = self.folder / f"{actor_id}.{actor.processes}.sqlite"
            crash_image(before, path)
        actor.spool.close()
        actor.path, actor.processes, actor.connection = path, actor.processes + 1, None
        actor.spool = self._open_spool(path, actor_id, name)
        assert (actor.spool.closed_episode is not None) == actor.is_open
        if actor.is_open:
            self._expect_mark(actor_id)
        actor.incarnation, actor.episode, actor.step, actor.is_open = name, 0, 0, False

    # The network

    @precondition(lambda self: self.connections)
    @rule(data=st.data(), count=st.integers(1, 8))
    def deliver(self, data: st.DataObject, count: int) -> None:
        """Let the first records of some connection arrive, be committed and acknowledged."""
        _, connection = data.draw(st.sampled_from(self.connections))
        self._deliver(connection, count)

    @rule(count=st.integers(1, 8))
    def deliver_from_all_at_once(self, count: int) -> None:
        """One commit for all: every inbox is filled before the committer may look.

        It judges an incarnation as a whole, so that a gap in one stream may end another of the same actor.
        """
        with_gap = {actor_id for actor_id, connection in self.connections if connection.has_gap}
        for actor_id, connection in self.connections:
            connection.has_gap = actor_id in with_gap
        with self.committer._lock:
            streams = [connection for _, connection in self.connections if connection.is_alive]
            taken = [self._put(connection, count, is_locked=True) for connection in streams]
        for connection, is_put in zip(streams, taken, strict=True):
            if is_put:
                self._collect(connection)

    @precondition(lambda self: self.connections)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        _, connection = data.draw(st.sampled_from(self.connections))
        if connection.sent:
            connection.sent.appendleft(connection.sent[0])

    @rule(actor_id=actors, data=st.data())
    def skip(self, actor_id: str, data: st.DataObject) -> None:
        """Lose a record and not those behind it: no TCP does, a wrong actor may. What follows must not be stored.

        But for the first of an incarnation: one that the log does not know may begin anywhere.
        """
        self.work(actor_id, acted=3, delivered=1, hears=False)
        connection = self.actors[actor_id].connection
        sequences = [link_pb2.Record.FromString(sent).sequence for sent in connection.sent] if connection else []
        if connection is not None and any(sequences):
            connection.has_gap = True
            del connection.sent[data.draw(st.sampled_from([n for n, sequence in enumerate(sequences) if sequence]))]
            self._deliver(connection, len(sequences))

    @precondition(lambda self: self.connections)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """Break a connection: what was on its way in either direction is gone."""
        actor_id, connection = data.draw(st.sampled_from(self.connections))
        self._end(connection)
        if self.actors[actor_id].connection is connection:
            self.actors[actor_id].connection = None

    @rule(actor_id=actors, data=st.data())
    def send_another_content(self, actor_id: str, data: st.DataObject) -> None:
        """Repeat the name of a stored record with another body, as the copy of a spool that went on by itself does."""
        stored = [record_id for record_id in self._stored() if record_id.actor_id == actor_id]
        if not stored:
            return
        record_id = data.draw(st.sampled_from(stored))
        body = encode_body(make_transition(999))
        connection = Connection(self.committer.open_inbox())
        connection.sent.append(make_record(record_id, body, record_crc32(record_id, body)).SerializeToString())
        self._deliver(connection, 1)
        assert [acknowledged.refused for acknowledged in connection.acknowledgements] == [1]
        self.conflicts.add(record_id)
        assert record_id in self._refused()
        self._end(connection)

    # The learner's side

    @rule(is_crash=st.booleans())
    def restart_learner(self, is_crash: bool) -> None:
        path = self.log_path
        if is_crash:
            path = self.folder / f"log.{self.learners}.sqlite"
            crash_image(self.log_path, path)
        self._stop_learner()
        self.log_path = path
        self._start_learner()

    # What holds at any moment

    @invariant()
    def what_is_stored_is_what_was_committed_without_gaps_or_repetitions(self) -> None:
        stored, refused = self._stored(), self._refused()
        for actor_id, actor in self.actors.items():
            mine = {record_id: body for record_id, body in stored.items() if record_id.actor_id == actor_id}
            mine_refused = {record_id for record_id in refused if record_id.actor_id == actor_id}
            assert all(actor.committed[record_id] == body for record_id, body in mine.items())
            assert not actor.bad & mine.keys()
            assert mine_refused <= actor.bad | self.conflicts
            for incarnation in {record_id.incarnation for record_id in actor.committed}:
                held = {r.sequence for r in mine.keys() | mine_refused if r.incarnation == incarnation}
                assert held == set(range(len(held))), (actor_id, incarnation, held)
                assert self.log.next_sequence(actor_id, incarnation) == len(held)

    @invariant()
    def what_the_spool_let_go_is_stored_or_refused(self) -> None:
        held = self._stored().keys() | self._refused()
        for actor_id, actor in self.actors.items():
            spooled = {record.record_id: record.body for record in actor.spool.read_after(0, 10_000)}
            assert spooled.items() <= actor.committed.items()
            gone = actor.committed.keys() - spooled.keys()
            assert gone <= held, (actor_id, gone - held)
            for record_id in gone:  # in order: nothing stays in front of what went
                assert not [kept for kept in spooled if kept.incarnation == record_id.incarnation and kept < record_id]

    @invariant()
    def demonstrations_stay_with_the_robot(self) -> None:
        for actor_id, actor in self.actors.items():
            kept = {record.record_id for record in actor.spool.read_after(0, 10_000)} | self._archived(actor_id).keys()
            assert actor.demonstrations <= kept, actor.demonstrations - kept

    def teardown(self) -> None:
        """Whatever happened: once both sides and the network work, everything arrives."""
        try:
            if self.actors:
                for actor_id, actor in self.actors.items():
                    self.connect(actor_id)
                    while actor.spool.read_after(0, 1):
                        self.send(actor_id, 64)
                        assert actor.connection is not None
                        self._deliver(actor.connection, 64)
                        assert actor.connection.acknowledgements, "nothing is acknowledged"
                        self.hear_acknowledgements(actor_id)
                self.what_is_stored_is_what_was_committed_without_gaps_or_repetitions()
                self.demonstrations_stay_with_the_robot()
                assert self._stored().keys() | (self._refused() - self.conflicts) == {
                    record_id for actor in self.actors.values() for record_id in actor.committed
                }
        finally:
            for actor in self.actors.values():
                actor.spool.close()
            self._stop_learner()
            shutil.rmtree(self.folder)

    def _start_learner(self) -> None:
        self.learners += 1
        _deaths.clear()
        self.log = EpisodeLog(self.log_path, SPECS)
        self.committer = Committer(self.log, self.folder)

    def _stop_learner(self) -> None:
        for _, connection in list(self.connections):
            self._end(connection)
        self.committer.close()
        self.log.close()

    def _open_spool(self, path: Path, actor_id: str, incarnation: str) -> Spool:
        return Spool(
            path, actor_id, incarnation, archive=DemonstrationArchive(self.folder / f"{actor_id}.archive", SPECS)
        )

    def _offer(self, actor_id: str, body: Recordable, is_demonstration: bool, *, bad: bool = False) -> None:
        actor = self.actors[actor_id]
        record_id = RecordId(actor_id, actor.incarnation, actor.spool.offer(body))
        assert actor.spool.flush(HANG_LIMIT_S)
        actor.committed[record_id] = encode_body(body)
        if bad:
            actor.bad.add(record_id)
        if is_demonstration:
            actor.demonstrations.add(record_id)

    def _expect_mark(self, actor_id: str) -> None:
        """Take the mark of an episode that a dead process left open into the model: one, behind its records."""
        actor = self.actors[actor_id]
        sequence = 1 + max(r.sequence for r in actor.committed if r.incarnation == actor.incarnation)
        record_id = RecordId(actor_id, actor.incarnation, sequence)
        (body,) = [record.body for record in actor.spool.read_after(0, 10_000) if record.record_id == record_id]
        mark = decode_body(body, SPECS)
        assert isinstance(mark, EpisodeMark)
        assert (mark.kind, mark.episode) == (MarkKind.ABORTED, actor.episode)
        actor.committed[record_id] = body

    def _acknowledge(self, actor_id: str, incarnation: str, next_sequence: int) -> None:
        """Tell the spool, and wait until it has let go, so that every run of the same rules does the same."""
        spool = self.actors[actor_id].spool
        spool.acknowledge(incarnation, next_sequence)

        def has_let_go() -> bool:
            names = [record.record_id for record in spool.read_after(0, 10_000)]
            return not any(name.incarnation == incarnation and name.sequence < next_sequence for name in names)

        wait_until(has_let_go)

    def _deliver(self, connection: Connection, count: int) -> None:
        if connection.is_alive and self._put(connection, count):
            self._collect(connection)

    def _put(self, connection: Connection, count: int, *, is_locked: bool = False) -> bool:
        """Hand records to the committer; is_locked: without letting it look in between."""
        taken = [connection.sent.popleft() for _ in range(min(count, len(connection.sent)))]
        for data in taken:
            message = link_pb2.Record.FromString(data)
            session = Session(message.actor_id, "", "", since_wall_s=0.0, expires_s=0.0, oldest_sequences={})
            record = _Reader(connection.inbox, session, SPECS)._checked(message)
            if is_locked:
                connection.inbox._records.append(record)
                connection.inbox._uncommitted += 1
                self.committer._arrived.notify()
            else:
                connection.inbox.put(record)
        return bool(taken)

    def _collect(self, connection: Connection) -> None:
        """Wait until what was put is committed, and take the acknowledgements or the error that ends the stream."""
        wait_until(lambda: not connection.inbox._uncommitted)
        try:
            while acknowledgements := connection.inbox.take(0.0):
                connection.acknowledgements += acknowledgements
        except WireError as error:
            assert connection.has_gap, error  # noqa: PT017 - a repetition, say, ends no stream
            self._end(connection)

    def _end(self, connection: Connection) -> None:
        connection.is_alive = False
        connection.inbox.close()
        connection.sent.clear()
        connection.acknowledgements.clear()
        self.connections = [entry for entry in self.connections if entry[1] is not connection]

    def _stored(self) -> Rows:
        return self._rows_of(self.log_path)

    def _refused(self) -> set[RecordId]:
        return {record.record_id for record in self.log.quarantine()}

    def _archived(self, actor_id: str) -> Rows:
        path = self.folder / f"{actor_id}.archive" / "log.sqlite"
        if not path.exists():
            return {}
        return self._rows_of(path)

    @staticmethod
    def _rows_of(path: Path) -> Rows:
        """Read a log's rows as they are: a demonstration may hold a record that no learner accepts."""
        with contextlib.closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT actor_id, incarnation, sequence, payload FROM records").fetchall()
        stored = {RecordId(*row[:3]): row[3] for row in rows}
        assert len(stored) == len(rows), "a record is stored twice"
        return stored


@pytest.fixture(autouse=True)
def _committer_that_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os._exit", _deaths.append)


SCALE = settings().max_examples / 100
TestDelivery = pytest.mark.usefixtures("_committer_that_fails_the_test")(Delivery.TestCase)
TestDelivery.settings = settings(
    max_examples=int(200 * SCALE), stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_gap_behind_a_refused_record_ends_its_own_stream_only(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path / "log.sqlite", SPECS)
    committer = Committer(log, tmp_path)
    inbox = committer.open_inbox()
    with committer._lock:  # so that all are of one commit
        for sequence, refusal in ((0, "bad"), (1, ""), (5, "")):
            record = EncodedRecord.of(RecordId("robot", "a", sequence), make_transition(sequence))
            inbox._records.append(EncodedRecord(**{**vars(record), "refusal": refusal}))
            inbox._uncommitted += 1
        committer._arrived.notify()
    wait_until(lambda: not inbox._uncommitted)
    with pytest.raises(WireError, match="does not follow"):
        list(iter(lambda: inbox.take(0.0), None))
    assert log.next_sequence("robot", "a") == 2
    committer.close()
    log.close()


def test_a_refused_record_twice_in_one_commit_is_refused_twice(tmp_path: Path) -> None:
    """As an actor that reconnects sends it, while its stream before is still being stored."""
    log = EpisodeLog(tmp_path / "log.sqlite", SPECS)
    bad = [
        EncodedRecord(
            **{**vars(EncodedRecord.of(RecordId("robot", "a", sequence), make_transition())), "refusal": "bad"}
        )
        for sequence in range(2)
    ]
    for record in bad:  # the first makes the table of refused records
        assert log.append_encoded([record, record]).refused == [(record.record_id, "bad")] * 2
    assert log.append_encoded(bad).refused == [(record.record_id, "bad") for record in bad]
    assert [refused.record_id for refused in log.quarantine()] == [record.record_id for record in bad]
    log.close()
