"""The arm as it stands behind Deoxys: goals in, states out, kept alive, watched and latched by one thread of its own.

That thread drains the link, judges each state (watch.py) and repeats the present goal at the rate at which the NUC
looks for one. It blocks on nothing but the link, for milliseconds. Other threads share the lock.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from robot.backends.deoxys.link import ArmLink, Goal
from robot.backends.deoxys.messages import ArmState, JointPosition, OscGains, OscPose
from robot.backends.deoxys.options import DeoxysOptions
from robot.backends.deoxys.watch import StateWatch, complaint
from robot.errors import RobotError, RobotFaultError, StaleStateError
from robot.interface import Array
from robot.pose import rotvec_from_rotation

_log = logging.getLogger(__name__)

POLL_S = 0.01  # of everything that waits for the arm
_SOFT = (1.0, 1.0, 1.0)  # 1/s^2: an error of 10 cm accelerates the hand by 0.1 m/s^2, less than its joints' friction
_START_S = 3.0  # a controller that was told to start has this long to show it
_SETTLE_S = 0.5  # how long an arm that was told to hold is watched before it is believed
_RECOVERY_S = 0.5  # how long all must be well before a fault can be left
# A NUC that adds absolute goals to the measured pose drives the arm away from the base; a wrong payload lets it sink.
_STRAY_OUTWARD_M = 0.005
_STRAY_M = 0.03


class ArmClient:
    """One arm behind one link. `command`, `hold`, `state` and `latch` never block; the rest say so."""

    def __init__(
        self,
        link: ArmLink,
        options: DeoxysOptions,
        gains: OscGains,
        policy_rate_hz: float,
        *,
        find_fault: Callable[[], str] = lambda: "",
    ) -> None:
        """find_fault: why something else than the arm must stop it, empty if nothing does; must not block."""
        self._link = link
        self._options = options
        self._gains = gains
        self._resend_s = 1.0 / policy_rate_hz
        self._find_fault = find_fault
        self._lock = threading.RLock()
        self._watch = StateWatch(fault_after_s=options.fault_after_s)
        self._goal: Goal | None = None  # repeated until it is replaced; None: nothing is sent
        self._is_holding = False
        self._has_sent = False  # since open, or since the last termination
        self._sent_s = self._commanded_s = 0.0
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    @property
    def fault(self) -> str:
        """Why nothing moves the arm, and the remedy; empty without a fault."""
        return self._watch.fault

    @property
    def garbled(self) -> int:
        """How many messages could not be read."""
        return self._link.garbled

    def open(self, timeout_s: float) -> None:
        """Open the link and wait for a state. Sends nothing. Raises RobotError with the remedy."""
        self._link.open()
        self._closing.clear()
        self._watch = StateWatch(fault_after_s=self._options.fault_after_s)
        self._thread = threading.Thread(target=self._serve, name="deoxys", daemon=True)
        self._thread.start()
        deadline_s = time.monotonic() + timeout_s
        while self._watch.state is None or complaint(self._watch.state):
            self._raise_fault()
            if time.monotonic() > deadline_s:
                raise RobotError(self._why_no_state(timeout_s))
            time.sleep(POLL_S)

    def close(self) -> None:
        """End the control process on the NUC if it was ever commanded, and release everything. Safe to call twice."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._goal = None
            self._terminate()
        self._link.close()

    def state(self) -> tuple[ArmState, float]:
        """Return the newest state and its time.monotonic(). Raises RobotFaultError, and StaleStateError when old."""
        with self._lock:
            self._raise_fault()
            if self._thread is None or self._watch.state is None:
                raise RobotError("the arm is not connected: call connect()")
            now_s = time.monotonic()
            age_s = self._watch.age_s(now_s)
            if age_s > self._options.stale_after_s:
                raise StaleStateError(age_s, self._options.stale_after_s)
            return self._watch.state, now_s - self._watch.silence_s(now_s)

    def command(self, O_T_EE: Array) -> None:
        """Make O_T_EE (4, 4) the goal and send it. Raises as `state` does, and then sends nothing."""
        if not np.isfinite(O_T_EE).all():
            raise RobotError(f"a goal is not finite: {O_T_EE.tolist()}. Nothing was sent.")
        with self._lock:
            self.state()
            self._require_pose_control()
            self._commanded_s = time.monotonic()
            self._is_holding = False
            self._send(self._pose_goal(O_T_EE))

    def hold(self, *, anew: bool = False) -> None:
        """Keep the arm where it is now; where it already holds, that pose stays, unless anew. Nothing in a fault."""
        with self._lock:
            if self.fault or self._goal is None:
                return
            if isinstance(self._goal, JointPosition):
                self.latch("the arm was told to stop in the middle of a joint-space reset.")
            elif (anew or not self._is_holding) and self._watch.state is not None:
                self._is_holding = True
                self._send(self._pose_goal(self._watch.state.O_T_EE))

    def latch(self, reason: str) -> None:
        """Stop the arm: end the control process on the NUC, once, and send nothing more before `recover`."""
        with self._lock:
            if not self.fault:
                self._watch.latch(reason)
                self._stop_sending()

    def start_pose_control(self) -> None:
        """Hold the arm where it is under OSC_POSE, whatever controlled it before. Blocks for about 2 s.

        While nothing controls the arm its state is old, and somebody may have moved it since, which the controller
        itself notices only after its first goal: the first goals are steps of zero, too soft to pull, until a fresh
        state allows an absolute one.
        Raises RobotError when the controller does not start, RobotFaultError when the arm does not hold.
        """
        zeros = (0.0, 0.0, 0.0)
        soft = replace(self._gains, translational_stiffness=_SOFT, rotational_stiffness=_SOFT)
        self._start(OscPose(position=zeros, rotvec=zeros, is_delta=True, gains=soft))
        with self._lock:
            self._raise_fault()
            assert self._watch.state is not None
            start = self._watch.state.O_T_EE[:3, 3]
            self._is_holding = True
            self._send(self._pose_goal(self._watch.state.O_T_EE))
        deadline_s = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline_s:
            self._raise_fault()
            self._require_near(start)
            time.sleep(POLL_S)

    def start_joint_control(self, q: tuple[float, ...]) -> None:
        """Send the arm to joint angles q, rad, under JOINT_POSITION, at Deoxys' own speed. Blocks for about 1 s."""
        self._start(JointPosition(q=q))

    def recover(self) -> None:
        """Leave a fault behind and hold where the arm is. Blocks for about 3 s.

        Raises RobotFaultError, naming what stands in the way; the fault then stays latched.
        """
        if not self.fault:
            return
        deadline_s = time.monotonic() + _RECOVERY_S
        while time.monotonic() < deadline_s:
            obstacle = self._obstacle()
            if obstacle:
                raise RobotFaultError(f"The arm cannot go on yet: {obstacle} It stopped because {self.fault}")
            time.sleep(POLL_S)
        _log.warning("leaving a fault behind: %s", self.fault)
        with self._lock:
            self._watch.clear()
        try:
            self.start_pose_control()
        except RobotError as error:
            self.latch(str(error))
            raise RobotFaultError(f"The arm could not be taken up again: {self.fault}") from error

    def _serve(self) -> None:
        try:
            while not self._closing.is_set():
                states = self._link.receive(POLL_S)
                with self._lock:
                    was_latched = bool(self.fault)
                    now_s = time.monotonic()
                    for state in states:
                        self._watch.observe(state, now_s)
                    self._watch.check(now_s)
                    self._watch.latch(self._find_fault())
                    if not self.fault:
                        self._keep_alive(now_s)
                    elif not was_latched:
                        self._stop_sending()
        except Exception as error:  # whatever it is, it must stop the arm and be seen
            _log.exception("the thread that watches the arm failed")
            self.latch(f"the thread that watches the arm failed: {error!r}. Restart the actor.")

    def _keep_alive(self, now_s: float) -> None:
        """Repeat the goal when the NUC would otherwise find nothing, or hold when nobody has commanded for long."""
        if self._goal is None:
            return
        is_abandoned = now_s - self._commanded_s > self._options.silent_after_s
        is_fresh = self._watch.age_s(now_s) <= self._options.stale_after_s
        if is_abandoned and is_fresh and not self._is_holding and isinstance(self._goal, OscPose):
            self.hold()  # before it is said: whoever reads the log may be slow
            _log.warning("no command for %.2f s: the arm holds where it is", now_s - self._commanded_s)
        # A NUC that says nothing may be starting again, and would take the first goal that it hears for an order.
        elif now_s - self._sent_s >= self._resend_s - 0.5 * POLL_S:
            if self._watch.silence_s(now_s) < 0.5 * self._options.fault_after_s:
                self._send(self._goal)

    def _start(self, goal: Goal) -> None:
        """Release the arm, then repeat `goal` until the controller shows that it runs."""
        with self._lock:
            self._raise_fault()
            self._goal = None
            self._watch.is_controlled = False
            self._has_sent = True
        self._link.release(lambda: bool(self.fault) or self._closing.is_set())
        with self._lock:
            self._raise_fault()
            assert self._watch.state is not None
            old_time_s = self._watch.state.robot_time_s
            self._is_holding = True  # so that a start that takes long is not taken for silence
            self._send(goal)
        started_s = time.monotonic()
        # Twice the period: the controller's second goal is the first that it computes from a fresh measurement.
        while self._watch.state.robot_time_s == old_time_s or time.monotonic() - started_s < 2.0 * self._resend_s:
            self._raise_fault()
            if time.monotonic() - started_s > _START_S:
                self._cease()
                raise RobotError(
                    f"the controller on the NUC has not started within {_START_S:.0f} s: the robot's time stands at "
                    f"{old_time_s:.3f} s. Are the joints unlocked and FCI active in Desk? Do commands arrive at the "
                    "NUC (PC.IP in its network file, a firewall on this PC)?"
                )
            time.sleep(POLL_S)
        with self._lock:
            self._watch.is_controlled = True

    def _cease(self) -> None:
        with self._lock:
            self._goal = None
            self._terminate()

    def _require_pose_control(self) -> None:
        if not isinstance(self._goal, OscPose):
            raise RobotError("the arm is not under pose control: call connect(), and wait for reset() to end")

    def _require_near(self, start: Array) -> None:
        assert self._watch.state is not None
        moved = self._watch.state.O_T_EE[:3, 3] - start
        outward_m = float(moved[:2] @ start[:2]) / max(float(np.linalg.norm(start[:2])), 1e-6)
        if outward_m > _STRAY_OUTWARD_M or np.linalg.norm(moved) > _STRAY_M:
            millimetres = np.round(moved * 1e3, 1).tolist()
            self.latch(
                f"the arm moved by {millimetres} mm though it was told to hold. Outward: Deoxys on the NUC is older "
                "than its fix of absolute goals (its pull request 4, August 2023): update it. Down: the hand's mass in "
                "Desk is wrong. Else something pushes it."
            )
            self._raise_fault()

    def _obstacle(self) -> str:
        """Return what stands in the way of leaving a fault, with the remedy."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                return "the client is closed or its thread has failed. Restart the actor."
            silence_s = self._watch.silence_s(time.monotonic())
            if self._watch.state is None or silence_s > 0.5 * self._options.fault_after_s:
                return (
                    f"nothing comes from the NUC (last message {silence_s:.1f} s ago). Release the emergency stop and "
                    "see that auto_arm.sh has started Deoxys' control process again."
                )
            return complaint(self._watch.state) or self._find_fault()

    def _pose_goal(self, O_T_EE: Array) -> OscPose:
        x, y, z = O_T_EE[:3, 3].tolist()
        ax, ay, az = rotvec_from_rotation(O_T_EE[:3, :3]).tolist()
        return OscPose(position=(x, y, z), rotvec=(ax, ay, az), gains=self._gains)

    def _send(self, goal: Goal) -> None:
        self._goal = goal
        self._sent_s = time.monotonic()
        self._has_sent = True
        self._link.send(goal)

    def _stop_sending(self) -> None:
        self._goal = None
        self._watch.is_controlled = False
        self._terminate()
        _log.error("the arm is stopped until a person has seen why: %s", self.fault)

    def _terminate(self) -> None:
        if self._has_sent:
            self._has_sent = False
            try:
                self._link.terminate()
            except Exception:  # a fork's client may raise anything; the NUC then ends by itself, hearing nothing
                _log.exception("the control process on the NUC could not be told to end")

    def _raise_fault(self) -> None:
        if self.fault:
            raise RobotFaultError(self.fault)

    def _why_no_state(self, timeout_s: float) -> str:
        state = self._watch.state
        if state is not None:
            return f"the arm cannot be used: {complaint(state)}"
        if self.garbled:
            return (
                f"what comes from the NUC is not Deoxys' state ({self.garbled} messages). Is NUC.PUB_PORT in "
                f"{self._options.network} the arm's port, and not the gripper's?"
            )
        return (
            f"no state has come from the NUC within {timeout_s:.0f} s. Is auto_arm.sh running there, is the robot "
            f"unlocked with FCI active, and are NUC.IP and NUC.PUB_PORT in {self._options.network} right?"
        )
