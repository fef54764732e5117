"""A gamepad as the kernel reports it (evdev). A thread drains it and reconnects one that was unplugged.

evdev reports changes only: a stick held still is silent, and so is one whose radio died. The thread therefore asks the
kernel for the whole state at least ten times a second, which fails once the device is gone and also mends whatever an
overflowing queue lost.
"""

import contextlib
import glob
import logging
import os
import select
import threading
import time
from collections.abc import Mapping
from typing import Any

import evdev
import numpy as np
from evdev import ecodes

from robot.errors import RobotConfigError, RobotError
from robot.interface import Array, TeleopState

_log = logging.getLogger(__name__)

_POLL_S = 0.1
_RETRY_S = 1.0

AXES: dict[str, tuple[int, float]] = {
    "ABS_Y": (0, -1.0),  # left stick up: forward
    "ABS_X": (1, -1.0),  # left stick left: left
    "ABS_RY": (2, -1.0),  # right stick up: up
    "ABS_RX": (5, -1.0),  # right stick left: turn anticlockwise, seen from above
    "ABS_HAT0X": (3, 1.0),
    "ABS_HAT0Y": (4, -1.0),
}
"""Name of an axis -> element of the twist and direction. The kernel counts sticks positive to the right and down."""
BUTTONS = ("BTN_SOUTH", "BTN_EAST", "BTN_TR")
"""The buttons in order: close and open the gripper (A and B, cross and circle), then the right shoulder's."""


class GamepadDevice:
    """The gamepad at `path`, or the only one."""

    num_buttons = len(BUTTONS)

    def __init__(
        self, path: str = "", dead_zone: float = 0.1, axes: Mapping[str, tuple[int, float]] | None = None
    ) -> None:
        """dead_zone: part of a stick's way that counts as rest, because worn sticks do not return to their middle."""
        if not 0 <= dead_zone < 1:
            raise RobotConfigError(f"gamepad: dead_zone {dead_zone} must be at least 0 and below 1")
        self._axes = {_code(name): place for name, place in (axes or AXES).items()}
        self._buttons = [_code(name) for name in BUTTONS]
        self._path = path
        self._dead_zone = dead_zone
        self._device: Any = None
        self._state = self._untouched()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def connect(self) -> None:
        """Open it. Raises RobotError with the remedy when there is none, or several, or no permission."""
        self._device = _open(self._path)
        self._path = str(self._device.path)
        self._state = self._measure()
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="gamepad", daemon=True)
        self._thread.start()

    def read(self) -> TeleopState:
        """Return the newest state; never blocks. Unplugged it reads as untouched."""
        return self._state

    def close(self) -> None:
        """Release it. Safe to call twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._drop()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._device is None:
                self._reconnect()
                continue
            try:
                if select.select([self._device.fd], [], [], _POLL_S)[0]:
                    for _ in self._device.read():
                        pass
                self._state = self._measure()
            except OSError as error:
                self._drop()
                _log.warning("the gamepad at %s is gone: %s. Trying to open it again.", self._path, error.strerror)

    def _reconnect(self) -> None:
        try:
            self._device = _open(self._path)
            self._state = self._measure()
            _log.info("the gamepad at %s is back", self._path)
        except (RobotError, OSError):
            self._drop()
            self._stop.wait(_RETRY_S)

    def _drop(self) -> None:
        self._state = self._untouched()
        if self._device is not None:
            with contextlib.suppress(OSError):
                self._device.close()
            self._device = None

    def _measure(self) -> TeleopState:
        present = {code for code, _ in self._device.capabilities().get(ecodes.EV_ABS, ())}
        twist: Array = np.zeros(6)
        for code in present & set(self._axes):
            element, direction = self._axes[code]
            info = self._device.absinfo(code)
            twist[element] += direction * self._deflection(info.value, info.min, info.max)
        pressed = set(self._device.active_keys())
        return TeleopState(
            twist=np.clip(twist, -1, 1),
            buttons=tuple(code in pressed for code in self._buttons),
            received_monotonic_s=time.monotonic(),
        )

    def _deflection(self, value: int, low: int, high: int) -> float:
        """Return where a stick stands in [-1, 1]; motion begins at 0 at the dead zone's edge."""
        if high <= low:
            return 0.0
        position = (2.0 * value - low - high) / (high - low)
        beyond = max(0.0, abs(position) - self._dead_zone) / (1.0 - self._dead_zone)
        return float(np.copysign(min(beyond, 1.0), position))

    def _untouched(self) -> TeleopState:
        return TeleopState(
            twist=np.zeros(6),
            buttons=(False,) * self.num_buttons,
            received_monotonic_s=time.monotonic(),
            is_connected=False,
        )


def _code(name: str) -> int:
    if name not in ecodes.ecodes:
        raise RobotConfigError(f"gamepad: {name!r} is no name of an evdev axis or button, such as ABS_X or BTN_SOUTH")
    return int(ecodes.ecodes[name])


def _open(path: str) -> Any:
    if path:
        try:
            return evdev.InputDevice(path)
        except PermissionError as error:
            raise _no_permission([path]) from error
        except OSError as error:
            raise RobotError(
                f"cannot open the gamepad {path}: {error.strerror}. Is it plugged in and switched on? "
                "`python -m evdev.evtest` lists what there is."
            ) from error
    found = [device for device in _devices() if _is_gamepad(device)]
    if len(found) == 1:
        return found[0]
    for device in found:
        device.close()
    if found:
        names = ", ".join(f"{device.path} ({device.name})" for device in found)
        raise RobotError(f"there are {len(found)} gamepads: {names}. Choose one by its path (actor.teleop.path).")
    closed_to_us = [path for path in sorted(glob.glob("/dev/input/event*")) if not os.access(path, os.R_OK | os.W_OK)]
    if closed_to_us:
        raise _no_permission(closed_to_us)
    raise RobotError("there is no gamepad. Plug it in, or switch it on and pair it; /dev/input/event* should grow.")


def _devices() -> list[Any]:
    """Return all input devices that we may open."""
    return [evdev.InputDevice(str(path)) for path in evdev.list_devices()]


def _is_gamepad(device: Any) -> bool:
    capabilities = device.capabilities()
    sticks = {code for code, _ in capabilities.get(ecodes.EV_ABS, ())}
    is_one = {ecodes.ABS_X, ecodes.ABS_Y} <= sticks and ecodes.BTN_GAMEPAD in capabilities.get(ecodes.EV_KEY, ())
    if not is_one:
        device.close()
    return is_one


def _no_permission(paths: list[str]) -> RobotError:
    return RobotError(
        f"no permission to read {', '.join(paths)}. Either `sudo usermod -aG input $USER` and log in again, or a udev "
        'rule for the gamepad alone: KERNEL=="event*", ENV{ID_INPUT_JOYSTICK}=="1", MODE="0660", TAG+="uaccess"'
    )
