"""How an arm behind Deoxys comes to its start: up, through its home joint angles now and then, and straight to a pose.

Runs in the control thread and blocks for seconds. Each end pose is verified: a time-out is an error with the values.
"""

import logging
import time
from collections.abc import Callable

import numpy as np

from robot.backends.deoxys.client import POLL_S, ArmClient
from robot.backends.deoxys.messages import ArmState
from robot.backends.deoxys.options import DeoxysOptions
from robot.errors import OutageError, RobotError, RobotFaultError, StaleStateError
from robot.interface import Array
from robot.pose import apply_delta, pose_difference, translation

_log = logging.getLogger(__name__)

_TURN_RAD_S = 0.4
# The goal runs ahead of the arm by at most this: the force that it can press with, and its speed, are proportional.
_LEAD_M, _LEAD_RAD = 0.03, 0.15
_REACHED_M, _REACHED_RAD = 0.003, 0.02
_LIFTED_M = 0.01  # a lift only has to be out of the way
_AT_REST_M_S, _AT_REST_RAD_S = 0.005, 0.03
_STATES_AT_REST = 5
_CREEPING_M_S = 0.02
# Friction and a payload that is not quite right keep an impedance controller short of its goal: the goal is moved on.
_CORRECTION_PER_S = 1.5
_EXTRA_S = 10.0  # beyond what a motion takes at its speed
_REACHED_Q_RAD = 0.01
_JOINT_MOTION_S = 20.0
_STATES_OVER_FORCE = 3


class ResetMotion:
    """Motions of one reset. Each raises RobotError when it does not arrive, RobotFaultError when the arm must stop."""

    def __init__(
        self,
        client: ArmClient,
        options: DeoxysOptions,
        measure_twist: Callable[[ArmState], Array],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._should_stop = should_stop
        self._client = client
        self._options = options
        self._measure_twist = measure_twist
        self._judged_time_s = -np.inf
        self._states_over_force = 0

    def fresh_state(self) -> ArmState:
        """Return a state young enough to act on, after judging its force; waits for one until the fault latches.

        Raises OutageError when a stop was asked for; the arm then holds, or is stopped if it was in joint motion.
        """
        while True:
            if self._should_stop():
                self._client.hold()
                raise OutageError("a stop was asked for while the arm was on its way to a start")
            try:
                state, _ = self._client.state()
            except StaleStateError:
                time.sleep(POLL_S)
                continue
            if state.robot_time_s != self._judged_time_s:
                self._judged_time_s = state.robot_time_s
                self._judge_force(state)
            return state

    def lift(self) -> None:
        """Move straight up by lift_m."""
        if self._options.lift_m > 0.0:
            O_T_EE = self.fresh_state().O_T_EE
            self.move_to(translation(0.0, 0.0, self._options.lift_m) @ O_T_EE, tolerance_m=_LIFTED_M)

    def move_to(self, O_T_EE: Array, tolerance_m: float = _REACHED_M) -> None:
        """Move in a straight line at reset_speed_m_s until the arm is at O_T_EE (4, 4) and at rest."""
        start = self.fresh_state().O_T_EE
        way, turn = pose_difference(start, O_T_EE)
        duration_s = max(
            float(np.linalg.norm(way)) / self._options.reset_speed_m_s, float(np.linalg.norm(turn)) / _TURN_RAD_S, 1e-3
        )
        progress, states_at_rest = 0.0, 0
        shift, turn_shift = np.zeros(3), np.zeros(3)
        last_s = time.monotonic()
        deadline_s = last_s + duration_s + _EXTRA_S
        while True:
            time.sleep(2 * POLL_S)
            state = self.fresh_state()
            step_s, last_s = time.monotonic() - last_s, time.monotonic()
            missing, missing_turn = pose_difference(state.O_T_EE, O_T_EE)
            reference = apply_delta(start, progress * way, progress * turn)
            lead, lead_turn = pose_difference(state.O_T_EE, reference)
            if np.linalg.norm(lead) < _LEAD_M and np.linalg.norm(lead_turn) < _LEAD_RAD:
                progress = min(1.0, progress + step_s / duration_s)
            if progress == 1.0:
                twist = self._measure_twist(state)
                # Not while the arm still comes by itself: the correction would carry it past the goal.
                step_s *= float(np.linalg.norm(twist[:3]) < _CREEPING_M_S)
                shift = _bounded(shift + _CORRECTION_PER_S * step_s * missing, _LEAD_M)
                turn_shift = _bounded(turn_shift + _CORRECTION_PER_S * step_s * missing_turn, _LEAD_RAD)
                is_near = np.linalg.norm(missing) < tolerance_m and np.linalg.norm(missing_turn) < _REACHED_RAD
                states_at_rest = states_at_rest + 1 if is_near and _is_at_rest(twist) else 0
                if states_at_rest >= _STATES_AT_REST:
                    return
            if last_s > deadline_s:
                self._client.hold()
                raise RobotError(
                    f"the arm has not arrived: after {duration_s + _EXTRA_S:.0f} s it is still "
                    f"{np.linalg.norm(missing) * 1e3:.1f} mm and {np.linalg.norm(missing_turn):.3f} rad away (limits "
                    f"{tolerance_m * 1e3:.0f} mm, {_REACHED_RAD} rad). Is something in its way, a joint at its limit, "
                    "or the hand's mass wrong in Desk?"
                )
            self._command(_led(state.O_T_EE, apply_delta(reference, shift, turn_shift)))

    def move_home(self) -> None:
        """Move to home_q in joint space, and hold there under pose control."""
        goal = np.array(self._options.home_q)
        self._client.start_joint_control(self._options.home_q)
        deadline_s = time.monotonic() + _JOINT_MOTION_S
        while True:
            state = self.fresh_state()
            missing = goal - state.q
            if np.abs(missing).max() < _REACHED_Q_RAD and np.abs(state.dq).max() < _AT_REST_RAD_S:
                break
            if time.monotonic() > deadline_s:
                self._client.start_pose_control()
                raise RobotError(
                    f"the arm has not reached deoxys.home_q within {_JOINT_MOTION_S:.0f} s: it misses "
                    f"{np.round(missing, 3).tolist()} rad (limit {_REACHED_Q_RAD} rad a joint)."
                )
            time.sleep(POLL_S)
        self._client.start_pose_control()

    def _judge_force(self, state: ArmState) -> None:
        force_n = float(np.linalg.norm(state.O_F_ext_hat_K[:3]))
        self._states_over_force = self._states_over_force + 1 if force_n > self._options.reset_max_force_n else 0
        if self._states_over_force >= _STATES_OVER_FORCE:
            self._client.hold()
            self._client.latch(
                f"{force_n:.0f} N press on the hand in a reset (limit deoxys.reset_max_force_n = "
                f"{self._options.reset_max_force_n:.0f} N): something is in its way, or the hand's mass in Desk is "
                "wrong. Free the arm."
            )
            raise RobotFaultError(self._client.fault)

    def _command(self, O_T_EE: Array) -> None:
        try:
            self._client.command(O_T_EE)
        except StaleStateError:  # just now: the arm keeps its last goal, and the next state decides
            _log.debug("a goal of a reset was not sent: the state is stale")


def _is_at_rest(twist: Array) -> bool:
    return bool(np.linalg.norm(twist[:3]) < _AT_REST_M_S and np.linalg.norm(twist[3:]) < _AT_REST_RAD_S)


def _bounded(vector: Array, limit: float) -> Array:
    length = float(np.linalg.norm(vector))
    return vector if length <= limit else vector * (limit / length)


def _led(O_T_EE: Array, O_T_goal: Array) -> Array:
    """Return the goal, drawn near enough to the measured pose."""
    lead, turn = pose_difference(O_T_EE, O_T_goal)
    return apply_delta(O_T_EE, _bounded(lead, 2 * _LEAD_M), _bounded(turn, 2 * _LEAD_RAD))
