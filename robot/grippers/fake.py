"""A gripper without hardware, for tests and dry runs: its fingers take their time, and its troubles are attributes."""

import time
from collections.abc import Callable

from robot.errors import RobotError
from robot.grippers.options import GripperOptions
from robot.interface import GripperState

MAX_WIDTH_M = 0.085  # as a Robotiq 2F-85


class FakeGripper:
    """A gripper whose width changes at the options' speed whenever somebody looks. One thread calls it."""

    max_width = MAX_WIDTH_M

    def __init__(
        self,
        options: GripperOptions | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        **_context: object,
    ) -> None:
        """The clock counts seconds; its steps are what the fingers move by."""
        self.fault = ""  # set it to break the gripper; `recover` clears it
        self.recovery_error = ""  # why `recover` fails; empty: it works
        self.object_width: float | None = None  # m, of what is between the fingers
        self.is_silent = False  # the state grows old
        self.widths: list[float] = []  # m, asked for and not refused
        self.num_stops = 0
        self._speed = (options or GripperOptions()).speed_m_s
        self._clock = clock
        self._width = self._target = MAX_WIDTH_M
        self._advanced_s = clock()
        self._state: GripperState | None = None

    def connect(self) -> None:
        if self._state is None:
            self._look()

    def read(self) -> GripperState:
        state = self._state if self._state is None or self.is_silent else self._look()
        if state is None:
            raise RobotError("the fake gripper is not connected (or was closed); call connect() first")
        return state

    def move(self, width: float) -> None:
        if self._state is None:
            raise RobotError("the fake gripper is not connected (or was closed); call connect() first")
        if not abs(width) < float("inf"):
            raise RobotError(f"the fake gripper cannot go to a width of {width} m: not a finite number")
        if not self.fault:
            self._look()
            self._target = min(max(float(width), 0.0), MAX_WIDTH_M)
            self.widths.append(self._target)

    def stop(self) -> None:
        self.num_stops += 1
        if self._state is not None and not self._look().is_holding:
            self._target = self._width

    def recover(self) -> None:
        if self._state is None:
            raise RobotError("the fake gripper is not connected (or was closed); call connect() first")
        if self.recovery_error:
            raise RobotError(self.recovery_error)
        self._look()
        self.fault = ""

    def close(self) -> None:
        self._state = None

    def _look(self) -> GripperState:
        """Let the fingers move for the time that has passed, and see where they are. They stand still in a fault."""
        now_s = self._clock()
        reach = self._speed * (now_s - self._advanced_s)
        self._advanced_s = now_s
        if self.fault:
            self._target = self._width
        is_blocked = self.object_width is not None and self._target < self.object_width <= self._width
        goal = self.object_width if is_blocked and self.object_width is not None else self._target
        self._width += min(max(goal - self._width, -reach), reach)
        is_moving = self._width != goal
        self._state = GripperState(
            width=self._width,
            is_moving=is_moving,
            is_holding=is_blocked and not is_moving,
            received_monotonic_s=now_s,
            fault=self.fault,
        )
        return self._state
