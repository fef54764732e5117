"""The ZED by its SDK, of which a stand-in is imported."""

import sys
from pathlib import Path

import pytest

from robot.cameras import make_camera
from robot.cameras.capture import CapturingCamera
from robot.errors import MissingDependencyError, RobotError
from tests.camera_fakes import (
    ZedSdk,
    read_until,
    wait_for,
)


def test_the_zeds_depth_is_off_and_its_grabs_do_not_block(zed_sdk: ZedSdk) -> None:
    camera = make_camera("zed_sdk", "wrist", width=1280, height=720, fps=60, exposure_us=5000, white_balance_k=4600)
    zed_sdk.size = (1280, 720)
    camera.connect()
    parameters = zed_sdk.parameters
    assert (parameters.depth_mode.name, parameters.camera_resolution.name) == ("NONE", "HD720")
    assert (parameters.camera_fps, parameters.serial) == (60, 12345678)
    assert parameters.async_grab_camera_recovery
    assert zed_sdk.settings["EXPOSURE"] == 30  # percent of 1/60 s
    assert zed_sdk.settings["WHITEBALANCE_TEMPERATURE"] == 4600
    camera.close()


@pytest.mark.parametrize("code", ["POTENTIAL_CALIBRATION_ISSUE", "CONFIGURATION_FALLBACK"])
def test_a_warning_of_the_zed_stops_nothing(zed_sdk: ZedSdk, code: str, caplog: pytest.LogCaptureFixture) -> None:
    zed_sdk.open_code = type(zed_sdk.open_code)[code]
    camera = make_camera("zed_sdk", "wrist")
    camera.connect()
    assert code in caplog.text
    camera.close()


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("LOW_USB_BANDWIDTH", "USB 3 port of its own"),
        ("NO_GPU_DETECTED", "zed_uvc"),
        ("CAMERA_REBOOTING", "Diagnostic"),
    ],
)
def test_an_error_of_the_zed_names_its_remedy(zed_sdk: ZedSdk, code: str, remedy: str) -> None:
    zed_sdk.open_code = type(zed_sdk.open_code)[code]
    with pytest.raises(RobotError, match=rf"does not open: {code}. .*{remedy}"):
        make_camera("zed_sdk", "wrist").connect()
    assert zed_sdk.closed == 1


def test_a_zed_that_reboots_or_vanishes_comes_back(zed_sdk: ZedSdk) -> None:
    camera = make_camera("zed_sdk", "wrist")
    assert isinstance(camera, CapturingCamera)
    camera.connect()
    zed_sdk.grab_code = type(zed_sdk.grab_code).CORRUPTED_FRAME
    wait_for(lambda: "delivers no image: CORRUPTED_FRAME" in camera.fault)
    zed_sdk.grab_code = type(zed_sdk.grab_code).SUCCESS
    zed_sdk.serials.clear()
    wait_for(lambda: "there is no ZED" in camera.fault)
    sequence = camera.read().sequence
    zed_sdk.serials.append(12345678)
    read_until(camera, lambda frame: frame.sequence > sequence)
    camera.close()


@pytest.mark.parametrize(
    ("serials", "device", "message"),
    [
        ([], "", "there is no ZED. Plug it in"),
        ([1, 2], "", "2 devices of kind ZED: 1, 2. Name one"),
        ([1], "3", "there is no ZED 3; present: 1"),
    ],
)
def test_the_zed_to_open_must_be_clear(zed_sdk: ZedSdk, serials: list[int], device: str, message: str) -> None:
    zed_sdk.serials[:] = serials
    with pytest.raises(RobotError, match=message):
        make_camera("zed_sdk", "wrist", device=device).connect()


def test_the_namesake_from_pypi_is_recognised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pyzed.py").write_text("class Client: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pyzed", raising=False)
    with pytest.raises(MissingDependencyError, match=r"same name from PyPI.*pip uninstall pyzed.*get_python_api"):
        make_camera("zed_sdk", "wrist")
    sys.modules.pop("pyzed", None)


def test_without_the_sdk_the_other_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" not in path])
    with pytest.raises(MissingDependencyError, match=r"needs pyzed.sl .*get_python_api.py.*zed_uvc"):
        make_camera("zed_sdk", "wrist")
