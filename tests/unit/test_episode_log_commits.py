"""What a commit to the episode log costs when much is there, and what one that fails leaves behind."""

import contextlib
import resource
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from policy import database
from policy.episode_log import EpisodeLog
from policy.log_records import EncodedRecord
from policy.transition import RecordId


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EpisodeLog]:
    with contextlib.closing(EpisodeLog(tmp_path / "log.sqlite")) as log:
        yield log


def encoded(sequence: int, refusal: str = "", payload: bytes = b"body") -> EncodedRecord:
    return EncodedRecord(RecordId("robot", "a", sequence), False, 0, sequence, payload, refusal=refusal)


@contextlib.contextmanager
def files_that_may_not_grow(limit_bytes: int) -> Iterator[None]:
    """The full disk of who may not mount one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_first_refusal_that_the_disk_does_not_take_leaves_the_log_usable(log: EpisodeLog, tmp_path: Path) -> None:
    log.append_encoded([encoded(0)])
    wal_bytes = (tmp_path / "log.sqlite-wal").stat().st_size
    with files_that_may_not_grow(wal_bytes + 500), pytest.raises(sqlite3.OperationalError):
        log.append_encoded([encoded(1, refusal="not finite")])
    assert log.next_sequence("robot", "a") == 1
    assert log.append_encoded([encoded(1, refusal="not finite")]).refused == [(RecordId("robot", "a", 1), "not finite")]
    assert (log.next_sequence("robot", "a"), len(log.quarantine())) == (2, 1)


def commit_steps(log: EpisodeLog, sequence: int) -> int:
    """Append one record; return how many steps SQLite's machine did for it."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    log._connection.set_progress_handler(count, 1)
    try:
        assert log.append_encoded([encoded(sequence)]).new == 1
    finally:
        log._connection.set_progress_handler(None, 1)
    return steps


@pytest.mark.parametrize("kind", ["plain", "quarantined", "imported"])
def test_a_commit_does_not_read_what_is_held(kind: str, log: EpisodeLog, tmp_path: Path) -> None:
    if kind == "imported":
        with contextlib.closing(EpisodeLog(tmp_path / "other.sqlite")) as other:
            other.append_encoded([encoded(sequence) for sequence in range(3000)])
            log.copy_from([(other, None)])
        log.append_encoded([encoded(3000)])
    else:
        refusal = "not finite" if kind == "quarantined" else ""
        log.append_encoded([encoded(sequence, refusal) for sequence in range(3000)])
        log.append_encoded([encoded(3000)])
    assert commit_steps(log, 3001) < 1000


def test_the_wal_shrinks_again_when_a_reader_that_stood_still_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_WAL_BYTES", 1 << 20)
    wal = tmp_path / "log.sqlite-wal"
    with contextlib.closing(EpisodeLog(tmp_path / "log.sqlite")) as log:
        log.append_encoded([encoded(0)])
        with contextlib.closing(sqlite3.connect(tmp_path / "log.sqlite", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT COUNT(*) FROM records").fetchone() == (1,)
            for sequence in range(1, 9):
                log.append_encoded([encoded(sequence, payload=bytes(1 << 20))])
            assert wal.stat().st_size > 8 << 20
        for sequence in range(9, 12):
            log.append_encoded([encoded(sequence)])
        assert wal.stat().st_size <= 1 << 20
