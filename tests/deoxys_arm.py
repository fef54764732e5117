"""An arm behind a fake NUC, with what tests of its faults ask of both ends."""

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest

from robot.backends.deoxys.backend import DeoxysBackend
from robot.backends.deoxys.options import DeoxysOptions
from robot.errors import RobotFaultError, StaleStateError
from robot.interface import GripperState, RobotCommand, RobotState, ScenePlacement
from robot.pose import O_R_DOWN, make_pose
from tests.deoxys_fake import FakeNuc, Sent

HANG_S = 15.0
PLACEMENT = ScenePlacement(O_T_EE=make_pose(O_R_DOWN, (0.5, 0.05, 0.3)))


Result = TypeVar("Result")


class Arm:
    """A backend on a fake NUC, with what the tests ask of both."""

    def __init__(self, nuc: FakeNuc, gripper: "StubGripper | None" = None, fault_after_s: float = 0.5) -> None:
        self.nuc = nuc
        self.options = DeoxysOptions(
            network=nuc.network, fault_after_s=fault_after_s, reset_speed_m_s=0.25, lift_m=0.02, connect_within_s=0.7
        )
        self.backend = DeoxysBackend("reach", self.options, gripper)

    def move(self, *, steps: int = 2) -> None:
        """Command steps to the side, as a control loop does."""
        for _ in range(steps):
            self.read()
            self.send(step(0.0, 0.01, 0.0))
            time.sleep(0.05)

    def read(self) -> RobotState:
        """Return a fresh state, after waiting for one: the machine of the tests may be busy."""
        return patiently(self.backend.read_state)

    def send(self, command: RobotCommand) -> None:
        patiently(lambda: look_and_send(self.backend, command))

    def fault(self) -> str:
        """Wait for the fault to latch and return its reason. Meanwhile the control loop goes on asking for motion."""
        deadline_s = time.monotonic() + HANG_S
        while time.monotonic() < deadline_s:
            try:
                self.backend.read_state()
                self.backend.send_command(step(0.0, 0.01, 0.0))
            except StaleStateError:
                pass
            except RobotFaultError as error:
                return str(error)
            time.sleep(0.02)
        raise AssertionError(f"no fault within {HANG_S} s")

    def assert_ended_and_silent(self, since_s: float) -> None:
        """The control process was told to end, once, and nothing else after that, whatever is asked for."""
        quiet_from_s = time.monotonic()
        while time.monotonic() - quiet_from_s < 0.2:
            with pytest.raises(RobotFaultError):
                self.backend.send_command(step(0.0, 0.0, 0.01))
            with pytest.raises(RobotFaultError):
                self.backend.reset(PLACEMENT)
            self.backend.stop()
            time.sleep(0.02)
        terminations = [i for i, each in enumerate(self.nuc.sent) if each.termination]
        assert len(terminations) == 1
        assert terminations[0] == len(self.nuc.sent) - 1
        assert self.nuc.sent[-1].at_s > since_s

    def assert_stays(self, duration_s: float) -> None:
        """Neither a command nor a motion for `duration_s`."""
        since_s, q = time.monotonic(), self.nuc.q.copy()
        time.sleep(duration_s)
        assert self.nuc.sent_since(since_s) == []
        np.testing.assert_array_equal(self.nuc.q, q)

    def assert_recovers(self) -> None:
        """`recover` holds the arm where it is, and then it can be driven again."""
        held = self.nuc.O_T_EE
        since_s = time.monotonic()
        wait_until(lambda: self.recovers(), "recover() to succeed")
        np.testing.assert_allclose(self.nuc.O_T_EE, held, atol=0.002)
        goals = [each for each in self.nuc.sent_since(since_s) if each.controller == "OSC_POSE" and not each.is_delta]
        for each in goals:
            np.testing.assert_allclose(each.O_T_EE, held, atol=0.002)
        before = self.nuc.O_T_EE
        self.move(steps=8)
        assert self.nuc.O_T_EE[1, 3] - before[1, 3] > 0.01

    def recovers(self) -> bool:
        try:
            self.backend.recover()
        except RobotFaultError:
            return False
        return True


class StubGripper:
    max_width = 0.08

    def __init__(self) -> None:
        self.fault = ""
        self.width = 0.08
        self.widths: list[float] = []
        self.recovered = 0

    def connect(self) -> None: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...

    def read(self) -> GripperState:
        return GripperState(
            width=self.width, is_moving=False, is_holding=False, received_monotonic_s=0.0, fault=self.fault
        )

    def move(self, width: float) -> None:
        self.widths.append(width)
        self.width = width

    def recover(self) -> None:
        self.recovered += 1
        self.fault = ""


def step(*delta_position: float, width: float | None = None) -> RobotCommand:
    return RobotCommand(delta_position=np.array(delta_position), delta_rotation=np.zeros(3), gripper_width=width)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {HANG_S} s for {what}"
        time.sleep(0.005)


def patiently(call: Callable[[], Result]) -> Result:
    """Return what `call` does, again while the state is stale: the machine that tests run on may be busy."""
    deadline_s = time.monotonic() + HANG_S
    while True:
        try:
            return call()
        except StaleStateError:
            assert time.monotonic() < deadline_s, f"stale for {HANG_S} s"
            time.sleep(0.005)


def look_and_send(backend: DeoxysBackend, command: RobotCommand) -> None:
    """Command as the control loop does: for the state that was read just before."""
    backend.read_state()
    backend.send_command(command)


def goals(sent: list[Sent]) -> set[tuple[object, ...]]:
    return {(each.controller, each.position, each.rotvec) for each in sent if not each.termination}


def is_readable(backend: DeoxysBackend) -> bool:
    try:
        backend.read_state()
    except StaleStateError:
        return False
    return True
