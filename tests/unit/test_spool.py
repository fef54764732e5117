"""The spool: nothing offered is lost, nothing leaves before its acknowledgement, and offering waits for nobody."""

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from actor.spool import Spool, new_incarnation
from actor.spool_reader import SpooledRecord
from policy.errors import ConfigError
from policy.transition import EpisodeMark, MarkKind, RecordId
from policy.wire import decode_body, record_crc32
from tests.link_ends import wait_until
from tests.transitions import SPECS, assert_equal, make_transition

HANG_LIMIT_S = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


@pytest.fixture
def spool(path: Path) -> Iterator[Spool]:
    spool = Spool(path, "robot", "b")
    yield spool
    spool.close()


def sequences(records: list[SpooledRecord]) -> list[tuple[str, int]]:
    return [(record.record_id.incarnation, record.record_id.sequence) for record in records]


def test_records_come_in_order_and_whole(spool: Spool) -> None:
    offered = [make_transition(step) for step in range(10)]
    assert [spool.offer(transition) for transition in offered] == list(range(10))
    assert spool.flush(HANG_LIMIT_S)
    first = spool.read_after(0, 4)
    for record, transition in zip([*first, *spool.read_after(first[-1].position, 100)], offered, strict=True):
        assert record.record_id == RecordId("robot", "b", transition.step)
        assert record.crc32 == record_crc32(record.record_id, record.body)
        assert_equal(decode_body(record.body, SPECS), transition)


def test_what_is_offered_no_longer_changes(spool: Spool) -> None:
    transition = make_transition(1)
    spool.offer(transition)
    transition.observation["q"][:] = 0
    spool.flush(HANG_LIMIT_S)
    assert_equal(decode_body(spool.read_after(0, 1)[0].body, SPECS), make_transition(1))


def test_only_what_is_acknowledged_goes(spool: Spool) -> None:
    for step in range(5):
        spool.offer(make_transition(step))
    spool.flush(HANG_LIMIT_S)
    spool.acknowledge("b", 3)
    spool.acknowledge("b", 3)
    spool.acknowledge("unknown", 100)
    spool.offer(make_transition(5))
    assert spool.flush(HANG_LIMIT_S)
    wait_until(lambda: spool.acknowledged == 3)
    assert sequences(spool.read_after(0, 100)) == [("b", 3), ("b", 4), ("b", 5)]
    assert (spool.offered, spool.acknowledged, spool.pending) == (6, 3, 3)


def test_a_reader_misses_nothing_when_all_was_acknowledged_before(spool: Spool) -> None:
    spool.offer(make_transition(0))
    (record,) = spool.read_after(0, 10, HANG_LIMIT_S)
    spool.acknowledge("b", 1)
    assert spool.wait_until_empty(HANG_LIMIT_S)
    spool.offer(make_transition(1))
    assert sequences(spool.read_after(record.position, 10, HANG_LIMIT_S)) == [("b", 1)]


def test_a_waiting_reader_is_woken(spool: Spool) -> None:
    timer = threading.Timer(0.05, spool.offer, [make_transition(0)])
    timer.start()
    assert len(spool.read_after(0, 10, HANG_LIMIT_S)) == 1
    assert spool.read_after(1, 10, 0.01) == []
    timer.join()


def test_what_an_earlier_incarnation_left_comes_first(path: Path) -> None:
    earlier = Spool(path, "robot", "z")  # first in time, last in the alphabet
    for step in range(3):
        earlier.offer(make_transition(step))
    earlier.close()
    spool = Spool(path, "robot", "b")
    assert (spool.offered, spool.pending) == (0, 4)  # and a mark, because its episode was left open
    assert spool.offer(make_transition(9)) == 0
    spool.flush(HANG_LIMIT_S)
    assert list(spool.oldest_sequences()) == ["z", "b"]
    assert sequences(spool.read_after(0, 10)) == [("z", 0), ("z", 1), ("z", 2), ("z", 3), ("b", 0)]
    spool.close()


def test_a_killed_process_leaves_a_dense_beginning_of_what_it_offered(path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from actor.spool import Spool
from tests.transitions import make_transition
spool = Spool(Path({str(path)!r}), "robot", "a")
for step in range(200):
    spool.offer(make_transition(step))
    if step == 100:
        spool.flush(30)
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == -9
    spool = Spool(path, "robot", "b")
    survivors = sequences(spool.read_after(0, 1000))
    assert survivors == [("a", sequence) for sequence in range(len(survivors))]
    assert len(survivors) > 100
    spool.close()


def test_a_full_disk_is_shown_and_survived(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(path, "robot", "b")
    spool.offer(make_transition(0))
    assert spool.flush(HANG_LIMIT_S)
    assert spool.obstacle is None
    (pages,) = spool._connection.execute("PRAGMA page_count").fetchone()
    spool._connection.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to a full disk
    for step in range(1, 400):
        spool.offer(make_transition(step))
    assert not spool.flush(0.5)
    assert spool.obstacle is not None
    assert "database or disk is full" in spool.obstacle
    assert spool.pending == 400
    assert caplog.text.count("Steps wait in memory") == 1
    spool._connection.execute("PRAGMA max_page_count = 1000000")
    assert spool.flush(HANG_LIMIT_S)
    wait_until(lambda: spool.obstacle is None)
    assert [sequence for _, sequence in sequences(spool.read_after(0, 1000))] == list(range(400))
    spool.close()


def test_closing_on_a_full_disk_ends_and_says_what_is_lost(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(path, "robot", "b")
    spool._connection.execute("PRAGMA max_page_count = 1")
    for step in range(50):
        spool.offer(make_transition(step))
    spool.close()
    assert "steps could not be written" in caplog.text


def test_two_processes_cannot_share_a_spool(spool: Spool, path: Path) -> None:
    code = f"from pathlib import Path; from actor.spool import Spool; Spool(Path({str(path)!r}), 'robot', 'c')"
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert "ConfigError: cannot use" in second.stderr
    assert "another process" in second.stderr


def test_a_spool_that_cannot_be_opened_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot open .*spool\.sqlite"):
        Spool(tmp_path / "file" / "spool.sqlite", "robot", "b")


def test_incarnations_are_different_and_sort_by_time() -> None:
    names = [new_incarnation() for _ in range(100)]
    assert len(set(names)) == 100
    assert names == sorted(names)


def test_the_spool_is_a_sound_database_after_use(path: Path) -> None:
    spool = Spool(path, "robot", "b")
    for step in range(300):
        spool.offer(make_transition(step))
        spool.acknowledge("b", step - 10)
    spool.close()
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT COUNT(*), MAX(sequence) FROM records").fetchone() == (11, 299)


def test_closing_on_a_nearly_full_disk_leaves_no_hole(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Many steps do not fit, the mark after them would: committed without them it would end this stream for ever."""
    spool = Spool(path, "robot", "b")
    spool.offer(make_transition(0))
    assert spool.flush(HANG_LIMIT_S)
    with spool._changed:
        spool.offer(make_transition(1))
        wait_until(spool._inbox.empty)  # its commit waits for us, so that all the others come in one group
        (pages,) = spool._connection.execute("PRAGMA page_count").fetchone()
        spool._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        for step in range(2, 66):
            spool.offer(make_transition(step))
    wait_until(lambda: spool.obstacle)
    spool.offer(EpisodeMark(episode=0, step=65, kind=MarkKind.ABORTED, wall_time_s=1.7e9))
    spool.close()
    survivor = Spool(path, "robot", "c")
    assert sequences(survivor.read_after(0, 100)) == [("b", 0), ("b", 1), ("b", 2)]  # the third: its own mark
    survivor.close()
    lost = [record.message for record in caplog.records if record.levelname == "CRITICAL"]
    assert len(lost) == 1
    assert "65 steps could not be written" in lost[0]


def test_what_the_learner_has_makes_room_for_what_waits(path: Path) -> None:
    spool = Spool(path, "robot", "b")
    for step in range(64):
        spool.offer(make_transition(step))
    assert spool.flush(HANG_LIMIT_S)
    with spool._changed:
        (pages,) = spool._connection.execute("PRAGMA page_count").fetchone()
        spool._connection.execute(f"PRAGMA max_page_count = {pages}")
    for step in range(64, 128):
        spool.offer(make_transition(step))
    wait_until(lambda: spool.obstacle)
    spool.acknowledge("b", 64)
    assert spool.flush(HANG_LIMIT_S)
    wait_until(lambda: spool.obstacle is None)
    assert [sequence for _, sequence in sequences(spool.read_after(0, 1000))] == list(range(64, 128))
    spool.close()
