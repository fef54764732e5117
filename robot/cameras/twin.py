"""The twin's cameras. A frame is drawn when it is read, of the simulated instant at which the robot then is."""

import time
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from robot.cameras.optics import find_mount
from robot.errors import RobotConfigError, RobotError
from robot.interface import CameraFrame, RobotBackend


@runtime_checkable
class Photographed(Protocol):
    """A simulation that can be photographed (TwinBackend)."""

    @property
    def instant(self) -> int: ...

    def photograph(self, camera: str) -> NDArray[np.uint8]: ...

    def vary_looks(self, amount: float) -> None: ...


class TwinCamera:
    """One of the workplace's cameras, drawn in the thread that reads it: always the same one, for all cameras.

    Two reads at the same simulated instant return the same frame. `read` blocks while it draws, some milliseconds.
    """

    def __init__(self, name: str, *, device: str = "", backend: RobotBackend | None = None) -> None:
        """backend: the connected twin. Raises RobotConfigError for another one."""
        del device  # there is only one of each name
        self._name = name
        optics = find_mount(name).optics
        self.width, self.height = optics.width, optics.height
        self._backend = _photographed(name, backend)
        self._is_connected = False
        self._frame: CameraFrame | None = None
        self._drawn_instant = -1

    def connect(self) -> None:
        """Get ready; the first read also builds what pictures need, which takes about half a second."""
        self._is_connected = True

    def read(self) -> CameraFrame:
        """Return the picture of now. Raises RobotError where the machine cannot draw, and before the first reset."""
        if not self._is_connected:
            raise RobotError(f"camera {self._name!r} is not connected (or was closed); call connect() first")
        instant = self._backend.instant
        if self._frame is None or instant != self._drawn_instant:
            sequence = self._frame.sequence + 1 if self._frame is not None else 0
            image = self._backend.photograph(self._name)
            self._frame = CameraFrame(image=image, sequence=sequence, received_monotonic_s=time.monotonic())
            self._drawn_instant = instant
        return self._frame

    def close(self) -> None:
        """Nothing to release: what draws belongs to the backend."""
        self._is_connected = False


def _photographed(camera: str, backend: object) -> Photographed:
    if isinstance(backend, Photographed):
        return backend
    raise RobotConfigError(
        f"camera {camera!r}: the driver 'twin' draws what the backend 'twin' simulates; the backend here is "
        f"{type(backend).__name__}. Choose a driver that fits the backend: twin with twin, fake with fake"
    )
