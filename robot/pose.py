"""Rigid poses as (4, 4) matrices and rotations as rotation vectors. numpy only.

A_T_B is the pose of B in A, A_R_B its rotation (3, 3), A_p_B its position (3,). A rotation vector (3,) is axis
times angle in rad.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from robot.interface import Array

# Below this angle the series of sin(x)/x and (1 - cos(x))/x^2 are exact to double precision.
_SMALL_ANGLE_RAD = 1e-4

# The gripper points straight down, with its x axis along O's: EE z is the direction in which it reaches.
O_R_DOWN: Array = np.diag([1.0, -1.0, -1.0])
O_R_DOWN.setflags(write=False)


def rotation_from_rotvec(rotvec: ArrayLike) -> Array:
    """Return exp of a rotation vector (3,), rad, as a matrix (3, 3) (Rodrigues' formula)."""
    x, y, z = np.asarray(rotvec, dtype=np.float64)
    angle_squared = float(x * x + y * y + z * z)
    angle = math.sqrt(angle_squared)
    if angle < _SMALL_ANGLE_RAD:
        first, second = 1.0 - angle_squared / 6.0, 0.5 - angle_squared / 24.0
    else:
        first, second = math.sin(angle) / angle, (1.0 - math.cos(angle)) / angle_squared
    skew = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    rotation: Array = np.eye(3) + first * skew + second * (skew @ skew)
    return rotation


def rotvec_from_rotation(rotation: Array) -> Array:
    """Return the rotation vector (3,), rad, of a rotation matrix (3, 3); its angle is in [0, pi]."""
    # Plain floats: this runs 500 times a simulated second, where they are several times quicker than numpy.
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation.tolist()
    x, y, z = 0.5 * (zy - yz), 0.5 * (xz - zx), 0.5 * (yx - xy)  # axis times sin(angle)
    sine, cosine = math.sqrt(x * x + y * y + z * z), 0.5 * (xx + yy + zz - 1.0)
    angle = math.atan2(sine, cosine)
    if sine > 1e-6:
        scale = angle / sine
        return np.array((x * scale, y * scale, z * scale))
    if cosine > 0.0:
        return np.array((x, y, z))
    # Near pi the antisymmetric part vanishes: take the axis from the symmetric one, 2 a a^T - I, with the sign that
    # is still visible.
    outer = 0.25 * (rotation + rotation.T) + 0.5 * np.eye(3)
    column = outer[:, int(np.argmax(np.diag(outer)))]
    axis = column / math.sqrt(float(column @ column))
    return axis * angle * (-1.0 if float(axis @ (x, y, z)) < 0.0 else 1.0)


def is_rotation(matrix: Array, tolerance: float) -> bool:
    """Return whether a matrix (3, 3), of any numbers, is a proper rotation: R R^T within tolerance of I."""
    if not np.abs(matrix).max() <= 1.0 + tolerance:
        return False
    is_orthogonal = np.abs(matrix @ matrix.T - np.eye(3)).max() <= tolerance
    return bool(is_orthogonal and np.linalg.det(matrix) > 0.0)


def make_pose(rotation: ArrayLike, position: ArrayLike) -> Array:
    """Return A_T_B (4, 4) from A_R_B (3, 3) and A_p_B (3,)."""
    pose = np.eye(4)
    pose[:3, :3] = rotation
    pose[:3, 3] = position
    return pose


def translation(x: float, y: float, z: float) -> Array:
    """Return a pose (4, 4) that only moves, in m."""
    return make_pose(np.eye(3), (x, y, z))


def inverse(A_T_B: Array) -> Array:
    """Return B_T_A (4, 4)."""
    B_R_A = A_T_B[:3, :3].T
    return make_pose(B_R_A, -B_R_A @ A_T_B[:3, 3])


def apply_delta(O_T_EE: Array, delta_position: Array, delta_rotation: Array) -> Array:
    """Return the goal pose (4, 4) of a Cartesian step: both parts in O, the rotation left-multiplied."""
    return make_pose(rotation_from_rotvec(delta_rotation) @ O_T_EE[:3, :3], O_T_EE[:3, 3] + delta_position)


def pose_difference(O_T_from: Array, O_T_to: Array) -> tuple[Array, Array]:
    """Return the step (position (3,) m, rotation vector (3,) rad, both in O) that `apply_delta` needs to get there."""
    return O_T_to[:3, 3] - O_T_from[:3, 3], rotvec_from_rotation(O_T_to[:3, :3] @ O_T_from[:3, :3].T)
