"""A SpaceMouse behind the real easyhid and pyspacemouse: its axes, its newest report, and which one is opened."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robot.errors import MissingDependencyError, RobotConfigError, RobotError
from robot.interface import TeleopState
from robot.teleop import spacemouse
from robot.teleop.spacemouse import UDEV_RULE, SpaceMouseDevice
from tests.fake_spacemouse import COMPACT, KEYBOARD, PRO, RECEIVER, Desk, library_folder

HANG_LIMIT_S = 30.0


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(spacemouse, "_RETRY_S", 0.02)
    return Desk(monkeypatch)


@pytest.fixture
def connected() -> Iterator[Callable[..., SpaceMouseDevice]]:
    devices = []

    def connect(**options: Any) -> SpaceMouseDevice:
        devices.append(SpaceMouseDevice(**options))
        devices[-1].connect()
        return devices[-1]

    yield connect
    for device in devices:
        device.close()


Connect = Callable[..., SpaceMouseDevice]


def read_until(device: SpaceMouseDevice, condition: Callable[[TeleopState], bool]) -> TeleopState:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition(state := device.read()):
        assert time.monotonic() < deadline_s, state
        time.sleep(0.002)
    return state


def touched(state: TeleopState) -> bool:
    return bool(state.twist.any() or any(state.buttons))


# What the hand does, in the device's own axes (USB HID: right, towards the person, down), and what it means.
@pytest.mark.parametrize(
    ("movement", "direction", "element", "expected"),
    [
        ("translate", {"back": -0.5}, 0, 0.5),  # pushed away from the person: forward
        ("translate", {"right": 0.5}, 1, -0.5),  # to the right
        ("translate", {"down": -0.5}, 2, 0.5),  # pulled up
        ("rotate", {"about_back": -0.5}, 3, 0.5),  # tilted to the right: about the forward axis
        ("rotate", {"about_right": -0.5}, 4, 0.5),  # tilted forward: about the axis to the left
        ("rotate", {"about_down": -0.5}, 5, 0.5),  # turned anticlockwise, seen from above
        ("translate", {"back": -1.3}, 0, 1.0),  # some devices report more than their nominal way
        ("translate", {"back": -2 / 350}, 0, 0.0),  # what a cap at rest may report
        ("translate", {"back": -3 / 350}, 0, 3 / 350),
    ],
)
def test_axes_are_forward_left_up_and_rotation_about_them(
    desk: Desk, connected: Connect, movement: str, direction: dict[str, float], element: int, expected: float
) -> None:
    mouse, device = desk.plug(), connected()
    getattr(mouse, movement)(**direction)
    mouse.press(1)  # reports arrive in order: once the button is there, so is the movement
    twist = np.zeros(6)
    twist[element] = expected
    np.testing.assert_allclose(read_until(device, lambda state: state.buttons == (False, True)).twist, twist, atol=1e-9)


def test_axes_can_be_scaled_turned_round_and_left_out(desk: Desk, connected: Connect) -> None:
    mouse, device = desk.plug(), connected(axis_scale=(0.5, -1, 3, 0, 1, 1))
    mouse.translate(right=0.5, back=-0.5, down=-0.5)
    mouse.rotate(about_back=-0.5, about_down=-0.5)
    mouse.press(0)
    state = read_until(device, lambda state: any(state.buttons))
    np.testing.assert_allclose(state.twist, [0.25, 0.5, 1, 0, 0, 0.5])
    for wrong in ((1.0,) * 5, (1, 1, 1, 1, 1, float("nan"))):
        with pytest.raises(RobotConfigError, match="must be six finite numbers"):
            SpaceMouseDevice(axis_scale=wrong)


def test_after_a_burst_the_newest_report_wins_and_no_other_is_ever_said(
    desk: Desk, connected: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    translated = SpaceMouseDevice._translated

    def listen(self: SpaceMouseDevice, report: Any) -> TeleopState:
        state = translated(self, report)
        said.append(state.twist[0])
        return state

    monkeypatch.setattr(SpaceMouseDevice, "_translated", listen)
    mouse, device = desk.plug(), connected()
    mouse.translate(back=-0.1)
    read_until(device, touched)
    said.clear()
    desk.starve(True)
    for i in range(1, 51):
        mouse.translate(back=-i / 50)
    desk.starve(False)
    read_until(device, lambda state: state.twist[0] == 1.0)
    assert len(said) <= 2  # a wait that began before the queue was held up may have had the first


def test_a_queue_that_overflowed_says_nothing_until_the_next_report(desk: Desk, connected: Connect) -> None:
    mouse, device = desk.plug(), connected()
    mouse.translate(back=-1.0)
    mouse.press(0)
    before = read_until(device, lambda state: any(state.buttons))
    desk.starve(True)
    for _ in range(100):
        mouse.translate(back=-1.0)
    desk.starve(False)
    state = read_until(device, lambda state: not touched(state))
    assert state.is_connected
    assert state.received_monotonic_s > before.received_monotonic_s
    mouse.translate(back=-0.5)
    state = read_until(device, touched)
    assert (state.twist[0], state.buttons) == (0.5, (False, False))


def test_its_age_is_that_of_the_last_report(desk: Desk, connected: Connect) -> None:
    mouse, device = desk.plug(), connected()
    mouse.translate(back=-1.0)
    first = read_until(device, touched)
    time.sleep(0.2)  # several waits for a report that does not come
    assert device.read().received_monotonic_s == first.received_monotonic_s
    mouse.translate(back=-1.0)
    read_until(device, lambda state: state.received_monotonic_s > first.received_monotonic_s)


def test_two_are_told_apart_by_their_paths(desk: Desk, connected: Connect, tmp_path: Path) -> None:
    left, right = desk.plug("hidraw3"), desk.plug("hidraw4")
    with pytest.raises(RobotError, match=r"more than one SpaceMouse: \S+hidraw3 \(SpaceMouseCompact\), \S+hidraw4"):
        connected()
    link = tmp_path / "by-path"
    link.symlink_to(right.path)
    of_left, of_right = connected(path=str(left.path)), connected(path=str(link))
    left.translate(back=-1.0)
    right.translate(back=1.0)
    assert read_until(of_left, touched).twist[0] == 1.0
    assert read_until(of_right, touched).twist[0] == -1.0


def test_a_receiver_is_opened_at_its_six_axes_and_its_second_button_is_the_right_one(
    desk: Desk, connected: Connect
) -> None:
    desk.plug("hidraw0", RECEIVER, KEYBOARD)
    mouse, device = desk.plug("hidraw1", RECEIVER), connected()
    mouse.press(1)
    assert read_until(device, touched).buttons == (False, True) + (False,) * 13
    mouse.report(bytes([1, 0, 0, 0xA2, 0xFE, 0, 0, 0, 0, 0, 0, 0x5E, 0x01]))  # all axes in one report
    assert read_until(device, lambda state: bool(state.twist.any())).twist.tolist() == [1, 0, 0, 0, 0, -1]


def test_plugged_in_again_it_goes_on_also_as_another_model(desk: Desk, connected: Connect) -> None:
    mouse, device = desk.plug(), connected()
    mouse.translate(back=-1.0)
    read_until(device, touched)
    mouse.unplug()
    assert not touched(read_until(device, lambda state: not state.is_connected))
    mouse = desk.plug("hidraw5", PRO)
    assert not touched(read_until(device, lambda state: state.is_connected))
    mouse.press(1)
    assert read_until(device, touched).buttons == (False, True)


@pytest.mark.parametrize(
    ("plugged", "path", "message"),
    [
        ([], "", r"there is no SpaceMouse\. Plug it in"),
        ([((0x046D, 0xC52B), KEYBOARD)], "", r"there is no SpaceMouse\. Plug it in"),
        ([(RECEIVER, KEYBOARD)], "", r"there is no SpaceMouse\. Plug it in"),
        ([], "/dev/hidraw9", r"there is no SpaceMouse at /dev/hidraw9\. Is it plugged in and switched on\?$"),
        ([(COMPACT, (0, 0))], "/dev/hidraw9", r"switched on\? There is \S+hidraw0 \(SpaceMouseCompact\)\."),
    ],
)
def test_one_that_cannot_be_chosen(desk: Desk, plugged: list[Any], path: str, message: str) -> None:
    for i, (ids, usage) in enumerate(plugged):
        desk.plug(f"hidraw{i}", ids, usage)
    with pytest.raises(RobotError, match=message):
        SpaceMouseDevice(path).connect()


def test_one_that_cannot_be_opened_names_the_remedy(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.plug()._listener.close()
    with pytest.raises(RobotError, match=r"cannot open the SpaceMouse \S+hidraw0: .*Plug it in again"):
        SpaceMouseDevice().connect()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(RobotError, match="no permission to open") as caught:
        SpaceMouseDevice().connect()
    assert UDEV_RULE in str(caught.value)


SCRIPT = """
import sys
import easyhid
from robot.teleop.spacemouse import SpaceMouseDevice
device = SpaceMouseDevice()
device.connect()
print("connected", flush=True)
sys.stdin.readline()
device.close()
"""


def in_a_process_of_its_own(environment: dict[str, str]) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.Popen(command, env=os.environ | environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_the_library_is_found_as_the_system_finds_libraries(desk: Desk) -> None:
    mouse = desk.plug()
    process = in_a_process_of_its_own({"LD_LIBRARY_PATH": str(library_folder())})
    mouse.translate(back=-1.0)
    out, errors = process.communicate("\n", timeout=HANG_LIMIT_S)
    assert (out, process.returncode) == ("connected\n", 0), errors


def test_without_the_library_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import easyhid.easyhid

    monkeypatch.setattr(easyhid.easyhid, "hidapi", easyhid.easyhid.ffi.dlopen(None))  # what easyhid does without it
    with pytest.raises(MissingDependencyError, match="sudo apt-get install libhidapi-hidraw0"):
        SpaceMouseDevice().connect()
