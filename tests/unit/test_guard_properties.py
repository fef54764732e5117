"""The guard over an arm that records what it is told: for any sequence of actions, states, faults and keys."""

import dataclasses
import logging
import math
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from robot.errors import InterruptionError, RobotFaultError, StaleStateError
from robot.franka import JOINT_MAX, JOINT_MIN, Q_HOME
from robot.guard import CONFIRM_WITHIN_S, DEBOUNCE_STATES, Guard, Mode
from robot.interface import Array, RobotCommand, RobotState, ScenePlacement
from robot.pose import O_R_DOWN, make_pose, rotation_from_rotvec, rotvec_from_rotation
from robot.safety import SafetyConfig

_LOG = logging.getLogger("robot.guard")
CONFIG = SafetyConfig(workspace_min_m=(0.3, -0.2, 0.1), workspace_max_m=(0.7, 0.2, 0.5), max_turn_rad=0.5)
LOW, HIGH = np.array(CONFIG.workspace_min_m), np.array(CONFIG.workspace_max_m)
PERIOD_S = 0.05
PLACEMENT = ScenePlacement(O_T_EE=make_pose(O_R_DOWN, (0.5, 0.0, 0.3)))
FINE = RobotState(
    O_T_EE=PLACEMENT.O_T_EE, O_twist_EE=np.zeros(6), q=Q_HOME, dq=np.zeros(7), tau_J=np.zeros(7),
    O_F_ext_hat_K=np.zeros(6), gripper_width=0.04, robot_time_s=0.0, received_monotonic_s=0.0,
)  # fmt: skip
SMALL = RobotCommand(delta_position=np.array([0.001, 0.0, 0.0]), delta_rotation=np.zeros(3))


def vectors(numbers: st.SearchStrategy[float], size: int = 3) -> st.SearchStrategy[Array]:
    return st.tuples(*[numbers] * size).map(np.array)


anything = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([math.nan, math.inf, -1e308, 0.02, -0.2])
commands = st.builds(
    RobotCommand,
    delta_position=vectors(anything) | vectors(st.floats(-0.05, 0.05)) | st.sampled_from([np.zeros(2), "up", None]),
    delta_rotation=vectors(anything) | vectors(st.floats(-0.2, 0.2)) | st.just(np.zeros((3, 3))),
    gripper_width=st.none() | anything,
)
# Each change alone may be harmless or a reason to stop; several are drawn together.
changes = st.fixed_dictionaries(
    {},
    optional={
        "O_T_EE": st.builds(
            make_pose,
            vectors(st.floats(-0.6, 0.6)).map(lambda turn: rotation_from_rotvec(turn) @ O_R_DOWN),
            st.tuples(st.floats(0.24, 0.76), st.floats(-0.26, 0.26), st.floats(0.04, 0.56)),
        ),
        "q": vectors(st.floats(-0.005, 1.005), 7).map(lambda share: JOINT_MIN + share * (JOINT_MAX - JOINT_MIN)),
        "O_F_ext_hat_K": vectors(st.floats(-40.0, 40.0), 3).map(lambda force: np.append(force, force / 6.0)),
        "O_twist_EE": vectors(st.floats(-0.5, 0.5), 6),
        "dq": vectors(st.floats(-2.0, 2.0), 7),
    },
)
broken = st.sampled_from(["O_T_EE", "O_twist_EE", "q", "dq", "tau_J", "O_F_ext_hat_K"])


class RecordingArm:
    """Does what it is told and keeps it. Says what a rule wants, and has no safety of its own."""

    def __init__(self) -> None:
        self.state = FINE
        self.is_stale = False
        self.fault = self.obstacle = ""
        self.told: list[Any] = []
        self.told_in: list[RobotState] = []  # for each, the state that the caller had seen
        self.seen = FINE

    def connect(self) -> None: ...
    def close(self) -> None: ...
    def advance(self, period_s: float) -> None: ...

    def reset(self, placement: ScenePlacement) -> RobotState:
        self._tell("reset")
        self._refuse()
        self.state = dataclasses.replace(FINE, O_T_EE=placement.O_T_EE)
        self._tell("arrived")
        return self.state

    def read_state(self) -> RobotState:
        self._refuse()
        self.seen = self.state
        return self.state

    def send_command(self, command: RobotCommand) -> None:
        if self.is_stale and not self.fault:
            self._refuse()  # before anything is sent, as drivers do
        self._tell(command)
        self._refuse()

    def stop(self) -> None:
        self._tell("stop")

    def recover(self) -> None:
        if self.obstacle:
            raise RobotFaultError(self.obstacle)
        self.fault = ""

    def _tell(self, what: Any) -> None:
        self.told.append(what)
        self.told_in.append(self.seen)

    def _refuse(self) -> None:
        if self.fault:
            raise RobotFaultError(self.fault)
        if self.is_stale:
            raise StaleStateError(0.2, 0.12)


class GuardedArm(RuleBasedStateMachine):
    """Keeps an account of its own of whether a fault is latched and how far its acknowledgement is."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.arm = RecordingArm()
        self.guard = Guard(self.arm, CONFIG, PERIOD_S, clock=lambda: self.now_s)
        self.is_latched = False
        self.acknowledged_s = -math.inf
        self.forces_in_a_row = 0
        self.is_harmless = True  # the arm's state
        self.checked = 0
        self.was_latched = False  # before the rule that was just run
        _LOG.setLevel(logging.CRITICAL)  # thousands of faults

    @initialize()
    def start(self) -> None:
        self.guard.reset(PLACEMENT)

    # What happens to the arm.

    @rule(change=changes)
    def move(self, change: dict[str, Any]) -> None:
        self.arm.state, self.is_harmless = dataclasses.replace(FINE, **change), not change

    @rule(position=vectors(st.floats(0.0, 1.0)), force=vectors(st.floats(-15.0, 15.0)))
    def work(self, position: Array, force: Array) -> None:
        """Somewhere in the box, touching something: nothing that would stop the arm."""
        self.is_harmless = True
        self.arm.state = dataclasses.replace(
            FINE, O_T_EE=make_pose(O_R_DOWN, LOW + position * (HIGH - LOW)), O_F_ext_hat_K=np.append(force, np.zeros(3))
        )

    @rule(name=broken, value=st.sampled_from([math.nan, math.inf]))
    def garble(self, name: str, value: float) -> None:
        array = getattr(self.arm.state, name).copy()
        array.flat[2] = value
        self.is_harmless = False
        change: dict[str, Any] = {name: array}
        self.arm.state = dataclasses.replace(self.arm.state, **change)

    @rule(is_stale=st.booleans())
    def fall_silent(self, is_stale: bool) -> None:
        self.arm.is_stale = is_stale

    @rule(obstacle=st.sampled_from(["", "the stop button is pressed"]))
    def stop_itself(self, obstacle: str) -> None:
        self.arm.fault, self.arm.obstacle = "reflex", obstacle

    @rule()
    def release(self) -> None:
        """The button is released: the robot itself would go on."""
        self.arm.fault = self.arm.obstacle = ""

    @rule(seconds=st.floats(0.0, 2.0 * CONFIRM_WITHIN_S))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    # What the control loop and people do.

    def _attempt(self, call: Any) -> None:
        before = len(self.arm.told)
        try:
            call()
        except RobotFaultError:
            assert "stop" in self.arm.told[before:] or self.is_latched, "the arm is told to stop as the fault latches"
            self._latched()
        except InterruptionError:
            assert self.guard.mode is Mode.HOLD

    def _latched(self) -> None:
        if not self.is_latched:
            self.acknowledged_s = -math.inf
        self.is_latched = True

    @rule()
    def read(self) -> None:
        was_latched, can_answer = self.is_latched, not (self.arm.fault or self.arm.is_stale)
        self._attempt(self.guard.read_state)
        if was_latched or not can_answer:
            return
        state = self.arm.state
        forces = math.hypot(*state.O_F_ext_hat_K[:3])
        self.forces_in_a_row = self.forces_in_a_row + 1 if forces > CONFIG.max_force_n else 0
        must_stop = (
            not all(np.isfinite(getattr(state, name)).all() for name in vars(state))
            or (state.q < JOINT_MIN).any()
            or (state.q > JOINT_MAX).any()
            or float(np.linalg.norm(state.O_T_EE[:3, 3] - np.clip(state.O_T_EE[:3, 3], LOW, HIGH))) > 0.05
            or self.forces_in_a_row >= DEBOUNCE_STATES
        )
        assert self.is_latched or not must_stop
        assert not (self.is_latched and self.is_harmless)

    @rule(command=commands, is_human=st.booleans(), share=st.sampled_from([1.0, 0.5]))
    def act(self, command: RobotCommand, is_human: bool, share: float) -> None:
        def shorten(gated: RobotCommand) -> RobotCommand:
            return dataclasses.replace(
                gated, delta_position=share * gated.delta_position, delta_rotation=share * gated.delta_rotation
            )

        self._attempt(lambda: self.guard.act(command, is_human=is_human, shorten=shorten))

    @precondition(lambda self: not self.is_latched)
    @rule()
    def work_a_little(self) -> None:
        """Without a fault, from a good state, a small step is sent as it is: a guard that only holds is no guard."""
        self._repair()
        self.guard.read_state()
        self.forces_in_a_row = 0
        self.guard.act(SMALL)
        assert self.arm.told[-1] is SMALL
        assert self.guard.mode is Mode.RUN

    @rule()
    def reset(self) -> None:
        self._attempt(lambda: self.guard.reset(PLACEMENT))
        if not self.is_latched:
            self.forces_in_a_row = 0

    @rule()
    def hold(self) -> None:
        self.guard.hold("pause")
        if not self.is_latched:
            assert self.guard.mode is Mode.HOLD

    @rule()
    def latch(self) -> None:
        self.guard.latch("doctor: wrong robot")
        self._latched()

    @rule()
    def acknowledge(self) -> None:
        self.guard.acknowledge()
        self.acknowledged_s = self.now_s if self.is_latched else -math.inf

    @rule()
    def confirm(self) -> None:
        is_acknowledged = self.now_s - self.acknowledged_s <= CONFIRM_WITHIN_S
        before = len(self.arm.told)
        try:
            is_left = self.guard.confirm()
        except InterruptionError:
            is_left = False
        self.acknowledged_s = -math.inf
        assert not (is_left and not (self.is_latched and is_acknowledged))
        assert all(told == "stop" for told in self.arm.told[before:]), "leaving a fault moves nothing"
        if is_left:
            self.is_latched, self.forces_in_a_row = False, 0

    @rule(times=st.integers(1, DEBOUNCE_STATES + 1))
    def press(self, times: int) -> None:
        """Too much force, for some measurements in a row."""
        self.arm.state = dataclasses.replace(FINE, O_F_ext_hat_K=np.array([0.0, 0.0, 46.0, 0.0, 0.0, 0.0]))
        self.is_harmless = False
        for _ in range(times):
            self.read()

    @precondition(lambda self: self.is_latched)
    @rule(seconds=st.floats(0.1, 10.0))
    def confirm_too_late(self, seconds: float) -> None:
        self._repair()
        self.acknowledge()
        self.now_s += CONFIRM_WITHIN_S + seconds
        self.confirm()
        assert self.is_latched

    @precondition(lambda self: self.is_latched)
    @rule()
    def confirm_where_the_arm_may_not_be(self) -> None:
        self._repair()
        self.arm.state, self.is_harmless = dataclasses.replace(FINE, q=JOINT_MAX + 0.01), False
        self.acknowledge()
        self.confirm()
        assert self.is_latched

    @precondition(lambda self: self.is_latched)
    @rule()
    def confirm_twice_what_was_acknowledged_once(self) -> None:
        self._repair()
        self.arm.obstacle = "the stop button is pressed"
        self.acknowledge()
        self.confirm()
        self._repair()
        self.confirm()
        assert self.is_latched

    def _repair(self) -> None:
        self.arm.fault, self.arm.obstacle, self.arm.is_stale, self.arm.state = "", "", False, FINE
        self.is_harmless = True

    @precondition(lambda self: self.is_latched)
    @rule()
    def leave_the_fault(self) -> None:
        """Once the robot is in order the two steps do lead out of it."""
        self._repair()
        self.acknowledge()
        self.confirm()
        assert not self.is_latched
        assert self.guard.mode is Mode.HOLD

    # What must hold whatever happened.

    @invariant()
    def without_a_driver_the_arm_has_been_told_to_stay(self) -> None:
        if self.guard.mode is Mode.HOLD:
            assert self.arm.told[-1] in ("stop", "arrived")
        elif self.guard.mode is Mode.FAULT:
            assert self.arm.told[-1] == "stop"

    @invariant()
    def the_fault_is_known(self) -> None:
        assert (self.guard.mode is Mode.FAULT) == self.is_latched
        assert bool(self.guard.fault) == self.is_latched

    @invariant()
    def nothing_moved_in_a_fault_and_nothing_moved_too_far(self) -> None:
        for told, state in zip(self.arm.told[self.checked :], self.arm.told_in[self.checked :], strict=True):
            if isinstance(told, RobotCommand):
                assert_bounded(told, state)
        if self.was_latched:
            assert all(told == "stop" for told in self.arm.told[self.checked :])
        self.checked = len(self.arm.told)
        self.was_latched = self.is_latched

    def teardown(self) -> None:
        _LOG.setLevel(logging.NOTSET)


def assert_bounded(sent: RobotCommand, state: RobotState) -> None:
    step, turn = sent.delta_position, sent.delta_rotation
    assert math.hypot(*step) <= min(CONFIG.max_step_m, CONFIG.max_speed_m_s * PERIOD_S) * (1 + 1e-9)  # false for NaN
    assert math.hypot(*turn) <= min(CONFIG.max_step_rad, CONFIG.max_speed_rad_s * PERIOD_S) * (1 + 1e-9)
    assert sent.gripper_width is None or CONFIG.gripper_min_m <= sent.gripper_width <= CONFIG.gripper_max_m
    position = state.O_T_EE[:3, 3]
    if step.any():
        after = position + step
        assert (
            np.abs(after - np.clip(after, LOW, HIGH)) <= np.abs(position - np.clip(position, LOW, HIGH)) + 1e-12
        ).all()
    if turn.any():
        turned = state.O_T_EE[:3, :3] @ O_R_DOWN.T
        angle = math.hypot(*rotvec_from_rotation(turned))
        after_angle = math.hypot(*rotvec_from_rotation(rotation_from_rotvec(turn) @ turned))
        assert after_angle <= max(angle, CONFIG.max_turn_rad) + 1e-9


GuardedArm.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestGuardedArm = GuardedArm.TestCase
