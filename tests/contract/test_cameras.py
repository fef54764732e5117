"""What every camera promises: robot.interface.Camera. Each real driver runs on the lowest stand-in for its device."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest

from actor.config import CameraConfig, CamerasConfig
from actor.env import connect_cameras
from actor.tasks import make_task
from actor.tasks.base import TaskOptions
from policy.errors import ConfigError
from robot.backends.fake import FakeBackend
from robot.backends.twin.backend import TwinBackend
from robot.cameras import CAMERAS, make_camera
from robot.cameras.capture import CapturingCamera
from robot.errors import MissingDependencyError, RobotConfigError, RobotError
from robot.interface import Camera, CameraFrame, ScenePlacement
from robot.pose import O_R_DOWN, make_pose, translation
from tests.camera_fakes import (
    BLUE,
    HANG_LIMIT_S,
    RED,
    ScriptedSource,
    SilentRealSense,
    ZedSdk,
    has_halves,
    keeping_pipeline,
    picture,
    record_realsense,
    write_video,
)

SERIAL = "912112073118"
START = ScenePlacement(O_T_EE=make_pose(O_R_DOWN, (0.45, 0.0, 0.2)), objects={"target": translation(0.5, 0.0, 0.1)})


@dataclass
class Attached:
    """A camera, and what makes it see something new."""

    camera: Camera
    advance: Callable[[], None] = lambda: None


class RealSenseDesk:
    """An rs.context of which one RealSense can be unplugged: a recording, played by librealsense itself."""

    def __init__(self, recording: Path) -> None:
        import pyrealsense2 as rs

        self.context = rs.context()
        self._path = str(recording)
        self.plug()

    def plug(self) -> None:
        self.device = self.context.load_device(self._path).as_playback()

    def unplug(self) -> None:
        self.context.unload_device(self._path)


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        import pyrealsense2  # noqa: F401
    except ImportError as error:
        pytest.skip(f"librealsense does not load here ({error}): sudo apt-get install libusb-1.0-0")
    path = tmp_path_factory.mktemp("realsense") / "colour.db3"  # no other ending is taken
    record_realsense(path, SERIAL, 64, 48)
    return path


@pytest.fixture
def desk(recording: Path, monkeypatch: pytest.MonkeyPatch) -> RealSenseDesk:
    monkeypatch.setattr("robot.cameras.realsense.rs.pipeline", keeping_pipeline())
    return RealSenseDesk(recording)


@pytest.fixture
def zed_sdk(monkeypatch: pytest.MonkeyPatch) -> ZedSdk:
    sdk = ZedSdk()
    package: Any = ModuleType("pyzed")
    package.__path__ = []
    package.sl = sdk.module()
    monkeypatch.setitem(sys.modules, "pyzed", package)
    monkeypatch.setitem(sys.modules, "pyzed.sl", package.sl)
    return sdk


def attach_fake(request: pytest.FixtureRequest, tmp_path: Path) -> Attached:
    return Attached(make_camera("fake", "wrist"))


def attach_twin(request: pytest.FixtureRequest, tmp_path: Path) -> Attached:
    twin = TwinBackend("reach")
    twin.connect()
    request.addfinalizer(twin.close)
    twin.reset(START)
    try:
        twin.photograph("wrist")
    except RobotError as error:
        pytest.skip(str(error))
    return Attached(make_camera("twin", "wrist", backend=twin), lambda: twin.advance(0.1))


def attach_realsense(request: pytest.FixtureRequest, tmp_path: Path) -> Attached:
    return Attached(realsense(request.getfixturevalue("desk"), width=64, height=48))


def attach_zed_uvc(request: pytest.FixtureRequest, tmp_path: Path) -> Attached:
    write_video(tmp_path / "zed.avi", 672, 376, is_side_by_side=True)
    return Attached(make_camera("zed_uvc", "wrist", device=str(tmp_path / "zed.avi"), fps=100))


def attach_zed_sdk(request: pytest.FixtureRequest, tmp_path: Path) -> Attached:
    request.getfixturevalue("zed_sdk")
    return Attached(make_camera("zed_sdk", "wrist", device="12345678"))


def attach_opencv(request: pytest.FixtureRequest, tmp_path: Path) -> Attached:
    write_video(tmp_path / "webcam.avi", 160, 120)
    return Attached(
        make_camera("opencv", "wrist", device=str(tmp_path / "webcam.avi"), width=160, height=120, fps=100)
    )  # fmt: skip


ATTACH = {
    "fake": attach_fake,
    "opencv": attach_opencv,
    "realsense": attach_realsense,
    "twin": attach_twin,
    "zed_sdk": attach_zed_sdk,
    "zed_uvc": attach_zed_uvc,
}


@pytest.fixture(params=sorted(set(CAMERAS) - {"room"}))  # a room needs a process of its own, and has tests of its own
def attached(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Attached]:
    attached: Attached = ATTACH[request.param](request, tmp_path)
    attached.camera.connect()
    yield attached
    attached.camera.close()


def read_until(
    camera: Camera, condition: Callable[[CameraFrame], bool], advance: Callable[[], None] = lambda: None
) -> CameraFrame:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition(frame := camera.read()):
        assert time.monotonic() < deadline_s, frame.sequence
        time.sleep(0.002)
        advance()
    return frame


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def test_frames_have_the_cameras_size_and_grow_in_number(attached: Attached) -> None:
    first = attached.camera.read()
    last = read_until(attached.camera, lambda frame: frame.sequence >= first.sequence + 5, attached.advance)
    for frame in (first, last):
        assert frame.image.shape == (attached.camera.height, attached.camera.width, 3)
        assert frame.image.dtype == np.uint8
    assert first.received_monotonic_s < last.received_monotonic_s <= time.monotonic()


@pytest.mark.parametrize("attached", sorted(set(ATTACH) - {"fake", "twin"}), indirect=True)  # which draw what they like
def test_colours_are_rgb_and_the_left_is_left(attached: Attached) -> None:
    assert has_halves(attached.camera.read().image, RED, BLUE)


def test_an_image_in_hand_does_not_change(attached: Attached) -> None:
    first = attached.camera.read()
    before = first.image.copy()
    later = read_until(attached.camera, lambda frame: frame.sequence >= first.sequence + 3, attached.advance)
    np.testing.assert_array_equal(first.image, before)
    assert attached.advance is not Attached.advance or not np.array_equal(later.image, before)


def test_closing_twice_is_harmless_and_reading_then_an_error(attached: Attached) -> None:
    attached.camera.close()
    attached.camera.close()
    with pytest.raises(RobotError, match="not connected"):
        attached.camera.read()
    attached.camera.connect()
    attached.camera.read()


def test_an_option_that_a_driver_does_not_have_is_refused() -> None:
    with pytest.raises(RobotConfigError, match=r"'zed_uvc' has no exposure_us. It has: .*white_balance_k"):
        make_camera("zed_uvc", "wrist", exposure_us=5000)


def test_the_actors_settings_reach_the_drivers_that_have_them(tmp_path: Path) -> None:
    write_video(tmp_path / "webcam.avi", 160, 120)
    task = make_task("reach", TaskOptions(pixels=True))
    arm = FakeBackend("reach")
    arm.reset(START)
    device = str(tmp_path / "webcam.avi")
    webcam = CameraConfig(driver="opencv", device=device, width=160, height=120, crop=(40, 0, 120, 120))
    rig = connect_cameras(CamerasConfig(wrist=webcam), task, "fake", arm)
    assert rig is not None
    image = rig.read(np.zeros(3)).images["wrist"]
    rig.close()
    assert image[64, 20, 0] > 150 > image[64, 100, 0], "red on the left of the crop's 40 px, then blue"
    with pytest.raises(ConfigError, match="'fake' has no fps"):
        connect_cameras(CamerasConfig(wrist=CameraConfig(fps=60)), task, "fake", arm)


# The capture thread, which all real drivers share.


@pytest.fixture
def source() -> ScriptedSource:
    return ScriptedSource()


@pytest.fixture
def camera(source: ScriptedSource) -> Iterator[CapturingCamera]:
    camera = CapturingCamera("wrist", source, width=64, height=48)
    yield camera
    source.is_silent = False
    camera.close()


def test_a_reader_gets_the_newest_frame_and_misses_those_between(
    source: ScriptedSource, camera: CapturingCamera
) -> None:
    camera.connect()
    before = source.grabbed
    wait_for(lambda: source.grabbed >= before + 10)
    started = source.grabbed  # the source is at work on, or has just delivered, the next one
    assert started - 1 <= camera.read().sequence <= source.grabbed


def test_reading_does_not_wait_for_a_device_that_hangs(source: ScriptedSource, camera: CapturingCamera) -> None:
    """`grab` returns no more: a reader that waited for it would never come back either."""
    camera.connect()
    source.is_silent = True
    time.sleep(0.05)
    frames = [camera.read() for _ in range(1000)]
    assert len({frame.sequence for frame in frames}) == 1
    source.is_silent = False
    read_until(camera, lambda frame: frame.sequence > frames[0].sequence)


def test_only_its_own_thread_calls_the_device_and_it_ends_with_the_camera(
    source: ScriptedSource, camera: CapturingCamera
) -> None:
    camera.connect()
    camera.close()
    assert source.threads == {"camera-wrist"}
    assert source.closed == source.opened == 1
    assert not [thread for thread in threading.enumerate() if thread.name == "camera-wrist"]


def test_an_unplugged_camera_keeps_its_last_frame_and_goes_on_once_it_is_back(
    source: ScriptedSource, camera: CapturingCamera, caplog: pytest.LogCaptureFixture
) -> None:
    camera.connect()
    source.is_unplugged = True
    wait_for(lambda: "there is no scripted camera" in camera.fault)
    last = camera.read()
    time.sleep(0.8)  # it is tried again at least once
    assert camera.read() is last
    source.is_unplugged = False
    assert read_until(camera, lambda frame: frame.sequence > last.sequence).sequence == last.sequence + 1
    wait_for(lambda: len(caplog.messages) == 3)  # one line per change, whatever the number of tries
    assert "delivers no image" in caplog.messages[0]
    assert "there is no scripted camera" in caplog.messages[1]
    assert "images again" in caplog.messages[2]
    assert camera.fault == ""


def test_frames_of_another_size_reach_nobody(source: ScriptedSource, camera: CapturingCamera) -> None:
    camera.connect()
    source.opened_size, source.size = (64, 48), (48, 64)
    wait_for(lambda: "48 x 64 px where 64 x 48 px" in camera.fault)
    last = camera.read()
    assert last.image.shape == (48, 64, 3)
    source.size = (64, 48)
    assert read_until(camera, lambda frame: frame.sequence > last.sequence).image.shape == (48, 64, 3)


def test_an_unexpected_exception_does_not_end_the_thread(source: ScriptedSource, camera: CapturingCamera) -> None:
    camera.connect()
    source.error = ZeroDivisionError("inside the SDK")
    wait_for(lambda: source.opened == 2)
    sequence = camera.read().sequence
    read_until(camera, lambda frame: frame.sequence > sequence)


def test_identical_images_are_counted_and_the_device_is_opened_again(source: ScriptedSource) -> None:
    camera = CapturingCamera("wrist", source, width=64, height=48, frozen_after_s=0.3)
    camera.connect()
    source.is_frozen = True
    wait_for(lambda: camera.identical_frames >= 10)
    wait_for(lambda: source.opened == 2)
    wait_for(lambda: camera.identical_frames == 0 and camera.fault == "")
    camera.close()


@pytest.mark.parametrize(("attribute", "value", "message"), [
    ("is_unplugged", True, "camera 'wrist': there is no scripted camera. Plug it in again"),
    ("opened_size", (32, 32), "32 x 32 px where 64 x 48 px were asked for"),
])  # fmt: skip
def test_connecting_fails_at_once_with_the_remedy(
    source: ScriptedSource, camera: CapturingCamera, attribute: str, value: Any, message: str
) -> None:
    setattr(source, attribute, value)
    with pytest.raises(RobotError, match=message):
        camera.connect()
    with pytest.raises(RobotError, match="not connected"):
        camera.read()


def test_connecting_to_a_silent_device_ends_in_time(source: ScriptedSource) -> None:
    source.is_silent = True
    camera = CapturingCamera("wrist", source, width=64, height=48, connect_timeout_s=0.2)
    threading.Timer(1.0, setattr, (source, "is_silent", False)).start()  # close() has to wait for the driver
    with pytest.raises(RobotError, match="no image within 0 s"):
        camera.connect()


# RealSense, played back by librealsense.


def realsense(desk: RealSenseDesk, device: str = SERIAL, **options: Any) -> Camera:
    return make_camera("realsense", "third_person", device=device, context=desk.context, **options)


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


# The ZED by its SDK.


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


# OpenCV, and the ZED as a plain USB camera.


class V4l2:
    """Stands for cv2.VideoCapture on a device; the driver's own code sees no difference."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, int, str]] = []
        self.properties: dict[int, float] = {}
        self.size: tuple[int, int] | None = None  # what it delivers whatever it is asked
        self.has_images = True

    def __call__(self, path: str, api: int) -> "V4l2":
        self.opened.append((path, api, os.environ.get("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "")))
        return self

    def isOpened(self) -> bool:
        return True

    def set(self, setting: int, value: float) -> bool:
        self.properties[setting] = value
        return True

    def get(self, setting: int) -> float:
        size = {cv2.CAP_PROP_FRAME_WIDTH: 0, cv2.CAP_PROP_FRAME_HEIGHT: 1}
        if self.size is not None and setting in size:
            return self.size[size[setting]]
        return self.properties.get(setting, 0.0)

    def read(self) -> tuple[bool, Any]:
        time.sleep(0.01)
        if not self.has_images:
            return False, None
        width, height = (int(self.get(setting)) for setting in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        image = picture(width // 2, height)
        return True, cv2.cvtColor(np.hstack([image, image[:, ::-1]]), cv2.COLOR_RGB2BGR)

    def release(self) -> None: ...


@pytest.fixture
def v4l2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> V4l2:
    """One ZED is plugged in."""
    v4l2 = V4l2()
    (tmp_path / "usb-ZED-M-video-index0").symlink_to("/dev/null")
    (tmp_path / "usb-Webcam-video-index0").symlink_to("/dev/zero")
    monkeypatch.setattr("robot.cameras.opencv._BY_ID", str(tmp_path))
    monkeypatch.setattr("robot.cameras.opencv.cv2.VideoCapture", v4l2)
    monkeypatch.delenv("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", raising=False)
    return v4l2


def test_a_zed_is_asked_for_both_eyes_in_yuyv_with_a_short_timeout(v4l2: V4l2) -> None:
    camera = make_camera("zed_uvc", "wrist")
    camera.connect()
    assert v4l2.opened == [("/dev/null", cv2.CAP_V4L2, "1")]
    assert v4l2.properties[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"YUYV")
    asked = [v4l2.properties[key] for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS)]
    assert asked == [1344, 376, 30]
    assert has_halves(camera.read().image, RED, BLUE)
    camera.close()


def test_the_size_received_is_checked(v4l2: V4l2) -> None:
    v4l2.size = (1280, 720)
    with pytest.raises(RobotConfigError, match="640 x 720 px where 672 x 376 px were asked for"):
        make_camera("zed_uvc", "wrist").connect()


def test_a_zed_that_falls_silent_says_what_can_be_done(v4l2: V4l2) -> None:
    camera = make_camera("zed_uvc", "wrist")
    assert isinstance(camera, CapturingCamera)
    camera.connect()
    v4l2.has_images = False
    wait_for(lambda: "py-zed-open-capture" in camera.fault)
    sequence = camera.read().sequence
    v4l2.has_images = True
    read_until(camera, lambda frame: frame.sequence > sequence)
    camera.close()


def test_exposure_and_white_balance_reach_a_webcam_in_its_units(v4l2: V4l2) -> None:
    camera = make_camera("opencv", "wrist", device="/dev/null", exposure_us=8000, white_balance_k=4600)
    camera.connect()
    assert v4l2.properties[cv2.CAP_PROP_AUTO_EXPOSURE] == 1
    assert v4l2.properties[cv2.CAP_PROP_EXPOSURE] == 80
    assert v4l2.properties[cv2.CAP_PROP_AUTO_WB] == 0
    assert v4l2.properties[cv2.CAP_PROP_WB_TEMPERATURE] == 4600
    camera.close()


@pytest.mark.parametrize(
    ("driver", "options", "message"),
    [
        ("opencv", {"device": "/dev/video77"}, r"no /dev/video77; present: .*usb-Webcam.*usb-ZED-M"),
        ("opencv", {}, "2 devices of kind camera: .*Name one"),
        ("zed_uvc", {"fps": 45}, "no 672 x 376 px at 45 frames/s. It has .*672 x 376 at 15/30/60/100"),
        ("opencv", {"exposure_us": 40_000}, r"40000 us does not fit into a frame at 30 frames/s \(33333 us\)"),
        ("zed_sdk", {"width": 640, "height": 480}, "no images of 640 x 480 px. It has .*672 x 376"),
        ("zed_sdk", {"device": "/dev/video0"}, "must be its serial number"),
    ],
)
def test_what_cannot_be_is_refused(v4l2: V4l2, driver: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RobotError, match=message):
        make_camera(driver, "wrist", **options).connect()


def test_a_video_of_another_size_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "webcam.avi", 160, 120)
    with pytest.raises(RobotConfigError, match="160 x 120 px where 640 x 480 px"):
        make_camera("opencv", "wrist", device=str(tmp_path / "webcam.avi")).connect()
