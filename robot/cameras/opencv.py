"""Webcams, video files and network streams by OpenCV. BGR ends here."""

import glob
import logging
import os
import time

import cv2
import numpy as np

from robot.cameras.capture import CapturingCamera, Image, check_settings, choose_device
from robot.errors import RobotError
from robot.interface import RobotBackend

_log = logging.getLogger(__name__)

FROZEN_AFTER_S = 2.0
_BY_ID = "/dev/v4l/by-id"
_SELECT_TIMEOUT_S = 1  # of the kernel's queue of images; OpenCV itself would wait 10 s
_OPEN_TIMEOUT_MS, _READ_TIMEOUT_MS = 5000, 2000  # of network streams
_MANUAL, _AUTOMATIC = 1, 3  # V4L2_CID_EXPOSURE_AUTO: manual, aperture priority


class OpenCvCamera(CapturingCamera):
    """A UVC camera by its path, or a video: a file, which starts again at its end, or a URL."""

    def __init__(
        self,
        name: str,
        *,
        device: str = "",
        backend: RobotBackend | None = None,
        width: int = 640,
        height: int = 480,
        fps: int = 30,
        exposure_us: int = 0,
        white_balance_k: int = 0,
    ) -> None:
        """device: path under /dev (best in /dev/v4l/by-id), file or URL; empty: the only camera.

        exposure_us, white_balance_k: 0 leaves them to the camera. Raises RobotConfigError for settings that exclude
        each other.
        """
        del backend  # a real camera
        source = OpenCvSource(
            device, width=width, height=height, fps=fps, exposure_us=exposure_us, white_balance_k=white_balance_k
        )  # fmt: skip
        super().__init__(name, source, width=width, height=height, frozen_after_s=source.frozen_after_s)


class OpenCvSource:
    """The images of one `cv2.VideoCapture`."""

    def __init__(
        self,
        device: str,
        *,
        width: int,
        height: int,
        fps: int,
        exposure_us: int = 0,
        white_balance_k: int = 0,
        fourcc: str = "",
        is_side_by_side: bool = False,
        kind: str = "camera",
        pattern: str = "*-video-index0",
    ) -> None:
        """width, height: of the images returned; a side-by-side camera delivers two of them, of which the left counts.

        fourcc: pixel format to ask for; empty: OpenCV's choice. kind: what messages call the device. pattern: of
        the names in /dev/v4l/by-id that count where `device` is empty.
        """
        check_settings(fps, exposure_us)
        self._device = f"/dev/video{device}" if device.isdecimal() else device
        self._width, self._height, self._fps = width, height, fps
        self._exposure_us, self._white_balance_k = exposure_us, white_balance_k
        self._fourcc = fourcc
        self._eyes = 2 if is_side_by_side else 1
        self._kind, self._pattern = kind, pattern
        self._is_video = "://" in device or os.path.isfile(device)
        self._file_period_s = 0.0  # between two images of a file; 0 where the device itself keeps the time
        self._next_monotonic_s = 0.0
        self._capture: cv2.VideoCapture | None = None

    @property
    def frozen_after_s(self) -> float:
        """How long identical images are credible: a sensor's never are, those of a video may be."""
        return 0.0 if self._is_video else FROZEN_AFTER_S

    def open(self) -> tuple[int, int]:
        self._capture = self._open_video() if self._is_video else self._open_device()
        width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        return width // self._eyes, int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))

    def grab(self) -> Image:
        if self._capture is None:
            raise RobotError(f"{self._device} is not open")
        if self._file_period_s > 0.0:
            self._keep_time()
        has_image, image = self._capture.read()
        if not has_image and self._file_period_s > 0.0:  # the file's end
            self._capture.release()
            self._capture = self._open_video()
            has_image, image = self._capture.read()
        if not has_image:
            raise RobotError(
                f"{self._device} delivers no image (waited {_SELECT_TIMEOUT_S} s). Is its cable in, and its USB port "
                "fast enough for this size and rate?"
            )
        left = image[:, : image.shape[1] // self._eyes]
        return np.asarray(cv2.cvtColor(left, cv2.COLOR_BGR2RGB), np.uint8)

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _open_video(self) -> cv2.VideoCapture:
        timeouts = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_TIMEOUT_MS
        ]  # fmt: skip
        capture = cv2.VideoCapture(self._device, cv2.CAP_FFMPEG, timeouts)
        if not capture.isOpened():
            raise RobotError(f"the video {self._device} cannot be read. Is the file whole, the address right?")
        if "://" not in self._device:
            self._file_period_s = 1.0 / self._fps
        return capture

    def _keep_time(self) -> None:
        now_s = time.monotonic()
        time.sleep(max(0.0, self._next_monotonic_s - now_s))
        self._next_monotonic_s = max(self._next_monotonic_s, now_s) + self._file_period_s

    def _open_device(self) -> cv2.VideoCapture:
        os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(_SELECT_TIMEOUT_S))  # read at the first open
        remedy = f"Plug it in again. Names in {_BY_ID} stay the same, numbers do not."
        path = self._device or choose_device(self._kind, "", present_devices(self._pattern), remedy)
        if not os.path.exists(path):
            raise RobotError(f"there is no {path}; present: {', '.join(present_devices()) or 'none'}. {remedy}")
        if not os.access(path, os.R_OK | os.W_OK):
            raise RobotError(f"no permission for {path}. Run: sudo usermod -aG video $USER, then log in again.")
        capture = cv2.VideoCapture(os.path.realpath(path), cv2.CAP_V4L2)
        if not capture.isOpened():
            raise RobotError(
                f"{path} cannot be opened. Does another program use it (fuser -v {path})? Some cameras have a second "
                "node without images: take the one named index0."
            )
        if self._fourcc:
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*self._fourcc))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, self._width * self._eyes)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self._height)
        capture.set(cv2.CAP_PROP_AUTO_EXPOSURE, _MANUAL if self._exposure_us else _AUTOMATIC)
        capture.set(cv2.CAP_PROP_AUTO_WB, 0.0 if self._white_balance_k else 1.0)
        for what, setting, asked in (
            ("frame rate", cv2.CAP_PROP_FPS, self._fps),
            ("exposure", cv2.CAP_PROP_EXPOSURE, self._exposure_us / 100.0),  # V4L2 counts in units of 100 us
            ("white balance", cv2.CAP_PROP_WB_TEMPERATURE, self._white_balance_k),
        ):
            if asked:
                capture.set(setting, asked)
                got = capture.get(setting)
                if abs(got - asked) > 0.01 * asked:
                    _log.warning("%s: its %s is %g where %g was asked for", path, what, got, asked)
        return capture


def present_devices(pattern: str = "*-video-index0") -> list[str]:
    """Return the paths of the cameras plugged in, by names that stay the same."""
    return sorted(glob.glob(f"{_BY_ID}/{pattern}"))
