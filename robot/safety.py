"""The safety gate: every command, from the policy or a person, passes it before it reaches a robot. Pure.

docs/safety.md says what it does and does not protect against.
"""

import math
from dataclasses import dataclass

import numpy as np

from robot.contact import pushes_against, yield_to
from robot.errors import RobotConfigError
from robot.franka import JOINT_MAX, JOINT_MIN, JOINT_VELOCITY_MAX
from robot.interface import Array, RobotCommand, RobotState
from robot.joint_limits import JointRoom
from robot.pose import O_R_DOWN, is_rotation, rotation_from_rotvec, rotvec_from_rotation


@dataclass(frozen=True, kw_only=True)
class SafetyConfig:
    """Limits on every command and state. SI units; the box holds the position of EE in O.

    The robot's own collision thresholds are 100 N and 100 N m under Deoxys: these are the ones that act.
    """

    workspace_min_m: tuple[float, float, float]
    workspace_max_m: tuple[float, float, float]
    workspace_tolerance_m: float = 0.05
    """Farther outside the box than this, the arm is stopped."""
    max_step_m: float = 0.02
    """Per control period, whatever its length."""
    max_step_rad: float = 0.1
    max_turn_rad: float = math.pi
    """How far EE may be turned from pointing straight down (robot.pose.O_R_DOWN), about any axis; pi: anyhow."""
    max_speed_m_s: float = 0.25
    """Commanded, step / period."""
    max_speed_rad_s: float = 1.0
    max_measured_speed_m_s: float = 0.6
    """Faster than this, the arm is stopped. The Panda's own limits are 1.7 m/s and 2.5 rad/s."""
    max_measured_speed_rad_s: float = 2.0
    max_joint_speed_fraction: float = 0.7
    """Of the Panda's 2.175 rad/s (joints 1 to 4) and 2.61 rad/s: any joint faster than this, and the arm is stopped."""
    joint_margin_rad: float = 0.1
    """No step drives a joint nearer to its limit than this; at the limit the arm is stopped."""
    soft_force_n: float = 25.0
    """External force at which a step may no longer push against it, and backs off."""
    max_force_n: float = 45.0
    """External force at which the arm is stopped."""
    soft_torque_nm: float = 5.0
    """The same of the external torque about EE: the force's limits 0.2 m away."""
    max_torque_nm: float = 9.0
    back_off_m: float = 0.002
    """Step along the external force at max_force_n; at soft_force_n it is zero, and proportional in between."""
    back_off_rad: float = 0.01
    gripper_min_m: float = 0.0
    gripper_max_m: float = 0.085
    """Robotiq 2F-85 data sheet."""
    max_gripper_force_n: float = 60.0
    """The largest grip force that a gripper may be configured with."""

    def __post_init__(self) -> None:
        for axis, low, high in zip("xyz", self.workspace_min_m, self.workspace_max_m, strict=True):
            _check_interval(f"workspace {axis}", low, high, "m")
        _check_interval("gripper width", self.gripper_min_m, self.gripper_max_m, "m")
        _check_interval("soft and hard force", self.soft_force_n, self.max_force_n, "N")
        _check_interval("soft and hard torque", self.soft_torque_nm, self.max_torque_nm, "N m")
        for name in _POSITIVE:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise RobotConfigError(f"{name} = {value} must be positive and finite")
        if self.joint_margin_rad > _LARGEST_JOINT_MARGIN_RAD:
            raise RobotConfigError(
                f"joint_margin_rad = {self.joint_margin_rad} leaves the arm hardly any room (at most "
                f"{_LARGEST_JOINT_MARGIN_RAD})"
            )


_POSITIVE = (
    "workspace_tolerance_m", "max_step_m", "max_step_rad", "max_turn_rad", "max_speed_m_s", "max_speed_rad_s",
    "max_measured_speed_m_s", "max_measured_speed_rad_s", "max_joint_speed_fraction", "joint_margin_rad",
    "soft_force_n", "soft_torque_nm", "back_off_m", "back_off_rad", "max_gripper_force_n",
)  # fmt: skip
_LARGEST_JOINT_MARGIN_RAD = 0.5


@dataclass(frozen=True)
class GateResult:
    """What may be sent, and why it differs from what was asked (empty: it is the very same command).

    Each reason reads "limit: what happened", so that the word before the colon can be counted.
    """

    command: RobotCommand
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Violation:
    """A measured state in which no command may be sent any more. `reason` reads "limit: what happened"."""

    reason: str
    is_debounced: bool = False  # it counts only when it lasts for several measurements (robot/guard.py)


class SafetyGate:
    """Applies one SafetyConfig. Stateless: equal arguments give equal results."""

    def __init__(self, config: SafetyConfig) -> None:
        self.config = config
        self._workspace_min = np.array(config.workspace_min_m, dtype=np.float64)
        self._workspace_max = np.array(config.workspace_max_m, dtype=np.float64)
        self._max_joint_speed = config.max_joint_speed_fraction * JOINT_VELOCITY_MAX

    def apply(self, state: RobotState, command: RobotCommand, period_s: float) -> GateResult:
        """Return the command that may be sent for the next period_s, given the measured state.

        A malformed or non-finite command (or measurement) becomes a hold. Otherwise, one after the other:

        1. Steps longer than the step or speed limit are shortened along their direction.
        2. With an external force beyond the soft limit, what pushes against it is taken out of the step and a small
           step along it put in; the same for the torque and the rotation.
        3. What would drive a joint into the margin before its limit, or further into it, is taken out (JointRoom).
        4. The *target*, measured position + step, is kept in the box axis by axis, so that the arm slides along a
           wall. From outside the box, steps inwards pass and the outward part is removed. The target's orientation is
           kept within max_turn_rad in the same way.
        5. Where these contradict each other, the step is shortened until they do not: at worst the arm holds.

        Never raises for anything in the command; RobotConfigError if period_s is not positive.
        """
        if not (math.isfinite(period_s) and period_s > 0.0):
            raise RobotConfigError(f"control period {period_s} s must be positive and finite")
        problem = _malformed(state, command)
        if problem:
            return GateResult(_HOLD, (f"malformed: {problem}; the arm holds",))

        reasons: list[str] = []
        width = self._limit_gripper(command.gripper_width, reasons)
        step, rotation = self._limit_motion(state, command, period_s, reasons)
        if not reasons:
            return GateResult(command, ())
        return GateResult(
            RobotCommand(delta_position=step, delta_rotation=rotation, gripper_width=width), tuple(reasons)
        )

    def violation(self, state: RobotState) -> Violation | None:
        """Return why the arm has to stop for good in this measured state, None while all is well."""
        for name in _MEASURED:
            value = getattr(state, name)
            if not np.isfinite(value).all():
                return Violation(f"malformed: measured {name} = {np.asarray(value).tolist()} is not finite")
        return self._beyond_joints(state.q) or self._outside(state) or self._wrench(state) or self._too_fast(state)

    def _limit_motion(
        self, state: RobotState, command: RobotCommand, period_s: float, reasons: list[str]
    ) -> tuple[Array, Array]:
        config, position = self.config, state.O_T_EE[:3, 3]
        max_step_m = min(config.max_step_m, config.max_speed_m_s * period_s)
        max_step_rad = min(config.max_step_rad, config.max_speed_rad_s * period_s)
        step = _shorten(command.delta_position, max_step_m, "translation", "m", reasons)
        rotation = _shorten(command.delta_rotation, max_step_rad, "rotation", "rad", reasons)
        step, rotation = self._yield_to_contact(state.O_F_ext_hat_K, step, rotation, reasons)
        room = JointRoom(state.q, position, config.joint_margin_rad)
        step, rotation = self._spare_joints(room, state.q, step, rotation, reasons)
        step = self._keep_in_workspace(position, step, reasons)
        rotation = self._keep_in_turn(state.O_T_EE[:3, :3], rotation, reasons)
        if not reasons:
            return step, rotation
        # One factor for both keeps the ratio that the joints have room for.
        longer = max(math.hypot(*step.tolist()) / max_step_m, math.hypot(*rotation.tolist()) / max_step_rad)
        if longer > 1.0:
            step, rotation = step / longer, rotation / longer
        return self._reconcile(room, state.O_F_ext_hat_K, step, rotation, reasons)

    def _yield_to_contact(self, wrench: Array, step: Array, rotation: Array, reasons: list[str]) -> tuple[Array, Array]:
        config, force, torque = self.config, wrench[:3], wrench[3:]
        yielding = yield_to(force, config.soft_force_n, config.max_force_n, config.back_off_m, step)
        turning = yield_to(torque, config.soft_torque_nm, config.max_torque_nm, config.back_off_rad, rotation)
        if yielding is not step or turning is not rotation:
            reasons.append(
                f"wrench: external force {math.hypot(*force.tolist()):.1f} N (soft limit {config.soft_force_n:g} N), "
                f"torque {math.hypot(*torque.tolist()):.1f} N m ({config.soft_torque_nm:g} N m); the arm backs off"
            )
        return yielding, turning

    def _spare_joints(
        self, room: JointRoom, q: Array, step: Array, rotation: Array, reasons: list[str]
    ) -> tuple[Array, Array]:
        fitted, blocked = room.fit(np.concatenate([step, rotation]))
        if not blocked:
            return step, rotation
        margin = self.config.joint_margin_rad
        where = ", ".join(f"joint {i + 1} ({q[i]:.3f} in [{JOINT_MIN[i]}, {JOINT_MAX[i]}] rad)" for i in blocked)
        reasons.append(f"joint: the step would bring {where} within {margin} rad of a limit; that part is removed")
        return fitted[:3], fitted[3:]

    def _keep_in_workspace(self, position: Array, step: Array, reasons: list[str]) -> Array:
        # Zero is always allowed: an arm found outside the box may stay or come back, at its own pace.
        lowest = np.minimum(self._workspace_min - position, 0.0)
        highest = np.maximum(self._workspace_max - position, 0.0)
        allowed = np.clip(step, lowest, highest)
        if np.array_equal(allowed, step):
            return step
        target = np.round(position + step, 4).tolist()
        low, high = self.config.workspace_min_m, self.config.workspace_max_m
        reasons.append(f"workspace: target {target} m leaves the box from {list(low)} to {list(high)} m")
        return allowed

    def _keep_in_turn(self, O_R_EE: Array, rotation: Array, reasons: list[str]) -> Array:
        limit = self.config.max_turn_rad
        if limit >= math.pi:
            return rotation
        turned = O_R_EE @ O_R_DOWN.T
        angle = math.hypot(*rotvec_from_rotation(turned).tolist())
        if angle + math.hypot(*rotation.tolist()) <= limit:
            return rotation
        target = rotvec_from_rotation(rotation_from_rotvec(rotation) @ turned)
        target_angle, allowed_angle = math.hypot(*target.tolist()), max(limit, angle)
        if target_angle <= allowed_angle + _ROUNDING:
            return rotation
        reasons.append(f"turn: target {target_angle:.3f} rad from straight down is beyond {limit:g} rad")
        return rotvec_from_rotation(rotation_from_rotvec(target * (allowed_angle / target_angle)) @ turned.T)

    def _reconcile(
        self, room: JointRoom, wrench: Array, step: Array, rotation: Array, reasons: list[str]
    ) -> tuple[Array, Array]:
        """Shorten a step that one limit turned against another one; every limit but the back-off holds for no step."""
        config = self.config
        share = room.share(np.concatenate([step, rotation]))
        is_pushing = pushes_against(wrench[:3], config.soft_force_n, step)
        if is_pushing or pushes_against(wrench[3:], config.soft_torque_nm, rotation):
            share = 0.0
        if share == 1.0:
            return step, rotation
        reasons.append(f"conflict: what one limit leaves of the step, another forbids; {share:.0%} of it remains")
        return share * step, share * rotation

    def _limit_gripper(self, width: float | None, reasons: list[str]) -> float | None:
        low, high = self.config.gripper_min_m, self.config.gripper_max_m
        if width is None or low <= width <= high:
            return width
        reasons.append(f"gripper: width {width:.4f} m is outside [{low}, {high}] m")
        return min(max(width, low), high)

    def _beyond_joints(self, q: Array) -> Violation | None:
        beyond = np.flatnonzero((q < JOINT_MIN) | (q > JOINT_MAX))
        if not beyond.size:
            return None
        i = int(beyond[0])
        return Violation(
            f"joint: joint {i + 1} is at {q[i]:.4f} rad, outside its limits {JOINT_MIN[i]} to {JOINT_MAX[i]} rad. Was "
            "the arm pushed, or does it turn its hand again and again in one direction? Guide it back by hand."
        )

    def _outside(self, state: RobotState) -> Violation | None:
        position, tolerance = state.O_T_EE[:3, 3], self.config.workspace_tolerance_m
        outside = np.maximum(self._workspace_min - position, 0.0) + np.maximum(position - self._workspace_max, 0.0)
        distance = math.hypot(*outside.tolist())
        if distance <= tolerance:
            return None
        low, high = self.config.workspace_min_m, self.config.workspace_max_m
        return Violation(
            f"workspace: EE at {np.round(position, 3).tolist()} m is {distance:.3f} m outside the box from {list(low)} "
            f"to {list(high)} m (limit {tolerance} m). Was the arm pushed, or is this another task's box? Guide it "
            "back by hand."
        )

    def _wrench(self, state: RobotState) -> Violation | None:
        force, torque = math.hypot(*state.O_F_ext_hat_K[:3].tolist()), math.hypot(*state.O_F_ext_hat_K[3:].tolist())
        config = self.config
        if force <= config.max_force_n and torque <= config.max_torque_nm:
            return None
        return Violation(
            f"wrench: external force {force:.1f} N (limit {config.max_force_n} N), torque {torque:.1f} N m (limit "
            f"{config.max_torque_nm} N m). Is the hand jammed or held? If it touches nothing, check the end effector's "
            "mass in Desk.",
            is_debounced=True,
        )

    def _too_fast(self, state: RobotState) -> Violation | None:
        linear, angular = math.hypot(*state.O_twist_EE[:3].tolist()), math.hypot(*state.O_twist_EE[3:].tolist())
        config = self.config
        if linear > config.max_measured_speed_m_s or angular > config.max_measured_speed_rad_s:
            return Violation(
                f"speed: EE moves at {linear:.2f} m/s (limit {config.max_measured_speed_m_s} m/s), {angular:.2f} rad/s "
                f"(limit {config.max_measured_speed_rad_s} rad/s). Was the arm pushed, or has something given way?",
                is_debounced=True,
            )
        excess = np.abs(state.dq) - self._max_joint_speed
        i = int(excess.argmax())
        if excess[i] <= 0.0:
            return None
        return Violation(
            f"speed: joint {i + 1} moves at {state.dq[i]:.2f} rad/s (limit {self._max_joint_speed[i]:.2f} rad/s). Is "
            "the arm stretched out, or near another singular posture?",
            is_debounced=True,
        )


def check_gripper_force(config: SafetyConfig, force_n: float) -> None:
    """Raise RobotConfigError when a gripper is set to grip harder than allowed. Once, before it is opened."""
    if not force_n <= config.max_gripper_force_n:
        raise RobotConfigError(
            f"hand.force_n = {force_n} N is above limits.max_gripper_force_n = {config.max_gripper_force_n} N. Lower "
            "it, or raise the limit if the object needs it."
        )


_HOLD = RobotCommand(delta_position=np.zeros(3), delta_rotation=np.zeros(3))
_HOLD.delta_position.setflags(write=False)
_HOLD.delta_rotation.setflags(write=False)
_MEASURED = ("O_T_EE", "O_twist_EE", "q", "dq", "tau_J", "O_F_ext_hat_K", "gripper_width", "robot_time_s")
_REACH_M = 2.0  # of a Panda with any tool; 0.855 m without
_ROUNDING = 1e-12
_ROTATION_TOLERANCE = 1e-3  # a robot's own rounding is below 1e-6


def _malformed(state: RobotState, command: RobotCommand) -> str:
    """Return what makes the command unusable, or an empty string."""
    for name, value in (("delta_position", command.delta_position), ("delta_rotation", command.delta_rotation)):
        array = np.asarray(value)
        if array.shape != (3,) or array.dtype.kind not in "fiu":
            return f"{name} has shape {array.shape} and type {array.dtype}, expected three numbers"
        if not np.isfinite(array).all():
            return f"{name} = {array.tolist()} is not finite"
    if command.gripper_width is not None and not math.isfinite(command.gripper_width):
        return f"gripper_width = {command.gripper_width} is not finite"
    position = state.O_T_EE[:3, 3].tolist()
    if not math.hypot(*position) <= _REACH_M:
        return f"measured position {position} m is not finite, or beyond any arm's reach"
    for name, array in (("q", state.q), ("O_F_ext_hat_K", state.O_F_ext_hat_K)):
        if not np.isfinite(array).all():
            return f"measured {name} = {array.tolist()} is not finite"
    if not is_rotation(state.O_T_EE[:3, :3], _ROTATION_TOLERANCE):
        return f"measured orientation {state.O_T_EE[:3, :3].tolist()} is no rotation"
    return ""


def _shorten(step: Array, limit: float, what: str, unit: str, reasons: list[str]) -> Array:
    """Return `step` with its length cut to `limit`, its direction kept."""
    length = math.hypot(*step.tolist())
    if length <= limit:
        return step
    reasons.append(f"{what}: step of {length:.4g} {unit} is longer than {limit:.4g} {unit}")
    return step / length * limit  # this order stays finite and within the limit even for a step near 1e308


def _check_interval(name: str, low: float, high: float, unit: str) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RobotConfigError(f"{name}: limits [{low}, {high}] {unit} are not an interval")
