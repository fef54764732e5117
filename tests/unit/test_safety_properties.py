"""The gate near joint limits, in contact and in states that make no sense: for any of them, and any command."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from robot.errors import RobotConfigError
from robot.franka import JOINT_MAX, JOINT_MIN, JOINT_VELOCITY_MAX, Q_HOME, forward_kinematics, jacobian_at
from robot.interface import Array, RobotCommand, RobotState
from robot.joint_limits import JointRoom
from robot.pose import O_R_DOWN, make_pose, rotation_from_rotvec, rotvec_from_rotation, translation
from robot.safety import SafetyConfig, SafetyGate, check_gripper_force

F_T_EE = translation(0.0, 0.0, 0.15)
PERIOD_S = 0.1
CONFIG = SafetyConfig(
    workspace_min_m=(0.3, -0.2, 0.05), workspace_max_m=(0.7, 0.2, 0.5), max_turn_rad=0.5, joint_margin_rad=0.1
)
GATE = SafetyGate(CONFIG)
LOW, HIGH = np.array(CONFIG.workspace_min_m), np.array(CONFIG.workspace_max_m)
# Of a box so large that only the joints matter.
WIDE = dataclasses.replace(
    CONFIG, workspace_min_m=(-2.0, -2.0, -2.0), workspace_max_m=(2.0, 2.0, 2.0), max_turn_rad=math.pi
)
WIDE_GATE = SafetyGate(WIDE)

any_float = st.floats(allow_nan=True, allow_infinity=True)


def vectors(numbers: st.SearchStrategy[float], size: int = 3) -> st.SearchStrategy[Array]:
    return st.tuples(*[numbers] * size).map(np.array)


# Joint angles from a little beyond one limit to a little beyond the other, often within the margin.
shares = st.floats(-0.02, 1.02) | st.floats(-0.02, 0.04) | st.floats(0.96, 1.02)
postures = vectors(shares, 7).map(lambda share: JOINT_MIN + share * (JOINT_MAX - JOINT_MIN))
steps = vectors(st.floats(-0.03, 0.03))
turns = vectors(st.floats(-0.1, 0.1))
poses = st.builds(
    make_pose,
    vectors(st.floats(-0.7, 0.7)).map(lambda turn: rotation_from_rotvec(turn) @ O_R_DOWN),
    vectors(st.floats(-0.3, 0.8)),
)
loads = vectors(st.floats(-60.0, 60.0)) | vectors(st.just(0.0)) | vectors(st.floats(-1e308, 1e308))
wrenches = st.tuples(loads, loads).map(np.concatenate)
senseless = st.sampled_from(
    ["text", None, np.zeros(2), np.zeros((3, 1)), np.array(["a", "b", "c"]), np.zeros(3, complex), np.zeros(0)]
)


def state_of(q: Array, O_T_EE: Array | None = None, wrench: Array | None = None, **other: Any) -> RobotState:
    fields = {
        "O_T_EE": forward_kinematics(q, F_T_EE) if O_T_EE is None else O_T_EE,
        "O_twist_EE": np.zeros(6), "q": q, "dq": np.zeros(7), "tau_J": np.zeros(7),
        "O_F_ext_hat_K": np.zeros(6) if wrench is None else wrench,
        "gripper_width": 0.04, "robot_time_s": 0.0, "received_monotonic_s": 0.0,
    }  # fmt: skip
    return RobotState(**{**fields, **other})


def command_of(step: Any = (0.0, 0.0, 0.0), turn: Any = (0.0, 0.0, 0.0), width: float | None = None) -> RobotCommand:
    return RobotCommand(delta_position=np.asarray(step), delta_rotation=np.asarray(turn), gripper_width=width)


def whole(command: RobotCommand) -> Array:
    return np.concatenate([command.delta_position, command.delta_rotation])


def smallest_joint_step(state: RobotState, step: Array) -> Array:
    """The damped least squares that joint_limits.py states, solved as such rather than by its formula."""
    jacobian = jacobian_at(state.q, state.O_T_EE[:3, 3])
    stacked = np.vstack([jacobian, 0.02 * np.eye(7)])
    joints: Array = np.linalg.lstsq(stacked, np.concatenate([step, np.zeros(7)]), rcond=None)[0]
    return joints


def limits_of(q: Array, margin: float) -> tuple[Array, Array]:
    return np.minimum(JOINT_MIN + margin - q, 0.0), np.maximum(JOINT_MAX - margin - q, 0.0)


def assert_within_every_limit(config: SafetyConfig, state: RobotState, sent: RobotCommand) -> None:
    """Each line states a limit once more, without the gate's own functions."""
    step, turn = sent.delta_position, sent.delta_rotation
    assert math.hypot(*step) <= min(config.max_step_m, config.max_speed_m_s * PERIOD_S) * (1 + 1e-9)  # false for NaN
    assert math.hypot(*turn) <= min(config.max_step_rad, config.max_speed_rad_s * PERIOD_S) * (1 + 1e-9)
    if sent.gripper_width is not None:
        assert config.gripper_min_m <= sent.gripper_width <= config.gripper_max_m
    if not (step.any() or turn.any()):
        return
    low, high = np.array(config.workspace_min_m), np.array(config.workspace_max_m)
    before = state.O_T_EE[:3, 3]
    after = before + step
    outside = [np.maximum(low - point, 0) + np.maximum(point - high, 0) for point in (before, after)]
    assert (outside[1] <= outside[0] + 1e-12).all()
    turned = state.O_T_EE[:3, :3] @ O_R_DOWN.T
    angle = math.hypot(*rotvec_from_rotation(turned))
    angle_after = math.hypot(*rotvec_from_rotation(rotation_from_rotvec(turn) @ turned))
    assert angle_after <= max(config.max_turn_rad, angle) + 1e-9
    lowest, highest = limits_of(state.q, config.joint_margin_rad)
    joints = smallest_joint_step(state, np.concatenate([step, turn]))
    assert (joints >= lowest - 1e-7).all()
    assert (joints <= highest + 1e-7).all()
    force, torque = state.O_F_ext_hat_K[:3] / 1e3, state.O_F_ext_hat_K[3:] / 1e3  # kN: their squares stay finite
    if math.hypot(*force) > config.soft_force_n / 1e3:
        assert float(step @ (force / np.abs(force).max())) >= -1e-9
    if math.hypot(*torque) > config.soft_torque_nm / 1e3:
        assert float(turn @ (torque / np.abs(torque).max())) >= -1e-9


@settings(max_examples=400, deadline=None)
@given(
    postures, poses, wrenches, vectors(any_float) | steps | senseless, vectors(any_float) | turns | senseless,
    st.none() | any_float,
)  # fmt: skip
def test_whatever_is_asked_wherever_the_arm_is_what_is_sent_keeps_every_limit(
    q: Array, O_T_EE: Array, wrench: Array, step: Any, turn: Any, width: float | None
) -> None:
    state = state_of(q, O_T_EE, wrench)
    assert_within_every_limit(CONFIG, state, GATE.apply(state, command_of(step, turn, width), PERIOD_S).command)


@settings(max_examples=300, deadline=None)
@given(postures, steps, turns, wrenches)
def test_where_the_hand_is_where_the_joints_say_it_keeps_them_too(
    q: Array, step: Array, turn: Array, wrench: Array
) -> None:
    state = state_of(q, wrench=wrench)
    assert_within_every_limit(WIDE, state, WIDE_GATE.apply(state, command_of(step, turn), PERIOD_S).command)


@settings(deadline=None)
@given(
    st.sampled_from(["O_T_EE", "q", "O_F_ext_hat_K"]), st.data(), vectors(any_float, 16), vectors(st.floats(-0.1, 0.1))
)
def test_a_measurement_that_makes_no_sense_holds_the_arm(
    name: str, data: st.DataObject, noise: Array, step: Array
) -> None:
    """O_T_EE: any numbers at all; the others are finite or not."""
    state = state_of(Q_HOME, make_pose(O_R_DOWN, (0.5, 0.0, 0.3)))
    shape = getattr(state, name).shape
    assume(name == "O_T_EE" or not np.isfinite(noise[: math.prod(shape)]).all())
    change: dict[str, Any] = {name: noise[: math.prod(shape)].reshape(shape)}
    result = GATE.apply(dataclasses.replace(state, **change), command_of(step), PERIOD_S)
    assert not whole(result.command).any()
    assert result.reasons[0].startswith("malformed: measured ")
    index = data.draw(st.integers(0, 11))  # one broken number in a pose that is right otherwise
    pose = state.O_T_EE.copy()
    pose.flat[index] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf, 1e308]))
    result = GATE.apply(dataclasses.replace(state, O_T_EE=pose), command_of(step), PERIOD_S)
    assert not whole(result.command).any()


@settings(max_examples=300, deadline=None)
@given(postures, steps, turns)
def test_the_way_back_from_a_joints_limit_is_open(q: Array, step: Array, turn: Array) -> None:
    """A step for which every joint that lacks room goes back, or has it, passes as the very same command."""
    q = np.clip(q, JOINT_MIN, JOINT_MAX)
    assume(math.hypot(*step) <= WIDE.max_step_m and math.hypot(*turn) <= WIDE.max_step_rad)
    state = state_of(q)
    lowest, highest = limits_of(q, WIDE.joint_margin_rad)
    joints = smallest_joint_step(state, np.concatenate([step, turn]))
    assume(((joints >= lowest) & (joints <= highest)).all())
    command = command_of(step, turn)
    assert WIDE_GATE.apply(state, command, PERIOD_S).command is command


@settings(deadline=None)
@given(st.integers(0, 6), st.booleans(), steps, turns)
def test_with_one_joint_at_its_margin_only_that_joints_part_goes(
    i: int, is_upper: bool, step: Array, turn: Array
) -> None:
    """The rest is what the least change in joint space leaves: the step without what that joint makes of it."""
    step, turn = 0.2 * step, 0.2 * turn
    q = Q_HOME.copy()
    q[i] = JOINT_MAX[i] - 0.05 if is_upper else JOINT_MIN[i] + 0.05
    state = state_of(q)
    joints = smallest_joint_step(state, np.concatenate([step, turn]))
    further = joints[i] if is_upper else -joints[i]
    assume(further > 1e-6)
    jacobian = jacobian_at(q, state.O_T_EE[:3, 3])
    own_share = smallest_joint_step(state, jacobian[:, i])[i]
    expected = np.concatenate([step, turn]) - jacobian[:, i] * joints[i] / own_share
    assume(math.hypot(*expected[:3]) <= WIDE.max_step_m and math.hypot(*expected[3:]) <= WIDE.max_step_rad)
    lowest, highest = limits_of(q, WIDE.joint_margin_rad)
    others = smallest_joint_step(state, expected)
    assume(((others >= lowest - 1e-12) & (others <= highest + 1e-12)).all())
    result = WIDE_GATE.apply(state, command_of(step, turn), PERIOD_S)
    np.testing.assert_allclose(whole(result.command), expected, atol=1e-9)
    assert result.reasons[0].startswith(f"joint: the step would bring joint {i + 1} ")


def test_with_several_joints_at_their_margins_little_more_than_their_part_goes() -> None:
    """Each joint that the fit stops rests at its margin, pushed against it: what remains is the nearest that fits."""
    rng = np.random.default_rng(0)
    num_cases = num_settled = 0
    for _ in range(400):
        share = np.where(rng.uniform(size=7) < 0.4, rng.choice([0.01, 0.99], 7), rng.uniform(0.1, 0.9, 7))
        q = JOINT_MIN + share * (JOINT_MAX - JOINT_MIN)
        state = state_of(q)
        step = rng.uniform(-1, 1, 6) * np.repeat([0.005, 0.03], 3)
        room = JointRoom(q, state.O_T_EE[:3, 3], 0.1)
        fitted, blocked = room.fit(step)
        if len(blocked) < 2:
            continue
        num_cases += 1
        lowest, highest = limits_of(q, 0.1)
        joints = smallest_joint_step(state, fitted)
        if not (joints >= lowest - 1e-4).all() or not (joints <= highest + 1e-4).all():
            continue
        num_settled += 1
        assert (np.minimum(joints - lowest, highest - joints)[list(blocked)] < 1e-3).all()
        # The nearest point of a convex set: the way there from where it was wanted turns away from all of the set.
        jacobian = jacobian_at(q, state.O_T_EE[:3, 3])
        metric = np.linalg.inv(jacobian @ jacobian.T + 0.02**2 * np.eye(6))
        assert float((step - fitted) @ metric @ -fitted) <= 1e-4
    assert num_cases > 100
    assert num_settled > 0.9 * num_cases


@settings(deadline=None)
@given(vectors(st.floats(-1, 1)), st.floats(25.5, 80.0), steps)
@example(np.array([0.0, 0.0, 1.0]), 45.0, np.array([0.0, 0.0, -0.02]))  # pressing on a table
def test_a_step_under_force_slides_and_backs_off(direction: Array, force: float, step: Array) -> None:
    assume(np.linalg.norm(direction) > 0.1 and np.linalg.norm(step) < 0.015)
    direction = direction / np.linalg.norm(direction)
    state = state_of(Q_HOME, wrench=np.concatenate([force * direction, np.zeros(3)]))
    back_off = CONFIG.back_off_m * min((force - 25.0) / 20.0, 1.0)
    assert (CONFIG.soft_force_n, CONFIG.max_force_n) == (25.0, 45.0)
    sent = WIDE_GATE.apply(state, command_of(step), PERIOD_S).command.delta_position
    assert sent @ direction == pytest.approx(max(step @ direction, back_off), abs=1e-9)
    np.testing.assert_allclose(sent - (sent @ direction) * direction, step - (step @ direction) * direction, atol=1e-9)


def test_a_step_under_torque_turns_with_it() -> None:
    state = state_of(Q_HOME, wrench=np.array([0.0, 0.0, 0.0, 0.0, 0.0, -9.0]))
    sent = WIDE_GATE.apply(state, command_of(turn=(0.02, 0.0, 0.05)), PERIOD_S)
    np.testing.assert_allclose(sent.command.delta_rotation, [0.02, 0.0, -CONFIG.back_off_rad], atol=1e-12)
    assert sent.reasons[0].startswith("wrench: external force 0.0 N (soft limit 25 N), torque 9.0 N m")


def test_a_contact_at_the_wall_of_the_box_does_not_push_the_arm_out() -> None:
    pose = make_pose(O_R_DOWN, (HIGH[0], 0.0, 0.3))
    state = state_of(Q_HOME, pose, np.array([60.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    assert not GATE.apply(state, command_of((-0.01, 0.0, 0.0)), PERIOD_S).command.delta_position.any()


def test_the_hand_turns_no_further_than_allowed_and_back() -> None:
    turned = make_pose(rotation_from_rotvec([0.48, 0.0, 0.0]) @ O_R_DOWN, (0.5, 0.0, 0.3))
    state = state_of(Q_HOME, turned)
    further = GATE.apply(state, command_of(turn=(0.05, 0.0, 0.0)), PERIOD_S)
    np.testing.assert_allclose(further.command.delta_rotation, [0.02, 0.0, 0.0], atol=1e-9)
    assert further.reasons == ("turn: target 0.530 rad from straight down is beyond 0.5 rad",)
    back = command_of(turn=(-0.05, 0.0, 0.0))
    assert GATE.apply(state, back, PERIOD_S).command is back


FINE = state_of(Q_HOME, make_pose(O_R_DOWN, (0.5, 0.0, 0.3)))


@pytest.mark.parametrize(
    ("change", "reason", "is_debounced"),
    [
        ({"q": np.where(np.arange(7) == 3, -3.08, Q_HOME)}, "joint: joint 4 is at -3.0800 rad", False),
        ({"O_T_EE": make_pose(O_R_DOWN, (0.7 + 0.051, 0.0, 0.3))}, "workspace: EE at [0.751, 0.0, 0.3] m", False),
        ({"O_T_EE": make_pose(O_R_DOWN, (0.7 + 0.049, 0.0, 0.3))}, "", False),
        ({"O_F_ext_hat_K": np.array([30.0, 0.0, 34.0, 0.0, 0.0, 0.0])}, "wrench: external force 45.3 N", True),
        ({"O_F_ext_hat_K": np.array([0.0, 0.0, 44.0, 0.0, 8.0, 0.0])}, "", False),
        ({"O_F_ext_hat_K": np.array([0.0, 0.0, 0.0, 0.0, 9.1, 0.0])}, "wrench: external force 0.0 N", True),
        ({"O_twist_EE": np.array([0.5, 0.4, 0.0, 0.0, 0.0, 0.0])}, "speed: EE moves at 0.64 m/s", True),
        ({"O_twist_EE": np.array([0.0, 0.0, 0.0, 0.0, 2.1, 0.0])}, "speed: EE moves at 0.00 m/s", True),
        ({"dq": -0.71 * JOINT_VELOCITY_MAX * (np.arange(7) == 5)}, "speed: joint 6 moves at -1.85 rad/s", True),
        ({"dq": 0.69 * JOINT_VELOCITY_MAX}, "", False),
    ],
)  # fmt: skip
def test_a_state_in_which_the_arm_has_to_stop(change: dict[str, Any], reason: str, is_debounced: bool) -> None:
    violation = GATE.violation(dataclasses.replace(FINE, **change))
    if not reason:
        assert violation is None
        return
    assert violation is not None
    assert violation.reason.startswith(reason)
    assert violation.is_debounced is is_debounced


@settings(deadline=None)
@given(st.sampled_from(["O_T_EE", "O_twist_EE", "q", "dq", "tau_J", "O_F_ext_hat_K", "gripper_width", "robot_time_s"]),
       st.integers(0, 15), st.sampled_from([math.nan, math.inf, -math.inf]), loads)  # fmt: skip
def test_no_field_may_be_anything_but_finite(name: str, index: int, value: float, load: Array) -> None:
    broken = np.array(getattr(FINE, name), dtype=float)
    broken.flat[index % broken.size] = value
    state = dataclasses.replace(FINE, O_F_ext_hat_K=np.concatenate([load, load]), dq=np.full(7, load[0]))
    change: dict[str, Any] = {name: broken if broken.ndim else float(broken)}
    violation = GATE.violation(dataclasses.replace(state, **change))
    assert violation is not None
    assert violation.reason.startswith(f"malformed: measured {name} = ")
    assert not violation.is_debounced


@pytest.mark.parametrize(
    "change",
    [
        {"soft_force_n": 46.0}, {"max_torque_nm": math.inf}, {"joint_margin_rad": 0.0}, {"joint_margin_rad": 0.6},
        {"workspace_tolerance_m": -0.01}, {"max_measured_speed_m_s": math.nan}, {"back_off_m": math.inf},
        {"max_joint_speed_fraction": 0.0}, {"max_gripper_force_n": 0.0}, {"max_turn_rad": 0.0},
    ],
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(
        RobotConfigError, match=next(iter(change)).removesuffix("_n").removesuffix("_nm").split("_")[-1]
    ):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize("force_n", [60.1, math.nan])
def test_a_gripper_set_to_grip_too_hard_is_refused(force_n: float) -> None:
    check_gripper_force(CONFIG, 60.0)
    with pytest.raises(RobotConfigError, match="max_gripper_force_n"):
        check_gripper_force(CONFIG, force_n)


def test_every_limit_can_be_set() -> None:
    """Tightened one at a time, each changes what the gate does somewhere: none is forgotten in the code."""
    tight: dict[str, Any] = {
        "workspace_tolerance_m": 0.01, "max_step_m": 0.001, "max_step_rad": 0.001, "max_turn_rad": 0.1,
        "max_speed_m_s": 0.01, "max_speed_rad_s": 0.01, "max_measured_speed_m_s": 0.01,
        "max_measured_speed_rad_s": 0.01, "max_joint_speed_fraction": 0.01, "joint_margin_rad": 0.4,
        "soft_force_n": 1.0, "max_force_n": 26.0, "soft_torque_nm": 1.0, "max_torque_nm": 5.5, "back_off_m": 0.0001,
        "back_off_rad": 0.0001, "gripper_min_m": 0.02, "gripper_max_m": 0.03, "max_gripper_force_n": 10.0,
        "workspace_min_m": (0.4, -0.1, 0.2), "workspace_max_m": (0.6, 0.1, 0.4),
    }  # fmt: skip
    assert set(tight) == {field.name for field in dataclasses.fields(SafetyConfig)}
    q = Q_HOME.copy()
    q[5] = JOINT_MAX[5] - 0.3
    turned = make_pose(rotation_from_rotvec([0.09, 0.0, 0.0]) @ O_R_DOWN, (0.6, 0.0, 0.2))
    moving = {"O_twist_EE": np.full(6, 0.1), "dq": np.full(7, 0.1)}
    states = [
        state_of(Q_HOME, turned, **moving),
        state_of(q, turned),
        state_of(Q_HOME, make_pose(O_R_DOWN, (0.72, 0.0, 0.3))),
        state_of(Q_HOME, turned, np.array([0.0, 30.0, 0.0, 6.0, 0.0, 0.0])),
    ]
    commands = [
        command_of(sign * np.array([0.015, 0.0, -0.005]), (sign * 0.03, sign * 0.03, 0.0), width)
        for sign, width in itertools.product((-1, 1), (0.0, 0.08))
    ]

    def behaviour(config: SafetyConfig) -> list[Any]:
        gate = SafetyGate(config)
        try:
            check_gripper_force(config, 30.0)
        except RobotConfigError:
            return ["gripper force"]
        results = [gate.apply(state, command, PERIOD_S) for state in states for command in commands]
        violations = [gate.violation(state) for state in states]
        return [(whole(r.command).tolist(), r.command.gripper_width) for r in results] + [bool(v) for v in violations]

    normal = behaviour(CONFIG)
    for name, value in tight.items():
        assert behaviour(dataclasses.replace(CONFIG, **{name: value})) != normal, name
