"""Both cameras as the policy sees them: the newest frame of each, judged, cropped and resized. Never waits for one.

When an image is too old. Its age counts from the arrival of the first frame with its sequence number, so that a driver
which stamps an old frame anew deceives nobody. A camera can also freeze further up and go on delivering the same image
under growing sequence numbers. A still scene does that too where there is no sensor noise (a simulation). What tells
the two apart is the arm, which both cameras see: from the moment when it is FROZEN_MOTION_M from where it was as the
image first came, an unchanged one is as old as that moment. While the arm stands still, a frozen image goes unnoticed.
"""

import logging
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from actor.config import CameraConfig, CamerasConfig
from policy.errors import ConfigError
from robot.errors import CameraStaleError, OutageError, RobotError
from robot.interface import Array, Camera, CameraFrame

_log = logging.getLogger(__name__)

FROZEN_MOTION_M = 0.01  # of EE; several pixels in either camera
_LOG_PERIOD_S = 1.0

Image = NDArray[np.uint8]  # (H, W, 3) RGB


@dataclass(frozen=True)
class RigReading:
    """One look through all cameras."""

    images: dict[str, Image]  # camera name -> (size, size, 3) uint8 RGB
    stale_cameras: tuple[str, ...]  # those whose image is older than stale_after_s


class CameraRig:
    """Both cameras of one robot. One thread calls it."""

    def __init__(
        self,
        cameras: Mapping[str, Camera],
        config: CamerasConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """cameras: by name in CamerasConfig, connected or not. Raises ConfigError for a crop outside its image."""
        self._config = config
        self._clock = clock
        self._eyes = {name: _Eye(name, camera, getattr(config, name)) for name, camera in cameras.items()}
        self.stale_counts = dict.fromkeys(cameras, 0)  # readings so far with a stale image, by camera
        self._next_log_s = -np.inf

    def read(self, O_p_EE: Array) -> RigReading:
        """Return what the policy sees now. O_p_EE: measured position (3,) of EE, which tells a frozen image.

        Raises CameraStaleError for an image older than fail_after_s, OutageError for a frame of another size than the
        camera's, or when there is none yet.
        """
        images: dict[str, Image] = {}
        stale: list[str] = []
        size, now_s = self._config.image_size_px, self._clock()
        for name, eye in self._eyes.items():
            age_s = eye.look(now_s, O_p_EE)
            if age_s > self._config.fail_after_s:
                raise CameraStaleError(name, age_s, self._config.fail_after_s)
            if age_s > self._config.stale_after_s:
                stale.append(name)
                self._count_stale(name, age_s, now_s)
            images[name] = eye.image(size)
        return RigReading(images, tuple(stale))

    def connect(self) -> None:
        """Start every camera. Raises RobotError, with none left running, when one does not start."""
        try:
            for eye in self._eyes.values():
                eye.camera.connect()
        except RobotError:
            self.close()
            raise

    def close(self) -> None:
        """Stop every camera. Safe to call twice."""
        for eye in self._eyes.values():
            eye.camera.close()

    def _count_stale(self, name: str, age_s: float, now_s: float) -> None:
        self.stale_counts[name] += 1
        if now_s >= self._next_log_s:
            self._next_log_s = now_s + _LOG_PERIOD_S
            _log.warning(
                "camera %r: acting on an image %.0f ms old (limit %.0f ms), %d times so far. Is its cable or its "
                "bandwidth at fault?",
                name, age_s * 1e3, self._config.stale_after_s * 1e3, self.stale_counts[name],
            )  # fmt: skip


def crop_and_resize(image: Image, crop: tuple[int, int, int, int], size_px: int) -> Image:
    """Return the region (x, y, width, height) as (size_px, size_px, 3), each pixel the mean of what it covers."""
    x, y, width, height = crop
    region = image[y : y + height, x : x + width]
    if region.shape[:2] == (size_px, size_px):
        return region.copy()
    shrinks = min(width, height) >= size_px
    resized = cv2.resize(
        np.ascontiguousarray(region),
        (size_px, size_px),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )
    return np.asarray(resized, np.uint8)


class _Eye:
    """One camera, and what is remembered of its frames."""

    def __init__(self, name: str, camera: Camera, config: CameraConfig) -> None:
        self._name = name
        self.camera = camera
        self._crop = _resolve_crop(name, camera, config.crop)
        self._frame: CameraFrame | None = None
        self._arrived_s = 0.0  # of the first frame with the present sequence number
        self._checksum: int | None = None
        self._O_p_EE_then: Array = np.zeros(3)  # as the present image first came
        self._wrong_since_s: float | None = None  # since when the arm is too far from there for the same image

    def look(self, now_s: float, O_p_EE: Array) -> float:
        """Take the newest frame and return its age, s."""
        try:
            frame = self.camera.read()
        except RobotError as error:
            raise OutageError(f"camera {self._name!r}: {error}") from error
        expected = (self.camera.height, self.camera.width, 3)
        if frame.image.shape != expected or frame.image.dtype != np.uint8:
            raise OutageError(
                f"camera {self._name!r} delivered a frame of shape {frame.image.shape} and type {frame.image.dtype}, "
                f"expected {expected} uint8. Did another program change its resolution? Reconnect it, or configure the "
                "size that it has."
            )
        if self._frame is None or frame.sequence != self._frame.sequence:
            self._arrived_s = frame.received_monotonic_s
            checksum = zlib.crc32(np.ascontiguousarray(frame.image).data)
            if checksum != self._checksum:
                self._checksum, self._O_p_EE_then, self._wrong_since_s = checksum, O_p_EE.copy(), None
        self._frame = frame
        if self._wrong_since_s is None and np.linalg.norm(O_p_EE - self._O_p_EE_then) >= FROZEN_MOTION_M:
            self._wrong_since_s = now_s
        age_s = now_s - self._arrived_s
        if self._wrong_since_s is not None:
            age_s = max(age_s, now_s - self._wrong_since_s)
        return age_s

    def image(self, size_px: int) -> Image:
        """Return the frame of the last look as the policy sees it."""
        assert self._frame is not None, "look() comes first"
        return crop_and_resize(self._frame.image, self._crop, size_px)


def _resolve_crop(name: str, camera: Camera, crop: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the region x, y, width, height; by default the largest central square."""
    if not crop:
        side = min(camera.width, camera.height)
        return (camera.width - side) // 2, (camera.height - side) // 2, side, side
    x, y, width, height = crop
    if x + width > camera.width or y + height > camera.height:
        raise ConfigError(
            f"cameras.{name}.crop = {list(crop)} reaches to ({x + width}, {y + height}) px, outside the camera's frame "
            f"of {camera.width} x {camera.height} px. Give x, y, width, height within it, or [] for the central square."
        )
    return x, y, width, height
