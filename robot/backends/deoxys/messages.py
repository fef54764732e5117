"""Deoxys' messages, both directions: what the PC commands and what the controller on the NUC reports.

Each kind is a frozen dataclass with an encoder and a decoder. Decoders raise GarbledMessageError and nothing else.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from robot.backends.deoxys.schema import MESSAGES
from robot.errors import RobotError
from robot.interface import Array

_TYPE_URL = "type.googleapis.com/"
COMMAND_TIMEOUT_S = 0.2  # what Deoxys' own client puts in `timeout`; its controller stores it and never looks at it


_Enumeration = TypeVar("_Enumeration", bound=IntEnum)


class GarbledMessageError(RobotError):
    """Bytes from the network that are not the expected message."""


class Controller(IntEnum):
    """FrankaControlMessage.controller_type."""

    NO_CONTROL = 0
    OSC_POSE = 1
    OSC_POSITION = 2
    JOINT_POSITION = 3
    JOINT_IMPEDANCE = 4
    JOINT_VELOCITY = 5
    TORQUE = 6
    OSC_YAW = 7
    CARTESIAN_VELOCITY = 8


class Interpolator(IntEnum):
    """FrankaControlMessage.traj_interpolator_type."""

    NO_OP = 0
    LINEAR_POSITION = 1
    LINEAR_POSE = 2
    MIN_JERK_POSE = 3
    SMOOTH_JOINT_POSITION = 4
    MIN_JERK_JOINT_POSITION = 5
    LINEAR_JOINT_POSITION = 6
    COSINE_CARTESIAN_VELOCITY = 7
    LINEAR_CARTESIAN_VELOCITY = 8


class RobotMode(IntEnum):
    """FrankaRobotStateMessage.robot_mode, as in libfranka."""

    OTHER = 0
    IDLE = 1
    MOVE = 2
    GUIDING = 3
    REFLEX = 4
    USER_STOPPED = 5
    AUTOMATIC_ERROR_RECOVERY = 6


@dataclass(frozen=True, kw_only=True)
class ArmState:
    """One FrankaRobotStateMessage, with libfranka's names and units: poses (4, 4), joints (7,), wrenches (6,)."""

    O_T_EE: Array
    O_T_EE_d: Array
    F_T_EE: Array
    q: Array
    q_d: Array
    dq: Array
    tau_J: Array
    O_F_ext_hat_K: Array
    K_F_ext_hat_K: Array
    current_errors: tuple[str, ...] = ()  # of ERROR_NAMES
    last_motion_errors: tuple[str, ...] = ()
    control_command_success_rate: float = 1.0
    robot_mode: RobotMode
    robot_time_s: float  # of the robot, growing with each 1 ms cycle; stands still while nothing controls the arm
    frame: int  # messages since the control process on the NUC started; grows even while the state stands still


@dataclass(frozen=True, kw_only=True)
class HandState:
    """One FrankaGripperStateMessage, of a Franka Hand."""

    width: float  # m
    max_width: float  # m, since its last homing
    is_grasped: bool
    temperature: int = 0
    robot_time_s: float


@dataclass(frozen=True, kw_only=True)
class OscGains:
    """What OSC_POSE is commanded with besides its goal."""

    translational_stiffness: tuple[float, ...] = (150.0, 150.0, 150.0)  # 1/s^2: Deoxys multiplies by the moving mass
    rotational_stiffness: tuple[float, ...] = (250.0, 250.0, 250.0)  # 1/s^2
    residual_mass: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.1, 0.5, 0.5)  # kg m^2, added to the joints' inertias
    interpolator: Interpolator = Interpolator.LINEAR_POSE
    time_fraction: float = 0.3  # of a policy period, in which the interpolator reaches a new goal
    is_estimation: bool = False  # smoothing of the measured state inside the controller
    smoothing: tuple[float, ...] = (0.9, 0.9, 1.0, 1.0)  # alpha of q, dq, EE pose, EE velocity


@dataclass(frozen=True, kw_only=True)
class OscPose:
    """An OSC_POSE goal: a pose in O, or with is_delta a step from the pose that the controller measures."""

    position: tuple[float, float, float]  # m
    rotvec: tuple[float, float, float]  # rad
    is_delta: bool = False
    gains: OscGains = OscGains()


@dataclass(frozen=True, kw_only=True)
class JointPosition:
    """A JOINT_POSITION goal, rad."""

    q: tuple[float, ...]
    is_delta: bool = False
    interpolator: Interpolator = Interpolator.SMOOTH_JOINT_POSITION
    time_fraction: float = 0.3


@dataclass(frozen=True, kw_only=True)
class ArmCommand:
    """One FrankaControlMessage."""

    controller: Controller
    goal: OscPose | JointPosition | None = None  # None: NO_CONTROL, or a controller that nothing here uses
    termination: bool = False


@dataclass(frozen=True, kw_only=True)
class HandMove:
    """Open or close without holding anything."""

    width: float  # m
    speed: float  # m/s


@dataclass(frozen=True, kw_only=True)
class HandGrasp:
    """Close until something is held."""

    width: float  # m, of what is expected
    speed: float  # m/s
    force: float  # N
    epsilon_inner: float  # m, how much narrower or
    epsilon_outer: float  # wider it may be to count as held


@dataclass(frozen=True, kw_only=True)
class HandStop:
    """Deoxys' gripper node first stops and then *homes*, which opens the fingers: it confuses the two messages."""


@dataclass(frozen=True, kw_only=True)
class HandHoming:
    """Deoxys' gripper node cannot unpack this one."""


HandCommand = HandMove | HandGrasp | HandStop | HandHoming

_SMOOTHING_FIELDS = ("alpha_q", "alpha_dq", "alpha_eef", "alpha_eef_vel")
_POSES = ("O_T_EE", "O_T_EE_d", "F_T_EE")
_VECTORS = {"q": 7, "q_d": 7, "dq": 7, "tau_J": 7, "O_F_ext_hat_K": 6, "K_F_ext_hat_K": 6}
_HAND_MESSAGES: dict[type[Any], Any] = {
    HandMove: MESSAGES["FrankaGripperMoveMessage"],
    HandGrasp: MESSAGES["FrankaGripperGraspMessage"],
    HandStop: MESSAGES["FrankaGripperStopMessage"],
    HandHoming: MESSAGES["FrankaGripperHomingMessage"],
}
_HAND_FLAGS: dict[type[Any], dict[str, bool]] = {HandStop: {"stop": True}, HandHoming: {"homing": True}}


def _pack(container: Any, message: Any) -> None:
    container.type_url = _TYPE_URL + message.DESCRIPTOR.name
    container.value = message.SerializeToString()


def _parse(message_name: str, data: bytes) -> Any:
    message = MESSAGES[message_name]()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise GarbledMessageError(f"{len(data)} bytes are not a {message_name}: {error}") from error
    return message


def _unpack(container: Any) -> Any:
    """Return the message inside an Any. Raises GarbledMessageError for a type that is not in the schema."""
    prefix, _, name = container.type_url.rpartition("/")
    if f"{prefix}/" != _TYPE_URL or name not in MESSAGES:
        raise GarbledMessageError(f"a command holds {container.type_url!r}, which is none of Deoxys' messages in use")
    return _parse(name, container.value)


def _vector(message: Any, name: str, length: int) -> Array:
    values = np.array(getattr(message, name), dtype=np.float64)
    if values.shape != (length,):
        raise GarbledMessageError(f"{message.DESCRIPTOR.name}.{name} has {values.size} values, not {length}")
    return values


def _triple(message: Any, names: str) -> tuple[float, float, float]:
    first, second, third = (getattr(message, name) for name in names.split())
    return first, second, third


def _enumerated(message: Any, name: str, kind: type[_Enumeration]) -> _Enumeration:
    number = getattr(message, name)
    try:
        return kind(number)
    except ValueError as error:
        raise GarbledMessageError(f"{message.DESCRIPTOR.name}.{name} = {number} is no {kind.__name__}") from error


def encode_arm_command(command: ArmCommand) -> bytes:
    """Return the FrankaControlMessage: NO_CONTROL without a goal, OSC_POSE or JOINT_POSITION with theirs."""
    message = MESSAGES["FrankaControlMessage"](
        termination=command.termination,
        controller_type=command.controller,
        timeout=COMMAND_TIMEOUT_S,
    )
    if command.goal is None:
        _pack(message.control_msg, MESSAGES["FrankaDummyControllerMessage"]())
        return bytes(message.SerializeToString())
    goal = command.goal
    gains = goal.gains if isinstance(goal, OscPose) else OscGains()
    interpolation = gains if isinstance(goal, OscPose) else goal
    message.traj_interpolator_type = interpolation.interpolator
    message.traj_interpolator_time_fraction = interpolation.time_fraction
    message.state_estimator_msg.is_estimation = gains.is_estimation
    message.state_estimator_msg.estimator_type = 1  # without one the controller dereferences a null pointer
    smoothing = dict(zip(_SMOOTHING_FIELDS, gains.smoothing, strict=True))
    _pack(message.state_estimator_msg.config, MESSAGES["ExponentialSmoothingConfig"](**smoothing))
    if isinstance(goal, OscPose):
        inner = MESSAGES["FrankaOSCPoseControllerMessage"](
            translational_stiffness=gains.translational_stiffness, rotational_stiffness=gains.rotational_stiffness
        )
        inner.goal.x, inner.goal.y, inner.goal.z = goal.position
        inner.goal.ax, inner.goal.ay, inner.goal.az = goal.rotvec
        inner.config.residual_mass_vec.extend(gains.residual_mass)
    else:
        inner = MESSAGES["FrankaJointPositionControllerMessage"](speed_factor=0.1)  # ignored by the controller
        for joint, angle in enumerate(goal.q, 1):
            setattr(inner.goal, f"q{joint}", angle)
    inner.goal.is_delta = goal.is_delta
    _pack(message.control_msg, inner)
    return bytes(message.SerializeToString())


def decode_arm_command(data: bytes) -> ArmCommand:
    """Return what a FrankaControlMessage commands. Of controllers that are not in use only the type is read."""
    message = _parse("FrankaControlMessage", data)
    controller = _enumerated(message, "controller_type", Controller)
    interpolator = _enumerated(message, "traj_interpolator_type", Interpolator)
    goal: OscPose | JointPosition | None = None
    if controller is Controller.OSC_POSE:
        goal = _decode_osc_pose(message, interpolator)
    elif controller is Controller.JOINT_POSITION:
        inner = _unpack_as(message.control_msg, "FrankaJointPositionControllerMessage")
        q = tuple(getattr(inner.goal, f"q{joint}") for joint in range(1, 8))
        goal = JointPosition(
            q=q,
            is_delta=inner.goal.is_delta,
            interpolator=interpolator,
            time_fraction=message.traj_interpolator_time_fraction,
        )
    return ArmCommand(controller=controller, goal=goal, termination=message.termination)


def _unpack_as(container: Any, name: str) -> Any:
    message = _unpack(container)
    if message.DESCRIPTOR.name != name:
        raise GarbledMessageError(f"a command holds a {message.DESCRIPTOR.name}, not the {name} that its type asks for")
    return message


def _decode_osc_pose(message: Any, interpolator: Interpolator) -> OscPose:
    inner = _unpack_as(message.control_msg, "FrankaOSCPoseControllerMessage")
    estimator = message.state_estimator_msg
    smoothing = OscGains().smoothing
    if estimator.config.type_url:
        config = _unpack_as(estimator.config, "ExponentialSmoothingConfig")
        smoothing = tuple(getattr(config, name) for name in _SMOOTHING_FIELDS)
    gains = OscGains(
        translational_stiffness=tuple(_vector(inner, "translational_stiffness", 3).tolist()),
        rotational_stiffness=tuple(_vector(inner, "rotational_stiffness", 3).tolist()),
        residual_mass=tuple(_vector(inner.config, "residual_mass_vec", 7).tolist()),
        interpolator=interpolator,
        time_fraction=message.traj_interpolator_time_fraction,
        is_estimation=estimator.is_estimation,
        smoothing=smoothing,
    )
    return OscPose(
        position=_triple(inner.goal, "x y z"),
        rotvec=_triple(inner.goal, "ax ay az"),
        is_delta=inner.goal.is_delta,
        gains=gains,
    )


def encode_arm_state(state: ArmState) -> bytes:
    """Return the FrankaRobotStateMessage."""
    message = MESSAGES["FrankaRobotStateMessage"](
        control_command_success_rate=state.control_command_success_rate,
        robot_mode=state.robot_mode,
        frame=state.frame,
    )
    for name in _POSES:
        getattr(message, name).extend(getattr(state, name).T.ravel().tolist())  # column-major
    for name in _VECTORS:
        getattr(message, name).extend(getattr(state, name).tolist())
    for name in ("current_errors", "last_motion_errors"):
        errors = getattr(message, name)
        errors.SetInParent()
        for error in getattr(state, name):
            setattr(errors, error, True)
    message.time.toSec = state.robot_time_s
    message.time.toMSec = round(max(state.robot_time_s, 0.0) * 1e3)
    return bytes(message.SerializeToString())


def decode_arm_state(data: bytes) -> ArmState:
    """Return the robot's state. Its values are not judged: they may be zeros or not finite.

    Raises GarbledMessageError for a message without a time or a frame number. Those are its last fields: one that was
    cut off would otherwise look like the first state of a control process that has started again, number 0.
    """
    message = _parse("FrankaRobotStateMessage", data)
    if not message.HasField("time") or message.frame == 0:
        raise GarbledMessageError("a robot state without its last fields, time and frame: cut off, or the first of all")
    values = {name: _vector(message, name, 16).reshape(4, 4).T.copy() for name in _POSES}
    values |= {name: _vector(message, name, length) for name, length in _VECTORS.items()}
    return ArmState(
        **values,
        current_errors=_error_names(message.current_errors),
        last_motion_errors=_error_names(message.last_motion_errors),
        control_command_success_rate=message.control_command_success_rate,
        robot_mode=_enumerated(message, "robot_mode", RobotMode),
        robot_time_s=message.time.toSec,
        frame=message.frame,
    )


def _error_names(errors: Any) -> tuple[str, ...]:
    return tuple(field.name for field, _ in errors.ListFields())


def encode_hand_command(command: HandCommand | None, termination: bool = False) -> bytes:
    """Return the FrankaGripperControlMessage; without a command it only terminates."""
    message = MESSAGES["FrankaGripperControlMessage"](termination=termination)
    if command is not None:
        _pack(message.control_msg, _HAND_MESSAGES[type(command)](**_HAND_FLAGS.get(type(command), vars(command))))
    return bytes(message.SerializeToString())


def decode_hand_command(data: bytes) -> tuple[HandCommand | None, bool]:
    """Return the command, None for none, and whether the gripper's node is told to terminate."""
    message = _parse("FrankaGripperControlMessage", data)
    if not message.control_msg.type_url:
        return None, message.termination
    inner = _unpack(message.control_msg)
    for kind, message_class in _HAND_MESSAGES.items():
        if isinstance(inner, message_class):
            values = {} if kind in _HAND_FLAGS else {name: getattr(inner, name) for name in kind.__dataclass_fields__}
            return kind(**values), message.termination
    raise GarbledMessageError(f"a gripper is commanded with a {inner.DESCRIPTOR.name}")


def encode_hand_state(state: HandState) -> bytes:
    """Return the FrankaGripperStateMessage."""
    message = MESSAGES["FrankaGripperStateMessage"](
        width=state.width, max_width=state.max_width, is_grasped=state.is_grasped, temperature=state.temperature
    )
    message.time.toSec = state.robot_time_s
    message.time.toMSec = round(max(state.robot_time_s, 0.0) * 1e3)
    return bytes(message.SerializeToString())


def decode_hand_state(data: bytes) -> HandState:
    """Return a Franka Hand's state."""
    message = _parse("FrankaGripperStateMessage", data)
    return HandState(
        width=message.width,
        max_width=message.max_width,
        is_grasped=message.is_grasped,
        temperature=message.temperature,
        robot_time_s=message.time.toSec,
    )
