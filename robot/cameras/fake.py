"""A camera without optics: discs where the objects of a simulation project to, and faults to order."""

import math
import time
import zlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from robot.cameras.optics import find_mount
from robot.errors import RobotError
from robot.interface import CameraFrame, RobotBackend, SimulatedBackend

_BACKGROUND = (90, 96, 104)
_HAND = (235, 235, 235)
_COLOURS = ((214, 69, 65), (63, 111, 201), (66, 170, 90), (232, 160, 52))  # of objects, in the order of their names
_DISC_M = 0.025  # radius of every disc


class FakeCamera:
    """Takes a picture at every read: the objects of `backend` if it is a simulation, else a stripe that moves along.

    Faults are attributes, to be set at any time:
      is_frozen       the same frame with the same sequence number, as of a driver that hangs;
      repeats_pixels  the same image under new sequence numbers, as of a camera that froze further up;
      dropped_reads   so many reads to come find no new frame;
      size_px         width and height of the frames instead of the right ones;
      fault           an error that every read raises;
      frame_period_s  the next frame comes this long after the last one, as of a slow camera.
    """

    def __init__(
        self,
        name: str,
        *,
        device: str = "",
        backend: RobotBackend | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        del device  # there is only one
        self._mount = find_mount(name)
        self._backend = backend if isinstance(backend, SimulatedBackend) else None
        self._clock = clock
        self._frame: CameraFrame | None = None
        self._is_connected = False
        self.width, self.height = self._mount.optics.width, self._mount.optics.height
        self.is_frozen = self.repeats_pixels = False
        self.dropped_reads = 0
        self.size_px: tuple[int, int] | None = None
        self.fault: RobotError | None = None
        self.frame_period_s = 0.0

    def connect(self) -> None:
        self._is_connected = True

    def read(self) -> CameraFrame:
        if not self._is_connected:
            raise RobotError("the fake camera is not connected (or was closed); call connect() first")
        if self.fault is not None:
            raise self.fault
        now_s, last = self._clock(), self._frame
        if last is None:
            self._frame = CameraFrame(image=self._draw(0), sequence=0, received_monotonic_s=now_s)
        elif self.dropped_reads > 0:
            self.dropped_reads -= 1
        elif not self.is_frozen and now_s >= last.received_monotonic_s + self.frame_period_s:
            image = last.image if self.repeats_pixels else self._draw(last.sequence + 1)
            self._frame = CameraFrame(image=image, sequence=last.sequence + 1, received_monotonic_s=now_s)
        assert self._frame is not None
        return self._frame

    def close(self) -> None:
        self._is_connected = False

    def _draw(self, sequence: int) -> NDArray[np.uint8]:
        width, height = self.size_px or (self.width, self.height)
        image = np.full((height, width, 3), _BACKGROUND, np.uint8)
        if self._backend is None:
            image[:, sequence % width] = _HAND
        else:
            self._draw_discs(image, self._backend)
        return image

    def _draw_discs(self, image: NDArray[np.uint8], backend: SimulatedBackend) -> None:
        """Draw hand and objects, the farthest first."""
        O_T_EE = backend.read_state().O_T_EE
        # Stands in for a sensor's noise: as from a real camera, the image differs whenever the arm has moved.
        noise = np.random.default_rng(zlib.crc32(O_T_EE.tobytes()))
        image[0] = noise.integers(0, 256, image[0].shape, dtype=np.uint8)
        points = [(O_T_EE[:3, 3], _HAND)]
        for index, (_, pose) in enumerate(sorted(backend.object_poses().items())):
            points.append((pose[:3, 3], _COLOURS[index % len(_COLOURS)]))
        discs = [(*self._mount.project(point, O_T_EE), colour) for point, colour in points]
        for u, v, depth, colour in sorted(discs, key=lambda disc: -disc[2]):
            if depth > 0.0:
                _fill_disc(image, u, v, self._mount.optics.fx * _DISC_M / depth, colour)


def _fill_disc(image: NDArray[np.uint8], u: float, v: float, radius: float, colour: tuple[int, int, int]) -> None:
    height, width = image.shape[:2]
    left, right = max(0, math.floor(u - radius)), min(width, math.ceil(u + radius))
    top, bottom = max(0, math.floor(v - radius)), min(height, math.ceil(v + radius))
    if left >= right or top >= bottom:
        return
    columns, rows = np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5
    inside = (columns[None, :] - u) ** 2 + (rows[:, None] - v) ** 2 <= radius**2
    image[top:bottom, left:right][inside] = colour
