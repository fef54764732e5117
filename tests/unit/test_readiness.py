"""What keeps an episode from beginning, what ends the wait, and what the operator hears of it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actor import readiness
from actor.learner_news import LearnerNews
from actor.link_statistics import LinkStatistics
from actor.readiness import Readiness


class Cell:
    """An actor between two episodes: old weights, a full disk, a learner; `meanwhile` happens while the arm holds."""

    def __init__(self, max_weights_age_s: float = 100.0) -> None:
        self.said: list[str] = []
        self.held: list[str] = []
        self.meanwhile: Callable[[], Any] = lambda: None
        self.is_stopped = False
        self.statistics = LinkStatistics(is_connected=True, trainer_state="training")
        self.spool = SimpleNamespace(obstacle=None, archive_problem=None, pending=7)
        self.policy = SimpleNamespace(
            weights_version=3, weights_age_s=340.0, weights_lag_steps=900, swap_if_newer=lambda: False
        )
        self.link = SimpleNamespace(refusal=None, statistics=self.statistics)
        self._readiness = Readiness(
            cast(Any, self.spool), cast(Any, self.link), cast(Any, self.policy), max_weights_age_s, self.said.append
        )

    def wait(self, *, needs_weights: bool = True) -> None:
        self._readiness.wait(self._hold, lambda: self.is_stopped, needs_weights=needs_weights)

    def _hold(self, reason: str) -> None:
        self.held.append(reason)
        assert len(self.held) < 1000, "hangs"
        if len(self.held) == 5:
            self.meanwhile()


def test_old_weights_hold_the_arm_until_newer_ones_come() -> None:
    cell = Cell()
    cell.meanwhile = lambda: setattr(cell.policy, "weights_age_s", 2.0)
    cell.wait()
    assert len(cell.held) == 5
    first, last = cell.said
    assert "weights, version 3, are 340 s old, above actor.max_weights_age_s = 100, and 900 learner steps" in first
    assert "--max-weights-age-s 0" in first
    assert "the next episode begins" in last


def test_weights_that_wait_to_be_taken_over_end_the_hold() -> None:
    """They are taken over between episodes, and this is between two."""
    cell = Cell()

    def swap() -> bool:
        if len(cell.held) >= 3:
            cell.policy.weights_age_s = 1.0
        return True

    cell.policy.swap_if_newer = swap
    cell.wait()
    assert len(cell.held) == 3


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"trainer_state": "down"}, "the learner's trainer does not run"),
        ({"is_connected": False, "last_error": "UNAVAILABLE: refused"}, "not connected (UNAVAILABLE: refused)"),
        ({"trainer_state": "training"}, "its trainer training"),
        ({"is_connected": False, "trainer_state": "waiting"}, "not connected (no answer yet)"),
    ],
)
def test_the_cause_is_said_and_a_stop_ends_the_hold(changes: dict[str, Any], cause: str) -> None:
    cell = Cell()
    for name, value in changes.items():
        setattr(cell.statistics, name, value)
    cell.meanwhile = lambda: setattr(cell, "is_stopped", True)
    cell.wait()
    assert len(cell.held) == 5
    assert len(cell.said) == 1
    assert cause in cell.said[0]


def test_a_trainer_that_waits_for_data_gets_it() -> None:
    cell = Cell()
    cell.meanwhile = lambda: setattr(cell.statistics, "trainer_state", "waiting")
    cell.wait()
    assert len(cell.held) == 5


@pytest.mark.parametrize(("limit_s", "needs_weights"), [(0.0, True), (340.0, True), (100.0, False)])
def test_no_limit_young_weights_and_demonstrations_hold_for_nothing(limit_s: float, needs_weights: bool) -> None:
    cell = Cell(limit_s)
    cell.wait(needs_weights=needs_weights)
    assert (cell.held, cell.said) == ([], [])


@pytest.mark.parametrize("needs_weights", [True, False])
def test_a_full_disk_holds_every_episode(needs_weights: bool) -> None:
    cell = Cell(0.0)
    cell.spool.obstacle = "room for 0.40 GB"
    cell.meanwhile = lambda: setattr(cell.spool, "obstacle", None)
    cell.wait(needs_weights=needs_weights)
    assert cell.held == ["room for 0.40 GB"] * 5
    assert "HOLD: no episode begins, for 0 s now: room for 0.40 GB" in cell.said


def test_a_long_hold_is_said_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(readiness.time, "monotonic", lambda: now.s)  # type: ignore[attr-defined]
    cell = Cell()

    def hold(reason: str) -> None:
        now.s += 1.0
        cell.is_stopped = now.s > 1035.0

    cell._readiness.wait(hold, lambda: cell.is_stopped, needs_weights=True)
    assert [line.split(":")[1].split(",")[1] for line in cell.said] == [
        " for 0 s now", " for 10 s now", " for 20 s now", " for 30 s now",
    ]  # fmt: skip


def test_alarms_and_refusals_are_said_once_each() -> None:
    cell = Cell()
    news = LearnerNews(cast(Any, cell.link), cast(Any, cell.spool), "lab-pc:50051", cell.said.append)
    news.tell()
    assert (cell.said, news.refusals()) == ([], "")
    cell.statistics.alarm = "the disk is full"
    cell.statistics.refused, cell.statistics.last_refusal = 2, "reward = nan is not finite"
    for _ in range(3):
        news.tell()
    assert cell.said[0] == "ALARM of the learner: the disk is full"
    assert cell.said[1].startswith("ALARM: the learner refused 2 records")
    assert cell.said[1].endswith("reward = nan is not finite")
    cell.statistics.refused, cell.statistics.alarm = 3, ""
    news.tell()
    assert cell.said[2] == "the learner's alarm is over"
    assert "refused 3 records" in cell.said[3]
    assert len(cell.said) == 4


def test_an_archive_that_takes_nothing_is_said_once_and_so_is_its_return() -> None:
    cell = Cell()
    news = LearnerNews(cast(Any, cell.link), cast(Any, cell.spool), "lab-pc:50051", cell.said.append)
    for problem in ("the archive is locked", "the archive is locked", None, None):
        cell.spool.archive_problem = problem
        news.tell()
    assert cell.said == ["ALARM: the archive is locked", "demonstrations are archived again"]


def test_a_missing_learner_is_said_now_and_then() -> None:
    cell = Cell()
    cell.statistics.is_connected, cell.statistics.last_error = False, "UNAVAILABLE: refused"
    news = LearnerNews(cast(Any, cell.link), cast(Any, cell.spool), "lab-pc:50051", cell.said.append)
    news.tell()
    news.tell()
    assert cell.said == [
        "learner lab-pc:50051 is not connected (UNAVAILABLE: refused): 7 steps wait in the spool, the actor goes on"
    ]
