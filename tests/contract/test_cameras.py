"""What every camera promises: robot.interface.Camera. Each real driver runs on the lowest stand-in for its device."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

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
from robot.errors import RobotConfigError, RobotError
from robot.interface import Camera, ScenePlacement
from robot.pose import O_R_DOWN, make_pose, translation
from tests.camera_fakes import (
    BLUE,
    RED,
    has_halves,
    read_until,
    realsense,
    write_video,
)

START = ScenePlacement(O_T_EE=make_pose(O_R_DOWN, (0.45, 0.0, 0.2)), objects={"target": translation(0.5, 0.0, 0.1)})


@dataclass
class Attached:
    """A camera, and what makes it see something new."""

    camera: Camera
    advance: Callable[[], None] = lambda: None


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
