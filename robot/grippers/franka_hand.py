"""The Franka Hand behind Deoxys' gripper process on the NUC. A thread of ours owns the two sockets.

That process, as it is:
- executes one command at a time and forgets what arrives meanwhile. So a command goes out once, and again only while
  the fingers stand still and are not where it wants them.
- takes every Grasp that ends within its epsilons for one that holds something, and then ignores others until a Move.
  Only Grasp presses. So Grasp closes fully, and grips what has stopped a Move short of its width; the rest is Move.
- answers Stop by homing, which opens the fingers. So Stop is never sent, and a motion, 0.8 s at most, ends by itself:
  a Move to where the fingers were would come after it, and might open a hand that has just gripped.
- homes whenever it starts. So its end latches, and it is not commanded before `recover`.
"""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import zmq

from robot.backends.deoxys.config import Network
from robot.backends.deoxys.messages import (
    GarbledMessageError,
    HandGrasp,
    HandMove,
    HandState,
    decode_hand_state,
    encode_hand_command,
)
from robot.errors import RobotConfigError, RobotError
from robot.grippers.options import GripperOptions
from robot.grippers.threaded import ThreadedGripper
from robot.interface import GripperState

_log = logging.getLogger(__name__)

MAX_WIDTH_M = 0.08  # Franka Hand data sheet, as are the next two
MAX_FORCE_N = 70.0
MAX_SPEED_M_S = 0.1
SILENT_AFTER_S = 0.5  # Deoxys publishes 40 times a second
CONNECT_TIMEOUT_S = 15.0  # a process that has just started homes first
_RECOVERY_TIMEOUT_S = 5.0
_POLL_S = 0.01
_STILL_AFTER_S = 0.15
_REPEAT_S = 0.25  # above the delay from a command to the first motion
_GIVE_UP_S = 5.0
_TOLERANCE_M = 0.002
_NOISE_M = 0.0005
_SAME_M = 0.001  # wishes closer than this are one: a new command costs the hand a third of a second
_THINNEST_M = 0.001  # less between the fingers is nothing
_EPSILON_INNER_M = 0.005
_SUBSCRIBED = 1  # first byte of what an XPUB socket receives when somebody subscribes; 0 when the last one leaves


@dataclass
class _Errand:
    """A width on its way to being reached."""

    width: float  # m
    command: HandMove | HandGrasp  # last sent for it
    begun_s: float
    sent_s: float


class FrankaHand(ThreadedGripper):
    """Widths are metres on both sides of this border; Deoxys' -1 open, +1 closed is its Python client's and not used.

    `stop` only gives up what has not begun: see the top of the file.
    """

    def __init__(self, options: GripperOptions, *, network: Network | None = None, **_context: object) -> None:
        """network: Deoxys'. Raises RobotConfigError without one, and for a force that the hand does not have."""
        super().__init__("Franka Hand", MAX_WIDTH_M)
        if network is None:
            raise RobotConfigError("hand.driver = franka_hand needs an arm behind Deoxys: the hand is on its NUC")
        if options.force_n > MAX_FORCE_N:
            raise RobotConfigError(f"hand.force_n = {options.force_n} is more than a Franka Hand's {MAX_FORCE_N} N")
        self._network = network
        self._force = options.force_n
        self._speed = min(options.speed_m_s, MAX_SPEED_M_S)
        self._context: Any = None
        self._commands: Any = None  # XPUB, a PUB that hears who subscribes
        self._states: Any = None
        self._poller: Any = None
        self._is_heard = False  # the process on the NUC subscribes to our commands
        self._hand: HandState | None = None
        self._arrived_s = self._moved_s = 0.0
        self._moved_width = 0.0  # where the fingers were when they last moved
        self._target: float | None = None  # m, of the last command
        self._errand: _Errand | None = None

    def _bring_up(self) -> None:
        self._hand, self._is_heard, self._target, self._errand = None, False, None, None
        self._context = zmq.Context()
        self._commands = self._context.socket(zmq.XPUB)
        self._states = self._context.socket(zmq.SUB)
        for socket in (self._commands, self._states):
            socket.linger = 0
        port = self._network.gripper_command_port
        try:
            self._commands.bind(f"tcp://*:{port}")
        except zmq.ZMQError as error:
            raise RobotError(
                f"the Franka Hand's command port {port} of this PC cannot be opened: {error}. Is another actor or a "
                f"Deoxys client running? This names it: ss -tlnp sport = :{port}"
            ) from error
        self._states.subscribe(b"")
        self._states.connect(f"tcp://{self._network.nuc_ip}:{self._network.gripper_state_port}")
        self._poller = zmq.Poller()
        self._poller.register(self._commands, zmq.POLLIN)
        self._poller.register(self._states, zmq.POLLIN)
        self._wait_for_hand(CONNECT_TIMEOUT_S)

    def _wait_for_hand(self, timeout_s: float) -> None:
        """Return when the hand reports, has homed and listens. Raises RobotError naming what is missing."""
        begun_s = time.monotonic()
        while missing := self._missing(begun_s):
            if time.monotonic() - begun_s > timeout_s:
                raise RobotError(f"the Franka Hand cannot be used: {missing}")
            self._listen()
            self._pause(0.0)

    def _missing(self, since_s: float) -> str:
        network = self._network
        if self._hand is None or self._arrived_s < since_s:
            return (
                f"nothing comes from {network.nuc_ip}:{network.gripper_state_port}. Start auto_scripts/auto_gripper.sh "
                f"on the NUC, and see that {network.path} is the file it runs with."
            )
        if self._hand.max_width < _TOLERANCE_M:
            return f"its greatest width is {self._hand.max_width} m: it has not been homed. Home it in Desk."
        if not self._is_still(self._arrived_s):
            return "its fingers do not come to rest. Wait until it has homed."
        if not self._is_heard:
            return (
                f"it reports, but does not listen to port {network.gripper_command_port} of this PC. PC.IP in "
                f"{network.path} on the NUC ({network.pc_ip or 'none here'}) must be this PC, and no firewall between."
            )
        return ""

    def _mend(self) -> None:
        self._target, self._errand = None, None
        self._wait_for_hand(_RECOVERY_TIMEOUT_S)

    def _cycle(self) -> None:
        was_heard = self._is_heard
        self._listen()
        now_s = time.monotonic()
        if was_heard and not self._is_heard:
            self._abandon("its process on the NUC has ended. It homes when it starts again: take out what it holds.")
        elif now_s - self._arrived_s > SILENT_AFTER_S:
            self._abandon(
                f"nothing from it for {now_s - self._arrived_s:.1f} s (limit {SILENT_AFTER_S} s). Is auto_gripper.sh "
                "running on the NUC, and the network cable in?"
            )
        wish = self._newest_wish()
        if wish == "stop":
            self._target, self._errand = None, None
        elif wish is not None and (self._target is None or abs(wish - self._target) >= _SAME_M):
            self._begin(wish, now_s)
        elif self._errand is not None:
            self._pursue(self._errand, now_s)
        self._done_with(wish)

    def _abandon(self, why: str) -> None:
        self._target, self._errand = None, None
        self._latch(f"the Franka Hand cannot be used: {why} Then recover.")

    def _listen(self) -> None:
        """Wait for what the sockets bring, _POLL_S at most, and take the newest state."""
        for socket, _ in self._poller.poll(_POLL_S * 1e3):
            while True:
                try:
                    data = socket.recv(zmq.NOBLOCK)
                except zmq.Again:
                    break
                if socket is self._commands:
                    self._is_heard = data[:1] == bytes([_SUBSCRIBED])
                else:
                    self._take_state(data)

    def _take_state(self, data: bytes) -> None:
        try:
            hand = decode_hand_state(data)
        except GarbledMessageError as error:
            _log.warning("state of the Franka Hand dropped: %s", error)
            return
        if not (math.isfinite(hand.width) and math.isfinite(hand.max_width)):
            _log.warning("state of the Franka Hand dropped: width %s m of %s m", hand.width, hand.max_width)
            return
        now_s = time.monotonic()
        if self._hand is None or abs(hand.width - self._moved_width) > _NOISE_M:
            self._moved_s, self._moved_width = now_s, hand.width
        self._hand, self._arrived_s = hand, now_s
        if hand.max_width > _TOLERANCE_M:
            self.max_width = hand.max_width
        self._publish(hand)

    def _publish(self, hand: HandState) -> None:
        self._state = GripperState(
            width=hand.width,
            is_moving=self._errand is not None or not self._is_still(self._arrived_s),
            is_holding=hand.is_grasped and hand.width > _THINNEST_M,
            received_monotonic_s=self._arrived_s,
        )

    def _is_still(self, now_s: float) -> bool:
        return now_s - self._moved_s > _STILL_AFTER_S

    def _begin(self, width: float, now_s: float) -> None:
        """Command a new width."""
        hand = self._hand
        assert hand is not None
        self._target = width
        if hand.is_grasped and hand.width > _THINNEST_M and width < hand.width + _TOLERANCE_M:
            self._errand = None  # it grips what is in between, and any Move would loosen that
            return
        command = self._grasp(0.0) if width < _TOLERANCE_M else HandMove(width=width, speed=self._speed)
        self._errand = _Errand(width, command, begun_s=now_s, sent_s=now_s)
        self._send(command)
        self._publish(hand)

    def _grasp(self, width: float) -> HandGrasp:
        return HandGrasp(
            width=width,
            speed=self._speed,
            force=self._force,
            epsilon_inner=_EPSILON_INNER_M,
            epsilon_outer=MAX_WIDTH_M,  # whatever is in between is what was to be gripped
        )

    def _pursue(self, errand: _Errand, now_s: float) -> None:
        """See whether a command is done; go on, or repeat it where the hand's process has missed it.

        All that only when the fingers have come to rest since: on their way they may pass its width, and the state
        still tell of the grasp before.
        """
        hand = self._hand
        assert hand is not None
        if not self._is_still(now_s) or now_s - errand.sent_s < _REPEAT_S:
            return
        is_grasp = isinstance(errand.command, HandGrasp)
        beyond = hand.width - errand.width
        if abs(beyond) < _TOLERANCE_M or (is_grasp and hand.is_grasped):
            self._errand = None
        elif now_s - errand.begun_s > _GIVE_UP_S:
            _log.warning(
                "the Franka Hand is at %.1f mm and not at %.1f mm after %.0f s; no more is sent",
                hand.width * 1e3, errand.width * 1e3, _GIVE_UP_S,
            )  # fmt: skip
            self._errand = None
        else:
            if not is_grasp and beyond > 0.0 and self._moved_s > errand.sent_s:
                errand.command = self._grasp(hand.width)  # the Move has met something
            elif is_grasp and beyond < 0.0:
                errand.command = HandMove(width=errand.width, speed=self._speed)  # which has gone meanwhile
            errand.sent_s = now_s
            self._send(errand.command)

    def _send(self, command: HandMove | HandGrasp) -> None:
        self._commands.send(encode_hand_command(command), zmq.NOBLOCK)

    def _release(self) -> None:
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None
