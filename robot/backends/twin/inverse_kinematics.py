"""Inverse kinematics for resets: damped least squares from a fixed posture, so that equal poses give equal joints."""

import math
from typing import Any

import mujoco
import numpy as np

from robot.errors import RobotError
from robot.interface import Array
from robot.pose import make_pose, pose_difference

POSITION_TOLERANCE_M = 0.0005
ROTATION_TOLERANCE_RAD = 0.005
_CONVERGED = 1e-9  # m and rad: stop here, far inside the tolerance
_MAX_ITERATIONS = 200
_DAMPING = 1e-4  # squared; keeps steps bounded near a singularity
_MAX_STEP_RAD = 0.2  # per joint and iteration


def solve_joints(model: Any, data: Any, site_id: int, O_T_EE: Array, q_start: Array) -> Array:
    """Return joint angles (7,), rad, that bring the site to O_T_EE (4, 4), searched from q_start (7,).

    Leaves `data` at that posture. Raises RobotError when the pose is not met within 0.5 mm and 0.005 rad.
    """
    low, high = model.jnt_range[:7, 0], model.jnt_range[:7, 1]  # the arm's joints come first
    jacobian = np.empty((6, model.nv))
    q: Array = q_start.copy()
    for _ in range(_MAX_ITERATIONS):
        error = _pose_error(model, data, site_id, q, O_T_EE)
        if np.abs(error).max() < _CONVERGED:
            break
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], site_id)
        arm = jacobian[:, :7]
        step = arm.T @ np.linalg.solve(arm @ arm.T + _DAMPING * np.eye(6), error)
        q = np.clip(q + np.clip(step, -_MAX_STEP_RAD, _MAX_STEP_RAD), low, high)
    error = _pose_error(model, data, site_id, q, O_T_EE)
    missing_m, missing_rad = math.hypot(*error[:3].tolist()), math.hypot(*error[3:].tolist())
    if missing_m > POSITION_TOLERANCE_M or missing_rad > ROTATION_TOLERANCE_RAD:
        raise RobotError(
            f"the arm cannot reach O_T_EE at {np.round(O_T_EE[:3, 3], 4).tolist()} m: its best posture is "
            f"{missing_m * 1e3:.1f} mm and {missing_rad:.3f} rad away (limits {POSITION_TOLERANCE_M * 1e3} mm and "
            f"{ROTATION_TOLERANCE_RAD} rad). The pose is probably out of reach or needs a joint beyond its range; "
            "choose a start nearer to the middle of the workspace"
        )
    return q


def _pose_error(model: Any, data: Any, site_id: int, q: Array, O_T_EE: Array) -> Array:
    """Return (6,): position (m) then rotation vector (rad), in O, from the site at q to O_T_EE."""
    data.qpos[:7] = q
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    reached = make_pose(data.site_xmat[site_id].reshape(3, 3), data.site_xpos[site_id])
    return np.concatenate(pose_difference(reached, O_T_EE))
