"""Operational-space controller with the semantics of Deoxys' OSC_POSE. Pure numpy, one call per physics step.

Law (Khatib 1987, with position and rotation decoupled as in Deoxys):

    e_p = p_goal - p                    e_r = log(R_goal R^T), both in O
    Lambda_p = (J_p M^-1 J_p^T)^-1      Lambda_r = (J_r M^-1 J_r^T)^-1
    tau = J_p^T Lambda_p (kp_p e_p - kd_p v) + J_r^T Lambda_r (kp_r e_r - kd_r omega)
          + (I - J^T Lambda J M^-1) (kp_n (q_n - q) - kd_n dq)

with kd = 2 sqrt(kp), each joint clamped to +-max_torque, gravity and Coriolis torques added after the clamp.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robot.errors import RobotConfigError
from robot.interface import Array
from robot.pose import rotvec_from_rotation

# What Deoxys takes for no error, per axis: 0.1 mm, and of the quaternion's vector part, which is half the angle.
_DEOXYS_DEAD_ZONE_M = 1e-4
_DEOXYS_DEAD_ZONE_HALF_RAD = 5e-3

# Keeps the solves finite at a singularity; the eigenvalues of J M^-1 J^T are above 0.02 in the working range.
_REGULARISATION = 1e-6


@dataclass(frozen=True, kw_only=True)
class OscConfig:
    """Gains of unit inertia, as in Deoxys: the robot's own inertia is multiplied in. Defaults are Deoxys'."""

    translation_stiffness: float = 150.0  # 1/s^2
    rotation_stiffness: float = 250.0  # 1/s^2
    posture_stiffness: float = 10.0  # N m/rad, in the null space only
    max_torque_nm: float = 5.0  # per joint, before gravity compensation
    deoxys_errors: bool = False
    """Measure errors as Deoxys does: the rotation as the quaternion's vector part, half of it, which halves what its
    stiffness does; and nothing below 0.1 mm or 0.01 rad."""

    def __post_init__(self) -> None:
        for name in ("translation_stiffness", "rotation_stiffness", "posture_stiffness", "max_torque_nm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise RobotConfigError(f"OSC {name} = {value} must be positive and finite")


class OperationalSpaceController:
    """Torques that pull EE towards a goal pose. `torque` reuses its buffers: copy the result to keep it."""

    def __init__(self, config: OscConfig, q_posture: Array) -> None:
        """q_posture (7,), rad: where the null space term pulls the elbow."""
        self._config = config
        self._q_posture = q_posture
        self.set_stiffness((config.translation_stiffness,) * 3, (config.rotation_stiffness,) * 3)
        self._damping_posture = 2.0 * math.sqrt(config.posture_stiffness)
        self._regularisation = _REGULARISATION * np.eye(6)
        self._wrench = np.empty(6)

    def set_stiffness(self, translation: Sequence[float], rotation: Sequence[float]) -> None:
        """Change the stiffness along and about each axis of O, (3,) and (3,) in 1/s^2; damping follows, 2 sqrt(kp)."""
        self._translation_gains = [(kp, 2.0 * math.sqrt(kp)) for kp in translation]
        self._rotation_gains = [(kp, 2.0 * math.sqrt(kp)) for kp in rotation]

    def torque(
        self, goal: Array, O_T_EE: Array, q: Array, dq: Array, jacobian: Array, mass_matrix: Array, bias: Array
    ) -> Array:
        """Return joint torques (7,), N m.

        goal, O_T_EE (4, 4); q, dq (7,); jacobian (6, 7) of EE in O, linear rows first; mass_matrix (7, 7);
        bias (7,): gravity and Coriolis torques.
        """
        config = self._config
        twist = (jacobian @ dq).tolist()
        position_error = (goal[:3, 3] - O_T_EE[:3, 3]).tolist()
        rotation_error = rotvec_from_rotation(goal[:3, :3] @ O_T_EE[:3, :3].T).tolist()
        if config.deoxys_errors:
            position_error, rotation_error = _as_deoxys(position_error, rotation_error)
        M_inv_J_T = np.linalg.solve(mass_matrix, jacobian.T)  # (7, 6)
        mobility = jacobian @ M_inv_J_T + self._regularisation  # (6, 6), inverse of the EE's inertia
        rows = mobility.tolist()
        self._wrench[:3] = solve_symmetric3(
            rows[0][0], rows[0][1], rows[0][2], rows[1][1], rows[1][2], rows[2][2],
            *(
                kp * error - kd * velocity
                for (kp, kd), error, velocity in zip(self._translation_gains, position_error, twist[:3], strict=True)
            ),
        )  # fmt: skip
        self._wrench[3:] = solve_symmetric3(
            rows[3][3], rows[3][4], rows[3][5], rows[4][4], rows[4][5], rows[5][5],
            *(
                kp * error - kd * velocity
                for (kp, kd), error, velocity in zip(self._rotation_gains, rotation_error, twist[3:], strict=True)
            ),
        )  # fmt: skip
        posture = config.posture_stiffness * (self._q_posture - q) - self._damping_posture * dq
        # What the posture term would do to EE is taken out again: J^T Lambda J M^-1 posture.
        felt_at_EE = np.linalg.solve(mobility, posture @ M_inv_J_T)
        torque = (self._wrench - felt_at_EE) @ jacobian
        torque += posture
        np.minimum(torque, config.max_torque_nm, out=torque)
        np.maximum(torque, -config.max_torque_nm, out=torque)
        torque += bias
        return torque


def _as_deoxys(position_error: list[float], rotation_error: list[float]) -> tuple[list[float], list[float]]:
    """Return the errors, m and rotation vector, as Deoxys' controller sees them."""
    angle = math.hypot(*rotation_error)
    scale = math.sin(0.5 * angle) / angle if angle > 0.0 else 0.5
    halves = [scale * part for part in rotation_error]
    return (
        [0.0 if abs(part) < _DEOXYS_DEAD_ZONE_M else part for part in position_error],
        [0.0 if abs(part) < _DEOXYS_DEAD_ZONE_HALF_RAD else part for part in halves],
    )


def solve_symmetric3(
    a: float, b: float, c: float, d: float, e: float, f: float, x: float, y: float, z: float
) -> tuple[float, float, float]:
    """Solve [[a, b, c], [b, d, e], [c, e, f]] s = (x, y, z) by cofactors; numpy takes eight times as long."""
    cofactor_a, cofactor_b, cofactor_c = d * f - e * e, c * e - b * f, b * e - c * d
    cofactor_d, cofactor_e, cofactor_f = a * f - c * c, b * c - a * e, a * d - b * b
    determinant = a * cofactor_a + b * cofactor_b + c * cofactor_c
    return (
        (cofactor_a * x + cofactor_b * y + cofactor_c * z) / determinant,
        (cofactor_b * x + cofactor_d * y + cofactor_e * z) / determinant,
        (cofactor_c * x + cofactor_e * y + cofactor_f * z) / determinant,
    )
