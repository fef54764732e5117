"""What the spool makes of a process that died, a disk that damages or is full, and of an older release's file."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actor import disk_room
from actor.archive import DemonstrationArchive
from actor.spool import Spool
from policy.episode_log import EpisodeLog
from policy.errors import ConfigError, CorruptFileError
from policy.failpoints import EXIT_CODE
from policy.spec import ActionSpec, Specs
from policy.transition import ActionSource, EpisodeMark, MarkKind, Recordable, RecordId, Transition
from policy.wire import decode_body
from tests.transitions import SPECS, assert_equal, make_transition

HANG_LIMIT_S = 30.0
ROOT = Path(__file__).parents[2]
DEMONSTRATION = ActionSource.HUMAN_DEMONSTRATION


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


def content(spool: Spool) -> list[tuple[str, int, Recordable]]:
    return [
        (record.record_id.incarnation, record.record_id.sequence, decode_body(record.body, SPECS))
        for record in spool.read_after(0, 1000)
    ]


def marks(spool: Spool) -> list[tuple[str, int, int, int, MarkKind]]:
    return [
        (incarnation, sequence, body.episode, body.step, body.kind)
        for incarnation, sequence, body in content(spool)
        if isinstance(body, EpisodeMark)
    ]


def mark(kind: MarkKind, episode: int = 0, step: int = 0) -> EpisodeMark:
    return EpisodeMark(episode=episode, step=step, kind=kind, wall_time_s=1.7e9)


def leave(path: Path, incarnation: str, *bodies: Recordable, acknowledged: int = 0) -> None:
    """Offer all of it as a process that then ends; the spool cannot tell a close from a crash after the commit."""
    spool = Spool(path, "robot", incarnation)
    for body in bodies:
        spool.offer(body)
    assert spool.flush(HANG_LIMIT_S)
    spool.acknowledge(incarnation, acknowledged)
    spool.close()


def wait_until(condition: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "hangs"
        time.sleep(0.01)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        yield database


# Episodes that a dead process left open


@pytest.mark.parametrize("acknowledged", [0, 2, 3], ids=["none sent", "some sent", "all sent"])
def test_an_episode_left_open_is_marked_aborted_once(path: Path, acknowledged: int) -> None:
    leave(path, "a", *[make_transition(step, episode=4) for step in range(3)], acknowledged=acknowledged)
    for later in ("b", "c"):
        spool = Spool(path, "robot", later)
        assert marks(spool) == [("a", 3, 4, 2, MarkKind.ABORTED)]
        assert (spool.closed_episode is not None) == (later == "b")
        spool.close()


@pytest.mark.parametrize(
    "bodies",
    [
        [],
        [make_transition(0), make_transition(1, is_last=True)],
        [make_transition(0), mark(MarkKind.DISCARD)],
        [make_transition(0), mark(MarkKind.ABORTED)],
        [make_transition(0, is_last=True), mark(MarkKind.BOOKMARK)],
        [make_transition(0), mark(MarkKind.SUCCESS)],
    ],
    ids=["nothing", "ended", "discarded", "aborted", "ended and bookmarked", "declared"],
)
def test_an_episode_that_was_closed_gets_no_mark(path: Path, bodies: list[Recordable]) -> None:
    leave(path, "a", *bodies)
    spool = Spool(path, "robot", "b")
    assert (spool.pending, spool.closed_episode) == (len(bodies), None)
    spool.close()


def test_the_process_before_is_named_even_when_nothing_of_it_is_left(path: Path) -> None:
    """Its lease at the learner is let go of at once, because only its successor can have its spool open."""
    leave(path, "a", make_transition(0), make_transition(1, is_last=True), acknowledged=2)
    spool = Spool(path, "robot", "b")
    assert spool.oldest_sequences() == {"a": 2}
    spool.offer(make_transition(0))
    assert spool.flush(HANG_LIMIT_S)
    assert spool.oldest_sequences() == {"a": 2, "b": 0}
    spool.close()


def test_a_bookmark_closes_nothing_and_another_episodes_mark_neither(path: Path) -> None:
    leave(
        path, "a", make_transition(0, is_last=True), make_transition(0, episode=1), mark(MarkKind.BOOKMARK, 1),
        mark(MarkKind.FAILURE, 0),
    )  # fmt: skip
    spool = Spool(path, "robot", "b")
    assert marks(spool)[-1] == ("a", 4, 1, 0, MarkKind.ABORTED)
    spool.close()


@pytest.mark.parametrize("is_complete", [False, True])
def test_an_undecided_episode_is_discarded_complete_or_not(path: Path, is_complete: bool) -> None:
    leave(path, "a", make_transition(0), make_transition(1, is_last=is_complete))
    spool = Spool(path, "robot", "b", undecided=("a", 0))
    assert marks(spool) == [("a", 2, 0, 1, MarkKind.DISCARD)]
    assert spool.closed_episode is not None
    assert (spool.closed_episode.num_steps, spool.closed_episode.kind) == (2, MarkKind.DISCARD)
    spool.close()


def test_a_decision_on_another_episode_changes_nothing(path: Path) -> None:
    leave(path, "a", make_transition(0, is_last=True))
    spool = Spool(path, "robot", "b", undecided=("a", 1))
    assert marks(spool) == []
    spool.close()


CRASHING = """
import sys
from pathlib import Path
from actor.spool import Spool
from tests.transitions import make_transition
spool = Spool(Path(sys.argv[1]), "robot", "a")
for step in range(3):
    spool.offer(make_transition(step))
    spool.flush(30)
"""


@pytest.mark.parametrize(("place", "steps"), [("spool.before_commit", 1), ("spool.after_commit", 2)])
def test_a_crash_at_a_commit_leaves_what_was_committed_and_its_mark(path: Path, place: str, steps: int) -> None:
    environment = os.environ | {"CGPO_FAILPOINTS": f"{place}:exit@2"}
    crashed = subprocess.run([sys.executable, "-c", CRASHING, path], cwd=ROOT, env=environment, check=False)
    assert crashed.returncode == EXIT_CODE
    spool = Spool(path, "robot", "b")
    assert [sequence for _, sequence, _ in content(spool)] == list(range(steps + 1))
    assert marks(spool) == [("a", steps, 0, steps - 1, MarkKind.ABORTED)]
    spool.close()


# Damage


def damage(path: Path, sequence: int) -> bytes:
    """Change a byte of a body, as a disk might, and return what became of it."""
    with opened(path) as database:
        (body,) = database.execute("SELECT body FROM records WHERE sequence = ?", (sequence,)).fetchone()
        damaged = body[:20] + bytes([body[20] ^ 1]) + body[21:]
        database.execute("UPDATE records SET body = ? WHERE sequence = ?", (damaged, sequence))
    return bytes(damaged)


def test_a_damaged_record_is_moved_aside_and_a_bookmark_has_its_place(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave(path, "a", *[make_transition(step, is_last=step == 2) for step in range(3)])
    damaged = damage(path, 1)
    spool = Spool(path, "robot", "b")
    for _ in range(2):  # the second time as after a reconnection: the very same
        first, second, third = content(spool)
        assert_equal(first[2], make_transition(0))
        assert_equal(third[2], make_transition(2, is_last=True))
        assert (second[:2], type(second[2])) == (("a", 1), EpisodeMark)
        assert isinstance(second[2], EpisodeMark)
        assert (second[2].episode, second[2].step, second[2].kind) == (0, 1, MarkKind.BOOKMARK)
        assert "lost: step 1 of episode 0" in second[2].note
    assert caplog.text.count("was damaged by the disk") == 1
    spool.acknowledge("a", 3)
    assert spool.wait_until_empty(HANG_LIMIT_S)
    spool.close()
    with opened(path) as database:
        assert database.execute("SELECT sequence, body FROM damaged").fetchall() == [(1, damaged)]


def test_a_file_that_sqlite_cannot_read_is_a_clear_error(path: Path) -> None:
    leave(path, "a", *[make_transition(step) for step in range(200)])
    spool = Spool(path, "robot", "b")
    spool._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (page_bytes,) = spool._connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(5 * page_bytes)
        file.write(b"\xff" * (size - 5 * page_bytes))
    spool._connection.execute("PRAGMA shrink_memory")
    with pytest.raises(CorruptFileError, match=r"spool.sqlite is damaged: .*malformed.*Move it away"):
        spool.read_after(0, 1000)
    spool.close()


# The spool of another actor


def test_a_spool_with_records_of_another_actor_id_is_left_as_it_is(path: Path) -> None:
    leave(path, "a", make_transition(0), make_transition(1, is_last=True))
    with pytest.raises(ConfigError, match=r"holds 2 records of actor 'robot' .* --actor-id robot"):
        Spool(path, "renamed", "b")
    spool = Spool(path, "robot", "b")
    assert [body.step for _, _, body in content(spool)] == [0, 1]
    spool.close()


def test_an_episode_that_is_open_counts_even_when_all_of_it_is_sent(path: Path) -> None:
    leave(path, "a", make_transition(0), acknowledged=1)
    with pytest.raises(ConfigError, match="of actor 'robot'"):
        Spool(path, "renamed", "b")


def test_an_empty_spool_takes_another_name(path: Path) -> None:
    leave(path, "a", make_transition(0, is_last=True), acknowledged=1)
    spool = Spool(path, "renamed", "b")
    spool.offer(make_transition(0))
    assert spool.flush(HANG_LIMIT_S)
    assert [record.record_id.actor_id for record in spool.read_after(0, 10)] == ["renamed"]
    spool.close()


# The file of an earlier release


def test_a_file_of_format_2_of_another_actor_is_not_taken_for_damaged(path: Path) -> None:
    shutil.copy(ROOT / "tests" / "golden" / "spool_format_2.sqlite", path)
    with pytest.raises(ConfigError, match="holds 5 records of actor 'robot'"):
        Spool(path, "renamed", "b")
    spool = Spool(path, "robot", "b")
    assert isinstance(content(spool)[0][2], Transition)
    spool.close()


def test_a_file_of_format_2_is_taken_over_whole(path: Path) -> None:
    """Recorded by the release before: a demonstration, of which the first step is sent, a mark, and an open episode."""
    shutil.copy(ROOT / "tests" / "golden" / "spool_format_2.sqlite", path)
    archive = DemonstrationArchive(path.parent / "demonstrations", SPECS)
    spool = Spool(path, "robot", "b", archive=archive)
    expected: list[Recordable] = [
        make_transition(1, source=DEMONSTRATION),
        make_transition(2, source=DEMONSTRATION, is_last=True),
        EpisodeMark(episode=0, step=2, kind=MarkKind.SUCCESS, wall_time_s=1.7e9, note="by the operator"),
        make_transition(0, episode=1),
        make_transition(1, episode=1),
    ]
    received = content(spool)
    assert [(incarnation, sequence) for incarnation, sequence, _ in received] == [("a", n) for n in range(1, 7)]
    for (_, _, body), reference in zip(received, expected, strict=False):
        assert_equal(body, reference)
    assert marks(spool)[-1] == ("a", 6, 1, 1, MarkKind.ABORTED)
    spool.acknowledge("a", 7)
    assert spool.wait_until_empty(HANG_LIMIT_S)
    spool.close()
    assert [sequence for _, sequence, _ in archived(path.parent)] == [1, 2, 3]


def test_a_migration_that_fails_leaves_the_old_file(path: Path) -> None:
    shutil.copy(ROOT / "tests" / "golden" / "spool_format_2.sqlite", path)
    with opened(path) as database:
        database.execute("UPDATE records SET payload = x'ff' WHERE sequence = 5")
    with pytest.raises(CorruptFileError, match="record 5 of a spool of format 2 cannot be read"):
        Spool(path, "robot", "b")
    with opened(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (2,)
        assert database.execute("SELECT COUNT(payload) FROM records").fetchone() == (5,)


def test_a_file_of_a_later_release_is_left_alone(path: Path) -> None:
    leave(path, "a")
    with opened(path) as database:
        database.execute("PRAGMA user_version = 4")
    with pytest.raises(CorruptFileError, match="has format 4, this program uses 3"):
        Spool(path, "robot", "b")


# The archive of demonstrations


def archived(run_dir: Path) -> list[tuple[str, int, Recordable]]:
    log = EpisodeLog(run_dir / "demonstrations" / "log.sqlite", SPECS, read_only=True)
    try:
        entries = log.read_after(0, 1000)
    finally:
        log.close()
    return [(entry.record_id.incarnation, entry.record_id.sequence, entry.body) for entry in entries]


def test_demonstrations_are_archived_before_they_are_deleted_and_nothing_else_is(path: Path) -> None:
    spool = Spool(path, "robot", "a", archive=DemonstrationArchive(path.parent / "demonstrations", SPECS))
    bodies: list[Recordable] = [
        make_transition(0, is_last=True),
        make_transition(0, episode=1),  # the policy, until the person began
        make_transition(1, episode=1, source=DEMONSTRATION),
        make_transition(2, episode=1, is_last=True),
        mark(MarkKind.SUCCESS, 1, 2),
        make_transition(0, episode=2, source=ActionSource.HUMAN_INTERVENTION, is_last=True),
        make_transition(0, episode=3, source=DEMONSTRATION, is_last=True),
    ]
    for body in bodies:
        spool.offer(body)
    spool.flush(HANG_LIMIT_S)
    assert not (path.parent / "demonstrations").exists()
    spool.acknowledge("a", 6)
    wait_until(lambda: spool.pending == 1)
    entries = archived(path.parent)
    assert [sequence for _, sequence, _ in entries] == [2, 3, 4]  # 6 is not acknowledged
    for _, sequence, body in entries:
        assert_equal(body, bodies[sequence])
    assert Specs.from_json((path.parent / "demonstrations" / "specs.json").read_text()) == SPECS
    spool.close()


def test_a_crash_between_archive_and_deletion_archives_nothing_twice(path: Path) -> None:
    leave(path, "a", *[make_transition(step, source=DEMONSTRATION, is_last=step == 2) for step in range(3)])
    folder = path.parent / "demonstrations"
    for deletes in (False, True):
        spool = Spool(path, "robot", "b", archive=DemonstrationArchive(folder, SPECS))
        if not deletes:
            refuse = "CREATE TEMP TRIGGER refuse BEFORE DELETE ON records BEGIN SELECT RAISE(ABORT, 'not now'); END"
            spool._connection.execute(refuse)
        spool.acknowledge("a", 3)
        wait_until(lambda spool=spool: spool.obstacle or spool.pending == 0)  # type: ignore[misc]
        assert (spool.pending == 0) == deletes
        assert [sequence for _, sequence, _ in archived(path.parent)] == [0, 1, 2]
        spool.close()


def test_what_cannot_be_archived_stays_in_the_spool(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = path.parent / "demonstrations"
    folder.touch()  # no folder can be made there
    spool = Spool(path, "robot", "a", archive=DemonstrationArchive(folder, SPECS))
    spool.offer(make_transition(0, source=DEMONSTRATION, is_last=True))
    spool.flush(HANG_LIMIT_S)
    spool.acknowledge("a", 1)
    wait_until(lambda: "demonstrations stay in" in caplog.text)
    assert (spool.pending, spool.obstacle) == (1, None)
    assert spool.archive_problem is not None
    assert "their archive takes none" in spool.archive_problem
    folder.unlink()
    assert spool.wait_until_empty(HANG_LIMIT_S)  # without another acknowledgement: there may be none for long
    assert spool.archive_problem is None
    assert len(archived(path.parent)) == 1
    assert caplog.text.count("demonstrations stay in") == 1
    spool.close()


def test_an_archive_that_somebody_has_locked_keeps_no_step_from_the_disk(path: Path) -> None:
    spool = Spool(path, "robot", "a", archive=DemonstrationArchive(path.parent / "demonstrations", SPECS))
    for step in range(2):
        spool.offer(make_transition(step, source=DEMONSTRATION))
        assert spool.flush(HANG_LIMIT_S)
    spool.acknowledge("a", 1)
    wait_until(lambda: spool.pending == 1)
    with contextlib.closing(sqlite3.connect(path.parent / "demonstrations" / "log.sqlite")) as editor:
        editor.execute("BEGIN IMMEDIATE")
        spool.acknowledge("a", 2)
        wait_until(lambda: spool.archive_problem and "locked" in spool.archive_problem)
        spool.offer(make_transition(2))
        assert spool.flush(HANG_LIMIT_S)
        assert (spool.obstacle, spool.pending) == (None, 2)
        editor.rollback()
    wait_until(lambda: spool.pending == 1)
    assert [sequence for _, sequence, _ in archived(path.parent)] == [0, 1]
    spool.close()


def test_what_no_learner_can_use_does_not_spoil_the_archive(path: Path) -> None:
    spool = Spool(path, "robot", "a", archive=DemonstrationArchive(path.parent / "demonstrations", SPECS))
    for step, reward in enumerate([0.0, float("nan"), 1.0]):
        spool.offer(make_transition(step, source=DEMONSTRATION, reward=reward, is_last=step == 2))
    spool.acknowledge("a", 3)
    assert spool.wait_until_empty(HANG_LIMIT_S)
    spool.close()
    assert [sequence for _, sequence, _ in archived(path.parent)] == [0, 2]
    log = EpisodeLog(path.parent / "demonstrations" / "log.sqlite", read_only=True)
    assert [held.record_id.sequence for held in log.quarantine()] == [1]
    log.close()


def test_an_archive_that_the_operator_deletes_is_begun_anew(path: Path) -> None:
    spool = Spool(path, "robot", "a", archive=DemonstrationArchive(path.parent / "demonstrations", SPECS))
    for episode in range(2):
        spool.offer(make_transition(0, episode=episode, source=DEMONSTRATION, is_last=True))
        spool.flush(HANG_LIMIT_S)
        spool.acknowledge("a", episode + 1)
        assert spool.wait_until_empty(HANG_LIMIT_S)
        assert [sequence for _, sequence, _ in archived(path.parent)] == [episode]
        shutil.rmtree(path.parent / "demonstrations")
    spool.close()


def test_an_archive_of_another_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demonstrations").mkdir()
    (tmp_path / "demonstrations" / "specs.json").write_text(SPECS.to_json())
    DemonstrationArchive(tmp_path / "demonstrations", SPECS).close()
    other = Specs(SPECS.observation, ActionSpec((replace(SPECS.action.fields[0], unit="rad"),)))
    with pytest.raises(ConfigError, match="demonstrations of another task or its variant: action"):
        DemonstrationArchive(tmp_path / "demonstrations", other)


# Room


def test_too_little_room_is_an_obstacle_until_there_is_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_room, "_PERIOD_S", 0.0)
    free = SimpleNamespace(free=0.4e9)
    monkeypatch.setattr("actor.disk_room.shutil.disk_usage", lambda _: free)
    spool = Spool(path, "robot", "a", min_free_gb=1.0)
    assert spool.obstacle is not None  # from the start
    assert "has room for 0.40 GB more, below actor.min_free_gb = 1" in spool.obstacle
    free.free = 1.1e9
    spool.offer(make_transition(0))
    wait_until(lambda: spool.obstacle is None)
    spool.close()


def test_the_room_that_sent_steps_left_in_the_file_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file does not shrink: without this an actor that filled the disk would hold for ever."""
    monkeypatch.setattr(disk_room, "_PERIOD_S", 0.0)
    monkeypatch.setattr("actor.disk_room.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    spool = Spool(path, "robot", "a", min_free_gb=100e-6)
    for step in range(1000):
        spool.offer(make_transition(step))
    assert spool.flush(HANG_LIMIT_S)
    assert spool.obstacle is not None
    spool.acknowledge("a", 1000)
    wait_until(lambda: spool.obstacle is None)
    spool.close()


def test_a_writer_that_meets_the_unexpected_keeps_the_steps_and_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(path, "robot", "a")
    monkeypatch.setattr("actor.spool.failpoint", lambda name: 1 / 0)
    spool.offer(make_transition(0))
    wait_until(lambda: spool.obstacle)
    assert spool.obstacle is not None
    assert "division by zero" in spool.obstacle
    monkeypatch.setattr("actor.spool.failpoint", lambda name: None)
    assert spool.flush(HANG_LIMIT_S)
    spool.close()
    spool.close()  # twice is safe
    with opened(path) as database:
        assert database.execute("SELECT COUNT(*) FROM records").fetchone() == (1,)


class FailingDisk:
    """The spool's connection on a disk that answers nothing for a while."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.fails = False

    def __getattr__(self, name: str) -> Any:
        if self.fails and name in ("execute", "executemany"):
            raise sqlite3.OperationalError("disk I/O error")
        return getattr(self._connection, name)

    def __enter__(self) -> Any:
        return self._connection.__enter__()

    def __exit__(self, *error: Any) -> Any:
        return self._connection.__exit__(*error)


def test_a_disk_that_fails_for_a_while_takes_everything_afterwards(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that touches the disk fails, the look at how much room it has included."""
    monkeypatch.setattr(disk_room, "_PERIOD_S", 0.0)
    spool = Spool(path, "robot", "a", min_free_gb=1e-6)
    disk = FailingDisk(spool._connection)
    monkeypatch.setattr(spool, "_connection", disk)
    disk.fails = True
    spool.offer(make_transition(0))
    wait_until(lambda: spool.obstacle and "disk I/O error" in spool.obstacle)
    disk.fails = False
    spool.offer(make_transition(1))
    assert spool.flush(HANG_LIMIT_S)
    wait_until(lambda: spool.obstacle is None)
    assert [sequence for _, sequence, _ in content(spool)] == [0, 1]
    spool.close()


def test_records_are_named_by_actor_incarnation_and_sequence(path: Path) -> None:
    leave(path, "a", make_transition(0, is_last=True))
    spool = Spool(path, "robot", "b")
    (record,) = spool.read_after(0, 10)
    assert record.record_id == RecordId("robot", "a", 0)
    assert isinstance(decode_body(record.body, SPECS), Transition)
    spool.close()
