"""A whole actor on the twin NUC, and what happens to that. Where the arm goes is read from the room, not the actor."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actor.config import ActorConfig
from actor.operator import OperatorSignal
from actor.session import Session
from policy.config import PolicyConfig
from robot.backends.deoxys.options import DeoxysOptions
from robot.backends.twin.room import RoomClient
from robot.interface import Array
from tests.teleop_fakes import PressedKeys
from tests.twin_nuc import NucProcess

HANG_S = 60.0
WATCH_S = 2.5  # Deoxys' control process starts again after 1 s, here 0.5 s
STILL_M = 0.002


class Lab:
    """The twin NUC, its room, and a session in a thread that records demonstrations without end."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nuc = NucProcess("reach", folder, "--camera-fps", "0")
        self.room = RoomClient(self.nuc.room)
        self.room.connect()
        self.keys = PressedKeys()
        monkeypatch.setattr("actor.workcell.open_operator", lambda *_: self.keys)
        self.said: list[str] = []
        self._stop = threading.Event()
        config = ActorConfig(
            policy=PolicyConfig(denoising_steps=2, denoiser_hidden=(8,), behavior_candidates=1),
            task="reach",
            backend="deoxys",
            deoxys=DeoxysOptions(network=self.nuc.network, lift_m=0.0, reset_speed_m_s=0.25),
            room=self.nuc.room,
            control_rate_hz=20.0,
            learner="127.0.0.1:1",
            run_dir=folder / "actor",
            demonstrations=1000,
            eval_episodes=0,
            drain_timeout_s=0.0,
        )
        self.session = Session(replace(config), self._stop.is_set, self.said.append)
        self._thread = threading.Thread(target=self.session.run, name="session")
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(HANG_S)
        assert not self._thread.is_alive()
        self.room.close()
        self.nuc.close()

    def wait_for(self, is_so: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + HANG_S
        while not is_so():
            assert self._thread.is_alive(), f"the session ended before {what}: {self.said[-5:]}"
            assert time.monotonic() < deadline_s, f"never: {what}. Said last: {self.said[-5:]}"
            time.sleep(0.02)

    def wait_for_line(self, text: str, start: int = 0) -> None:
        self.wait_for(lambda: any(text in line for line in self.said[start:]), text)

    def wait_for_motion(self) -> None:
        """Until the arm drives: a demonstration is under way."""
        before = len(self.said)
        self.wait_for_line("demo ", before)
        start = self.hand()
        self.wait_for(lambda: bool(np.linalg.norm(self.hand() - start) > 0.02), "the arm drives")

    def hand(self) -> Array:
        return self.room.snapshot().O_T_EE[:3, 3]

    def largest_motion(self, duration_s: float) -> float:
        """Watch the hand; return how far it went from where it is now, m."""
        start, farthest = self.hand(), 0.0
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            farthest = max(farthest, float(np.linalg.norm(self.hand() - start)))
            time.sleep(0.01)
        return farthest


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    lab = Lab(tmp_path, monkeypatch)
    yield lab
    lab.close()


def go_on(lab: Lab) -> None:
    """Acknowledge and confirm as a person would, until the session goes on."""
    before = len(lab.said)
    lab.keys.pressed = [OperatorSignal.ACKNOWLEDGE, OperatorSignal.CONFIRM]
    lab.wait_for_line("the fault is left behind", before)


def test_the_arm_stands_still_after_a_fault_until_a_person_acknowledges_and_confirms(lab: Lab) -> None:
    for knob, value in (("estop", True), ("reflex", True), ("restart", True)):
        lab.wait_for_motion()
        before = len(lab.said)
        lab.room.knob(knob, value)
        lab.wait_for_line("nothing moves until", before)
        if knob == "estop":
            lab.room.knob("estop", False)  # released, the robot itself would go on
        time.sleep(0.3)  # brakes engage
        assert lab.largest_motion(WATCH_S) < STILL_M, f"it moved after {knob} without a person's word"
        lab.keys.pressed = [OperatorSignal.CONFIRM]
        assert lab.largest_motion(0.5) < STILL_M, "one step is not enough"
        go_on(lab)
    lab.wait_for_motion()
    assert sum("FAULT: " in line for line in lab.said) == 3


def test_without_a_nuc_the_actor_stops_and_does_not_go_on_by_itself(lab: Lab) -> None:
    lab.wait_for_motion()
    before = len(lab.said)
    lab.nuc.process.kill()
    lab.wait_for_line("nothing moves until", before)
    before = len(lab.said)
    lab.keys.pressed = [OperatorSignal.ACKNOWLEDGE, OperatorSignal.CONFIRM]
    lab.wait_for_line("still stopped: ", before)


def test_a_frozen_nuc_is_noticed_although_its_messages_go_on(lab: Lab) -> None:
    lab.wait_for_motion()
    before = len(lab.said)
    lab.room.knob("freeze_s", 3.0)
    lab.wait_for_line("nothing moves until", before)
    assert lab.largest_motion(WATCH_S) < STILL_M
    go_on(lab)
    lab.wait_for_motion()


def test_garbled_and_lost_states_slow_the_actor_down_at_most(lab: Lab) -> None:
    lab.wait_for_motion()
    lab.room.knob("garbled", 0.3)
    lab.room.knob("dropped", 0.2)
    lab.wait_for_motion()
    lab.wait_for_motion()
    assert not any("FAULT: " in line for line in lab.said)
