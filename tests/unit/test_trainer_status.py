"""The trainer's state on disk: what is written is read, and silence is noticed."""

import json
from pathlib import Path

import pytest

from learner.trainer_status import TrainerStatus, read_status, write_status


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
