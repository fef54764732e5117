"""A thread per camera: it waits for the device's images, keeps the newest, and opens the device again when it fails.

The thread belongs to its CapturingCamera and is the only one that calls the source, whose calls may block for seconds.
Only `connect` and `close` wait for it.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robot.errors import RobotConfigError, RobotError
from robot.interface import CameraFrame

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 15.0  # for the first image: a device warms up, and may have to be reset before
_CLOSE_TIMEOUT_S = 10.0
_FIRST_RETRY_S = 0.25
_LONGEST_RETRY_S = 2.0

Image = NDArray[np.uint8]  # (H, W, 3) RGB, rows from the top


def check_settings(fps: int, exposure_us: int) -> None:
    """Raise RobotConfigError for an exposure, 0 if automatic, that does not fit into a frame."""
    if fps < 1:
        raise RobotConfigError(f"a camera's frame rate of {fps} frames/s must be at least 1")
    if not 0 <= exposure_us <= 1_000_000 // fps:
        raise RobotConfigError(
            f"an exposure of {exposure_us} us does not fit into a frame at {fps} frames/s ({1_000_000 // fps} us). "
            "Give a shorter one and more light, or 0 for the automatic one."
        )


def choose_device(kind: str, wanted: str, present: Sequence[str], remedy: str) -> str:
    """Return the one of the devices `present` to open: `wanted`, or where that is empty the only one.

    Raises RobotError, listing what is there, where there is no such device or more than one to choose from.
    """
    found = ", ".join(present) or "none"
    if wanted and wanted not in present:
        raise RobotError(f"there is no {kind} {wanted}; present: {found}. {remedy}")
    if not wanted and len(present) > 1:
        raise RobotError(f"{len(present)} devices of kind {kind}: {found}. Name one of them as `device`.")
    if not present:
        raise RobotError(f"there is no {kind}. {remedy}")
    return wanted or present[0]


class Source(Protocol):
    """A device that delivers images. One thread calls it. Every call returns within some seconds, whatever happens."""

    def open(self) -> tuple[int, int]:
        """Open the device, also again after a failure; return width and height of its images, px.

        Raises RobotError with the remedy when there is none, RobotConfigError where trying again cannot help.
        """

    def grab(self) -> Image:
        """Wait for the next image, which the caller may keep. Raises RobotError when none comes in time."""

    def close(self) -> None:
        """Release the device. Safe after a failure of the other two, and when it is not open."""


class CapturingCamera:
    """A camera whose images a thread of its own fetches from a source.

    After a failure `read` goes on returning the last frame, whose age tells, while the thread opens the device again
    and again. A frame of another size than asked for counts as a failure: nobody gets to see it.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        *,
        width: int,
        height: int,
        frozen_after_s: float = 0.0,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """width, height: of every frame, px. frozen_after_s: images that stay identical for so long are a failure of
        the device, which a sensor's noise never lets happen; 0 where there is no such noise.
        """
        self.width, self.height = width, height
        self._name = name
        self._source = source
        self._frozen_after_s = frozen_after_s
        self._connect_timeout_s = connect_timeout_s
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._changed = threading.Condition()  # for connect, which waits for one of the next three
        self._frame: CameraFrame | None = None  # replaced as a whole, so that `read` needs no lock
        self._fault: RobotError | None = None
        self._is_hopeless = False  # the fault is none that goes away by trying again at once
        self._sequence = 0
        self._identical_frames = 0
        self._changed_monotonic_s = 0.0  # arrival of the first of the identical frames
        self._failed_monotonic_s = 0.0
        self._reported: set[str] = set()  # faults of this outage that were logged

    @property
    def identical_frames(self) -> int:
        """How many of the latest frames in a row were the same, to the pixel, as the one before them."""
        return self._identical_frames

    @property
    def fault(self) -> str:
        """Why no image has come since the last one; empty while they come."""
        fault = self._fault
        return str(fault) if fault is not None else ""

    def connect(self) -> None:
        """Start capturing and wait for the first frame. Raises RobotError, with the remedy, when none comes."""
        if self._thread is not None:
            if self._thread.is_alive() and self._stopping.is_set():
                raise RobotError(f"camera {self._name!r} has not closed yet: its driver hangs. Start the actor again.")
            if self._thread.is_alive():
                return
        self._fault, self._is_hopeless = None, False
        self._reported.clear()
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(self._stopping,), name=f"camera-{self._name}", daemon=True
        )  # fmt: skip
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._is_hopeless, self._connect_timeout_s)
            has_frame, fault = self._frame is not None, self._fault
        if has_frame:
            return
        self.close()
        raise fault or RobotError(
            f"camera {self._name!r}: no image within {self._connect_timeout_s:.0f} s. Plug it in again, into a USB 3 "
            "port of the computer itself, and see that no other program uses it."
        )

    def read(self) -> CameraFrame:
        """Return the newest frame, however old it is. Never blocks. Raises RobotError before the first."""
        frame = self._frame
        if frame is None:
            raise RobotError(f"camera {self._name!r} is not connected (or was closed); call connect() first")
        return frame

    def close(self) -> None:
        """Stop capturing and release the device. Safe to call twice."""
        thread, self._frame = self._thread, None
        if thread is None:
            return
        self._stopping.set()
        thread.join(_CLOSE_TIMEOUT_S)
        self._frame = None  # the thread may have put in one more
        if thread.is_alive():
            _log.warning(
                "camera %r: its driver has not returned for %.0f s; going on without", self._name, _CLOSE_TIMEOUT_S
            )
        else:
            self._thread = None

    def _run(self, stopping: threading.Event) -> None:
        retry_s, has_opened = _FIRST_RETRY_S, False
        while not stopping.is_set():
            try:
                self._check_size(*self._source.open())
                has_opened = True
                while not stopping.is_set():
                    self._take(self._source.grab())
                    retry_s = _FIRST_RETRY_S
            except Exception as error:  # whatever an SDK raises: the camera has failed, its thread has not
                self._note_fault(error, has_opened)
            finally:
                self._release()
            stopping.wait(retry_s)
            retry_s = min(2.0 * retry_s, _LONGEST_RETRY_S)

    def _check_size(self, width: int, height: int) -> None:
        if (width, height) != (self.width, self.height):
            raise RobotConfigError(
                f"it delivers images of {width} x {height} px where {self.width} x {self.height} px were asked for. "
                "Ask for a size that it has (docs/cameras.md), and see that no other program has opened it."
            )

    def _take(self, image: Image) -> None:
        """Make `image` the newest frame."""
        now_s = self._clock()
        self._check_size(image.shape[1], image.shape[0])
        last = self._frame
        # Noise tells most images apart in a few rows; only equal ones are compared as a whole.
        if last is not None and np.array_equal(image[::32], last.image[::32]) and np.array_equal(image, last.image):
            self._identical_frames += 1
        else:
            self._identical_frames, self._changed_monotonic_s = 0, now_s
        same_s = now_s - self._changed_monotonic_s
        if 0.0 < self._frozen_after_s <= same_s:
            self._changed_monotonic_s = now_s  # the device has as long again once it is open
            raise RobotError(
                f"it has delivered the same image for {same_s:.1f} s. Is its lens covered? Otherwise plug it in again."
            )
        image.setflags(write=False)  # every reader gets the same one
        self._sequence += 1
        with self._changed:
            self._frame = CameraFrame(image=image, sequence=self._sequence, received_monotonic_s=now_s)
            recovered, self._fault = self._fault, None
            self._changed.notify_all()
        if recovered is not None and self._reported:
            _log.warning("camera %r: images again after %.1f s", self._name, now_s - self._failed_monotonic_s)
            self._reported.clear()

    def _note_fault(self, error: Exception, has_opened: bool) -> None:
        """Remember why no image comes, and log it once per outage. Before the first frame `connect` tells it."""
        is_expected = isinstance(error, RobotError)
        reason = str(error) if is_expected else f"its driver failed with {type(error).__name__}: {error}"
        kind = RobotConfigError if isinstance(error, RobotConfigError) else RobotError
        with self._changed:
            if self._fault is None:
                self._failed_monotonic_s = self._clock()
            self._fault = kind(f"camera {self._name!r}: {reason}")
            self._is_hopeless = not has_opened or isinstance(error, RobotConfigError)
            self._changed.notify_all()
        if self._frame is not None and reason not in self._reported:
            self._reported.add(reason)
            _log.warning(
                "camera %r: %s Trying again in the background.", self._name, reason, exc_info=not is_expected
            )  # fmt: skip

    def _release(self) -> None:
        try:
            self._source.close()
        except Exception:  # the device may be gone; it is opened anew
            _log.debug("camera %r did not close", self._name, exc_info=True)
