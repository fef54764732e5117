"""When a policy has gone astray, judged as a watching person would: by where the arm really goes."""

from collections import deque

import numpy as np

from robot.interface import Array

_RESTING_M = 0.001  # an operator who would move less than this per step gives nothing to judge by


class DeviationWatch:
    """Compares the arm's way with the one that the operator would have commanded from the same places.

    A step's progress is the arm's displacement along the one that the operator would have commanded there. The policy
    deviates when, over the last `steps` steps, the sum of progress is below `progress` times the sum of the commands'
    lengths: the arm goes elsewhere, or nowhere. Rotation and gripper are not judged.

    On the twin, over 8 steps, the scripted operator makes at least 0.36 (peg_in_hole) and 0.24 (cube_stacking) of the
    commanded way, random actions in 99 % of windows at most 0.12, and a resting arm 0.

    The rule is ours: the paper says only that deviations be corrected when they recur.
    """

    def __init__(self, steps: int, progress: float) -> None:
        self._progress = progress
        self._made_m: deque[float] = deque(maxlen=steps)
        self._asked_m: deque[float] = deque(maxlen=steps)
        self._previous: tuple[Array, Array] | None = None

    def restart(self) -> None:
        """Forget what was seen: another one drove meanwhile."""
        self._made_m.clear()
        self._asked_m.clear()
        self._previous = None

    def see(self, O_p_EE: Array, wish: Array) -> bool:
        """Take the arm's position (3,) and the operator's command (3,) there, both in O and m; return the verdict."""
        if self._previous is not None:
            place, wished = self._previous
            length = float(np.linalg.norm(wished))
            self._asked_m.append(length)
            self._made_m.append(float(wished @ (O_p_EE - place)) / length if length > 0 else 0.0)
        self._previous = (O_p_EE.copy(), wish.copy())
        asked_m, steps = sum(self._asked_m), self._asked_m.maxlen or 0
        is_judged = len(self._asked_m) == steps and asked_m > _RESTING_M * steps
        return is_judged and sum(self._made_m) < self._progress * asked_m
