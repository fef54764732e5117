"""The keyboard of the terminal as an input device: keys push like a deflected stick.

A terminal reports presses and their repetition, never a release. A press therefore pushes for `hold_s`, and the next
repetition prolongs it: a tap is a small nudge, a held key pushes without a gap once it repeats (after 0.25 to 0.66 s,
as the keyboard is set).
"""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Literal

import numpy as np

from robot.errors import RobotConfigError
from robot.interface import Array, TeleopState
from robot.teleop.terminal import Terminal, standard_terminal

_log = logging.getLogger(__name__)

Layout = Literal["arrows", "wasd"]

_VERTICAL_AND_TURNS = {
    "page_up": (2, 1.0),
    "page_down": (2, -1.0),
    "1": (3, 1.0),
    "2": (3, -1.0),
    "3": (4, 1.0),
    "4": (4, -1.0),
    "5": (5, 1.0),
    "6": (5, -1.0),
}
AXES: dict[Layout, dict[str, tuple[int, float]]] = {
    "arrows": {
        "up": (0, 1.0),
        "down": (0, -1.0),
        "left": (1, 1.0),
        "right": (1, -1.0),
        "u": (2, 1.0),
        "j": (2, -1.0),
        **_VERTICAL_AND_TURNS,
    },
    "wasd": {
        "w": (0, 1.0),
        "s": (0, -1.0),
        "a": (1, 1.0),
        "d": (1, -1.0),
        "e": (2, 1.0),
        "q": (2, -1.0),
        **_VERTICAL_AND_TURNS,
    },
}
"""Key -> element of the twist and direction."""
BUTTONS = {"c": 0, "o": 1}
"""Key -> button: close and open the gripper."""


class KeyboardDevice:
    """Arrow keys (or W A S D) push along x and y, U and J (E and Q) up and down, 1 to 6 turn, C and O are buttons."""

    num_buttons = len(BUTTONS)

    def __init__(
        self, layout: Layout = "arrows", deflection: float = 0.5, hold_s: float = 0.15, terminal: Terminal | None = None
    ) -> None:
        """deflection in (0, 1] is how far a key pushes. hold_s must be longer than the pause between repetitions."""
        if layout not in AXES or not 0 < deflection <= 1 or hold_s <= 0:
            raise RobotConfigError(
                f"keyboard: layout {layout!r} must be one of {', '.join(AXES)}, deflection {deflection} in (0, 1] and "
                f"hold_s {hold_s} above 0"
            )
        self._layout = layout
        self._axes: Mapping[str, tuple[int, float]] = AXES[layout]
        self._deflection = deflection
        self._hold_s = hold_s
        self._terminal = terminal or standard_terminal()
        self._is_open = False
        self._lock = threading.Lock()  # guards the two below
        self._pushes_until_s: dict[str, float] = {}
        self._unread: set[str] = set()  # a tap between two reads counts all the same

    def connect(self) -> None:
        """Claim the keys. Raises RobotError where nobody can press any, RobotConfigError for a key in other use."""
        if self._is_open:
            return
        self._terminal.claim([*self._axes, *BUTTONS], self._on_key)
        try:
            self._terminal.open()
        except Exception:
            self._terminal.release(self._on_key)
            raise
        self._is_open = True
        moves = "arrow keys move along x and y, u and j" if self._layout == "arrows" else "w s a d move, e and q"
        _log.info("keyboard: %s up and down (also page up, page down), 1 to 6 turn, c closes, o opens", moves)

    def read(self) -> TeleopState:
        """Return what the keys push now. Never blocks."""
        now_s = time.monotonic()
        with self._lock:
            pressed = {key for key, until_s in self._pushes_until_s.items() if until_s > now_s} | self._unread
            self._unread.clear()
        is_connected = self._is_open and self._terminal.is_alive
        twist: Array = np.zeros(6)
        buttons = [False] * self.num_buttons
        for key in pressed if is_connected else ():
            if key in BUTTONS:
                buttons[BUTTONS[key]] = True
            else:
                axis, direction = self._axes[key]
                twist[axis] += direction * self._deflection
        return TeleopState(
            twist=np.clip(twist, -1, 1), buttons=tuple(buttons), received_monotonic_s=now_s, is_connected=is_connected
        )

    def close(self) -> None:
        """Let the keys go. Safe to call twice."""
        if self._is_open:
            self._is_open = False
            self._terminal.release(self._on_key)
            self._terminal.close()

    def _on_key(self, key: str, now_s: float) -> None:
        with self._lock:
            self._pushes_until_s[key] = now_s + self._hold_s
            self._unread.add(key)
