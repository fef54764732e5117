"""The Robotiq driver against its manual: registers, frames, ends, ports."""

import errno
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import serial

from robot.errors import RobotConfigError, RobotError
from robot.grippers import robotiq
from robot.grippers.options import GripperOptions
from robot.grippers.robotiq import RobotiqGripper
from robot.grippers.robotiq_bus import PortError, find_port
from robot.grippers.robotiq_registers import FORCE_RANGE_N, SPEED_RANGE_M_S, Ends, Status, counts, describe_fault
from tests.robotiq_device import RobotiqDevice, crc, wait_until

# Frames printed in Robotiq's instruction manuals of the 2F-85, 2F-140 and Hand-E, which share this protocol.
RESET = "09 10 03 E8 00 03 06 00 00 00 00 00 00 73 30"
ACTIVATE = "09 10 03 E8 00 03 06 01 00 00 00 00 00 72 E1"
OPEN_FULLY = "09 10 03 E8 00 03 06 09 00 00 00 FF FF 72 19"
CLOSE_FULLY = "09 10 03 E8 00 03 06 09 00 00 FF FF FF 42 29"
WRITTEN = "09 10 03 E8 00 03 01 30"
ASK = "09 04 07 D0 00 03 B1 CE"
ANSWER_OPENING = "09 04 06 39 00 00 00 BB 10 71 06"
ANSWER_GRASPED = "09 04 06 B9 00 00 FF BD 00 5C 9A"
ANSWER_OPENED = "09 04 06 F9 00 00 00 0D 00 17 AA"
ASK_FIRST_HOLDING = "09 03 07 D0 00 01 85 CF"
ANSWER_ACTIVATING = "09 03 02 11 00 55 D5"
ANSWER_ACTIVATED = "09 03 02 31 00 4C 15"
WRITE_AND_ASK = "09 17 07 D0 00 02 03 E9 00 02 04 00 E6 3C C8 2D 0C"


@pytest.fixture
def device(tmp_path: Path) -> Iterator[RobotiqDevice]:
    device = RobotiqDevice(tmp_path, open_end=13, closed_end=230, hurry=20.0)
    yield device
    device.close()


def frame(text: str) -> bytes:
    return bytes.fromhex(text)


def driver(device: RobotiqDevice, calibrate: bool = True) -> RobotiqGripper:
    return RobotiqGripper(
        GripperOptions(
            driver="robotiq", device=str(device.port), force_n=235.0, calibrate=calibrate, closed_position=230
        )
    )


def test_the_manuals_frames_have_the_crc_that_the_model_computes() -> None:
    frames = [frame(text) for text in globals().values() if isinstance(text, str) and text.startswith("09 ")]
    assert len(frames) == 13
    for data in frames:
        assert crc(data[:-2]) == data[-2:], data.hex(" ")


def test_the_model_answers_the_manuals_requests_with_the_manuals_answers(device: RobotiqDevice) -> None:
    assert device.answer(frame(RESET)) == frame(WRITTEN)
    assert device.answer(frame(ACTIVATE)) == frame(WRITTEN)
    assert device.answer(frame(ASK_FIRST_HOLDING)) == frame(ANSWER_ACTIVATING)
    wait_until(lambda: device.answer(frame(ASK_FIRST_HOLDING)) != frame(ANSWER_ACTIVATING), "the activation")
    activated = device.answer(frame(ASK_FIRST_HOLDING))
    assert activated is not None
    assert activated[3] & 0x3F == frame(ANSWER_ACTIVATED)[3]
    device.object_at = 0xBD
    assert device.answer(frame(CLOSE_FULLY)) == frame(WRITTEN)
    wait_until(lambda: device.answer(frame(ASK)) == frame(ANSWER_GRASPED), "the grasp")
    assert device.answer(frame(OPEN_FULLY)) == frame(WRITTEN)
    opening = device.answer(frame(ASK))
    assert opening is not None
    assert opening[:7] == frame(ANSWER_OPENING)[:7]
    wait_until(lambda: device.answer(frame(ASK)) == frame(ANSWER_OPENED), "the opening")
    both = device.answer(frame(WRITE_AND_ASK))
    assert both is not None
    assert (device.writes[-1].rPR, device.writes[-1].rSP, device.writes[-1].rFR) == (0xE6, 0x3C, 0xC8)
    assert both[:3] == frame("09 17 04")


def test_the_model_keeps_silent_on_what_is_not_for_it(device: RobotiqDevice) -> None:
    garbled = frame(ASK)[:-1] + b"\x00"
    other = frame(ASK)[1:-2]
    assert device.answer(garbled) is None
    assert device.answer(b"\x0a" + other + crc(b"\x0a" + other)) is None
    for body in ("09 05 00 00 00 00", "09 04 07 D0 00 09"):  # another function, registers that do not exist
        assert device.answer(frame(body) + crc(frame(body))) is None


def test_connecting_sends_the_manuals_frames_in_its_order(device: RobotiqDevice) -> None:
    gripper = driver(device)
    gripper.connect()
    gripper.close()
    told = [sent for sent in device.frames if sent != frame(ASK)]
    assert told == [frame(RESET), frame(ACTIVATE), frame(CLOSE_FULLY), frame(OPEN_FULLY)]
    assert device.frames[0] == frame(ASK)
    assert gripper.ends == (13, 230)


def test_the_status_of_the_manuals_example_is_read_as_the_manual_reads_it() -> None:
    data = frame(ANSWER_OPENING)[3:-2]
    status = Status.from_registers([int.from_bytes(data[i : i + 2], "big") for i in (0, 2, 4)])
    assert status == Status(is_active=True, is_going=True, activation=3, contact=0, fault=0, requested=0, position=0xBB)


def test_widths_are_linear_between_the_ends_of_the_unit() -> None:
    ends = Ends(13, 230)
    assert ends.width(13) == pytest.approx(0.085)
    assert ends.width(230) == 0.0
    assert ends.width(5) == pytest.approx(0.085)
    assert ends.width(255) == 0.0
    assert ends.width(round((13 + 230) / 2)) == pytest.approx(0.0425, abs=0.085 / 217)
    for position in range(14, 230):
        assert ends.position(ends.width(position)) == position
    assert ends.position(0.0) == 255
    assert ends.position(0.085) == 0


def test_force_and_speed_span_the_data_sheet() -> None:
    assert [counts(force, FORCE_RANGE_N) for force in (20.0, 127.5, 235.0, 1e3)] == [0, 128, 255, 255]
    assert [counts(speed, SPEED_RANGE_M_S) for speed in (0.0, 0.02, 0.05, 0.15)] == [0, 0, 59, 255]


@pytest.mark.parametrize("code", range(5, 16))
def test_every_fault_says_what_to_do(code: int) -> None:
    text = describe_fault(code)
    assert f"0x{code:02X}" in text
    assert ("does not list" in text) == (code == 6)


@pytest.mark.parametrize(
    ("setting", "value"), [("force_n", 19.0), ("force_n", 236.0), ("speed_m_s", 0.01), ("speed_m_s", 0.2)]
)
def test_what_the_gripper_cannot_do_is_refused(setting: str, value: float) -> None:
    with pytest.raises(RobotConfigError, match=setting):
        RobotiqGripper(GripperOptions(driver="robotiq", **{setting: value}))  # type: ignore[arg-type]


def test_ends_that_make_no_sense_are_refused() -> None:
    with pytest.raises(RobotConfigError, match="open_position"):
        GripperOptions(open_position=228, closed_position=3)


def test_a_hand_that_holds_something_keeps_it_through_a_restart(device: RobotiqDevice) -> None:
    first = driver(device)
    first.connect()
    device.object_at = 120
    first.move(0.0)
    wait_until(lambda: first.read().is_holding, "the grip")
    first.stop()
    first.close()
    told = len(device.writes)
    for calibrate in (True, False):
        again = driver(device, calibrate)
        again.connect()
        assert again.read().is_holding
        again.close()
        assert len(device.writes) == told, "connecting told a gripper that holds something to move"


def test_without_leave_to_calibrate_an_inactive_gripper_is_not_activated(device: RobotiqDevice) -> None:
    gripper = driver(device, calibrate=False)
    with pytest.raises(RobotError, match=r"calibrate = true"):
        gripper.connect()
    assert device.writes == []


def test_what_stands_between_the_fingers_stops_a_calibration_and_stays_gripped(device: RobotiqDevice) -> None:
    first = driver(device)
    first.connect()
    first.close()
    device.object_at = 120
    with pytest.raises(RobotError, match="between the fingers"):
        driver(device).connect()
    assert device.position == 120
    assert device.writes[-1].rPR == 255
    device.object_at, device.outer_obstacle_at = None, 90
    wait_until(lambda: device.answer(frame(ASK)) is not None and device.position == 230, "the fingers to close further")
    with pytest.raises(RobotError, match="from outside"):
        driver(device).connect()


def test_an_activation_that_does_not_end_is_given_up(device: RobotiqDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robotiq, "_ACTIVATION_TIMEOUT_S", 0.3)
    device.never_activates = True
    with pytest.raises(RobotError, match="finish its activation"):
        driver(device).connect()


def test_a_garbled_answer_now_and_then_does_not_keep_it_from_connecting(
    device: RobotiqDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, count = device.answer, iter(range(10**6))

    def every_third_is_garbled(request: bytes) -> bytes | None:
        answered = answer(request)
        return answered[:-1] + bytes([answered[-1] ^ 0xFF]) if answered and next(count) % 3 == 1 else answered

    monkeypatch.setattr(device, "answer", every_third_is_garbled)
    gripper = driver(device)
    gripper.connect()
    assert gripper.ends == (13, 230)
    assert device.num_activations == 1, "a repeated request must not activate it again"
    gripper.close()


def test_a_silent_gripper_is_reported_with_what_to_check(device: RobotiqDevice) -> None:
    device.is_silent = True
    with pytest.raises(RobotError, match="24 V supply"):
        driver(device).connect()


def test_the_only_fitting_port_is_taken(tmp_path: Path) -> None:
    by_id = tmp_path / "by-id"
    with pytest.raises(PortError, match="no serial port"):
        find_port("", by_id)
    by_id.mkdir()
    with pytest.raises(PortError, match="no serial port"):
        find_port("", by_id)
    (by_id / "usb-Arduino-if00").touch()
    assert find_port("", by_id) == str(by_id / "usb-Arduino-if00")
    (by_id / "usb-FTDI_USB_TO_RS-485_A-if00-port0").touch()
    assert find_port("", by_id) == str(by_id / "usb-FTDI_USB_TO_RS-485_A-if00-port0")
    (by_id / "usb-FTDI_USB_TO_RS-485_B-if00-port0").touch()
    with pytest.raises(PortError, match=r"several .*_A-.*_B-.*hand\.device"):
        find_port("", by_id)
    assert find_port("/dev/ttyUSB7", by_id) == "/dev/ttyUSB7"


def test_a_port_that_is_not_there_or_in_use_is_told_apart(device: RobotiqDevice, tmp_path: Path) -> None:
    with pytest.raises(PortError, match="does not exist"):
        RobotiqGripper(GripperOptions(device=str(tmp_path / "nothing"))).connect()
    first = driver(device)
    first.connect()
    with pytest.raises(PortError, match="in use by another program"):
        driver(device).connect()
    assert first.read().fault == ""
    first.close()


def test_a_port_without_permission_is_answered_with_the_command(
    device: RobotiqDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise serial.SerialException(errno.EACCES, "Permission denied")

    assert stat.S_ISCHR(device.port.stat().st_mode)
    monkeypatch.setattr(serial, "Serial", refuse)
    with pytest.raises(PortError, match=r"usermod -aG dialout"):
        driver(device).connect()
