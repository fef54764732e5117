"""What the drivers of real grippers share: a thread that alone talks to the device, the newest wish, a latched fault.

In a fault the thread only listens: nothing that moves the fingers is sent before `recover`, for some devices would obey
late.
"""

import logging
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Literal

from robot.errors import RobotError
from robot.interface import GripperState

_log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 60.0  # above all that a driver waits for in connect and recover
_CLOSE_TIMEOUT_S = 5.0
_PAUSE_AFTER_BUG_S = 0.5

Wish = float | Literal["stop"] | None  # a width in m; None: nothing new


class ThreadedGripper(ABC):
    """A gripper with a worker thread. Satisfies robot.interface.Gripper."""

    def __init__(self, name: str, max_width: float) -> None:
        """name: of the device, in errors and of the thread. max_width: of the open gripper, m."""
        self.max_width = max_width
        self._name = name
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._wake = threading.Event()  # there is a wish, a recovery to try, or an end
        self._lock = threading.Lock()  # of the next three
        self._wish: Wish = None
        self._fault = ""
        self._recovery: Future[None] | None = None
        self._state: GripperState | None = None  # replaced as a whole

    @abstractmethod
    def _bring_up(self) -> None:
        """Open the device and activate it; publish a state. Raises RobotError with the remedy."""

    @abstractmethod
    def _cycle(self) -> None:
        """Talk to the device once: publish, latch, and do the newest wish. Waits a few 10 ms, or for `_wake`."""

    @abstractmethod
    def _mend(self) -> None:
        """Do what the fault needs. Raises RobotError naming what still stands in the way."""

    @abstractmethod
    def _release(self) -> None:
        """Close the device. Also after a failed `_bring_up`."""

    # Called by the rest of the system.

    def connect(self) -> None:
        """Open and activate the gripper, which may move the fingers. Raises RobotError with the remedy."""
        if self._thread is not None:
            return
        self._closing = threading.Event()
        self._wish, self._fault, self._recovery, self._state = None, "", None, None
        is_up: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(is_up,), name=self._name, daemon=True)
        self._thread.start()
        try:
            self._wait_for(is_up)
        except BaseException:
            self.close()
            raise

    def read(self) -> GripperState:
        """Return the newest state, however old. Never blocks. Raises RobotError before the first."""
        state = self._state
        if state is None:
            raise RobotError(f"the {self._name} is not connected (or was closed); call connect() first")
        with self._lock:
            return replace(state, is_moving=state.is_moving or isinstance(self._wish, float), fault=self._fault)

    def move(self, width: float) -> None:
        """Go to `width`, m, and grip what is in between. Never blocks; the newest wins; without effect in a fault.

        Raises RobotError for a width that is not finite, and when not connected.
        """
        if not math.isfinite(width):
            raise RobotError(f"the {self._name} cannot go to a width of {width} m: not a finite number")
        if self._state is None:
            raise RobotError(f"the {self._name} is not connected (or was closed); call connect() first")
        self._ask(min(max(float(width), 0.0), self.max_width))

    def stop(self) -> None:
        """Stay where the fingers are, without letting go. Never blocks; safe to call twice and from any thread."""
        self._ask("stop")

    def recover(self) -> None:
        """Leave a latched fault behind, where a person has said so; this may move the fingers.

        Raises RobotError when it does not work; the fault then stays latched.
        """
        if self._thread is None:
            raise RobotError(f"the {self._name} is not connected (or was closed); call connect() first")
        with self._lock:
            if not self._fault:
                return
            if self._recovery is None:
                self._recovery = Future()
            recovery = self._recovery
        self._wake.set()
        self._wait_for(recovery)

    def close(self) -> None:
        """Release the gripper; the fingers stay as they are, and a running motion ends by itself."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._closing.set()
        self._wake.set()
        thread.join(_CLOSE_TIMEOUT_S)
        if thread.is_alive():
            _log.error("the %s did not close within %.0f s", self._name, _CLOSE_TIMEOUT_S)
        self._state = None

    # The thread.

    def _run(self, is_up: Future[None]) -> None:
        closing = self._closing
        try:
            if _do(self._bring_up, is_up):
                while not closing.is_set():
                    self._turn()
        finally:
            self._release()
            with self._lock:
                recovery, self._recovery = self._recovery, None
            if recovery is not None:
                recovery.set_exception(RobotError(f"the {self._name} was closed"))

    def _turn(self) -> None:
        with self._lock:
            recovery = self._recovery
        if recovery is None:
            try:
                self._cycle()
            except Exception as error:  # a bug of ours must not end the thread unseen
                _log.exception("the driver of the %s failed", self._name)
                self._latch(f"the driver of the {self._name} failed: {error!r}. Its log has the place; recover.")
                self._closing.wait(_PAUSE_AFTER_BUG_S)
            return
        outcome: Future[None] = Future()
        is_mended = _do(self._mend, outcome)
        with self._lock:
            self._recovery, self._wish = None, None
            self._fault = "" if is_mended else self._fault
        if is_mended:
            _log.warning("the %s has recovered", self._name)
            recovery.set_result(None)
        else:
            recovery.set_exception(outcome.exception())

    def _wait_for(self, future: Future[None]) -> None:
        try:
            future.result(_CALL_TIMEOUT_S)
        except TimeoutError as error:
            raise RobotError(
                f"the {self._name} did not answer within {_CALL_TIMEOUT_S:.0f} s; its driver hangs. Start the actor "
                "again."
            ) from error

    def _ask(self, wish: Wish) -> None:
        with self._lock:
            if self._fault:
                return
            self._wish = wish
        self._wake.set()

    def _newest_wish(self) -> Wish:
        """Return what to do, the same again until `_done_with` it: what failed is tried again unless there is newer."""
        with self._lock:
            return self._wish

    def _done_with(self, wish: Wish) -> None:
        with self._lock:
            if self._wish is wish:
                self._wish = None

    def _latch(self, reason: str) -> None:
        with self._lock:
            if self._fault:
                return
            self._fault, self._wish = reason, None
        _log.error("gripper fault, latched: %s", reason)

    def _pause(self, duration_s: float) -> None:
        """Wait in `_bring_up` or `_mend`. Raises RobotError when the gripper is closed meanwhile."""
        if self._closing.wait(duration_s):
            raise RobotError(f"the {self._name} was closed")


def _do(action: Callable[[], None], outcome: "Future[None]") -> bool:
    """Return whether the action succeeded; its outcome or exception goes to `outcome`."""
    try:
        action()
    except BaseException as error:
        outcome.set_exception(error)
        return False
    outcome.set_result(None)
    return True
