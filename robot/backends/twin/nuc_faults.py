"""What can be made to go wrong with the twin behind Deoxys' door, and a publisher that some of it happens to."""

import math
import random
from collections import deque
from dataclasses import dataclass, fields
from typing import Any

import zmq

from robot.errors import RobotConfigError, unknown_name


@dataclass
class Faults:
    """Faults that last until they are set back. The ones that happen once are methods of Nuc."""

    late_s: float = 0.0  # by which each arm state arrives too late
    dropped: float = 0.0  # share of the arm states that get lost
    garbled: float = 0.0  # share of the arm states that are cut off and filled up with noise
    announce_s: float = 0.0  # for how long the node still publishes a robot's fault before it exits; Deoxys: 0

    def set(self, name: str, value: object) -> None:
        """Set one of them. Raises RobotConfigError for an unknown name or an impossible value."""
        names = [field.name for field in fields(self)]
        if name not in names:
            raise unknown_name("fault", name, names)
        highest = 1.0 if name in ("dropped", "garbled") else 60.0
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= highest:
            raise RobotConfigError(f"fault {name} = {value!r} is not a number from 0 to {highest:g}")
        setattr(self, name, float(value))


class FaultyPublisher:
    """Publishes arm states, as badly as the faults say. Same faults, same messages: its dice are seeded."""

    def __init__(self, context: Any, port: int, faults: Faults) -> None:
        self._faults = faults
        self._dice = random.Random(port)
        self._waiting: deque[tuple[float, bytes]] = deque()  # due, message
        self._socket = context.socket(zmq.PUB)
        self._socket.linger = 0
        try:
            self._socket.bind(f"tcp://*:{port}")
        except zmq.ZMQError:
            self._socket.close()
            raise

    def send(self, message: bytes, now_s: float) -> None:
        """Publish a message, or do to it what the faults say."""
        if self._dice.random() < self._faults.dropped:
            message = b""
        elif self._dice.random() < self._faults.garbled:
            kept = message[: self._dice.randrange(len(message))]
            message = kept + self._dice.randbytes(self._dice.randrange(1, 64))
        if message:
            self._waiting.append((now_s + self._faults.late_s, message))
        while self._waiting and self._waiting[0][0] <= now_s:
            self._socket.send(self._waiting.popleft()[1])

    def close(self) -> None:
        """Stop publishing; what is late is lost."""
        self._socket.close(0)


def seconds_of(name: str, value: object) -> float:
    """Return the length of a fault that happens once. Raises RobotConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise RobotConfigError(f"fault {name} = {value!r} is not a number of seconds")
    return float(value)
