"""What an operator tells the program while it runs: marks on the episode, pause, reset, take over."""

from enum import Enum, auto
from typing import Protocol


class OperatorSignal(Enum):
    """One thing an operator says, by key or by page."""

    SUCCESS = auto()  # the episode solved the task
    FAILURE = auto()  # it did not, whatever else says so
    DISCARD = auto()  # nothing of this episode is to be learned from
    PAUSE = auto()  # hold the arm; again: go on
    RESET = auto()  # end the episode and go back to the start
    BOOKMARK = auto()  # remember this step
    INTERVENE = auto()  # the human drives from now on; again: the policy does


class OperatorInput(Protocol):
    """Where an operator's signals come from."""

    def poll(self) -> list[OperatorSignal]:
        """Return the signals since the last call, oldest first. Never blocks."""


class NoOperator:
    """Nobody is there."""

    def poll(self) -> list[OperatorSignal]:
        return []
