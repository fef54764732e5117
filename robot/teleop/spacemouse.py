"""A SpaceMouse through pyspacemouse. A thread drains its reports and opens it again when it was unplugged.

The kernel queues 64 reports and drops the newest, and each read takes the oldest: a control loop that read the device
itself would act on what the hand did a second ago, and could miss for good that it let go.
"""

import contextlib
import dataclasses
import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import easyhid
import numpy as np
import pyspacemouse

from robot.errors import MissingDependencyError, RobotConfigError, RobotError
from robot.interface import TeleopState

_log = logging.getLogger(__name__)

_WAIT_MS = 50  # longest wait for a report; an unplugged device ends it at once
_RETRY_S = 1.0
_RING_REPORTS = 63  # the kernel's queue of 64 holds so many: as many at a time, and later ones may be lost
_NOISE = 2 / 350  # two of the device's own steps. A cap that rests on one would be a deflection that never ends
_MULTI_AXIS_CONTROLLER = (0x01, 0x08)  # HID usage page and usage of a six-axis device

UDEV_RULE = (
    'KERNEL=="hidraw*", SUBSYSTEM=="hidraw", ATTRS{idVendor}=="256f", MODE="0660", GROUP="plugdev", TAG+="uaccess"'
)
"""What lets a user open it; older ones have the vendor 046d. All rules of a robot PC are in launch/udev."""


class SpaceMouseDevice:
    """The SpaceMouse at `path`, or the only one; any model that pyspacemouse knows. Buttons in the order of their bits.

    pyspacemouse's axes of ROS (forward, left, up, rotation about them) are those of the interface.
    """

    num_buttons = 2  # until it is connected

    def __init__(self, path: str = "", axis_scale: Sequence[float] = (1.0,) * 6) -> None:
        """axis_scale: factor of each axis, negative to turn it round and 0 to leave it out.

        Raises RobotConfigError unless it has six finite numbers.
        """
        if len(axis_scale) != 6 or not all(math.isfinite(factor) for factor in axis_scale):
            raise RobotConfigError(f"spacemouse: axis_scale {list(axis_scale)} must be six finite numbers")
        self._path = path
        self._axis_scale = np.array(axis_scale, float)
        self._mouse: _Mouse | None = None
        self._state = self._untouched(is_connected=False)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def connect(self) -> None:
        """Open it. Raises RobotError with the remedy when there is none, or several, or no permission.

        Raises MissingDependencyError without the system's library for HID devices.
        """
        self._mouse = _open(self._path)
        self.num_buttons = self._mouse.num_buttons
        self._state = self._untouched(is_connected=True)
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="spacemouse", daemon=True)
        self._thread.start()
        _log.info("SpaceMouse: %s at %s", self._mouse.name, self._mouse.path)

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
            try:
                if self._mouse is None:
                    self._reconnect()
                elif (report := self._mouse.newest(_WAIT_MS)) is not None:
                    self._state = self._translated(report)
            except Exception as error:  # whatever it is, the arm must not go on with the last deflection
                self._drop()
                _log.warning("the SpaceMouse is gone: %s. Trying to open it again.", error)

    def _reconnect(self) -> None:
        if self._stop.wait(_RETRY_S):
            return
        with contextlib.suppress(RobotError):
            self._mouse = _open(self._path)
            self._state = self._untouched(is_connected=True)
            _log.info("the SpaceMouse is back: %s at %s", self._mouse.name, self._mouse.path)

    def _drop(self) -> None:
        self._state = self._untouched(is_connected=False)
        if self._mouse is not None:
            self._mouse.close()
            self._mouse = None

    def _translated(self, report: "pyspacemouse.SpaceMouseState") -> TeleopState:
        axes = np.array([report.x, report.y, report.z, report.roll, report.pitch, report.yaw])
        axes[np.abs(axes) <= _NOISE] = 0.0
        pressed = [bool(button) for button in report.buttons] + [False] * self.num_buttons
        return TeleopState(
            twist=np.clip(self._axis_scale * axes, -1.0, 1.0) + 0.0,  # no -0
            buttons=tuple(pressed[: self.num_buttons]),  # also when another model was plugged in meanwhile
            received_monotonic_s=time.monotonic(),
        )

    def _untouched(self, *, is_connected: bool) -> TeleopState:
        return TeleopState(
            twist=np.zeros(6),
            buttons=(False,) * self.num_buttons,
            received_monotonic_s=time.monotonic(),
            is_connected=is_connected,
        )


class _Mouse:
    """An opened device: waits for its reports, and has pyspacemouse say what they mean."""

    def __init__(self, interface: Any, model: "pyspacemouse.DeviceInfo") -> None:
        self.path, self.name = str(interface.path), str(model.name)
        self.num_buttons = len(model.button_specs)
        self._interface = interface
        self._model = model
        self._parser = pyspacemouse.SpaceMouseDevice(model, self)
        self._wait_ms = 0
        self._is_drained = True

    def newest(self, wait_ms: int) -> "pyspacemouse.SpaceMouseState | None":
        """Return the state after all reports that are there, None when there is none within wait_ms.

        A queue that was full has lost what came last. The state is then rest, until a new report says otherwise.
        """
        self._wait_ms = wait_ms
        state = self._parser.read()
        self._wait_ms = 0
        count = 0
        while not self._is_drained:
            count += 1
            state = self._parser.read()
        if count >= _RING_REPORTS:
            _log.warning("the SpaceMouse was not read for a while and reports were lost: it counts as untouched")
            self._parser = pyspacemouse.SpaceMouseDevice(self._model, self)
            state = self._parser.state
        return state if count else None

    def read(self, size: int) -> bytes:
        """Return one report, or nothing, to the parser. Raises easyhid.HIDException when the device is gone."""
        report = bytes(self._interface.read(size, timeout=self._wait_ms))
        self._is_drained = not report
        return report

    def close(self) -> None:
        with contextlib.suppress(easyhid.HIDException):
            self._interface.close()


def _open(path: str) -> _Mouse:
    interface, model = _find(path)
    try:
        interface.open()
    except easyhid.HIDException as error:
        if not os.access(interface.path, os.R_OK | os.W_OK):
            raise RobotError(
                f"no permission to open the SpaceMouse {interface.path}. Install the project's udev rules: "
                "`sudo cp launch/udev/*.rules /etc/udev/rules.d/ && sudo udevadm control --reload && sudo udevadm "
                f"trigger`, and plug it in again. The rule for it: {UDEV_RULE}. Over ssh you must also be in the "
                "group plugdev: `sudo usermod -aG plugdev $USER`, and log in again."
            ) from error
        raise RobotError(f"cannot open the SpaceMouse {interface.path}: {error}. Plug it in again.") from error
    return _Mouse(interface, _in_our_terms(model))


def _in_our_terms(model: "pyspacemouse.DeviceInfo") -> "pyspacemouse.DeviceInfo":
    """Return the model with axes as in ROS, and buttons by their bits.

    The receiver of a wireless two-button mouse counts as a model with fifteen, whose table has the second bit last.
    """
    model = pyspacemouse.apply_axis_convention(model, pyspacemouse.AxisConvention.ROS)
    order = sorted(
        range(len(model.button_specs)), key=lambda i: (model.button_specs[i].byte, model.button_specs[i].bit)
    )
    return dataclasses.replace(
        model,
        button_specs=tuple(model.button_specs[i] for i in order),
        button_names=tuple(model.button_names[i] for i in order),
    )


def _find(path: str) -> tuple[Any, "pyspacemouse.DeviceInfo"]:
    """Return the interface to open, and what it is. Links such as those of our udev rules are followed."""
    found = _spacemice()
    if path:
        place = os.path.realpath(path)
        for interface, model in found:
            if os.path.realpath(interface.path) == place:
                return interface, model
        there = f" There is {_listed(found)}." if found else ""
        raise RobotError(f"there is no SpaceMouse at {path}. Is it plugged in and switched on?{there}")
    found = [entry for entry in found if _may_have_axes(entry[0])]
    if len({interface.path for interface, _ in found}) == 1:
        return found[0]
    if found:
        raise RobotError(
            f"there is more than one SpaceMouse: {_listed(found)}. Choose one by its path (actor.teleop.path), best by "
            "its link in /dev/spacemouse, which stays the same. A receiver may have several; `sudo hexdump -C PATH` "
            "prints when the right one is moved."
        )
    raise RobotError(
        "there is no SpaceMouse. Plug it in, or the receiver of a wireless one, and switch it on; `lsusb` should list "
        "3Dconnexion (256f), or Logitech (046d) for old ones."
    )


def _spacemice() -> list[tuple[Any, "pyspacemouse.DeviceInfo"]]:
    """Return every interface of every known model; a device with several HID usages is listed once for each."""
    models = {model.hid_id: model for model in pyspacemouse.get_device_specs().values()}
    try:
        interfaces = easyhid.Enumeration().find()
    except AttributeError as error:  # easyhid imports without its library and finds no function in it
        raise MissingDependencyError(
            "a SpaceMouse needs the system library hidapi, which was not found. Install it: "
            "sudo apt-get install libhidapi-hidraw0"
        ) from error
    found = [(interface, models.get((interface.vendor_id, interface.product_id))) for interface in interfaces]
    return [(interface, model) for interface, model in found if model is not None]


def _may_have_axes(interface: Any) -> bool:
    """Whether it is a six-axis device, as far as known: old versions of hidapi report no usage."""
    usage = (interface.usage_page, interface.usage)
    return usage in ((0, 0), _MULTI_AXIS_CONTROLLER)


def _listed(found: list[tuple[Any, "pyspacemouse.DeviceInfo"]]) -> str:
    return ", ".join(sorted({f"{interface.path} ({model.name})" for interface, model in found}))
