"""The Panda's geometry and limits: forward kinematics and Jacobian in plain numbers, and what its joints can do.

Denavit-Hartenberg table (Craig's convention) and limits: Franka Emika, "Robot and interface specifications".
"""

import math

import numpy as np

from robot.interface import Array

JOINT_MIN: Array = np.array((-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973))  # rad
JOINT_MAX: Array = np.array((2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973))  # rad
JOINT_VELOCITY_MAX: Array = np.array((2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61))  # rad/s
JOINT_TORQUE_MAX: Array = np.array((87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0))  # N m
# rad; the hand points down over the table, each joint is 0.6 from its limits.
Q_HOME: Array = np.array((0.0, 0.2, 0.0, -2.2, 0.0, 2.4, math.pi / 4))
for _limit in (JOINT_MIN, JOINT_MAX, JOINT_VELOCITY_MAX, JOINT_TORQUE_MAX, Q_HOME):
    _limit.setflags(write=False)

# Joint i: (a, d, sine of alpha); every alpha is 0 or a quarter turn. The flange follows joint 7 at (0, 0.107, 0).
_LINKS = (
    (0.0, 0.333, 0),
    (0.0, 0.0, -1),
    (0.0, 0.316, 1),
    (0.0825, 0.0, 1),
    (-0.0825, 0.384, -1),
    (0.0, 0.0, 1),
    (0.088, 0.0, 1),
)
_FLANGE_M = 0.107

_Triple = tuple[float, float, float]


def _chain(q: Array) -> tuple[list[tuple[_Triple, _Triple]], tuple[_Triple, _Triple, _Triple, _Triple]]:
    """Return each joint's axis and a point on it, and the flange's x, y, z axes and origin, all in O."""
    # Plain floats: 7 products of 3 x 3 matrices take numpy longer than this takes altogether.
    (x0, x1, x2), (y0, y1, y2), (z0, z1, z2) = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
    p0 = p1 = p2 = 0.0
    joints = []
    for (a, d, sine), angle in zip(_LINKS, q.tolist(), strict=True):
        p0, p1, p2 = p0 + a * x0, p1 + a * x1, p2 + a * x2
        if sine > 0:
            y0, y1, y2, z0, z1, z2 = z0, z1, z2, -y0, -y1, -y2
        elif sine < 0:
            y0, y1, y2, z0, z1, z2 = -z0, -z1, -z2, y0, y1, y2
        c, s = math.cos(angle), math.sin(angle)
        x0, x1, x2, y0, y1, y2 = (
            c * x0 + s * y0,
            c * x1 + s * y1,
            c * x2 + s * y2,
            c * y0 - s * x0,
            c * y1 - s * x1,
            c * y2 - s * x2,
        )
        p0, p1, p2 = p0 + d * z0, p1 + d * z1, p2 + d * z2
        joints.append(((z0, z1, z2), (p0, p1, p2)))
    flange = (p0 + _FLANGE_M * z0, p1 + _FLANGE_M * z1, p2 + _FLANGE_M * z2)
    return joints, ((x0, x1, x2), (y0, y1, y2), (z0, z1, z2), flange)


def forward_kinematics(q: Array, F_T_EE: Array) -> Array:
    """Return O_T_EE (4, 4) of joint angles q (7,), rad, with the hand mounted at F_T_EE (4, 4) on the flange."""
    _, (x, y, z, p) = _chain(q)
    O_T_F = np.array(((x[0], y[0], z[0], p[0]), (x[1], y[1], z[1], p[1]), (x[2], y[2], z[2], p[2]), (0, 0, 0, 1.0)))
    O_T_EE: Array = O_T_F @ F_T_EE
    return O_T_EE


def jacobian(q: Array, F_T_EE: Array) -> Array:
    """Return J (6, 7) with O_twist_EE = J dq: linear velocity of the EE's origin, then angular velocity, in O."""
    joints, (x, y, z, p) = _chain(q)
    fx, fy, fz = F_T_EE[:3, 3].tolist()
    return _jacobian(joints, *(p[i] + x[i] * fx + y[i] * fy + z[i] * fz for i in range(3)))


def jacobian_at(q: Array, O_p_EE: Array) -> Array:
    """Return the same J (6, 7) where the EE's origin O_p_EE (3,), m, is measured rather than known from the flange."""
    joints, _ = _chain(q)
    return _jacobian(joints, *O_p_EE.tolist())


def _jacobian(joints: list[tuple[_Triple, _Triple]], e0: float, e1: float, e2: float) -> Array:
    columns = []
    for (a0, a1, a2), (o0, o1, o2) in joints:
        r0, r1, r2 = e0 - o0, e1 - o1, e2 - o2
        columns.append((a1 * r2 - a2 * r1, a2 * r0 - a0 * r2, a0 * r1 - a1 * r0, a0, a1, a2))
    return np.array(columns).T
