"""Stand-ins for what input devices are attached to: a terminal, and the kernel's list of input devices."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from evdev import ecodes

from actor.operator import OperatorSignal
from robot.errors import RobotError
from robot.teleop.terminal import Terminal


class TypedTerminal(Terminal):
    """A terminal into which a test types; has no file and no thread."""

    def __init__(self, is_usable: bool = True) -> None:
        super().__init__(fd=-1)
        self._usable = is_usable
        self.openings = 0

    @property
    def is_usable(self) -> bool:
        return self._usable

    def open(self) -> None:
        if not self._usable:
            raise RobotError("no terminal")
        self.openings += 1
        self._is_alive = True

    def close(self) -> None:
        self.openings -= 1
        self._is_alive = self.openings > 0

    def press(self, *keys: str, now_s: float = 0.0) -> None:
        for key in keys:
            self._dispatch(key, now_s)

    def hang_up(self) -> None:
        self._is_alive = False


@dataclass(frozen=True)
class AbsInfo:
    value: int
    min: int = -32768
    max: int = 32767


@dataclass
class Pad:
    """What the kernel knows of one gamepad."""

    path: str = "/dev/input/event7"
    name: str = "Pad"
    is_gamepad: bool = True
    is_plugged: bool = True
    sticks: dict[str, int] = field(default_factory=dict)  # name -> value; those not named rest at 0
    pressed: set[str] = field(default_factory=set)


class PadHandle:
    """An opened evdev.InputDevice of a Pad; its pipe becomes readable when a test calls `wake`."""

    def __init__(self, pad: Pad) -> None:
        self.pad, self.path, self.name = pad, pad.path, pad.name
        self.fd, self._write_end = os.pipe()

    def capabilities(self) -> dict[int, list[Any]]:
        self._check()
        keys = [ecodes.BTN_GAMEPAD, ecodes.BTN_EAST, ecodes.BTN_TR] if self.pad.is_gamepad else [ecodes.KEY_A]
        names = ("ABS_X", "ABS_Y", "ABS_RX", "ABS_RY")
        return {ecodes.EV_KEY: keys, ecodes.EV_ABS: [(ecodes.ecodes[name], AbsInfo(0)) for name in names]}

    def absinfo(self, code: int) -> AbsInfo:
        self._check()
        return AbsInfo({ecodes.ecodes[name]: value for name, value in self.pad.sticks.items()}.get(code, 0))

    def active_keys(self) -> list[int]:
        self._check()
        return [ecodes.ecodes[name] for name in self.pad.pressed]

    def read(self) -> Iterator[object]:
        os.read(self.fd, 1024)
        return iter(())

    def close(self) -> None:
        for fd in (self.fd, self._write_end):
            os.close(fd)
        self.close = lambda: None  # type: ignore[method-assign]

    def _check(self) -> None:
        if not self.pad.is_plugged:
            raise OSError(19, "No such device")


class Evdev:
    """The functions of the package evdev that open devices, over pads that a test defines."""

    def __init__(self, *pads: Pad) -> None:
        self.pads = {pad.path: pad for pad in pads}

    def list_devices(self) -> list[str]:
        return list(self.pads)

    def InputDevice(self, path: str) -> PadHandle:
        if path not in self.pads:
            raise FileNotFoundError(2, "No such file or directory")
        handle = PadHandle(self.pads[path])
        handle._check()
        return handle


class PressedKeys:
    """An operator's keys; whoever sets `pressed` presses them."""

    is_heard = True

    def __init__(self) -> None:
        self.pressed: list[OperatorSignal] = []

    def poll(self) -> list[OperatorSignal]:
        pressed, self.pressed = self.pressed, []
        return pressed

    def close(self) -> None: ...
