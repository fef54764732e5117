"""The log's writer: order, fairness, and that one stream's trouble stays its own."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from learner.committer import Acknowledgement, Committer, Inbox, LogUnavailableError
from policy import episode_log
from policy.episode_log import EpisodeLog
from policy.errors import QuarantineFullError, WireError
from policy.log_records import Appended, EncodedRecord, Plan
from policy.transition import RecordId
from tests.link_ends import wait_until
from tests.transitions import make_transition

HANG_LIMIT_S = 30.0


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EpisodeLog]:
    log = EpisodeLog(tmp_path / "log.sqlite")
    yield log
    log.close()


@pytest.fixture
def committer(log: EpisodeLog, tmp_path: Path) -> Iterator[Committer]:
    committer = Committer(log, tmp_path)
    yield committer
    committer.close()


def encoded(sequence: int, actor_id: str = "robot", refusal: str = "") -> EncodedRecord:
    record = EncodedRecord.of(RecordId(actor_id, "a", sequence), make_transition(sequence))
    return EncodedRecord(**{**vars(record), "refusal": refusal})


def put_all(inbox: Inbox, records: Iterable[EncodedRecord]) -> None:
    for record in records:
        if not inbox.put(record):
            return
    inbox.end()


def outcome(inbox: Inbox) -> list[Acknowledgement]:
    """Take everything until the stream's end."""
    taken: list[Acknowledgement] = []
    while (news := inbox.take(HANG_LIMIT_S)) is not None:
        assert news, "hangs"
        taken += news
    return taken


def test_everything_is_acknowledged_once_and_in_order(committer: Committer, log: EpisodeLog) -> None:
    inbox = committer.open_inbox()
    sender = threading.Thread(target=put_all, args=(inbox, map(encoded, range(300))))
    sender.start()
    ends = [acknowledgement.next_sequence for acknowledgement in outcome(inbox)]
    sender.join()
    assert ends == sorted(set(ends))
    assert ends[-1] == 300 == log.count()


def test_a_flood_leaves_the_others_their_turn(
    committer: Committer, log: EpisodeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[dict[str, int]] = []
    append = EpisodeLog.append_encoded

    def count(self: EpisodeLog, records: Iterable[EncodedRecord]) -> Appended:
        given = list(records)
        commits.append({name: sum(r.record_id.actor_id == name for r in given) for name in ("flood", "honest")})
        return append(self, given)

    monkeypatch.setattr(EpisodeLog, "append_encoded", count)
    flood, honest = committer.open_inbox(), committer.open_inbox()
    sender = threading.Thread(target=put_all, args=(flood, (encoded(n, "flood") for n in range(2000))))
    reader = threading.Thread(target=outcome, args=(flood,))
    sender.start()
    reader.start()
    begun = []  # commits when a record had been handed over; this thread may sleep before it counts them
    for sequence in range(20):
        assert honest.put(encoded(sequence, "honest"))
        begun.append(len(commits))
        assert honest.take(HANG_LIMIT_S)
    flood.close()
    sender.join()
    reader.join()
    assert max(commit["flood"] for commit in commits) <= 32
    served = [index for index, commit in enumerate(commits) if commit["honest"]]
    # Its records may have been picked just before, of the commit that begins next; it is in the one after, then.
    assert all(index <= count + 1 for index, count in zip(served, begun, strict=True))


def test_a_gap_ends_its_stream_after_what_came_before_and_no_other(committer: Committer, log: EpisodeLog) -> None:
    bad, good = committer.open_inbox(), committer.open_inbox()
    for record in (encoded(0, "bad"), encoded(1, "bad"), encoded(3, "bad")):
        bad.put(record)
    good.put(encoded(0, "good"))
    good.end()
    with pytest.raises(WireError, match="needs 2 next"):
        outcome(bad)
    assert outcome(good)[-1].next_sequence == 1
    assert (log.next_sequence("bad", "a"), log.next_sequence("good", "a")) == (2, 1)


def test_a_refused_record_is_kept_aside_and_the_stream_goes_on(committer: Committer, log: EpisodeLog) -> None:
    inbox = committer.open_inbox()
    put_all(inbox, [encoded(0), encoded(1, refusal="not finite"), encoded(2)])
    acknowledgements = outcome(inbox)
    assert acknowledgements[-1].next_sequence == 3
    assert sum(acknowledgement.refused for acknowledgement in acknowledgements) == 1
    assert [(held.record_id.sequence, held.reason) for held in log.quarantine()] == [(1, "not finite")]
    assert (log.count(), log.statistics()[0].lost, log.statistics()[0].quarantined) == (2, 0, 1)


def test_a_refusal_is_told_again_when_its_acknowledgement_was_lost(committer: Committer, log: EpisodeLog) -> None:
    for _ in range(2):
        inbox = committer.open_inbox()
        put_all(inbox, [encoded(0, refusal="not finite")])
        assert [(a.refused, a.refusal) for a in outcome(inbox)] == [(1, "not finite")]
    assert len(log.quarantine()) == 1


def test_another_content_under_the_same_name_is_refused_and_the_first_stays(
    committer: Committer, log: EpisodeLog
) -> None:
    inbox = committer.open_inbox()
    other = EncodedRecord.of(RecordId("robot", "a", 0), make_transition(5))
    put_all(inbox, [encoded(0), other, encoded(0), encoded(1)])
    acknowledgements = outcome(inbox)
    assert sum(acknowledgement.refused for acknowledgement in acknowledgements) == 1
    (held,) = log.quarantine()
    assert held.payload == other.payload
    assert "another content" in held.reason
    assert (log.count(), log.next_sequence("robot", "a")) == (2, 2)


def test_a_full_quarantine_stops_who_fills_it_and_nobody_else(
    committer: Committer, log: EpisodeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episode_log, "MAX_QUARANTINE_BYTES", 3 * (len(encoded(0).payload) + 202))
    bad, good = committer.open_inbox(), committer.open_inbox()
    sender = threading.Thread(target=put_all, args=(bad, (encoded(n, "bad", "no") for n in range(100))))
    sender.start()
    put_all(good, [encoded(n, "good") for n in range(20)])
    with pytest.raises(QuarantineFullError, match="Actors keep their steps"):
        outcome(bad)
    sender.join()
    assert outcome(good)[-1].next_sequence == 20
    assert len(log.quarantine()) <= 3


def test_refused_records_without_content_fill_the_quarantine_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty(sequence: int) -> EncodedRecord:
        return EncodedRecord(RecordId("robot", "a", sequence), False, 0, 0, b"", refusal="it is empty")

    monkeypatch.setattr(episode_log, "MAX_QUARANTINE_BYTES", 1000)
    for number in range(2):  # what is there counts after a restart as well
        with contextlib.closing(EpisodeLog(tmp_path / "log.sqlite")) as log:
            log.append_encoded([empty(2 * number), empty(2 * number + 1)])
            log.append_encoded([empty(2 * number)])  # again, which takes no room
    with contextlib.closing(EpisodeLog(tmp_path / "log.sqlite")) as log:
        with pytest.raises(QuarantineFullError, match="has 1055 bytes, above its limit of 1000"):
            log.append_encoded([empty(4)])
        assert len(log.quarantine()) == 4


def test_what_a_failed_commit_refused_takes_no_room_and_can_come_again(
    log: EpisodeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(encoded(0).payload) + 202
    monkeypatch.setattr(episode_log, "MAX_QUARANTINE_BYTES", size)
    insert = log._insert

    def fail(plan: Plan) -> int:
        insert(plan)
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(log, "_insert", fail)
        for _ in range(3):
            with pytest.raises(sqlite3.OperationalError):
                log.append_encoded([encoded(0, refusal="no")])
    assert log.append_encoded([encoded(0, refusal="no")]).refused
    assert len(log.quarantine()) == 1


def test_a_flood_of_refusals_is_a_line_for_each_commit(
    committer: Committer, log: EpisodeLog, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = committer.open_inbox()
    put_all(inbox, [encoded(n, refusal=f"reason {n}") for n in range(60)])
    assert sum(acknowledgement.refused for acknowledgement in outcome(inbox)) == 60
    counts = [int(line.getMessage().split()[0]) for line in caplog.records if "in quarantine" in line.getMessage()]
    assert sum(counts) == 60
    assert len(counts) < 60
    assert "the last is 59: reason 59" in caplog.text


def test_a_disk_that_takes_nothing_ends_the_streams_with_nothing_acknowledged(
    committer: Committer, log: EpisodeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Appended:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeLog, "append_encoded", fail)
        inbox = committer.open_inbox()
        inbox.put(encoded(0))
        with pytest.raises(LogUnavailableError, match="disk is full"):
            outcome(inbox)
    inbox = committer.open_inbox()
    put_all(inbox, [encoded(0)])
    assert outcome(inbox)[-1].next_sequence == 1  # sent again, on the next connection


def test_acknowledgements_that_nobody_takes_do_not_pile_up(committer: Committer, log: EpisodeLog) -> None:
    inbox = committer.open_inbox()
    put_all(inbox, [encoded(sequence, refusal="no" if sequence == 7 else "") for sequence in range(500)])
    wait_until(lambda: inbox._uncommitted == 0)
    (news,) = inbox.take(HANG_LIMIT_S) or []
    assert (news.next_sequence, news.refused, news.refusal) == (500, 1, "no")


def test_below_the_floor_of_free_disk_nothing_is_taken(log: EpisodeLog, tmp_path: Path) -> None:
    committer = Committer(log, tmp_path, min_free_bytes=1 << 60)
    try:
        inbox = committer.open_inbox()
        inbox.put(encoded(0))
        with pytest.raises(LogUnavailableError, match=r"GB are free .* below the floor of 1152921504\.61 GB"):
            outcome(inbox)
    finally:
        committer.close()
    assert log.count() == 0


def test_a_disk_that_does_not_say_what_is_free_takes_nothing_and_ends_nothing(log: EpisodeLog, tmp_path: Path) -> None:
    folder = tmp_path / "unmounted"
    with contextlib.closing(Committer(log, folder, min_free_bytes=1)) as committer:
        inbox = committer.open_inbox()
        inbox.put(encoded(0))
        with pytest.raises(LogUnavailableError, match="No such file"):
            outcome(inbox)
        folder.mkdir()
        inbox = committer.open_inbox()
        put_all(inbox, [encoded(0)])
        assert outcome(inbox)[-1].next_sequence == 1


def test_closing_an_inbox_lets_its_blocked_sender_go(committer: Committer, monkeypatch: pytest.MonkeyPatch) -> None:
    is_held = threading.Event()
    append = EpisodeLog.append_encoded

    def wait(self: EpisodeLog, records: Iterable[EncodedRecord]) -> Appended:
        is_held.wait(HANG_LIMIT_S)
        return append(self, records)

    monkeypatch.setattr(EpisodeLog, "append_encoded", wait)
    inbox = committer.open_inbox()
    sender = threading.Thread(target=put_all, args=(inbox, map(encoded, range(1000))))
    sender.start()
    inbox.close()
    sender.join(HANG_LIMIT_S)
    assert not sender.is_alive()
    is_held.set()
