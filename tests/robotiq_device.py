"""A Robotiq 2F-85 as its serial line shows it: Modbus RTU byte by byte on a pseudo-terminal; its fingers take time.

Written from the manual's tables and independent of the driver and of pymodbus, CRC included. Whatever a test does to it
(`inject_fault`, `is_silent`, `unplug`, ...) and what it was told (`writes`, `frames`) is an attribute.
"""

import os
import select
import threading
import time
import tty
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DEVICE_ID = 9
REQUEST, STATUS = 0x03E8, 0x07D0  # first of three registers each
STROKE_MM = 85.0
SLOWEST_MM_S, FASTEST_MM_S = 20.0, 150.0
MAJOR_FAULTS = range(10, 16)
RELEASE_FAULTS = (11, 15)


def crc(data: bytes) -> bytes:
    """Return Modbus' CRC-16, low byte first."""
    value = 0xFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0xA001 if value & 1 else value >> 1
    return value.to_bytes(2, "little")


@dataclass(frozen=True)
class Write:
    """One request that reached the gripper, decoded."""

    at_monotonic_s: float
    rACT: int
    rGTO: int
    rPR: int
    rSP: int
    rFR: int


class RobotiqDevice:
    """The gripper. `port` is a link that follows it from one pseudo-terminal to the next, like /dev/serial/by-id."""

    def __init__(self, folder: Path, *, open_end: int = 3, closed_end: int = 228, hurry: float = 8.0) -> None:
        """open_end, closed_end: counts where its fingers stop. hurry: how much faster than a real one it moves."""
        self.port = folder / "usb-FTDI_USB_TO_RS-485_DA1B2C3D-if00-port0"
        self.open_end, self.closed_end = open_end, closed_end
        self.object_at: int | None = None  # counts at which closing fingers meet something
        self.outer_obstacle_at: int | None = None  # and opening ones
        self.is_silent = False
        self.garbled_answers = 0  # so many of the next ones have a wrong CRC
        self.never_activates = False
        self.lasting_fault = 0  # survives a new activation
        self.writes: list[Write] = []
        self.frames: list[bytes] = []  # requests with a right CRC
        self.num_activations = 0
        self.position = float(open_end)
        self.fault = 0
        self._hurry = hurry
        self._request = [0, 0, 0]
        self._activated_at_s: float | None = None  # end of the activation; None: reset
        self._contact = 3
        self._moved_s = time.monotonic()
        self._heard_s = time.monotonic()
        self._starts_s = 0.0
        self._lock = threading.RLock()
        self._descriptors: tuple[int, int] | None = None
        self._thread: threading.Thread | None = None
        self.replug()

    # What a test does to it.

    def unplug(self) -> None:
        """Pull the USB adapter out; the gripper keeps its power, its request and what it holds."""
        descriptors, self._descriptors = self._descriptors, None
        if descriptors is None:
            return
        assert self._thread is not None
        self._thread.join(10)
        self.port.unlink()
        for descriptor in descriptors:
            os.close(descriptor)

    def replug(self) -> None:
        """Put the adapter in: a new terminal behind the same name."""
        master, slave = os.openpty()
        tty.setraw(slave)
        self._descriptors = (master, slave)
        self.port.symlink_to(os.ttyname(slave))
        self._thread = threading.Thread(
            target=self._serve, args=(self._descriptors,), name="robotiq-model", daemon=True
        )
        self._thread.start()

    def power_cycle(self) -> None:
        """Interrupt its 24 V for a moment: it forgets activation and request. The fingers are self-locking.

        It starts in 0.1 s, faster than any real one, so that its silence alone does not give the interruption away.
        """
        with self._lock:
            self._advance()
            self._starts_s = time.monotonic() + 0.1
            self._request = [0, 0, 0]
            self._activated_at_s, self.fault = None, 0

    def inject_fault(self, code: int) -> None:
        with self._lock:
            self._advance()
            self.fault = code

    def activate(self) -> None:
        """Be as after an earlier program's activation."""
        with self._lock:
            self._request = [0x0100, 0, 0]
            self._activated_at_s = time.monotonic()

    def close(self) -> None:
        self.unplug()

    # The line.

    def _serve(self, descriptors: tuple[int, int]) -> None:
        buffer = b""
        while self._descriptors is descriptors:
            if not select.select([descriptors[0]], [], [], 0.02)[0]:
                buffer = b""  # a pause ends a frame
                continue
            try:
                buffer += os.read(descriptors[0], 256)
            except OSError:
                return
            length = request_length(buffer)
            while length is not None and len(buffer) >= length:
                frame, buffer = buffer[:length], buffer[length:]
                answer = self.answer(frame)
                if answer is not None:
                    os.write(descriptors[0], answer)
                length = request_length(buffer)

    def answer(self, frame: bytes) -> bytes | None:
        """Return the answer to one frame; None for one that is not for it or is garbled, and while silent."""
        with self._lock:
            if len(frame) < 4 or crc(frame[:-2]) != frame[-2:] or frame[0] != DEVICE_ID:
                return None
            if self.is_silent or time.monotonic() < self._starts_s:
                return None
            self.frames.append(frame)
            pause_s = time.monotonic() - self._heard_s
            self._heard_s = time.monotonic()
            body = self._execute(frame[1], frame[2:-2], shows_pause=pause_s > 1.0)
            if body is None:
                return None
            answer = bytes([DEVICE_ID]) + body
            if self.garbled_answers > 0:
                self.garbled_answers -= 1
                return answer + bytes(byte ^ 0xFF for byte in crc(answer))
            return answer + crc(answer)

    def _execute(self, function: int, data: bytes, shows_pause: bool) -> bytes | None:
        words = [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data) - 1, 2)]
        if function in (3, 4):
            return self._read(function, words[0], words[1], shows_pause)
        if function == 6:
            self._write(words[0], [words[1]])
            return bytes([function]) + data
        if function == 16:
            self._write(words[0], _words(data[5:]))
            return bytes([function]) + data[:4]
        if function == 23:
            self._write(words[2], _words(data[9:]))
            return self._read(function, words[0], words[1], shows_pause)
        return None  # exception responses are not supported

    def _read(self, function: int, address: int, count: int, shows_pause: bool) -> bytes | None:
        self._advance()
        registers = {STATUS + i: word for i, word in enumerate(self._status(shows_pause))}
        registers |= {REQUEST + i: word for i, word in enumerate(self._request)}
        words = [registers[address + i] for i in range(count) if address + i in registers]
        if len(words) < count:
            return None
        return bytes([function, 2 * count]) + b"".join(word.to_bytes(2, "big") for word in words)

    def _write(self, address: int, words: list[int]) -> None:
        self._advance()
        before = self._request[0] >> 8
        for i, word in enumerate(words):
            self._request[address - REQUEST + i] = word
        action = self._request[0] >> 8
        speed, force = divmod(self._request[2], 256)
        request = Write(time.monotonic(), action & 1, action >> 3 & 1, self._request[1] & 0xFF, speed, force)
        self.writes.append(request)
        if not request.rACT:
            self._activated_at_s = None
            self.fault = self.lasting_fault
        elif not before & 1:
            self.num_activations += 1
            self.fault = self.lasting_fault
            self._activated_at_s = float("inf") if self.never_activates else time.monotonic() + 2.0 / self._hurry
            self.position, self.object_at = float(self.open_end), None  # it opens and closes: what it held falls
        elif self._is_activated:
            self._contact = 0

    # The gripper.

    @property
    def _is_activated(self) -> bool:
        return self._activated_at_s is not None and time.monotonic() >= self._activated_at_s

    def _status(self, shows_pause: bool) -> tuple[int, int, int]:
        action = self._request[0] >> 8
        is_active, goes = action & 1, action >> 3 & 1
        activation = (
            0 if self._activated_at_s is None or self.fault in RELEASE_FAULTS else 3 if self._is_activated else 1
        )
        fault = self.fault or (9 if shows_pause else 0)
        if not fault and goes and not self._is_activated:
            fault = 5 if is_active else 7
        contact = self._contact if self._is_activated else 0
        gripper = is_active | goes << 3 | activation << 4 | contact << 6
        current = 0x10 if goes and contact == 0 and activation == 3 else 0
        return gripper << 8, fault << 8 | self._request[1] & 0xFF, round(self.position) << 8 | current

    def _advance(self) -> None:
        """Let the fingers move for the time that has passed."""
        now_s = time.monotonic()
        elapsed_s, self._moved_s = now_s - self._moved_s, now_s
        goes = self._request[0] >> 11 & 1
        if (self._contact == 2 and self.object_at is None) or (self._contact == 1 and self.outer_obstacle_at is None):
            self._contact = 0  # what stopped the fingers has gone
        if not (goes and self._is_activated) or self.fault >= 8 or self._contact != 0:
            return
        target = float(min(max(self._request[1] & 0xFF, self.open_end), self.closed_end))
        speed_mm_s = SLOWEST_MM_S + (FASTEST_MM_S - SLOWEST_MM_S) * (self._request[2] >> 8) / 255
        reach = elapsed_s * self._hurry * speed_mm_s / STROKE_MM * (self.closed_end - self.open_end)
        closes = target >= self.position
        blocked_at, contact = (self.object_at, 2) if closes else (self.outer_obstacle_at, 1)
        way = reach if closes else -reach
        end = target
        if blocked_at is not None and min(self.position, target) <= blocked_at <= max(self.position, target):
            end = float(blocked_at)
        if abs(end - self.position) > reach:
            self.position += way
            return
        self.position = end
        self._contact = 3 if end == target else contact


def request_length(buffer: bytes) -> int | None:
    """Return how long the request that `buffer` begins with is; None while that is not known."""
    if len(buffer) < 2:
        return None
    if buffer[1] == 16:
        return 9 + buffer[6] if len(buffer) > 6 else None
    if buffer[1] == 23:
        return 13 + buffer[10] if len(buffer) > 10 else None
    return 8


def _words(data: bytes) -> list[int]:
    return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 20.0) -> None:
    """Poll until the condition holds; fail with `what` at a generous limit."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, f"still waiting after {limit_s:.0f} s: {what}"
        time.sleep(0.005)
