"""What every input device promises: robot.interface.TeleopDevice. Each is attached to a stand-in."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from robot.errors import RobotConfigError, RobotError
from robot.interface import TeleopDevice, TeleopState
from robot.teleop import TELEOP_DEVICES, gamepad, make_device
from robot.teleop.device_log import LoggingDevice, ReplayDevice
from robot.teleop.fake import Entry, FakeDevice
from robot.teleop.gamepad import GamepadDevice
from robot.teleop.keyboard import KeyboardDevice
from robot.teleop.spacemouse import SpaceMouseDevice
from tests.fake_spacemouse import Desk
from tests.teleop_fakes import Evdev, Pad, TypedTerminal

HANG_LIMIT_S = 30.0


@dataclass
class Attached:
    """A device and what a person does to it: push forward and press its first button, let go, unplug it."""

    device: TeleopDevice
    push: Callable[[], None]
    unplug: Callable[[], None]


def attach_fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attached:
    device = FakeDevice()
    return Attached(device, lambda: device.hold([1, 0, 0, 0, 0, 0], (True, False)), lambda: unplug_fake(device))


def unplug_fake(device: FakeDevice) -> None:
    device.is_plugged = False


def attach_keyboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attached:
    terminal = TypedTerminal()
    device = KeyboardDevice(terminal=terminal)
    return Attached(device, lambda: terminal.press("up", "c", now_s=time.monotonic() + 100), terminal.hang_up)


def attach_gamepad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attached:
    pad = Pad()
    monkeypatch.setattr(gamepad, "evdev", Evdev(pad))

    def push() -> None:
        pad.sticks["ABS_Y"] = -32768
        pad.pressed.add("BTN_SOUTH")

    def unplug() -> None:
        pad.is_plugged = False

    return Attached(GamepadDevice(), push, unplug)


def attach_spacemouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attached:
    mouse = Desk(monkeypatch).plug()

    def push() -> None:
        mouse.translate(back=-1.0)
        mouse.press(0)

    return Attached(SpaceMouseDevice(), push, mouse.unplug)


def attach_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attached:
    """The record has an episode of 2 states at rest and one that pushes for long; then it is over."""
    path = tmp_path / "device_log.jsonl"
    script: list[Entry] = [(2, np.zeros(6), (False, False)), (500, [1, 0, 0, 0, 0, 0], (True, False))]
    recorder = LoggingDevice(FakeDevice(script), path)
    recorder.connect()
    for length in (2, 500):
        recorder.begin_episode()
        for _ in range(length):
            recorder.read()
    recorder.close()
    device = ReplayDevice(str(path))
    return Attached(device, device.begin_episode, lambda: end_of_log(device))


def end_of_log(device: ReplayDevice) -> None:
    device.begin_episode()


ATTACH = {
    "fake": attach_fake,
    "gamepad": attach_gamepad,
    "keyboard": attach_keyboard,
    "replay": attach_replay,
    "spacemouse": attach_spacemouse,
}


@pytest.fixture(params=sorted(TELEOP_DEVICES))
def attached(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attached]:
    attached = ATTACH[request.param](tmp_path, monkeypatch)
    attached.device.connect()
    if isinstance(attached.device, ReplayDevice):
        attached.device.begin_episode()
    yield attached
    attached.device.close()


def read_until(device: TeleopDevice, condition: Callable[[TeleopState], bool]) -> TeleopState:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition(state := device.read()):
        assert time.monotonic() < deadline_s, state
        time.sleep(0.005)
    return state


def test_untouched_it_says_so(attached: Attached) -> None:
    state = attached.device.read()
    np.testing.assert_array_equal(state.twist, np.zeros(6))
    assert state.buttons == (False,) * attached.device.num_buttons
    assert state.is_connected


def test_pushed_forward_it_deflects_along_x_alone_and_names_its_first_button(attached: Attached) -> None:
    attached.push()
    state = read_until(attached.device, lambda state: bool(state.twist.any()) and any(state.buttons))
    assert 0 < state.twist[0] <= 1
    np.testing.assert_array_equal(state.twist[1:], np.zeros(5))
    assert state.buttons == (True,) + (False,) * (attached.device.num_buttons - 1)
    assert state.received_monotonic_s == pytest.approx(time.monotonic(), abs=1.0)


def test_unplugged_while_deflected_it_reads_as_untouched_and_not_connected(attached: Attached) -> None:
    attached.push()
    read_until(attached.device, lambda state: bool(state.twist.any()))
    attached.unplug()
    state = read_until(attached.device, lambda state: not state.is_connected)
    np.testing.assert_array_equal(state.twist, np.zeros(6))
    assert not any(state.buttons)


def test_closing_twice_is_harmless(attached: Attached) -> None:
    attached.device.close()
    attached.device.close()


def test_an_unknown_name_is_answered_with_the_valid_ones() -> None:
    with pytest.raises(
        RobotConfigError, match=r"Did you mean 'keyboard'\? Valid: fake, gamepad, keyboard, replay, spacemouse"
    ):
        make_device("keybord")


@pytest.mark.parametrize(
    ("pads", "path", "message"),
    [
        ([], "", "there is no gamepad"),
        ([Pad(), Pad(path="/dev/input/event9")], "", r"2 gamepads: /dev/input/event7 \(Pad\), /dev/input/event9"),
        ([Pad(is_gamepad=False)], "", "there is no gamepad"),
        ([], "/dev/input/event3", "cannot open the gamepad /dev/input/event3"),
    ],
)
def test_a_gamepad_that_cannot_be_chosen(
    monkeypatch: pytest.MonkeyPatch, pads: list[Pad], path: str, message: str
) -> None:
    monkeypatch.setattr(gamepad, "evdev", Evdev(*pads))
    monkeypatch.setattr("glob.glob", lambda pattern: [])
    with pytest.raises(RobotError, match=message):
        make_device("gamepad", path=path).connect()


def test_a_gamepad_without_permission_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gamepad, "evdev", Evdev())
    monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/input/event4"])
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(RobotError, match=r"no permission to read /dev/input/event4.*usermod -aG input"):
        GamepadDevice().connect()


def test_a_gamepad_plugged_in_again_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pad = Pad()
    monkeypatch.setattr(gamepad, "evdev", Evdev(pad))
    monkeypatch.setattr(gamepad, "_RETRY_S", 0.02)
    device = GamepadDevice()
    device.connect()
    pad.is_plugged = False
    read_until(device, lambda state: not state.is_connected)
    pad.is_plugged, pad.sticks["ABS_X"] = True, -32768
    assert read_until(device, lambda state: state.is_connected).twist[1] == 1
    device.close()


@pytest.mark.parametrize(
    ("stick", "value", "element", "expected"),
    [
        ("ABS_X", 32767, 1, -1.0),  # to the right: -y
        ("ABS_RY", -32768, 2, 1.0),  # up: +z
        ("ABS_RX", -32768, 5, 1.0),  # left: anticlockwise
        ("ABS_Y", -3200, 0, 0.0),  # within the dead zone of a tenth
        ("ABS_Y", -18022, 0, 0.5),  # half way between its edge, 0.1, and 1
    ],
)
def test_sticks_map_to_the_axes_of_o(
    monkeypatch: pytest.MonkeyPatch, stick: str, value: int, element: int, expected: float
) -> None:
    monkeypatch.setattr(gamepad, "evdev", Evdev(Pad(sticks={stick: value})))
    device = GamepadDevice()
    device.connect()
    twist = np.zeros(6)
    twist[element] = expected
    np.testing.assert_allclose(device.read().twist, twist, atol=1e-4)
    device.close()
