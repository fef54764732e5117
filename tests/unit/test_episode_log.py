"""The episode log: once, in order, without gaps, for readers in other processes too."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.episode_log import EpisodeLog
from policy.errors import ConfigError, CorruptFileError, WireError
from policy.log_records import StreamStatistics
from policy.transition import RecordId, Transition
from tests.transitions import SPECS, assert_equal, make_transition

Record = tuple[RecordId, Transition]


def record(sequence: int, incarnation: str = "a") -> Record:
    return RecordId("robot", incarnation, sequence), make_transition(sequence)


def records(first: int, stop: int, incarnation: str = "a") -> list[Record]:
    return [record(sequence, incarnation) for sequence in range(first, stop)]


def test_what_is_appended_is_read_back_in_order_from_any_position(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path / "log.sqlite", SPECS)
    written = [*records(0, 5), *records(0, 2, "b"), *records(5, 7)]
    assert log.append(written) == 9
    entries = [*log.read_after(0, 4), *log.read_after(4, 100)]
    assert [entry.position for entry in entries] == list(range(1, 10))
    assert [entry.record_id for entry in entries] == [record_id for record_id, _ in written]
    for entry, (_, transition) in zip(entries, written, strict=True):
        assert_equal(entry.body, transition)
    assert log.read_after(9, 1) == []


resends = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 20), st.integers(1, 8)), max_size=12)


@given(batches=resends)
def test_any_overlap_of_resent_batches_leaves_each_record_once(
    batches: list[tuple[str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = EpisodeLog(tmp_path_factory.mktemp("log") / "log.sqlite", SPECS)
    expected: list[RecordId] = []
    for incarnation, offset, length in batches:
        held = sum(record_id.incarnation == incarnation for record_id in expected)
        first = max(0, held - offset)  # starts somewhere in what is held, or right after it
        batch = records(first, first + length, incarnation)
        new = [record_id for record_id, _ in batch if record_id.sequence >= held]
        assert log.append(batch) == len(new)
        expected += new
        assert log.next_sequence("robot", incarnation) == max(held, first + length)
    assert [entry.record_id for entry in log.read_after(0, 1000)] == expected
    assert all(stream.lost == stream.duplicated == 0 for stream in log.statistics())
    log.close()


@pytest.mark.parametrize("batch", [records(4, 5), [*records(3, 4), *records(5, 6)]], ids=["at once", "within a batch"])
def test_a_gap_is_refused_and_nothing_of_its_batch_is_stored(batch: list[Record], tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path / "log.sqlite", SPECS)
    log.append(records(0, 3))
    with pytest.raises(WireError, match=r"record \d of robot.*holds 0 to"):
        log.append(batch)
    assert log.next_sequence("robot", "a") == log.count() == 3


def test_an_incarnation_whose_beginning_went_to_another_log_is_taken_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = EpisodeLog(tmp_path / "log.sqlite", SPECS)
    log.append(records(100, 103))
    (stream,) = log.statistics()
    assert (stream.min_sequence, stream.lost) == (100, 100)
    assert "goes on at record 100 here and not at 0" in caplog.text
    with pytest.raises(WireError, match="needs 103 next"):
        log.append(records(99, 100))  # older than all that is held: not a repetition


def test_statistics_are_per_incarnation(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path / "log.sqlite")
    log.append([*records(0, 4), *records(0, 2, "b")])
    assert log.statistics() == [
        StreamStatistics(
            actor_id="robot",
            incarnation="a",
            records=4,
            distinct=4,
            distinct_steps=4,
            min_sequence=0,
            max_sequence=3,
            quarantined=0,
        ),
        StreamStatistics(
            actor_id="robot",
            incarnation="b",
            records=2,
            distinct=2,
            distinct_steps=2,
            min_sequence=0,
            max_sequence=1,
            quarantined=0,
        ),
    ]
    assert log.next_sequence("robot", "unknown") == 0


def test_a_step_under_two_sequences_counts_as_duplicated(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path / "log.sqlite")
    (first, step), (second, _) = records(0, 2)
    log.append([(first, step), (second, step)])
    (stream,) = log.statistics()
    assert (stream.lost, stream.duplicated) == (0, 1)


def test_another_process_reads_while_this_one_writes(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    log = EpisodeLog(path)
    log.append(records(0, 3))
    code = f"""
import sys
from pathlib import Path
from policy.episode_log import EpisodeLog
from policy.log_records import StreamStatistics
from policy.spec import Specs
log = EpisodeLog(Path({str(path)!r}), Specs.from_json({SPECS.to_json()!r}), read_only=True)
position = 0
while position < 50:
    for entry in log.read_after(position, 7):
        assert entry.position == position + 1 and entry.record_id.sequence == position
        position = entry.position
"""
    with subprocess.Popen([sys.executable, "-c", code]) as reader:
        for sequence in range(3, 50):
            log.append([record(sequence)])
        assert reader.wait(60) == 0


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    EpisodeLog(tmp_path / "log.sqlite").close()
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        EpisodeLog(tmp_path / "log.sqlite", read_only=True).append(records(0, 1))


def test_a_log_that_does_not_exist_is_not_made_by_reading(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"log\.sqlite"):
        EpisodeLog(tmp_path / "log.sqlite", SPECS, read_only=True)
    assert not list(tmp_path.iterdir())


def test_a_damaged_payload_is_found_when_read(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path / "log.sqlite", SPECS)
    log.append(records(0, 3))
    with sqlite3.connect(tmp_path / "log.sqlite") as vandal:
        vandal.execute("UPDATE records SET payload = zeroblob(length(payload)) WHERE position = 2")
    assert len(log.read_after(2, 10)) == 1
    with pytest.raises(CorruptFileError, match="position 2 does not match its checksum"):
        log.read_after(0, 10)


def test_a_file_that_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.sqlite").write_bytes(b"not a database at all, but long enough for a header" * 20)
    with pytest.raises(CorruptFileError, match="not a usable database"):
        EpisodeLog(tmp_path / "log.sqlite")


def test_a_log_of_another_format_is_refused(tmp_path: Path) -> None:
    EpisodeLog(tmp_path / "log.sqlite").close()
    with sqlite3.connect(tmp_path / "log.sqlite") as newer:
        newer.execute("PRAGMA user_version = 3")
    with pytest.raises(CorruptFileError, match="format 3, this program uses 2"):
        EpisodeLog(tmp_path / "log.sqlite")
