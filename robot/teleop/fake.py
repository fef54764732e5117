"""An input device without a person: a table of deflections, or whatever a test sets."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from robot.interface import TeleopState

Entry = tuple[int, ArrayLike, Sequence[bool]]
"""Number of reads, twist (6,), buttons."""


class FakeDevice:
    """Plays `script` entry by entry, one state per read, and rests afterwards. Can be unplugged and fall silent."""

    num_buttons = 2

    def __init__(self, script: Sequence[Entry] = ()) -> None:
        self._states = [(np.asarray(twist, float), tuple(buttons)) for n, twist, buttons in script for _ in range(n)]
        self._held: tuple[ArrayLike, Sequence[bool]] | None = None
        self._received_s = 0.0
        self.is_plugged = True
        self.is_silent = False

    def connect(self) -> None:
        self._received_s = time.monotonic()

    def hold(self, twist: ArrayLike, buttons: Sequence[bool] = (False, False)) -> None:
        """Deflect it like this until told otherwise, instead of playing the script."""
        self._held = (twist, buttons)

    def read(self) -> TeleopState:
        if not self.is_silent:
            self._received_s = time.monotonic()
        twist, buttons = self._next()
        if not self.is_plugged:
            twist, buttons = np.zeros(6), (False,) * self.num_buttons
        return TeleopState(
            twist=np.asarray(twist, float),
            buttons=tuple(buttons),
            received_monotonic_s=self._received_s,
            is_connected=self.is_plugged,
        )

    def close(self) -> None:
        pass

    def _next(self) -> tuple[ArrayLike, Sequence[bool]]:
        if self._held is not None:
            return self._held
        return self._states.pop(0) if self._states else (np.zeros(6), (False,) * self.num_buttons)
