"""The trainer's state on disk: what is written is read, and silence is noticed."""

import json
from pathlib import Path

import pytest

from learner.trainer_status import StatusReporter, TrainerStatus, read_status, write_status


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for status in (TrainerStatus(7, "waiting"), TrainerStatus(8, "training", "disk full: no checkpoint")):
        write_status(tmp_path, status)
        assert read_status(tmp_path) == status
    assert [path.name for path in tmp_path.iterdir()] == ["trainer.json"]


def test_a_trainer_that_was_never_there_is_down(tmp_path: Path) -> None:
    assert read_status(tmp_path) == TrainerStatus(0, "down")


@pytest.mark.parametrize("elapsed_s", [10.5, -1.0])  # -1: written before the machine restarted
def test_a_trainer_that_stopped_writing_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elapsed_s: float
) -> None:
    monkeypatch.setattr("learner.trainer_status.time.monotonic", lambda: 100.0)
    write_status(tmp_path, TrainerStatus(7, "training", "rolled back"))
    monkeypatch.setattr("learner.trainer_status.time.monotonic", lambda: 109.0)
    assert read_status(tmp_path).state == "training"
    monkeypatch.setattr("learner.trainer_status.time.monotonic", lambda: 100.0 + elapsed_s)
    assert read_status(tmp_path) == TrainerStatus(7, "down", "rolled back")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"learner_step": "x", "state": "training", "alarm": ""}'])
def test_a_file_that_is_no_status_is_a_trainer_that_is_down(tmp_path: Path, text: str) -> None:
    (tmp_path / "trainer.json").write_text(text)
    assert read_status(tmp_path).state == "down"


def test_a_state_of_another_version_is_down(tmp_path: Path) -> None:
    write_status(tmp_path, TrainerStatus(7, "training"))
    path = tmp_path / "trainer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "dreaming"}))
    assert read_status(tmp_path).state == "down"


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        monkeypatch.setattr("learner.trainer_status.time.monotonic", lambda: self.now_s)


def test_short_pauses_are_training_and_long_ones_are_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    reporter = StatusReporter(tmp_path)
    states = [read_status(tmp_path).state]
    for elapsed_s, waiting_for in ((0.0, ""), (0.5, "for data"), (0.6, "for data"), (0.0, "")):
        clock.now_s += elapsed_s
        reporter.report(5, waiting_for)
        states.append(read_status(tmp_path).state)
    assert states == ["waiting", "training", "training", "waiting", "training"]


def test_the_log_says_why_it_waits_once_in_thirty_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)
    reporter = StatusReporter(tmp_path)
    with caplog.at_level("INFO"):
        reporter.report(7, "for the log to be read")
        for count in range(520):  # 65 s
            reporter.report(7, f"for data. {count} transitions have come")
            clock.now_s += 0.125
    assert [record.message for record in caplog.records] == [
        "learner step 7 waits: for the log to be read",
        *(f"learner step 7 waits: for data. {count} transitions have come" for count in (0, 240, 480)),
    ]


def test_a_step_is_written_every_second_and_an_alarm_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    reporter = StatusReporter(tmp_path)
    reporter.report(1)
    reporter.report(2)
    assert read_status(tmp_path).learner_step == 1
    clock.now_s += 1.0
    reporter.report(3)
    assert read_status(tmp_path).learner_step == 3
    reporter.set_alarm("checkpoint", "disk full")
    reporter.report(4)
    assert read_status(tmp_path) == TrainerStatus(4, "training", "disk full")
    reporter.set_alarm("updates", "rolled back")
    reporter.clear_alarms("checkpoint", "memory")
    reporter.close(5)
    assert read_status(tmp_path) == TrainerStatus(5, "down", "rolled back")


def test_an_alarm_longer_than_the_file_is_cut(tmp_path: Path) -> None:
    write_status(tmp_path, TrainerStatus(1, "training", "ü" * 10_000))
    assert read_status(tmp_path).alarm.startswith("üü")
    assert (tmp_path / "trainer.json").stat().st_size == 4096
