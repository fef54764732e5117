"""The RealSense driver on a recording that librealsense plays back."""

import sys
from pathlib import Path

import pytest

from robot.cameras import make_camera
from robot.cameras.capture import CapturingCamera
from robot.errors import MissingDependencyError, RobotConfigError, RobotError
from tests.camera_fakes import (
    BLUE,
    RED,
    SERIAL,
    RealSenseDesk,
    SilentRealSense,
    has_halves,
    read_until,
    realsense,
    wait_for,
)


def test_a_missing_system_library_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pyrealsense2.py").write_text("raise ImportError('libusb-1.0.so.0: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("pyrealsense2", "robot.cameras.realsense"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingDependencyError, match=r"libusb-1.0.so.0.*sudo apt-get install libusb-1.0-0"):
        make_camera("realsense", "wrist")


def test_a_realsense_that_is_not_there_is_missed_at_once(desk: RealSenseDesk) -> None:
    with pytest.raises(RobotError, match=rf"no RealSense 000; present: {SERIAL}\. .*USB 3"):
        realsense(desk, "000", width=64, height=48).connect()


def test_a_realsense_without_the_size_says_which_it_has(desk: RealSenseDesk) -> None:
    with pytest.raises(RobotConfigError, match=r"no colour stream of 640 x 480 px at 30 .* it has 64 x 48 at 30"):
        realsense(desk).connect()


def test_a_realsense_unplugged_and_plugged_in_again_goes_on(desk: RealSenseDesk) -> None:
    camera = realsense(desk, "", width=64, height=48)
    assert isinstance(camera, CapturingCamera)
    camera.connect()
    desk.unplug()
    wait_for(lambda: "there is no RealSense" in camera.fault)
    sequence = camera.read().sequence
    desk.plug()
    assert has_halves(read_until(camera, lambda frame: frame.sequence > sequence).image, RED, BLUE)
    camera.close()


def test_a_stalled_realsense_is_started_again(desk: RealSenseDesk) -> None:
    camera = realsense(desk, width=64, height=48)
    assert isinstance(camera, CapturingCamera)
    camera.connect()
    desk.device.pause()
    wait_for(lambda: "no image for 1 s" in camera.fault)
    sequence = camera.read().sequence
    read_until(camera, lambda frame: frame.sequence > sequence)
    camera.close()


OPTIONS = {  # lowest, highest and present value
    "enable_auto_exposure": (0.0, 1.0, 1.0),
    "auto_exposure_priority": (0.0, 1.0, 1.0),
    "exposure": (1.0, 10_000.0, 156.0),
    "enable_auto_white_balance": (0.0, 1.0, 0.0),
    "white_balance": (2800.0, 6500.0, 4600.0),
}


@pytest.mark.usefixtures("recording")
def test_a_realsense_that_starts_but_delivers_nothing_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    from robot.cameras.realsense import RealSenseSource

    device = SilentRealSense(SERIAL, {})
    monkeypatch.setattr("robot.cameras.realsense.rs.pipeline", device.pipeline)
    source = RealSenseSource("", 640, 480, 30, 0, 0, device)
    for _ in range(2):
        source.open()
        with pytest.raises(RobotError, match=r"no image for 3 s. Is its cable in\?"):
            source.grab()
        source.close()
    with pytest.raises(RobotError, match=f"{SERIAL} delivered nothing and was reset"):
        source.open()
    assert (device.starts, device.resets) == (2, 1)
    source.open()
    assert (device.starts, device.resets) == (3, 1)


@pytest.mark.usefixtures("recording")
@pytest.mark.parametrize(
    ("exposure_us", "white_balance_k", "expected"),
    [(0, 0, (1, 156, 1, 4600)), (8000, 5200, (0, 80, 0, 5200))],
)
def test_exposure_is_set_on_the_colour_sensor_alone_in_its_unit(
    monkeypatch: pytest.MonkeyPatch, exposure_us: int, white_balance_k: int, expected: tuple[float, ...]
) -> None:
    import pyrealsense2 as rs

    from robot.cameras.realsense import RealSenseSource

    device = SilentRealSense(SERIAL, OPTIONS)
    monkeypatch.setattr("robot.cameras.realsense.rs.pipeline", device.pipeline)
    RealSenseSource("", 640, 480, 30, exposure_us, white_balance_k, device).open()
    names = ("enable_auto_exposure", "exposure", "enable_auto_white_balance", "white_balance", "auto_exposure_priority")
    for name, value in zip(names, (*expected, 0), strict=True):
        assert device.colour.get_option(getattr(rs.option, name)) == value, name
        assert device.stereo.get_option(getattr(rs.option, name)) == OPTIONS[name][2], name


@pytest.mark.usefixtures("recording")
def test_options_that_a_realsense_lacks_or_cannot_reach(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from robot.cameras.realsense import RealSenseSource

    for options, white_balance_k in (({}, 0), (OPTIONS, 9000)):
        device = SilentRealSense(SERIAL, options)
        monkeypatch.setattr("robot.cameras.realsense.rs.pipeline", device.pipeline)
        source = RealSenseSource("", 640, 480, 30, 8000, white_balance_k, device)
        if white_balance_k:
            with pytest.raises(RobotConfigError, match="white_balance from 2800 to 6500, not 9000"):
                source.open()
        else:
            source.open()
            assert "no exposure to set" in caplog.text
