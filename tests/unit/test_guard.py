"""The guard: modes, the latch, and the two steps out of it. What holds for any sequence: test_guard_properties.py."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from robot.backends.fake import FakeBackend
from robot.errors import RobotFaultError, StaleStateError
from robot.guard import CONFIRM_WITHIN_S, DEBOUNCE_STATES, Guard, GuardEvent, Mode
from robot.interface import RobotCommand, RobotState, ScenePlacement
from robot.pose import O_R_DOWN, make_pose, translation
from robot.safety import SafetyConfig, Violation

CONFIG = SafetyConfig(workspace_min_m=(0.3, -0.2, 0.1), workspace_max_m=(0.7, 0.2, 0.5))
START = ScenePlacement(
    O_T_EE=make_pose(O_R_DOWN, (0.5, 0.0, 0.3)), objects={"target": translation(0.5, 0.1, 0.3)}
)  # fmt: skip
STEP = RobotCommand(delta_position=np.array([0.01, 0.0, 0.0]), delta_rotation=np.zeros(3))


class Arm(FakeBackend):
    """A fake that keeps what it was told, and says what a test wants."""

    def __init__(self) -> None:
        super().__init__("reach")
        self.told: list[RobotCommand | str] = []
        self.stale = False
        self.distort: Callable[[RobotState], RobotState] = lambda state: state

    def read_state(self) -> RobotState:
        if self.stale:
            raise StaleStateError(0.2, 0.12)
        return self.distort(super().read_state())

    def send_command(self, command: RobotCommand) -> None:
        super().send_command(command)
        self.told.append(command)

    def stop(self) -> None:
        super().stop()
        self.told.append("stop")


class Cell:
    """A guard over an arm, at its start, with a clock of the test's."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events: list[GuardEvent] = []
        self.arm = Arm()
        self.guard = Guard(self.arm, CONFIG, 0.1, observe_event=self.events.append, clock=lambda: self.now_s)
        self.guard.reset(START)
        self.arm.told.clear()


@pytest.fixture
def cell() -> Cell:
    return Cell()


def test_who_drives_is_the_mode(cell: Cell) -> None:
    cell.guard.act(STEP)
    cell.guard.act(STEP, is_human=True)
    cell.guard.hold("pause: the operator's key")
    cell.guard.hold("pause: the operator's key")
    cell.guard.act(STEP)
    assert [event.mode for event in cell.events] == [Mode.RUN, Mode.HUMAN, Mode.HOLD, Mode.RUN]
    assert cell.events[2].reason == "pause: the operator's key"
    assert cell.arm.told == [STEP, STEP, "stop", STEP], "the pose to hold is taken once"


def test_every_clip_is_an_event_with_its_reason(cell: Cell) -> None:
    long = RobotCommand(delta_position=np.array([0.5, 0.0, 0.0]), delta_rotation=np.zeros(3))
    sent = cell.guard.act(long).command
    assert cell.arm.told[-1] is sent
    assert [event.reason.partition(":")[0] for event in cell.events if event.kind == "clip"] == ["translation"]


def test_what_shortens_a_step_works_on_what_the_gate_left(cell: Cell) -> None:
    def half(command: RobotCommand) -> RobotCommand:
        return dataclasses.replace(command, delta_position=command.delta_position / 2)

    sent = cell.guard.act(STEP, shorten=half).command
    np.testing.assert_allclose(sent.delta_position, [0.005, 0.0, 0.0])
    assert cell.arm.told == [sent]


def test_a_fault_latches_until_acknowledged_and_confirmed(cell: Cell) -> None:
    cell.guard.act(STEP)
    cell.arm.fault = "reflex: the robot stopped itself"
    with pytest.raises(RobotFaultError, match="reflex"):
        cell.guard.read_state()
    cell.arm.told.clear()
    cell.arm.fault = ""  # the stop button is released: the robot itself would go on
    for attempt in (cell.guard.read_state, lambda: cell.guard.act(STEP), lambda: cell.guard.reset(START)):
        with pytest.raises(RobotFaultError, match="reflex"):
            attempt()
    cell.guard.hold("pause: the operator's key")
    assert not cell.guard.confirm(), "nobody acknowledged it"
    assert (cell.guard.mode, cell.guard.faults_in_the_last_hour, cell.arm.told) == (Mode.FAULT, 1, [])

    cell.guard.acknowledge()
    assert cell.guard.confirm()
    assert cell.guard.mode is Mode.HOLD
    assert set(cell.arm.told) == {"stop"}
    cell.guard.read_state()
    cell.guard.act(STEP)
    assert cell.arm.told[-1] is STEP


def test_a_late_confirmation_needs_another_acknowledgement(cell: Cell) -> None:
    cell.guard.latch("wrench: too much")
    cell.guard.acknowledge()
    cell.now_s += CONFIRM_WITHIN_S + 0.1
    assert not cell.guard.confirm()
    assert not cell.guard.confirm()
    assert cell.guard.mode is Mode.FAULT


def test_a_fault_that_still_stands_stays(cell: Cell) -> None:
    cell.arm.fault, cell.arm.obstacle = "user stop", "the stop button is still pressed"
    with pytest.raises(RobotFaultError):
        cell.guard.read_state()
    cell.guard.acknowledge()
    with pytest.raises(RobotFaultError, match="still pressed"):
        cell.guard.confirm()
    assert cell.guard.mode is Mode.FAULT
    assert not cell.guard.confirm(), "each attempt needs both steps"


def test_a_stale_state_holds_and_passes_by_itself(cell: Cell) -> None:
    cell.guard.act(STEP)
    cell.arm.stale = True
    with pytest.raises(StaleStateError):
        cell.guard.read_state()
    assert (cell.guard.mode, cell.arm.told) == (Mode.HOLD, [STEP, "stop"])
    cell.arm.stale = False
    cell.guard.read_state()
    cell.guard.act(STEP)
    assert cell.guard.mode is Mode.RUN


def test_a_debounced_violation_must_last(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    spikes = iter([True] * (DEBOUNCE_STATES - 1) + [False] + [True] * DEBOUNCE_STATES)

    def violation(state: RobotState) -> Violation | None:
        del state
        return Violation("wrench: 80 N", is_debounced=True) if next(spikes) else None

    monkeypatch.setattr(cell.guard._gate, "violation", violation)
    for _ in range(2 * DEBOUNCE_STATES - 1):
        cell.guard.read_state()
    with pytest.raises(RobotFaultError, match="80 N"):
        cell.guard.read_state()
    assert cell.arm.told == ["stop"]


def test_a_state_that_is_not_finite_latches_at_once(cell: Cell) -> None:
    cell.arm.distort = lambda state: dataclasses.replace(state, dq=np.full(7, np.nan))
    with pytest.raises(RobotFaultError, match=r"malformed: measured dq = \[nan"):
        cell.guard.read_state()
    cell.guard.acknowledge()
    with pytest.raises(RobotFaultError, match="still so"):
        cell.guard.confirm()
    assert cell.guard.mode is Mode.FAULT
