"""The safety gate: properties that hold for every command and state, and what it says about each intervention."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from robot.errors import RobotConfigError
from robot.franka import Q_HOME
from robot.interface import Array, RobotCommand, RobotState
from robot.pose import O_R_DOWN, make_pose
from robot.safety import SafetyConfig, SafetyGate

CONFIG = SafetyConfig(workspace_min_m=(0.3, -0.2, 0.05), workspace_max_m=(0.7, 0.2, 0.5))
LOW, HIGH = np.array(CONFIG.workspace_min_m), np.array(CONFIG.workspace_max_m)
GATE = SafetyGate(CONFIG)
PERIOD_S = 0.1
ROUNDING = 1 + 1e-12

anything = st.floats(allow_nan=True, allow_infinity=True)
finite = st.one_of(st.floats(-0.1, 0.1), st.floats(allow_nan=False, allow_infinity=False))


def triples(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Array]:
    return st.tuples(numbers, numbers, numbers).map(np.array)


positions = triples(st.floats(-1.0, 1.0))
widths = st.none() | finite
periods = st.floats(0.005, 1.0)


def state_at(position: Any) -> RobotState:
    zeros = np.zeros(7)
    return RobotState(
        O_T_EE=make_pose(O_R_DOWN, position), O_twist_EE=np.zeros(6), q=Q_HOME, dq=zeros, tau_J=zeros,
        O_F_ext_hat_K=np.zeros(6), gripper_width=0.04, robot_time_s=0.0, received_monotonic_s=0.0,
    )  # fmt: skip


def command_of(step: Any = (0, 0, 0), turn: Any = (0, 0, 0), width: float | None = None) -> RobotCommand:
    return RobotCommand(delta_position=np.asarray(step), delta_rotation=np.asarray(turn), gripper_width=width)


@settings(deadline=None)
@given(positions, triples(anything), triples(anything), st.none() | anything, periods)
def test_what_is_sent_is_finite_and_within_every_cap(
    position: Array, step: Array, turn: Array, width: float | None, period_s: float
) -> None:
    sent = GATE.apply(state_at(position), command_of(step, turn, width), period_s).command
    length, angle = math.hypot(*sent.delta_position), math.hypot(*sent.delta_rotation)
    assert length <= min(CONFIG.max_step_m, CONFIG.max_speed_m_s * period_s) * ROUNDING  # false for NaN too
    assert angle <= min(CONFIG.max_step_rad, CONFIG.max_speed_rad_s * period_s) * ROUNDING
    if sent.gripper_width is not None:
        assert CONFIG.gripper_min_m <= sent.gripper_width <= CONFIG.gripper_max_m


@settings(deadline=None)
@given(positions, triples(finite), periods)
def test_no_step_leaves_the_box_or_leads_further_out_of_it(position: Array, step: Array, period_s: float) -> None:
    sent = GATE.apply(state_at(position), command_of(step), period_s).command
    target = position + sent.delta_position
    outside_before = np.maximum(LOW - position, 0) + np.maximum(position - HIGH, 0)  # per axis, 0 inside
    outside_after = np.maximum(LOW - target, 0) + np.maximum(target - HIGH, 0)
    assert (outside_after <= outside_before + 1e-15).all()


@settings(deadline=None)
@given(triples(st.floats(-0.01, 0.01)), triples(st.floats(-0.05, 0.05)), st.none() | st.floats(0.0, 0.085))
def test_a_command_within_all_limits_passes_untouched(step: Array, turn: Array, width: float | None) -> None:
    command = command_of(step, turn, width)
    result = GATE.apply(state_at((0.5, 0.0, 0.3)), command, PERIOD_S)
    assert result.command is command
    assert result.reasons == ()


@settings(deadline=None)
@given(triples(st.floats(-1.0, 1.0)))
def test_a_shortened_step_keeps_its_direction(step: Array) -> None:
    assume(np.linalg.norm(step) > CONFIG.max_step_m * ROUNDING)
    result = GATE.apply(state_at((0.5, 0.0, 0.3)), command_of(step), PERIOD_S)
    sent = result.command.delta_position
    np.testing.assert_allclose(sent / np.linalg.norm(sent), step / np.linalg.norm(step), atol=1e-12)
    assert np.linalg.norm(sent) == pytest.approx(CONFIG.max_step_m)
    assert [reason.partition(":")[0] for reason in result.reasons] == ["translation"]


def test_the_arm_slides_along_a_wall() -> None:
    result = GATE.apply(state_at((0.695, 0.0, 0.3)), command_of((0.01, 0.01, 0.0)), PERIOD_S)
    np.testing.assert_allclose(result.command.delta_position, [0.005, 0.01, 0.0])
    assert result.reasons[0].startswith("workspace: target [0.705, 0.01, 0.3] m leaves the box")


def test_from_outside_the_way_back_is_open_and_not_forced() -> None:
    outside = state_at((0.75, 0.0, 0.3))
    back = GATE.apply(outside, command_of((-0.01, 0.0, 0.0)), PERIOD_S)
    assert back.command.delta_position[0] == -0.01
    still = GATE.apply(outside, command_of((0.0, 0.0, 0.0)), PERIOD_S)
    assert not still.command.delta_position.any()


def test_a_short_period_tightens_the_cap_through_the_speed() -> None:
    sent = GATE.apply(state_at((0.5, 0.0, 0.3)), command_of((0.02, 0, 0), (0, 0, 0.1)), period_s=0.02).command
    assert sent.delta_position[0] == pytest.approx(CONFIG.max_speed_m_s * 0.02)
    assert sent.delta_rotation[2] == pytest.approx(CONFIG.max_speed_rad_s * 0.02)


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (command_of((math.nan, 0, 0)), "delta_position"),
        (command_of((0, 0, 0), (0, math.inf, 0)), "delta_rotation"),
        (command_of((0, 0)), "shape"),
        (command_of(np.array(["a", "b", "c"])), "type"),
        (command_of(width=math.nan), "gripper_width"),
    ],
)
def test_a_malformed_command_becomes_a_hold_and_says_why(command: RobotCommand, named: str) -> None:
    result = GATE.apply(state_at((0.5, 0.0, 0.3)), command, PERIOD_S)
    assert not result.command.delta_position.any()
    assert not result.command.delta_rotation.any()
    assert result.command.gripper_width is None
    assert result.reasons[0].startswith("malformed: ")
    assert named in result.reasons[0]


def test_an_unknown_position_holds_the_arm() -> None:
    result = GATE.apply(state_at((math.nan, 0.0, 0.3)), command_of((0.01, 0, 0)), PERIOD_S)
    assert not result.command.delta_position.any()
    assert "measured position" in result.reasons[0]


@settings(deadline=None)
@given(positions, triples(finite), triples(finite), widths)
def test_the_gate_changes_nothing_the_second_time(
    position: Array, step: Array, turn: Array, width: float | None
) -> None:
    once = GATE.apply(state_at(position), command_of(step, turn, width), PERIOD_S).command
    twice = GATE.apply(state_at(position), once, PERIOD_S).command
    np.testing.assert_allclose(twice.delta_position, once.delta_position, rtol=1e-12)
    np.testing.assert_allclose(twice.delta_rotation, once.delta_rotation, rtol=1e-12)
    assert twice.gripper_width == once.gripper_width


@pytest.mark.parametrize(
    "change",
    [
        {"workspace_min_m": (0.7, -0.2, 0.05)},
        {"workspace_max_m": (0.7, math.inf, 0.5)},
        {"max_step_m": 0.0},
        {"max_speed_rad_s": math.nan},
        {"gripper_max_m": -1.0},
    ],
)
def test_limits_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RobotConfigError):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize("period_s", [0.0, -0.1, math.nan])
def test_a_period_that_is_not_positive_is_refused(period_s: float) -> None:
    with pytest.raises(RobotConfigError, match="control period"):
        GATE.apply(state_at((0.5, 0.0, 0.3)), command_of(), period_s)
