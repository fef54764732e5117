"""When training cannot be trusted any more: values that are not finite, and roll-backs that do not help."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from learner.algorithms.guarded_adam import SkippedSteps
from policy.errors import DivergedError, NonFiniteError

_MAX_SKIPPED_IN_A_ROW = 3  # optimiser steps; one bad batch passes, broken networks do not
_MAX_ROLL_BACKS = 3
_ROLL_BACK_WINDOW = 1000  # learner steps done, within which so many roll-backs are too many


def total_skipped(skipped: Mapping[str, SkippedSteps], learner_step: int) -> int:
    """Return how many optimiser steps were left out. Raises NonFiniteError after three in a row."""
    broken = [
        f"{name} with loss {counters.loss:.3g} and gradient norm {counters.gradient_norm:.3g}"
        for name, counters in skipped.items()
        if counters.in_a_row >= _MAX_SKIPPED_IN_A_ROW
    ]
    if broken:
        raise NonFiniteError(
            f"learner step {learner_step}: {_MAX_SKIPPED_IN_A_ROW} updates in a row were not finite and left out: "
            f"{', '.join(broken)}."
        )
    return sum(counters.total for counters in skipped.values())


def count_on(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> None:
    """Let an algorithm that takes another's place count on what that one left out, by `Algorithm.counters` of both.

    Its first step is none in a row with those.
    """
    for name, counters in now.items():
        counters[0] = before[name][0]
        counters[1] = 0.0


def check_finite(tensors: Mapping[str, Tensor], learner_step: int, consequence: str) -> None:
    """Raise NonFiniteError, which names the tensors and the consequence, where one holds a value that is not finite."""
    broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise NonFiniteError(
            f"learner step {learner_step}: {', '.join(broken[:5])} hold non-finite values. {consequence}"
        )


class RollBacks:
    """Counts a process's roll-backs: a few help, many mean that training ends in the same way every time."""

    def __init__(self) -> None:
        self._at: list[int] = []  # learner steps done here before each of them

    def note(self, steps_done: int) -> None:
        self._at = [at for at in self._at if steps_done - at < _ROLL_BACK_WINDOW]
        self._at.append(steps_done)

    @property
    def are_too_many(self) -> bool:
        return len(self._at) >= _MAX_ROLL_BACKS

    @staticmethod
    def error(reason: NonFiniteError, reward_scale: float, run_dir: Path) -> DivergedError:
        """Return what to end with when there are too many."""
        return DivergedError(
            f"{reason} That is the {_MAX_ROLL_BACKS}rd time within {_ROLL_BACK_WINDOW} learner steps, so training "
            "stops here. Likely causes: a learning rate that is too large, rewards that are too large "
            f"(replay.reward_scale = {reward_scale}) or a damaged transition (python -m learner.log verify {run_dir}). "
            "Change it and start again with the same --run-dir; to go back further, move the newest folders out of "
            f"{run_dir / 'checkpoints'}."
        )
