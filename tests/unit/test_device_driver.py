"""From an input device to actions: what triggers an intervention, axes, gripper, dead zone, and devices that fail."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actor.device_driver import DeviceDriver, connect_device, make_driver
from actor.env import RobotEnv, connect_backend
from actor.intervention import HumanInput, ScriptedTeleop
from actor.intervention_config import STYLES, InterventionConfig, InterventionSettings, TeleopConfig
from actor.tasks import make_task
from actor.tasks.base import Task, TaskOptions
from actor.tasks.reach import Reach
from policy.errors import ConfigError
from robot.interface import TeleopDevice
from robot.teleop.device_log import LoggingDevice, ReplayDevice
from robot.teleop.fake import Entry, FakeDevice
from tests.fake_spacemouse import PRO, Desk

REST: list[float] = [0.0] * 6
NONE, CLOSE, OPEN = (False, False), (True, False), (False, True)


class ReachWithGripper(Reach):
    gripper_modes = ("discrete",)


def make_env(task: Task) -> RobotEnv:
    env = RobotEnv(task, connect_backend("fake", task))
    env.reset(seed=0)
    return env


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make(
    env: RobotEnv,
    device: FakeDevice,
    settings: InterventionSettings = STYLES["serl"],
    clock: Clock | None = None,
    **config: Any,
) -> DeviceDriver:
    device.connect()
    clocks = {"clock": clock} if clock else {}
    driver = DeviceDriver(env, device, settings, TeleopConfig(device="fake", **config), **clocks)
    driver.begin_episode(is_demonstration=False, assistance="none")
    return driver


def played(env: RobotEnv, script: list[Entry], settings: InterventionSettings, **config: Any) -> list[HumanInput]:
    driver = make(env, FakeDevice(script), settings, **config)
    return [driver.read() for _ in range(sum(count for count, *_ in script))]


@pytest.fixture
def env() -> RobotEnv:
    return make_env(make_task("reach"))


@pytest.fixture
def gripper_env() -> RobotEnv:
    return make_env(ReachWithGripper(TaskOptions()))


def test_axes_are_those_of_o(env: RobotEnv) -> None:
    (human,) = played(env, [(1, [0.5, -0.25, 1, 0, 0, 0], NONE)], STYLES["hil_serl"])
    np.testing.assert_allclose(human.action, [0.5, -0.25, 1.0], atol=1e-6)
    command = env.task.command(human.action, env.state)
    np.testing.assert_allclose(command.delta_position, 0.02 * np.array([0.5, -0.25, 1.0]), atol=1e-7)


def test_a_person_who_faces_the_robot_sees_x_and_y_reversed(env: RobotEnv) -> None:
    (human,) = played(env, [(1, [0.5, -0.25, 1, 0, 0, 0], NONE)], STYLES["hil_serl"], yaw_deg=180.0)
    np.testing.assert_allclose(human.action, [-0.5, 0.25, 1.0], atol=1e-6)


def test_rotation_follows_its_own_scale() -> None:
    env = make_env(make_task("peg_in_hole_rotation"))
    script: list[Entry] = [(1, [0.5, 0, 0, 0.5, 0, -1], NONE)]
    (human,) = played(env, script, STYLES["hil_serl"], translation_scale=0.5, rotation_scale=0.2, yaw_deg=90.0)
    np.testing.assert_allclose(human.action, [0, 0.25, 0, 0, 0.1, -0.2], atol=1e-6)


# What takes over in each style: the smallest deflection, a larger one, and the gripper's buttons.
@pytest.mark.parametrize(
    ("style", "deflection", "is_active"),
    [
        ("hil_serl", 0.0005, False),
        ("hil_serl", 0.002, True),
        ("serl", 0.002, True),
        ("ours", 0.002, False),
        ("ours", 0.0995, False),
        ("ours", 0.11, True),
    ],
)
def test_a_deflection_takes_over_beyond_its_styles_threshold(
    env: RobotEnv, style: Any, deflection: float, is_active: bool
) -> None:
    (human,) = played(env, [(1, [0, 0, -deflection, 0, 0, 0], NONE)], STYLES[style])
    assert human.is_active is is_active


def test_motion_begins_at_zero_at_the_edge_of_the_dead_zone(env: RobotEnv) -> None:
    settings = replace(STYLES["ours"], dead_zone=0.2)  # SiLRI's
    script: list[Entry] = [(1, [0.2, -0.6, 1.0, 0, 0, 0], NONE)]
    (human,) = played(env, script, settings)
    np.testing.assert_allclose(human.action, [0.0, -0.5, 1.0], atol=1e-6)


def test_a_gripper_button_takes_over_where_there_is_a_gripper(env: RobotEnv, gripper_env: RobotEnv) -> None:
    script: list[Entry] = [(1, REST, CLOSE)]
    assert not played(env, script, STYLES["hil_serl"])[0].is_active
    assert played(gripper_env, script, STYLES["hil_serl"])[0].is_active


@pytest.mark.parametrize(("latch", "expected"), [("neutral", [0, -1, 0, 1, 0]), ("latch", [0, -1, -1, 1, 1])])
def test_the_gripper_is_neutral_or_latched_without_a_button(
    gripper_env: RobotEnv, latch: Any, expected: list[int]
) -> None:
    script: list[Entry] = [(1, REST, NONE), (1, REST, CLOSE), (1, REST, NONE), (1, REST, OPEN), (1, REST, NONE)]
    inputs = played(gripper_env, script, replace(STYLES["serl"], gripper_latch=latch))
    assert [human.action[-1] for human in inputs] == expected
    assert [human.is_active for human in inputs] == [False, True, False, True, False]


def test_a_latched_gripper_is_forgotten_with_the_episode(gripper_env: RobotEnv) -> None:
    driver = make(gripper_env, FakeDevice([(1, REST, CLOSE)]), replace(STYLES["serl"], gripper_latch="latch"))
    assert driver.read().action[-1] == -1
    driver.begin_episode(is_demonstration=False, assistance="none")
    assert driver.read().action[-1] == 0


@pytest.mark.parametrize(("trigger", "expected"), [("button", "-hh--h-"), ("toggle", "-hhhh--")])
def test_with_a_button_or_toggle_a_deflection_alone_does_not_take_over(
    env: RobotEnv, trigger: Any, expected: str
) -> None:
    push = [1.0, 0, 0, 0, 0, 0]
    pressed = [False, True, True, False, False, True, False]
    script: list[Entry] = [(1, push, (False, on)) for on in pressed]
    inputs = played(env, script, replace(STYLES["ours"], trigger=trigger), intervene_button=1)
    assert "".join("h" if human.is_active else "-" for human in inputs) == expected
    assert {human.action[0] for human in inputs} == {1.0}  # for the operator's key, which takes over all the same


def test_a_trigger_whose_button_the_device_lacks_is_refused(env: RobotEnv) -> None:
    with pytest.raises(ConfigError, match="needs button 2 of the device 'fake', which has 2"):
        make(env, FakeDevice(), replace(STYLES["ours"], trigger="button"))
    make(env, FakeDevice(), replace(STYLES["ours"], trigger="button"), intervene_button=1)


def test_an_unplugged_device_is_a_fault_with_a_zero_action(gripper_env: RobotEnv) -> None:
    device = FakeDevice()
    driver = make(gripper_env, device, replace(STYLES["serl"], gripper_latch="latch"))
    device.hold([1, 0, 0, 0, 0, 0], CLOSE)
    assert driver.read().is_active
    device.is_plugged = False
    human = driver.read()
    assert (human.is_active, human.action.tolist()) == (False, [0.0] * 4)
    assert human.fault is not None
    assert "unplugged" in human.fault


def test_a_device_silent_while_deflected_is_a_fault_after_its_limit_and_never_at_rest(env: RobotEnv) -> None:
    device, clock = FakeDevice(), Clock()
    driver = make(env, device, clock=clock, silent_after_s=0.3)
    device._received_s, device.is_silent = 0.0, True
    device.hold([1, 0, 0, 0, 0, 0])
    faults = []
    for clock.now_s in (0.0, 0.29, 0.31, 5.0):
        human = driver.read()
        faults.append(human.fault is not None)
        assert human.is_active is bool(human.action.any()) is not faults[-1]
    assert faults == [False, False, True, True]
    device.hold(REST)
    assert driver.read().fault is None  # a device at rest has nothing to say
    device.hold(REST, CLOSE)
    assert driver.read().fault is None  # nor has one with a button held: a SpaceMouse reports its changes alone


def test_styles_are_starting_points_and_a_run_records_every_value() -> None:
    config = InterventionConfig(style="hil_serl", hold_s=0.2)
    assert config.settings == replace(STYLES["hil_serl"], hold_s=0.2)
    explicit = config.explicit()
    assert (explicit.trigger, explicit.dead_zone, explicit.hold_s, explicit.gripper_latch) == (
        "deflection",
        0.0,
        0.2,
        "neutral",
    )
    assert explicit.settings == config.settings


def test_the_driver_is_the_person_with_the_device_or_the_scripted_operator(env: RobotEnv, tmp_path: Path) -> None:
    assert connect_device(TeleopConfig(), tmp_path) is None
    scripted = make_driver(env, InterventionConfig(), TeleopConfig(), None, seed=0)
    assert isinstance(scripted, ScriptedTeleop)
    device = connect_device(TeleopConfig(device="fake"), tmp_path)
    assert device is not None
    person = make_driver(env, InterventionConfig(), TeleopConfig(device="fake"), device, seed=0)
    person.begin_episode(is_demonstration=True, assistance="none")
    person.read()
    device.close()
    lines = (tmp_path / "device_log.jsonl").read_text().splitlines()
    assert len(lines) == 2  # the header and one step


def test_a_log_makes_the_same_actions_again(env: RobotEnv, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    script: list[Entry] = [(1, rng.uniform(-1, 1, 6) * (rng.random() < 0.7), NONE) for _ in range(20)]
    path = tmp_path / "device_log.jsonl"
    first = two_episodes(env, LoggingDevice(FakeDevice(script), path))
    again = two_episodes(env, ReplayDevice(str(path)))
    assert {human.is_active for human in first} == {True, False}
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.action, other.action)
        assert one.is_active == other.is_active


def two_episodes(env: RobotEnv, device: TeleopDevice) -> list[HumanInput]:
    device.connect()
    driver = DeviceDriver(env, device, STYLES["ours"], TeleopConfig(device="fake"))
    inputs = []
    for _ in range(2):
        driver.begin_episode(is_demonstration=False, assistance="none")
        inputs += [driver.read() for _ in range(10)]
    device.close()
    return inputs


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TeleopConfig(device="spacemuse"), "unknown input device 'spacemuse'"),
        (TeleopConfig(device="keyboard", path="/dev/tty"), "has no path"),
        (TeleopConfig(device="replay"), "needs the path of a device log"),
        (TeleopConfig(device="spacemouse", axis_scale=(1, 1, 1, 1, 1, math.nan)), "must be six finite numbers"),
    ],
)
def test_a_device_that_makes_no_sense_is_refused(config: TeleopConfig, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        connect_device(config, tmp_path)


def test_axis_scales_reach_the_spacemouse_and_are_refused_for_other_devices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mouse = Desk(monkeypatch).plug()
    scale = (-0.5, 1.0, 1.0, 1.0, 1.0, 1.0)
    device = connect_device(TeleopConfig(device="spacemouse", axis_scale=scale, path=str(mouse.path)), tmp_path)
    assert device is not None
    mouse.translate(back=-1.0)
    deadline_s = time.monotonic() + 30.0
    while not (twist := device.read().twist).any():
        assert time.monotonic() < deadline_s
    assert twist[0] == -0.5
    device.close()
    with pytest.raises(ConfigError, match="for the device spacemouse alone"):
        TeleopConfig(device="gamepad", axis_scale=scale)


def test_a_device_with_more_buttons_than_it_knew_before_may_use_them(
    env: RobotEnv, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mouse = Desk(monkeypatch).plug(ids=PRO)
    config = TeleopConfig(device="spacemouse", intervene_button=2)
    device = connect_device(config, tmp_path)
    assert device is not None
    DeviceDriver(env, device, replace(STYLES["ours"], trigger="button"), config)
    device.close()
    mouse.unplug()
    assert json.loads((tmp_path / "device_log.jsonl").read_text().splitlines()[0])["num_buttons"] == 15
