"""What the arm is told when a camera freezes, hangs, is unplugged or changes its size, and when it comes back.

The capture thread, the rig, the guard and the control loop are the real ones, in real time; the device is scripted.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import actor.loop
from actor.camera_rig import CameraRig
from actor.config import CamerasConfig
from actor.env import RobotEnv
from actor.intervention import Arbiter, HumanInput
from actor.intervention_config import Assistance
from actor.loop import EpisodeTally, run_episode
from actor.policy_runner import Proposal
from actor.rate import RateKeeper
from actor.tasks import make_task
from actor.tasks.base import TaskOptions
from policy.spec import Observation
from policy.transition import EpisodeMark, MarkKind, Recordable, Transition
from robot.backends.fake import FakeBackend
from robot.cameras.capture import CapturingCamera
from robot.errors import CameraStaleError
from robot.interface import Array, RobotCommand, RobotState
from tests.camera_fakes import HANG_LIMIT_S, ScriptedSource

PERIOD_S, PACE = 0.1, 2.0  # not real time, where periods that a busy test machine makes late would be held too
STALE_AFTER_S, FAIL_AFTER_S = 0.1, 0.4
BROKEN_FROM = 5  # period
HELD_PERIODS = 8


class Arm(FakeBackend):
    """A fake that remembers what it was told, where it then was, and when its state had been read."""

    def __init__(self) -> None:
        super().__init__("reach")
        self.told: list[tuple[str, float]] = []  # "move" or "stop", and when the state before it was read
        self.positions: list[Array] = []
        self.periods = self.periods_held = 0
        self.each_period: Callable[[], None] = lambda: None
        self._read_s = 0.0

    def read_state(self) -> RobotState:
        self._read_s = time.monotonic()
        return super().read_state()

    def send_command(self, command: RobotCommand) -> None:
        super().send_command(command)
        self.told.append(("move", self._read_s))

    def stop(self) -> None:
        super().stop()
        self.told.append(("stop", self._read_s))

    def advance(self, period_s: float) -> None:
        super().advance(period_s)
        self.periods += 1
        is_held = bool(self.told) and self.told[-1][0] == "stop"
        self.periods_held = self.periods_held + 1 if is_held else 0
        self.positions.append(super().read_state().O_T_EE[:3, 3])
        self.each_period()


class Sweep:
    """A policy that moves the arm back and forth, further than an unchanged image allows."""

    def __init__(self) -> None:
        self._step = 0

    def swap_if_newer(self) -> None: ...

    def propose(self, observation: Observation) -> Proposal:
        self._step += 1
        direction = 1.0 if self._step % 8 < 4 else -1.0
        return Proposal(np.array([direction, 0.0, 0.0], np.float32), 0, 0.0)


class Nobody:
    def begin_episode(self, is_demonstration: bool, assistance: Assistance) -> None: ...

    def read(self) -> HumanInput:
        return HumanInput(np.zeros(3, np.float32), is_active=False)


class Outbox:
    def __init__(self) -> None:
        self.steps: list[Transition] = []
        self.marks: list[EpisodeMark] = []

    def offer(self, body: Recordable) -> None:
        if isinstance(body, Transition):
            self.steps.append(body)
        else:
            self.marks.append(body)


class Cell:
    """Reach with images from two scripted cameras, of which the wrist's will fail."""

    def __init__(self) -> None:
        self.arm = Arm()
        self.source = ScriptedSource()
        self.wrist = CapturingCamera("wrist", self.source, width=64, height=48, frozen_after_s=1.0)
        other = CapturingCamera("third_person", ScriptedSource(), width=64, height=48)
        config = CamerasConfig(image_size_px=32, stale_after_s=STALE_AFTER_S, fail_after_s=FAIL_AFTER_S)
        self.rig = CameraRig({"wrist": self.wrist, "third_person": other}, config)
        task = make_task("reach", TaskOptions(pixels=True, image_size_px=32, control_rate_hz=1.0 / PERIOD_S))
        self.env = RobotEnv(task, self.arm, RateKeeper(PERIOD_S, PACE), cameras=self.rig)
        self.outbox = Outbox()
        self.should_stop = False

    def run(self) -> EpisodeTally:
        policy: Any = Sweep()
        return run_episode(
            self.env, policy, Arbiter(Nobody(), 0), self.outbox, episode=0, seed=1, should_stop=lambda: self.should_stop
        )  # fmt: skip


@pytest.fixture
def cell() -> Iterator[Cell]:
    cell = Cell()
    cell.rig.connect()
    yield cell
    cell.source.is_silent = False
    cell.rig.close()


class Incident:
    """Breaks the camera in period BROKEN_FROM, mends it once the arm has held, ends the episode some steps later."""

    def __init__(self, cell: Cell, attribute: str, value: Any, is_mended_by_hand: bool) -> None:
        self._cell, self._attribute, self._value = cell, attribute, value
        self._right_value = getattr(cell.source, attribute)
        self._is_mended_by_hand = is_mended_by_hand
        self._deadline_s = time.monotonic() + HANG_LIMIT_S
        self.told_when_broken = self.told_when_mended = 0
        self.last_good_s = 0.0  # arrival of the last image from before
        self.hold: list[Array] = []  # positions while held
        cell.arm.each_period = self.follow

    def follow(self) -> None:
        arm, source = self._cell.arm, self._cell.source
        if arm.periods == BROKEN_FROM:
            self.told_when_broken = len(arm.told)
            setattr(source, self._attribute, self._value)
        if self.told_when_mended == 0 and arm.periods_held == HELD_PERIODS:
            self.told_when_mended = len(arm.told)
            self.last_good_s = self._cell.wrist.read().received_monotonic_s
            self.hold = arm.positions[-HELD_PERIODS:]
            if self._is_mended_by_hand:
                setattr(source, self._attribute, self._right_value)
        resumed = self.told_when_mended > 0 and len(arm.told) >= self.told_when_mended + 5
        if resumed or time.monotonic() > self._deadline_s:
            self._cell.should_stop = True


@pytest.mark.parametrize(
    ("attribute", "value", "is_mended_by_hand"),
    [
        pytest.param("is_silent", True, True, id="hangs"),
        pytest.param("is_unplugged", True, True, id="unplugged"),
        pytest.param("size", (48, 64), True, id="wrong-size"),
        pytest.param("is_frozen", True, False, id="frozen"),  # the driver opens it again by itself
    ],
)
def test_the_arm_holds_while_a_camera_is_out_and_goes_on_when_it_is_back(
    cell: Cell, attribute: str, value: Any, is_mended_by_hand: bool
) -> None:
    incident = Incident(cell, attribute, value, is_mended_by_hand)
    tally = cell.run()
    told = cell.arm.told
    assert incident.told_when_mended, "the arm never held"
    after = told[incident.told_when_broken : incident.told_when_mended]
    assert [what for what, _ in after] == ["move"] * (len(after) - 1) + ["stop"], "one hold, and nothing moves in it"
    if attribute != "is_frozen":  # a frozen image is only as old as the arm's motion since
        ages_s = [read_s - incident.last_good_s for what, read_s in after if what == "move"]
        assert max(ages_s, default=0.0) <= FAIL_AFTER_S, "moved on an image that was too old"
    assert np.ptp(incident.hold, axis=0).max() < 1e-9, "the arm moved while it held"
    went_on = [what for what, _ in told[incident.told_when_mended :]]
    assert went_on == ["move"] * 5 + ["stop"], "it did not go on by itself to the episode's end"
    assert tally.interruption is None
    assert cell.rig.stale_counts["wrist"] > 0
    assert (cell.source.opened == 1) == (attribute == "is_silent"), "any other fault takes opening the device again"
    numbers = [step.step for step in cell.outbox.steps]
    assert numbers != list(range(len(numbers))), "the outage must leave a gap in the numbers"


def test_a_camera_unplugged_for_good_ends_the_episode_with_the_arm_held(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor.loop, "OUTAGE_LIMIT_S", 0.5)
    cell.arm.each_period = lambda: setattr(cell.source, "is_unplugged", cell.arm.periods >= BROKEN_FROM)
    tally = cell.run()
    assert isinstance(tally.interruption, CameraStaleError)
    assert cell.arm.told[-1][0] == "stop"
    assert [what for what, _ in cell.arm.told].count("stop") == 1
    assert not cell.outbox.steps[-1].is_last, "its next observation was never seen"
    ((kind, step),) = [(mark.kind, mark.step) for mark in cell.outbox.marks]
    assert (kind, step) == (MarkKind.ABORTED, cell.outbox.steps[-1].step)
    assert cell.wrist.read().image.shape == (48, 64, 3), "the last frame stays"
    cell.source.is_unplugged = False
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while cell.wrist.fault and time.monotonic() < deadline_s:
        time.sleep(0.01)
    cell.env.reset(seed=2)  # the next episode has its images
