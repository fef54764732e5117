"""Who decides what becomes of a recorded episode: a person at the keys, or a rule."""

import queue
from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from actor.intervention_config import KeysConfig
from actor.loop import EpisodeTally
from actor.operator import OperatorInput, OperatorSignal
from policy.errors import ConfigError
from robot.errors import RobotConfigError
from robot.teleop.terminal import Terminal


class Decision(Enum):
    """What becomes of an episode."""

    KEEP = auto()
    KEEP_AS_SUCCESS = auto()  # whatever the reward source said
    DISCARD = auto()
    REDO = auto()  # discard, and the same start again


class Judge(Protocol):
    """Decides between episodes. While it waits it calls wait() over and over, and gives up once that returns False."""

    def wait_for_start(self, announcement: str, wait: Callable[[], bool]) -> None:
        """Return when the next episode may begin."""

    def decide(self, tally: EpisodeTally, fault: str | None, wait: Callable[[], bool]) -> Decision:
        """Decide about the episode that just ended. `fault`: why the input device cannot be trusted, if so.

        Where nobody answers, the episode is discarded.
        """

    def close(self) -> None:
        """Ask nothing more. Safe to call twice."""


class KeepSuccesses:
    """Keeps what the reward source calls a success, unless the input device failed."""

    def wait_for_start(self, announcement: str, wait: Callable[[], bool]) -> None:
        pass

    def decide(self, tally: EpisodeTally, fault: str | None, wait: Callable[[], bool]) -> Decision:
        return Decision.KEEP if tally.is_success and fault is None else Decision.DISCARD

    def close(self) -> None:
        pass


class AskByKey:
    """Asks the person at the terminal. Enter agrees; the operator's keys for success, discard and reset decide."""

    def __init__(
        self, terminal: Terminal, operator: OperatorInput, keys: KeysConfig, say: Callable[[str], None]
    ) -> None:
        """`operator` must read the same terminal. Raises ConfigError when enter is one of its keys."""
        self._terminal = terminal
        self._operator = operator
        self._answers = (
            f"enter keeps it, {keys.success} keeps it as a success, {keys.discard} discards it, {keys.reset} discards "
            "it and begins again from the same start"
        )
        self._say = say
        self._enters: queue.SimpleQueue[float] = queue.SimpleQueue()
        try:
            terminal.claim(["enter"], self._on_enter)
        except RobotConfigError as error:
            raise ConfigError(str(error)) from error
        terminal.open()
        self._is_open = True

    def wait_for_start(self, announcement: str, wait: Callable[[], bool]) -> None:
        self._say(f"{announcement}: enter begins")
        if self._answer({}, wait) is None and not self._terminal.is_alive:
            raise ConfigError(
                "the terminal is gone: nobody can say when the arm may move. Everything recorded is kept; start again "
                "in another one."
            )

    def decide(self, tally: EpisodeTally, fault: str | None, wait: Callable[[], bool]) -> Decision:
        problem = f" (the input device failed: {fault})" if fault else ""
        self._say(f"{'success' if tally.is_success else 'no success'}{problem}: {self._answers}")
        return self._answer(_DECISIONS, wait) or Decision.DISCARD

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._terminal.release(self._on_enter)
            self._terminal.close()

    def _answer(self, decisions: dict[OperatorSignal, Decision], wait: Callable[[], bool]) -> Decision | None:
        """Return the decision of the first key pressed from now on; None where no answer can come."""
        self._operator.poll()  # what was pressed before the question answers nothing
        while not self._enters.empty():
            self._enters.get()
        while wait() and self._terminal.is_alive:
            if not self._enters.empty():
                return Decision.KEEP
            for signal in self._operator.poll():
                if signal in decisions:
                    return decisions[signal]
        return None

    def _on_enter(self, key: str, now_s: float) -> None:
        del key
        self._enters.put(now_s)


_DECISIONS = {
    OperatorSignal.SUCCESS: Decision.KEEP_AS_SUCCESS,
    OperatorSignal.FAILURE: Decision.DISCARD,
    OperatorSignal.DISCARD: Decision.DISCARD,
    OperatorSignal.RESET: Decision.REDO,
}
