"""The safety gate: every command, from the policy or a person, passes it before it reaches a robot. Pure."""

import math
from dataclasses import dataclass

import numpy as np

from robot.errors import RobotConfigError
from robot.interface import Array, RobotCommand, RobotState


@dataclass(frozen=True, kw_only=True)
class SafetyConfig:
    """Limits on every command. SI units; the box holds the position of EE in O."""

    workspace_min_m: tuple[float, float, float]
    workspace_max_m: tuple[float, float, float]
    max_step_m: float = 0.02  # per control period, whatever its length
    max_step_rad: float = 0.1
    max_speed_m_s: float = 0.25  # step / period; the Panda's own limit is 1.7
    max_speed_rad_s: float = 1.0  # the Panda's own limit is 2.5
    gripper_min_m: float = 0.0
    gripper_max_m: float = 0.085  # Robotiq 2F-85 data sheet

    def __post_init__(self) -> None:
        for axis, low, high in zip("xyz", self.workspace_min_m, self.workspace_max_m, strict=True):
            _check_interval(f"workspace {axis}", low, high)
        _check_interval("gripper width", self.gripper_min_m, self.gripper_max_m)
        for name in ("max_step_m", "max_step_rad", "max_speed_m_s", "max_speed_rad_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise RobotConfigError(f"{name} = {value} must be positive and finite")


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

    def apply(self, state: RobotState, command: RobotCommand, period_s: float) -> GateResult:
        """Return the command that may be sent for the next period_s, given the measured state.

        A malformed or non-finite command (or measured position) becomes a hold. Otherwise: steps longer than the step
        or speed limit are shortened along their direction; then the *target*, measured position + step, is kept in
        the box axis by axis, so that the arm slides along a wall. From outside the box, steps inwards pass and the
        outward part is removed. Never raises for anything in the command; RobotConfigError if period_s is not positive.
        """
        if not (math.isfinite(period_s) and period_s > 0.0):
            raise RobotConfigError(f"control period {period_s} s must be positive and finite")
        problem = _malformed(state, command)
        if problem:
            return GateResult(_HOLD, (f"malformed: {problem}; the arm holds",))

        config = self.config
        reasons: list[str] = []
        max_step_m = min(config.max_step_m, config.max_speed_m_s * period_s)
        step = _shorten(command.delta_position, max_step_m, "translation", "m", reasons)
        step = self._keep_in_workspace(state.O_T_EE[:3, 3], step, reasons)
        max_step_rad = min(config.max_step_rad, config.max_speed_rad_s * period_s)
        rotation = _shorten(command.delta_rotation, max_step_rad, "rotation", "rad", reasons)
        width = self._limit_gripper(command.gripper_width, reasons)
        if not reasons:
            return GateResult(command, ())
        return GateResult(
            RobotCommand(delta_position=step, delta_rotation=rotation, gripper_width=width), tuple(reasons)
        )

    def violation(self, state: RobotState) -> Violation | None:
        """Return why the arm has to stop for good in this measured state, None while all is well."""
        for name in ("O_T_EE", "q", "dq", "O_F_ext_hat_K"):
            if not np.isfinite(getattr(state, name)).all():
                return Violation(f"malformed: measured {name} = {getattr(state, name).tolist()} is not finite")
        return None

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

    def _limit_gripper(self, width: float | None, reasons: list[str]) -> float | None:
        low, high = self.config.gripper_min_m, self.config.gripper_max_m
        if width is None or low <= width <= high:
            return width
        reasons.append(f"gripper: width {width:.4f} m is outside [{low}, {high}] m")
        return min(max(width, low), high)


_HOLD = RobotCommand(delta_position=np.zeros(3), delta_rotation=np.zeros(3))
_HOLD.delta_position.setflags(write=False)
_HOLD.delta_rotation.setflags(write=False)


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
    if not np.isfinite(state.O_T_EE[:3, 3]).all():
        return f"measured position {state.O_T_EE[:3, 3].tolist()} is not finite"
    return ""


def _shorten(step: Array, limit: float, what: str, unit: str, reasons: list[str]) -> Array:
    """Return `step` with its length cut to `limit`, its direction kept."""
    length = math.hypot(*step.tolist())
    if length <= limit:
        return step
    reasons.append(f"{what}: step of {length:.4g} {unit} is longer than {limit:.4g} {unit}")
    return step / length * limit  # this order stays finite and within the limit even for a step near 1e308


def _check_interval(name: str, low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RobotConfigError(f"{name}: limits [{low}, {high}] m are not an interval")
