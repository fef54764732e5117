"""What an operator tells the program while it runs: marks on the episode, pause, reset, take over."""

import logging
import queue
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Protocol

from actor.intervention_config import KeysConfig
from policy.errors import ConfigError
from robot.errors import RobotConfigError
from robot.teleop.terminal import Terminal, standard_terminal

_log = logging.getLogger(__name__)


class OperatorSignal(Enum):
    """One thing an operator says, by key or by page."""

    SUCCESS = auto()  # the episode solved the task
    FAILURE = auto()  # it did not, whatever else says so
    DISCARD = auto()  # nothing of this episode is to be learned from
    PAUSE = auto()  # hold the arm; again: go on
    RESET = auto()  # end the episode and go back to the start
    BOOKMARK = auto()  # remember this step
    INTERVENE = auto()  # the human drives from now on; again: the policy does
    ACKNOWLEDGE = auto()  # a fault has been seen
    CONFIRM = auto()  # the arm may move again


class OperatorInput(Protocol):
    """Where an operator's signals come from."""

    def poll(self) -> list[OperatorSignal]:
        """Return the signals since the last call, oldest first. Never blocks."""


class NoOperator:
    """Nobody is there."""

    is_heard = False

    def poll(self) -> list[OperatorSignal]:
        return []

    def close(self) -> None:
        pass


class KeyboardOperator:
    """The keys of the terminal that the program runs in; nothing is captured in other windows.

    Says at once what it understood, from the terminal's thread: `poll` only takes what has come.
    """

    def __init__(self, keys: KeysConfig, say: Callable[[str], None], terminal: Terminal | None = None) -> None:
        self._meanings = {
            keys.success: (OperatorSignal.SUCCESS, "success"),
            keys.failure: (OperatorSignal.FAILURE, "failure"),
            keys.discard: (OperatorSignal.DISCARD, "discard this episode"),
            keys.pause: (OperatorSignal.PAUSE, "pause, or go on"),
            keys.reset: (OperatorSignal.RESET, "end the episode and reset"),
            keys.bookmark: (OperatorSignal.BOOKMARK, "bookmark"),
            keys.intervene: (OperatorSignal.INTERVENE, "human takes over, or gives back"),
            keys.acknowledge: (OperatorSignal.ACKNOWLEDGE, "acknowledge a fault"),
            keys.confirm: (OperatorSignal.CONFIRM, "confirm: the arm may move again"),
        }
        self._say = say
        self._terminal = terminal or standard_terminal()
        self._signals: queue.SimpleQueue[OperatorSignal] = queue.SimpleQueue()
        self._is_open = False

    @property
    def is_heard(self) -> bool:
        """Whether keys arrive; no longer once the terminal is gone."""
        return self._is_open and self._terminal.is_alive

    def open(self) -> None:
        """Read keys from now on. Raises ConfigError for a key in other use, RobotError without a usable terminal."""
        try:
            self._terminal.claim(self._meanings, self._on_key)
        except RobotConfigError as error:
            raise ConfigError(str(error)) from error
        try:
            self._terminal.open()
        except Exception:
            self._terminal.release(self._on_key)
            raise
        self._terminal.claim_others(self._on_other_key)
        self._is_open = True
        self._say(f"keys: {self._key_map()}")

    def poll(self) -> list[OperatorSignal]:
        """Return the signals since the last call, oldest first. Never blocks."""
        signals = []
        while True:
            try:
                signals.append(self._signals.get_nowait())
            except queue.Empty:
                return signals

    def close(self) -> None:
        """Give the terminal back. Safe to call twice."""
        if self._is_open:
            self._is_open = False
            self._terminal.release(self._on_key)
            self._terminal.release(self._on_other_key)
            self._terminal.close()

    def _on_key(self, key: str, now_s: float) -> None:
        del now_s
        signal, meaning = self._meanings[key]
        self._signals.put(signal)
        self._say(f"[{key}] {meaning}")

    def _on_other_key(self, key: str, now_s: float) -> None:
        del now_s
        self._say(f"[{key}] means nothing here; keys: {self._key_map()}")

    def _key_map(self) -> str:
        return ", ".join(f"{key} = {meaning}" for key, (_, meaning) in self._meanings.items())


class ScriptedSignals:
    """An operator who says at the n-th poll what a table has for it; for tests and demonstrations."""

    def __init__(self, script: dict[int, Sequence[OperatorSignal]]) -> None:
        self._script = script
        self._polls = 0

    def poll(self) -> list[OperatorSignal]:
        self._polls += 1
        return list(self._script.get(self._polls - 1, ()))


def open_operator(
    keys: KeysConfig, say: Callable[[str], None], terminal: Terminal | None = None
) -> KeyboardOperator | NoOperator:
    """Return the operator at this terminal, reading; nobody where there is no terminal. Close it at the end.

    Raises ConfigError when an input device already uses one of the keys.
    """
    terminal = terminal or standard_terminal()
    if not terminal.is_usable:
        _log.info("no terminal in the foreground: no operator's keys, episodes are judged without them")
        return NoOperator()
    operator = KeyboardOperator(keys, say, terminal)
    operator.open()
    return operator
