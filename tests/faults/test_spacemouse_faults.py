"""What the arm is commanded when the SpaceMouse in the person's hand fails. The policy would drive on if it could."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from actor.device_driver import DeviceDriver
from actor.env import RobotEnv
from actor.intervention import Arbiter
from actor.intervention_config import STYLES, TeleopConfig
from actor.tasks import make_task
from robot.backends.fake import FakeBackend
from robot.interface import RobotCommand
from robot.teleop import spacemouse
from robot.teleop.spacemouse import SpaceMouseDevice
from tests.fake_spacemouse import Desk

PERIOD_S = 0.1
HANG_LIMIT_S = 30.0
FORWARD = 0.01  # m a step, half of the task's longest, which half a deflection commands
POLICY_ACTION = np.array([0.0, 0.0, 0.25], np.float32)
BY_POLICY = [0.0, 0.0, 0.005]


class Arm(FakeBackend):
    """Remembers what it was commanded."""

    def __init__(self) -> None:
        super().__init__("reach")
        self.commanded: list[RobotCommand] = []

    def send_command(self, command: RobotCommand) -> None:
        super().send_command(command)
        self.commanded.append(command)


class Bench:
    """A person with a SpaceMouse who corrects a policy on an arm."""

    def __init__(self, desk: Desk, **config: Any) -> None:
        self.desk = desk
        self.mouse = desk.plug()
        self.device = SpaceMouseDevice()
        self.device.connect()
        self.arm = Arm()
        self.arm.connect()
        self.env = RobotEnv(make_task("reach"), self.arm)
        self.env.reset(seed=0)
        settings = TeleopConfig(device="spacemouse", **config)
        driver = DeviceDriver(self.env, self.device, STYLES["hil_serl"], settings)
        self.arbiter = Arbiter(driver, hold_steps=5)
        self.arbiter.begin_episode(is_demonstration=False)

    def step(self) -> list[float]:
        """Do one control step; return the step in m that the arm was commanded."""
        decision = self.arbiter.decide(POLICY_ACTION)
        self.env.step(decision.action)
        return [round(float(part), 6) for part in self.arm.commanded[-1].delta_position]

    def step_until(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + HANG_LIMIT_S
        while not condition():
            assert time.monotonic() < deadline_s
            time.sleep(0.002)

    def push_forward(self) -> None:
        self.mouse.translate(back=-0.5)
        self.step_until(lambda: bool(self.device.read().twist.any()))


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(spacemouse, "_RETRY_S", 0.02)
    return Desk(monkeypatch)


@pytest.fixture
def bench(desk: Desk) -> Iterator[Bench]:
    bench = Bench(desk, silent_after_s=3600.0)
    yield bench
    bench.device.close()


def test_unplugged_while_deflected_the_arm_is_told_to_stay_within_one_period(bench: Bench) -> None:
    assert bench.step() == BY_POLICY
    bench.push_forward()
    assert bench.step() == [FORWARD, 0, 0]
    bench.mouse.unplug()
    time.sleep(PERIOD_S)
    assert [bench.step() for _ in range(20)] == [[0, 0, 0]] * 20  # nor does the policy drive on
    assert "unplugged" in (bench.arbiter.fault or "")


def test_plugged_in_again_it_drives_only_once_it_is_moved(bench: Bench) -> None:
    bench.push_forward()
    bench.step()
    bench.mouse.unplug()
    bench.step_until(lambda: not bench.device.read().is_connected)
    bench.step()
    bench.mouse = bench.desk.plug("hidraw7")
    bench.step_until(lambda: bench.device.read().is_connected)
    assert [bench.step() for _ in range(3)] == [[0, 0, 0]] * 3
    assert bench.arbiter.fault is None
    bench.push_forward()
    assert bench.step() == [FORWARD, 0, 0]


def test_silent_while_deflected_the_arm_is_told_to_stay(desk: Desk) -> None:
    bench = Bench(desk, silent_after_s=0.3)
    bench.push_forward()
    assert bench.step() == [FORWARD, 0, 0]
    reported_s = bench.device.read().received_monotonic_s
    bench.step_until(lambda: time.monotonic() > reported_s + 0.3)
    assert [bench.step() for _ in range(5)] == [[0, 0, 0]] * 5
    assert "deflected and has said nothing" in (bench.arbiter.fault or "")
    bench.mouse.translate(back=-0.5)
    bench.step_until(lambda: bench.device.read().received_monotonic_s > reported_s)
    assert bench.step() == [FORWARD, 0, 0]
    bench.device.close()


def test_reports_that_came_while_the_process_had_no_time_are_not_acted_out(bench: Bench) -> None:
    bench.push_forward()
    assert bench.step() == [FORWARD, 0, 0]
    bench.desk.starve(True)
    for part in (*(-i / 60 for i in range(1, 50)), 0.0):
        bench.mouse.translate(back=part)
    bench.desk.starve(False)
    bench.step_until(lambda: not bench.device.read().twist.any())
    assert [bench.step() for _ in range(3)] == [[0, 0, 0]] * 3  # it was let go: a person's pause, then the policy
    bench.step_until(lambda: bench.step() == BY_POLICY)


def test_whatever_goes_wrong_in_its_thread_the_deflection_ends_and_it_comes_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.push_forward()
    assert bench.step() == [FORWARD, 0, 0]
    with monkeypatch.context() as broken:
        broken.setattr(SpaceMouseDevice, "_translated", lambda self, report: 1 / 0)
        bench.mouse.translate(back=-0.5)
        bench.step_until(lambda: not bench.device.read().is_connected)
        assert bench.step() == [0, 0, 0]
    bench.mouse.unplug()
    bench.mouse = bench.desk.plug()
    bench.push_forward()
    assert bench.step() == [FORWARD, 0, 0]


def test_closing_ends_its_thread_also_while_it_is_unplugged(bench: Bench) -> None:
    assert "spacemouse" in {thread.name for thread in threading.enumerate()}
    bench.mouse.unplug()
    bench.step_until(lambda: not bench.device.read().is_connected)
    bench.device.close()
    bench.device.close()
    assert "spacemouse" not in {thread.name for thread in threading.enumerate()}
