"""What a device said in every control step, as JSON lines; and a device that says it again.

First line {"format": 1, "num_buttons": 2}, then one line per step:
{"episode": 0, "step": 0, "twist": [6 values], "buttons": [...], "age_s": 0.004, "is_connected": true}
"""

import json
import logging
import queue
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from robot.errors import RobotConfigError
from robot.interface import TeleopDevice, TeleopState

_log = logging.getLogger(__name__)

_FORMAT = 1


@runtime_checkable
class EpisodicDevice(TeleopDevice, Protocol):
    """A device that wants to know where episodes begin."""

    def begin_episode(self) -> None:
        """The next read is the first of an episode."""


class LoggingDevice:
    """Another device, with a record of each state that was read. A thread of its own writes: `read` waits for no disk.

    Appends to a file of an earlier process; episodes count on.
    """

    def __init__(self, device: TeleopDevice, path: Path) -> None:
        self.num_buttons = device.num_buttons
        self._device = device
        self._path = path
        self._episode, self._step = -1, 0
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None

    def connect(self) -> None:
        if self._path.exists():
            self._episode = max((entry.episode for entry in _read(self._path)), default=-1)
            _drop_torn_line(self._path)
        self._device.connect()
        self.num_buttons = self._device.num_buttons  # some know it only now
        if not self._path.exists():
            self._lines.put(json.dumps({"format": _FORMAT, "num_buttons": self.num_buttons}))
        self._writer = threading.Thread(target=self._write, name="device-log", daemon=True)
        self._writer.start()

    def begin_episode(self) -> None:
        self._episode, self._step = self._episode + 1, 0
        if isinstance(self._device, EpisodicDevice):
            self._device.begin_episode()

    def read(self) -> TeleopState:
        state = self._device.read()
        entry = {
            "episode": self._episode,
            "step": self._step,
            "twist": state.twist.tolist(),
            "buttons": list(state.buttons),
            "age_s": time.monotonic() - state.received_monotonic_s,
            "is_connected": state.is_connected,
        }
        self._lines.put(json.dumps(entry))
        self._step += 1
        return state

    def close(self) -> None:
        self._device.close()
        if self._writer is not None:
            self._lines.put(None)
            self._writer.join()
            self._writer = None

    def _write(self) -> None:
        try:
            with self._path.open("a") as file:
                while (line := self._lines.get()) is not None:
                    file.write(line + "\n")
                    if self._lines.empty():
                        file.flush()
        except OSError as error:
            _log.error("the device log %s ends here: %s. The robot goes on without it.", self._path, error)


@dataclass(frozen=True)
class _Entry:
    episode: int
    step: int
    twist: tuple[float, ...]
    buttons: tuple[bool, ...]
    age_s: float
    is_connected: bool


class ReplayDevice:
    """Says in each control step what a device log holds for that episode and step.

    Rests when an episode outlasts its record, and reads as unplugged after the last one.
    """

    def __init__(self, path: str = "") -> None:
        """Raises RobotConfigError when the file is no device log."""
        if not path:
            raise RobotConfigError("input device 'replay' needs the path of a device log")
        entries = _read(Path(path))
        self._states = {(entry.episode, entry.step): entry for entry in entries}
        self._episodes = sorted({entry.episode for entry in entries})
        self.num_buttons = len(entries[0].buttons) if entries else 0
        self._place, self._step = -1, 0

    def connect(self) -> None:
        self._place, self._step = -1, 0

    def begin_episode(self) -> None:
        self._place, self._step = self._place + 1, 0

    def read(self) -> TeleopState:
        now_s = time.monotonic()
        is_over = self._place >= len(self._episodes)
        episode = -1 if is_over else self._episodes[max(0, self._place)]
        entry = self._states.get((episode, self._step))
        self._step += 1
        if entry is None:
            rest = (False,) * self.num_buttons
            return TeleopState(twist=np.zeros(6), buttons=rest, received_monotonic_s=now_s, is_connected=not is_over)
        return TeleopState(
            twist=np.array(entry.twist),
            buttons=entry.buttons,
            received_monotonic_s=now_s - entry.age_s,
            is_connected=entry.is_connected,
        )

    def close(self) -> None:
        pass


def _read(path: Path) -> list[_Entry]:
    """Return the entries of a device log; what a crash left of a last line is passed over."""
    try:
        header, *lines = path.read_bytes().rpartition(b"\n")[0].splitlines() or [b"{}"]
        if json.loads(header).get("format") != _FORMAT:
            raise ValueError(f"its first line is not that of format {_FORMAT}")
        return [_entry(json.loads(line)) for line in lines]
    except OSError as error:
        raise RobotConfigError(f"cannot read the device log {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RobotConfigError(f"{path} is not a device log: {error}") from error


def _entry(raw: dict[str, object]) -> _Entry:
    entry = _Entry(**(raw | {"twist": tuple(raw["twist"]), "buttons": tuple(raw["buttons"])}))  # type: ignore[arg-type]
    if len(entry.twist) != 6 or not np.isfinite(entry.twist).all():
        raise ValueError(f"twist {entry.twist} is not six finite values")
    return entry


def _drop_torn_line(path: Path) -> None:
    content = path.read_bytes()
    complete = content.rpartition(b"\n")[0]
    if len(complete) + 1 < len(content):
        with path.open("r+b") as file:
            file.truncate(len(complete) + 1)
