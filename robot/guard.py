"""The guard: the only one that commands the arm. It knows who drives, passes commands through the gate, and latches.

RUN    the policy drives            HUMAN  a person drives
HOLD   the arm keeps its pose: a pause, an old image or state, a late control loop; the next command ends it
FAULT  latched: nothing moves the arm until a person has acknowledged the fault and confirmed it
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, NoReturn

from robot.errors import RobotError, RobotFaultError, StaleStateError
from robot.interface import RobotBackend, RobotCommand, RobotState, ScenePlacement
from robot.safety import GateResult, SafetyConfig, SafetyGate

_log = logging.getLogger(__name__)

DEBOUNCE_STATES = 3  # measurements in a row that a force or a speed must be beyond its limit
CONFIRM_WITHIN_S = 10.0
_HOUR_S = 3600.0


class Mode(StrEnum):
    """Who or what has the arm."""

    RUN = "RUN"
    HUMAN = "HUMAN"
    HOLD = "HOLD"
    FAULT = "FAULT"


@dataclass(frozen=True)
class GuardEvent:
    """A change of mode, or a command that the gate changed, and why."""

    kind: Literal["mode", "clip"]
    mode: Mode  # afterwards
    reason: str
    monotonic_s: float


class Guard:
    """One arm's guard. The control thread calls it; `observe_event` must not block."""

    def __init__(
        self,
        backend: RobotBackend,
        config: SafetyConfig,
        period_s: float,
        *,
        observe_event: Callable[[GuardEvent], None] = lambda event: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The backend must be connected, and is sent commands by nobody else. period_s: of the control loop."""
        self._backend = backend
        self._gate = SafetyGate(config)
        self._period_s = period_s
        self._observe_event = observe_event
        self._clock = clock
        self._mode = Mode.HOLD
        self._fault = ""
        self._state: RobotState | None = None
        self._violations_in_a_row = 0
        self._acknowledged_s: float | None = None
        self._faults_s: deque[float] = deque(maxlen=1000)

    @property
    def mode(self) -> Mode:
        return self._mode

    @property
    def fault(self) -> str:
        """Why nothing moves; empty without a fault."""
        return self._fault

    @property
    def faults_in_the_last_hour(self) -> int:
        now_s = self._clock()
        return sum(now_s - at_s < _HOUR_S for at_s in self._faults_s)

    def reset(self, placement: ScenePlacement) -> RobotState:
        """Let the backend bring the arm to `placement`, and hold there. Raises as `read_state` does."""
        self._refuse_when_latched()
        try:
            self._backend.reset(placement)
        except RobotFaultError as error:
            self._latch_and_raise(str(error))
        except RobotError as error:
            self._backend.stop()  # the motion that was under way, even if the guard was already holding before it
            self._enter(Mode.HOLD, f"reset: {error}")
            raise
        self._enter(Mode.HOLD, "reset: the arm is at its start")
        return self.read_state()

    def read_state(self) -> RobotState:
        """Return the newest state after judging it.

        Raises StaleStateError, with the arm told to hold, when it is too old; RobotFaultError, latched, for a fault of
        the robot or a state in which the arm has to stop.
        """
        self._refuse_when_latched()
        try:
            state = self._backend.read_state()
        except StaleStateError as error:
            self.hold(f"stale state: {error}")
            raise
        except RobotFaultError as error:
            self._latch_and_raise(str(error))
        self._judge(state)
        self._state = state
        return state

    def act(
        self,
        command: RobotCommand,
        *,
        is_human: bool = False,
        shorten: Callable[[RobotCommand], RobotCommand] = lambda command: command,
    ) -> GateResult:
        """Pass the command through the gate, for the state last read; send what is left of it, and return that.

        shorten: may make that step shorter still, which no limit of the gate minds, but must not turn it.
        Raises RobotFaultError when a fault is latched, StaleStateError when the robot has fallen silent since.
        """
        self._refuse_when_latched()
        if self._state is None:
            raise RuntimeError("act() before read_state(): the gate needs a measured state")
        result = self._gate.apply(self._state, command, self._period_s)
        for reason in result.reasons:
            self._observe_event(GuardEvent("clip", self._mode, reason, self._clock()))
        result = replace(result, command=shorten(result.command))
        try:
            self._backend.send_command(result.command)
        except StaleStateError as error:
            self.hold(f"stale state: {error}")
            raise
        except RobotFaultError as error:
            self._latch_and_raise(str(error))
        self._enter(Mode.HUMAN if is_human else Mode.RUN, "the human drives" if is_human else "the policy drives")
        return result

    def hold(self, reason: str) -> None:
        """Keep the arm where it is until the next command. Without effect in a fault.

        The pose is taken once, when the hold begins: taken again and again it would follow whatever pushes the arm.
        """
        if self._mode in (Mode.HOLD, Mode.FAULT):
            return
        self._backend.stop()
        self._enter(Mode.HOLD, reason)

    def latch(self, reason: str) -> None:
        """Stop the arm and let nothing move it before a person has acknowledged this."""
        if self._mode is Mode.FAULT:
            return
        self._fault = reason
        self._faults_s.append(self._clock())
        self._acknowledged_s = None
        self._backend.stop()
        self._enter(Mode.FAULT, reason)

    def acknowledge(self) -> None:
        """First step out of a fault: a person has seen it. `confirm` must follow within CONFIRM_WITHIN_S."""
        if self._mode is Mode.FAULT:
            self._acknowledged_s = self._clock()

    def confirm(self) -> bool:
        """Second step: leave the fault, and hold. Returns whether it was left.

        False without a fault or an `acknowledge` just before. Raises RobotFaultError, still latched, when the robot or
        its measured state does not allow it yet.
        """
        acknowledged_s, self._acknowledged_s = self._acknowledged_s, None
        if self._mode is not Mode.FAULT or acknowledged_s is None:
            return False
        if self._clock() - acknowledged_s > CONFIRM_WITHIN_S:
            return False
        self._backend.recover()
        state = self._backend.read_state()
        violation = self._gate.violation(state)
        if violation is not None:
            raise RobotFaultError(f"{violation.reason} It is still so: the arm stays stopped.")
        self._fault, self._violations_in_a_row, self._state = "", 0, state
        self._backend.stop()
        self._enter(Mode.HOLD, "a person acknowledged the fault and confirmed it")
        return True

    def _judge(self, state: RobotState) -> None:
        violation = self._gate.violation(state)
        if violation is None:
            self._violations_in_a_row = 0
            return
        self._violations_in_a_row += 1
        if not violation.is_debounced or self._violations_in_a_row >= DEBOUNCE_STATES:
            self._latch_and_raise(violation.reason)

    def _refuse_when_latched(self) -> None:
        if self._mode is Mode.FAULT:
            raise RobotFaultError(self._fault)

    def _latch_and_raise(self, reason: str) -> NoReturn:
        self.latch(reason)
        raise RobotFaultError(reason)

    def _enter(self, mode: Mode, reason: str) -> None:
        if mode is self._mode:
            return
        _log.log(logging.ERROR if mode is Mode.FAULT else logging.DEBUG, "%s -> %s: %s", self._mode, mode, reason)
        self._mode = mode
        self._observe_event(GuardEvent("mode", mode, reason, self._clock()))
