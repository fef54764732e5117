"""Deoxys' wire format, both directions, against an independent statement of it."""

import numpy as np
import pytest

from robot.backends.deoxys import messages
from robot.backends.deoxys.messages import (
    ArmCommand,
    ArmState,
    Controller,
    GarbledMessageError,
    HandGrasp,
    HandHoming,
    HandMove,
    HandState,
    HandStop,
    Interpolator,
    JointPosition,
    OscGains,
    OscPose,
    RobotMode,
)
from robot.backends.deoxys.schema import ERROR_NAMES, MESSAGES
from robot.interface import Array
from tests.deoxys_fake import schema

GAINS = OscGains(
    translational_stiffness=(110.0, 120.0, 130.0),
    rotational_stiffness=(210.0, 220.0, 230.0),
    residual_mass=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    interpolator=Interpolator.MIN_JERK_POSE,
    time_fraction=0.4,
    is_estimation=True,
    smoothing=(0.5, 0.6, 0.7, 0.8),
)
COMMANDS = [
    ArmCommand(controller=Controller.NO_CONTROL),
    ArmCommand(controller=Controller.NO_CONTROL, termination=True),
    ArmCommand(
        controller=Controller.OSC_POSE,
        goal=OscPose(position=(0.4, -0.1, 0.2), rotvec=(3.1, 0.02, -0.03), is_delta=True, gains=GAINS),
    ),
    ArmCommand(controller=Controller.JOINT_POSITION, goal=JointPosition(q=(0.1, 0.2, 0.3, -2.4, 0.5, 2.6, 0.7))),
]
HAND_COMMANDS = [
    HandMove(width=0.08, speed=0.1),
    HandGrasp(width=0.02, speed=0.05, force=30.0, epsilon_inner=0.01, epsilon_outer=0.07),
    HandStop(),
    HandHoming(),
]


def numbered(*shape: int, first: float) -> Array:
    return first + np.arange(float(np.prod(shape))).reshape(shape)


STATE = ArmState(
    O_T_EE=numbered(4, 4, first=100.0),
    O_T_EE_d=numbered(4, 4, first=200.0),
    F_T_EE=numbered(4, 4, first=300.0),
    q=numbered(7, first=10.0),
    q_d=numbered(7, first=20.0),
    dq=numbered(7, first=30.0),
    tau_J=numbered(7, first=40.0),
    O_F_ext_hat_K=numbered(6, first=50.0),
    K_F_ext_hat_K=numbered(6, first=60.0),
    current_errors=("joint_reflex", "joint_move_in_wrong_direction"),
    last_motion_errors=("communication_constraints_violation",),
    control_command_success_rate=0.97,
    robot_mode=RobotMode.USER_STOPPED,
    robot_time_s=12.345,
    frame=678,
)


def test_every_declared_field_has_the_number_and_the_type_of_the_independent_schema() -> None:
    for name, ours in MESSAGES.items():
        if name in ("Duration", "Errors"):
            continue  # nested there; compared where they are used
        theirs = getattr(schema(), name).DESCRIPTOR
        for field in ours.DESCRIPTOR.fields:
            other = theirs.fields_by_name[field.name]
            is_enumeration = other.enum_type is not None
            assert field.number == other.number, f"{name}.{field.name}"
            assert field.is_repeated == other.is_repeated, f"{name}.{field.name}"
            assert is_enumeration or field.type == other.type, f"{name}.{field.name}"
            if field.message_type is not None:
                assert field.message_type.name == other.message_type.name
    errors = schema().FrankaRobotStateMessage.DESCRIPTOR.nested_types_by_name["Errors"]
    assert tuple(field.name for field in sorted(errors.fields, key=lambda field: field.number)) == ERROR_NAMES
    for enumeration, names in (
        (schema().FrankaControlMessage.ControllerType, Controller),
        (schema().FrankaControlMessage.TrajInterpolatorType, Interpolator),
    ):
        assert dict(enumeration.items()) == {member.name: member.value for member in names}
    modes = dict(schema().FrankaRobotStateMessage.RobotMode.items())
    assert list(modes.values()) == [mode.value for mode in RobotMode]


def test_an_osc_command_reads_the_same_to_deoxys() -> None:
    theirs = schema().FrankaControlMessage.FromString(messages.encode_arm_command(COMMANDS[2]))
    assert (theirs.controller_type, theirs.traj_interpolator_type) == (1, 3)
    assert theirs.traj_interpolator_time_fraction == 0.4
    assert theirs.timeout == 0.2
    assert not theirs.termination
    assert theirs.control_msg.type_url == "type.googleapis.com/FrankaOSCPoseControllerMessage"
    inner = schema().FrankaOSCPoseControllerMessage()
    assert theirs.control_msg.Unpack(inner)
    goal = inner.goal
    assert (goal.is_delta, goal.x, goal.y, goal.z) == (True, 0.4, -0.1, 0.2)
    assert (goal.ax, goal.ay, goal.az) == (3.1, 0.02, -0.03)
    assert list(inner.translational_stiffness) == [110.0, 120.0, 130.0]
    assert list(inner.rotational_stiffness) == [210.0, 220.0, 230.0]
    assert list(inner.config.residual_mass_vec) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    estimator = theirs.state_estimator_msg
    smoothing = schema().ExponentialSmoothingConfig()
    assert (estimator.is_estimation, estimator.estimator_type) == (True, 1)
    assert estimator.config.Unpack(smoothing)
    assert (smoothing.alpha_q, smoothing.alpha_dq, smoothing.alpha_eef, smoothing.alpha_eef_vel) == (0.5, 0.6, 0.7, 0.8)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.controller.name)
def test_a_command_comes_back_as_it_went(command: ArmCommand) -> None:
    assert messages.decode_arm_command(messages.encode_arm_command(command)) == command


def test_a_state_reads_the_same_both_ways() -> None:
    theirs = schema().FrankaRobotStateMessage.FromString(messages.encode_arm_state(STATE))
    np.testing.assert_array_equal(np.array(theirs.O_T_EE).reshape(4, 4).T, STATE.O_T_EE)  # column-major
    for name in ("q", "q_d", "dq", "tau_J", "O_F_ext_hat_K", "K_F_ext_hat_K"):
        assert list(getattr(theirs, name)) == getattr(STATE, name).tolist(), name
    assert [name for name in ERROR_NAMES if getattr(theirs.current_errors, name)] == list(STATE.current_errors)
    assert (theirs.robot_mode, theirs.time.toSec, theirs.time.toMSec, theirs.frame) == (5, 12.345, 12345, 678)
    theirs.dtheta.extend((1.0,) * 7)  # of the fields that we skip
    ours = messages.decode_arm_state(theirs.SerializeToString())
    for name, value in vars(STATE).items():
        np.testing.assert_array_equal(getattr(ours, name), value, err_msg=name)


@pytest.mark.parametrize("command", HAND_COMMANDS, ids=lambda command: type(command).__name__)
def test_a_gripper_command_reads_the_same_both_ways(command: messages.HandCommand) -> None:
    data = messages.encode_hand_command(command)
    assert messages.decode_hand_command(data) == (command, False)
    theirs = schema().FrankaGripperControlMessage.FromString(data)
    name = type(command).__name__.replace("Hand", "")
    inner = getattr(schema(), f"FrankaGripper{name}Message")()
    assert theirs.control_msg.Unpack(inner)
    expected = vars(command) or {name.lower(): True}
    assert {field.name: value for field, value in inner.ListFields()} == expected


def test_a_grippers_state_reads_the_same_both_ways() -> None:
    state = HandState(width=0.03, max_width=0.08, is_grasped=True, temperature=41, robot_time_s=3.25)
    data = messages.encode_hand_state(state)
    theirs = schema().FrankaGripperStateMessage.FromString(data)
    assert (theirs.width, theirs.max_width, theirs.is_grasped, theirs.temperature) == (0.03, 0.08, True, 41)
    assert (theirs.time.toSec, theirs.time.toMSec) == (3.25, 3250)
    assert messages.decode_hand_state(data) == state


def test_garbled_bytes_are_named_as_such_and_nothing_else() -> None:
    rng = np.random.default_rng(3)
    whole = messages.encode_arm_state(STATE)
    for _ in range(500):
        cut = bytearray(whole[: rng.integers(len(whole))])
        with pytest.raises(GarbledMessageError):
            messages.decode_arm_state(bytes(cut))
    for _ in range(500):
        data = bytearray(messages.encode_arm_command(COMMANDS[2]))
        data[rng.integers(len(data))] = rng.integers(256)
        try:
            messages.decode_arm_command(bytes(data))
        except GarbledMessageError:
            continue
    unknown = schema().FrankaRobotStateMessage.FromString(whole)
    unknown.robot_mode = 9
    with pytest.raises(GarbledMessageError, match="robot_mode = 9 is no RobotMode"):
        messages.decode_arm_state(unknown.SerializeToString())
    short = schema().FrankaRobotStateMessage.FromString(whole)
    del short.q[3:]
    with pytest.raises(GarbledMessageError, match=r"q has 3 values, not 7"):
        messages.decode_arm_state(short.SerializeToString())
    mixed = schema().FrankaControlMessage.FromString(messages.encode_arm_command(COMMANDS[3]))
    mixed.controller_type = 1
    with pytest.raises(GarbledMessageError, match="FrankaJointPositionControllerMessage, not the FrankaOSCPose"):
        messages.decode_arm_command(mixed.SerializeToString())
