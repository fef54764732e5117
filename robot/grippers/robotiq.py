"""A Robotiq 2F-85 on a serial port. Its thread asks for the status some 30 times a second and sends what changes."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from robot.errors import RobotConfigError, RobotError
from robot.grippers.options import GripperOptions
from robot.grippers.robotiq_bus import PortError, RobotiqBus, SilentError, find_port
from robot.grippers.robotiq_registers import (
    ACTIVATE,
    ACTIVATING,
    COMMUNICATION_PAUSED,
    DEACTIVATE,
    FIRST_MAJOR_FAULT,
    FORCE_RANGE_N,
    FULLY_CLOSED,
    FULLY_OPEN,
    MOVING,
    OVERHEATED,
    SPEED_RANGE_M_S,
    STROKE_M,
    Ends,
    Request,
    Status,
    counts,
    describe_fault,
)
from robot.grippers.threaded import ThreadedGripper
from robot.interface import GripperState

_log = logging.getLogger(__name__)

POLL_PERIOD_S = 0.033
SILENT_AFTER_S = 0.4  # less than the second after which the gripper itself reports a pause
_REOPEN_PERIOD_S = 0.5
_ACTIVATION_TIMEOUT_S = 10.0  # takes 2 to 3 s
_MOTION_TIMEOUT_S = 8.0  # the whole stroke at the slowest speed takes 4.3 s
_OPEN_ENDS = range(0, 41)  # counts at which fingers that nothing blocks may stop
_CLOSED_ENDS = range(200, 256)

_Answer = TypeVar("_Answer")


class RobotiqGripper(ThreadedGripper):
    """Widths in m go to counts of 0 (open) to 255 (closed) here and nowhere else.

    A fault of the gripper, its silence, a lost port or activation latch. `recover` activates again only where the
    gripper has lost its activation or reports a fault that needs it; after a mere outage the fingers stay. The port of
    an unplugged adapter is opened again in the background, and listened to.
    """

    def __init__(self, options: GripperOptions, **_context: object) -> None:
        """Raises RobotConfigError for a force or speed beyond the gripper's range."""
        super().__init__("Robotiq gripper", STROKE_M)
        for name, value, limits, unit in (
            ("force_n", options.force_n, FORCE_RANGE_N, "N"),
            ("speed_m_s", options.speed_m_s, SPEED_RANGE_M_S, "m/s"),
        ):
            if not limits[0] <= value <= limits[1]:
                raise RobotConfigError(
                    f"hand.{name} = {value} is beyond what a Robotiq 2F-85 can do: {limits[0]} to {limits[1]} {unit}"
                )
        self._options = options
        self._force = counts(options.force_n, FORCE_RANGE_N)
        self._speed = counts(options.speed_m_s, SPEED_RANGE_M_S)
        self._ends = Ends(options.open_position, options.closed_position)
        self._bus: RobotiqBus | None = None
        self._sent: Request | None = None  # None: not known
        self._answered_s = 0.0

    @property
    def ends(self) -> tuple[int, int]:
        """Where the fingers stop, open and closed, in counts: measured, or the options'."""
        return self._ends.open, self._ends.closed

    def _bring_up(self) -> None:
        self._bus = RobotiqBus(find_port(self._options.device))
        self._bus.open()
        self._sent, self._answered_s = None, time.monotonic()
        status = self._status()
        if not self._options.calibrate:
            self._require_activation(status)
            return
        if _needs_activation(status):
            status = self._activate()
        if status.is_holding:
            _log.warning(
                "the Robotiq gripper holds something and is not calibrated; its ends are taken to be %d and %d",
                *self.ends,
            )
        else:
            self._measure_ends()

    def _require_activation(self, status: Status) -> None:
        if _needs_activation(status):
            why = describe_fault(status.fault) if status.fault else "it is not activated."
            raise RobotError(
                f"the Robotiq gripper cannot be used: {why} Activating it opens and closes the fingers, and "
                "hand.calibrate = false rules that out. Take out what they hold and connect once with "
                "hand.calibrate = true."
            )

    def _measure_ends(self) -> None:
        closed = self._go_and_wait(FULLY_CLOSED)
        if closed not in _CLOSED_ENDS:
            raise RobotError(
                f"calibration of the Robotiq gripper: closing stopped at {closed} of 255 counts, expected at least "
                f"{_CLOSED_ENDS.start}. Something is between the fingers, and now gripped. Take it out and connect "
                "again; or connect with hand.calibrate = false to keep it."
            )
        opened = self._go_and_wait(FULLY_OPEN)
        if opened not in _OPEN_ENDS:
            raise RobotError(
                f"calibration of the Robotiq gripper: opening stopped at {opened} of 255 counts, expected at most "
                f"{_OPEN_ENDS[-1]}. Something holds the fingers back from outside. Clear it and connect again."
            )
        self._ends = Ends(opened, closed)
        self._publish(self._status())
        _log.info("Robotiq gripper: hand.open_position = %d, hand.closed_position = %d", opened, closed)

    def _go_and_wait(self, position: int) -> int:
        self._tell(self._request(position))
        return self._wait_until(lambda status: not self._is_moving(status), _MOTION_TIMEOUT_S, "stop moving").position

    def _activate(self) -> Status:
        """Give rACT its rising edge, and wait. The fingers open and close, whatever they hold."""
        self._tell(DEACTIVATE)
        self._wait_until(lambda status: not status.is_active, _ACTIVATION_TIMEOUT_S, "reset itself", is_resetting=True)
        self._tell(ACTIVATE)
        return self._wait_until(lambda status: status.is_activated, _ACTIVATION_TIMEOUT_S, "finish its activation")

    def _mend(self) -> None:
        self._answered_s = time.monotonic()
        status = self._status()
        if status.fault == OVERHEATED:
            raise RobotError(describe_fault(status.fault))
        if _needs_activation(status):
            self._activate()
        self._sent = None

    def _wait_until(
        self, condition: Callable[[Status], bool], timeout_s: float, what: str, *, is_resetting: bool = False
    ) -> Status:
        """Return the first status that satisfies `condition`. Raises RobotError for a fault, or with what it waits for.

        is_resetting: a fault of before may still show.
        """
        end_s = time.monotonic() + timeout_s
        while True:
            status = self._status()
            if _is_fault(status.fault) and not is_resetting:
                raise RobotError(describe_fault(status.fault))
            if condition(status):
                return status
            if time.monotonic() > end_s:
                raise RobotError(
                    f"the Robotiq gripper did not {what} within {timeout_s:.0f} s; its status is {status}. Do the "
                    "fingers touch something? Switch its power off and on, and connect again."
                )
            self._pause(POLL_PERIOD_S)

    def _status(self) -> Status:
        """Return the status, asking until the gripper counts as silent. Publishes it."""
        status = self._patiently(self._require_bus().read_status)
        self._publish(status)
        return status

    def _tell(self, request: Request) -> None:
        """Send a request until its receipt comes. Twice the same changes nothing: no edge of rACT, no new target."""
        self._patiently(lambda: self._write(request))

    def _patiently(self, exchange: Callable[[], _Answer]) -> _Answer:
        while True:
            try:
                return exchange()
            except SilentError:
                if time.monotonic() - self._answered_s > SILENT_AFTER_S:
                    raise
                self._pause(POLL_PERIOD_S)

    def _cycle(self) -> None:
        period_s = POLL_PERIOD_S
        try:
            status = self._require_bus().read_status()
            self._publish(status)
            self._judge(status)
            self._send_wish(status)
        except PortError as error:
            self._latch(str(error))
            period_s = _REOPEN_PERIOD_S
        except SilentError as error:
            silent_s = time.monotonic() - self._answered_s
            if silent_s > SILENT_AFTER_S:
                self._latch(f"no answer for {silent_s:.1f} s (limit {SILENT_AFTER_S} s): {error}")
        self._wake.wait(period_s)
        self._wake.clear()

    def _judge(self, status: Status) -> None:
        if _is_fault(status.fault):
            self._latch(describe_fault(status.fault))
            if status.is_activated and self._is_moving(status):  # or it may go on by itself, once it has cooled down
                self._write(self._request_to_stop(status))
        elif not status.is_activated:
            self._latch(
                "the Robotiq gripper has lost its activation: its power was interrupted, or another program reset it. "
                "Check its 24 V supply, take out what it holds, then recover."
            )

    def _send_wish(self, status: Status) -> None:
        """Write what is wanted, if it is new. The status is of this moment: a gripper that has lost its activation must
        not get a request, whose rACT would activate it and move the fingers."""
        wish = self._newest_wish()
        if wish is None:
            return
        request = None  # where a stop finds the fingers at rest, perhaps gripping: without rGTO they could only loosen
        if wish != "stop":
            request = self._request(self._ends.position(wish))
        elif self._is_moving(status):
            request = self._request_to_stop(status)
        if request is not None and request != self._sent:
            self._write(request)
            self._publish(status)
        self._done_with(wish)

    def _request(self, position: int) -> Request:
        return Request(is_active=True, is_going=True, position=position, speed=self._speed, force=self._force)

    def _request_to_stop(self, status: Status) -> Request:
        return Request(is_active=True, position=status.position, speed=self._speed, force=self._force)

    def _write(self, request: Request) -> None:
        self._sent = None  # if no receipt comes, it is not known which request the gripper follows
        self._require_bus().write(request)
        self._sent = request

    def _is_moving(self, status: Status) -> bool:
        if self._sent is not None and self._sent.is_going and status.requested != self._sent.position:
            return True  # `contact` still speaks of the request before
        return status.activation == ACTIVATING or (status.is_going and status.contact == MOVING)

    def _publish(self, status: Status) -> None:
        self._answered_s = time.monotonic()
        self._state = GripperState(
            width=self._ends.width(status.position),
            is_moving=self._is_moving(status),
            is_holding=status.is_holding,
            received_monotonic_s=self._answered_s,
        )

    def _require_bus(self) -> RobotiqBus:
        if self._bus is None:
            raise RobotError("the Robotiq gripper is not connected; call connect() first")
        return self._bus

    def _release(self) -> None:
        if self._bus is not None:
            self._bus.close()


def _is_fault(code: int) -> bool:
    """Whether a value of gFLT latches.

    Not so 9: it speaks of a pause before this very answer, and a pause of the gripper's making is noticed earlier, by
    its silence. 5 and 7 go with a missing activation, which is judged itself.
    """
    return code >= OVERHEATED and code != COMMUNICATION_PAUSED


def _needs_activation(status: Status) -> bool:
    return not status.is_activated or status.fault >= FIRST_MAJOR_FAULT
