"""Webcams through OpenCV, and the ZED as one of them."""

import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from robot.cameras import make_camera
from robot.cameras.capture import CapturingCamera
from robot.errors import RobotConfigError, RobotError
from tests.camera_fakes import (
    BLUE,
    RED,
    has_halves,
    picture,
    read_until,
    wait_for,
    write_video,
)


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
