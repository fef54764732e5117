"""The keyboard's taps and repetitions, and the device log."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from robot.errors import RobotConfigError
from robot.interface import TeleopState
from robot.teleop import keyboard
from robot.teleop.device_log import LoggingDevice, ReplayDevice
from robot.teleop.fake import FakeDevice
from robot.teleop.keyboard import AXES, KeyboardDevice
from tests.teleop_fakes import TypedTerminal


class Clock:
    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(keyboard, "time", clock)
    return clock


def connected(terminal: TypedTerminal, **options: object) -> KeyboardDevice:
    device = KeyboardDevice(terminal=terminal, **options)  # type: ignore[arg-type]
    device.connect()
    return device


def test_a_tap_pushes_for_its_time_and_no_longer(clock: Clock) -> None:
    terminal = TypedTerminal()
    device = connected(terminal, deflection=0.5, hold_s=0.15)
    terminal.press("left", now_s=clock.now_s)
    pushes = []
    for _ in range(4):
        pushes.append(device.read().twist[1])
        clock.now_s += 0.1
    assert pushes == [0.5, 0.5, 0, 0]


def test_repetition_prolongs_a_push_without_a_gap(clock: Clock) -> None:
    terminal = TypedTerminal()
    device = connected(terminal, hold_s=0.15)
    pushes = []
    for _ in range(10):  # every 33 ms, read at 10 Hz
        for repetition in range(3):
            terminal.press("up", now_s=clock.now_s + 0.033 * repetition)
        clock.now_s += 0.1
        pushes.append(device.read().twist[0])
    assert pushes == [0.5] * 10


def test_a_tap_between_two_slow_reads_is_not_lost(clock: Clock) -> None:
    terminal = TypedTerminal()
    device = connected(terminal, hold_s=0.15)
    device.read()
    terminal.press("c", now_s=clock.now_s)
    clock.now_s += 5.0
    assert device.read().buttons == (True, False)
    assert device.read().buttons == (False, False)


def test_opposite_keys_cancel_and_others_add(clock: Clock) -> None:
    terminal = TypedTerminal()
    device = connected(terminal, deflection=1.0)
    terminal.press("up", "down", "left", "u", now_s=clock.now_s)
    np.testing.assert_array_equal(device.read().twist, [0, 1, 1, 0, 0, 0])


@pytest.mark.parametrize("layout", AXES)
def test_every_direction_of_the_twist_has_a_key(layout: keyboard.Layout) -> None:
    reached = set(AXES[layout].values())
    assert {(element, sign) for element in range(6) for sign in (1.0, -1.0)} <= reached


def test_two_keyboards_on_one_terminal_conflict_and_leave_it_as_it_was() -> None:
    terminal = TypedTerminal()
    first = connected(terminal)
    with pytest.raises(RobotConfigError, match="claimed twice"):
        connected(terminal)
    assert terminal.openings == 1
    first.close()
    first.close()
    assert terminal.openings == 0


State = tuple[list[float], tuple[bool, ...], bool]

# Three episodes as a person may leave them: deflections, a button, a cable pulled out for a moment.
STATES: list[list[State]] = [
    [([0.5, 0, 0, 0, 0, 0.25], (False, True), True), ([0, -1, 0, 0, 0, 0], (False, False), True)],
    [([0, 0, 0, 0, 0, 0], (False, False), False)],
    [([0.125, 0, 1, 0, 0, 0], (True, False), True)] * 3,
]


def play(device: FakeDevice, recorder: LoggingDevice, episodes: list[list[State]]) -> None:
    for episode in episodes:
        recorder.begin_episode()
        for twist, buttons, is_plugged in episode:
            device.hold(twist, buttons)
            device.is_plugged = is_plugged
            recorder.read()


def essence(state: TeleopState) -> State:
    return state.twist.tolist(), state.buttons, state.is_connected


def test_a_log_replays_every_state_at_its_step_over_a_restart_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "device_log.jsonl"
    for episodes in (STATES[:1], STATES[1:]):
        device = FakeDevice()
        recorder = LoggingDevice(device, path)
        recorder.connect()
        play(device, recorder, episodes)
        recorder.close()
        with path.open("a") as file:
            file.write('{"episode": 9, "st')  # killed while writing
    replay = ReplayDevice(str(path))
    replay.connect()
    for episode in STATES:
        replay.begin_episode()
        assert [essence(replay.read()) for _ in episode] == episode
    assert replay.num_buttons == 2


def test_an_episode_that_outlasts_its_record_rests_and_does_not_run_into_the_next(tmp_path: Path) -> None:
    path = tmp_path / "device_log.jsonl"
    device = FakeDevice()
    recorder = LoggingDevice(device, path)
    recorder.connect()
    play(device, recorder, STATES)
    recorder.close()
    replay = ReplayDevice(str(path))
    replay.begin_episode()
    states = [replay.read() for _ in range(4)]
    assert [bool(state.twist.any()) for state in states] == [True, True, False, False]
    assert all(state.is_connected for state in states)
    replay.begin_episode()
    replay.begin_episode()
    assert essence(replay.read()) == STATES[2][0]  # as if the second episode had been stopped before its first step
    replay.begin_episode()
    assert not replay.read().is_connected


def test_the_age_of_a_report_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    line = {"episode": 0, "step": 0, "twist": [1.0] + [0.0] * 5, "buttons": [], "age_s": 7.0, "is_connected": True}
    path.write_text(json.dumps({"format": 1}) + "\n" + json.dumps(line) + "\n")
    replay = ReplayDevice(str(path))
    replay.begin_episode()
    before_s = time.monotonic()
    assert replay.read().received_monotonic_s == pytest.approx(before_s - 7.0, abs=1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the device log"),
        ("", "is not a device log"),
        ('{"format": 2}\n', "not that of format 1"),
        ('{"format": 1}\n{"episode": 0}\n', "is not a device log"),
        (
            '{"format": 1}\n{"episode": 0, "step": 0, "twist": [1], "buttons": [], "age_s": 0, "is_connected": true}\n',
            "six finite values",
        ),
        ("no json\n", "is not a device log"),
    ],
)
def test_what_is_no_device_log_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "log"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RobotConfigError, match=message):
        ReplayDevice(str(path))
