"""The Panda's kinematics, against MuJoCo's model of it."""

import mujoco
import numpy as np

from robot.backends.twin.model import find_panda_file
from robot.franka import JOINT_MAX, JOINT_MIN, forward_kinematics, jacobian
from robot.pose import make_pose, pose_difference, rotation_from_rotvec

F_T_EE = make_pose(rotation_from_rotvec((0.1, 0.2, -np.pi / 4)), (0.01, -0.02, 0.1034))


def flange_poses(configurations: np.ndarray) -> list[np.ndarray]:
    model = mujoco.MjModel.from_xml_path(str(find_panda_file()))
    data = mujoco.MjData(model)
    body = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_BODY, i) for i in range(model.nbody)]
    poses = []
    for q in configurations:
        data.qpos[:7] = q
        mujoco.mj_kinematics(model, data)
        link7 = body.index("link7")
        O_T_link7 = make_pose(data.xmat[link7].reshape(3, 3), data.xpos[link7])
        poses.append(O_T_link7 @ make_pose(np.eye(3), (0.0, 0.0, 0.107)))
    return poses


def test_the_flange_is_where_mujocos_panda_has_it() -> None:
    configurations = np.random.default_rng(0).uniform(JOINT_MIN, JOINT_MAX, (50, 7))
    for q, O_T_F in zip(configurations, flange_poses(configurations), strict=True):
        np.testing.assert_allclose(forward_kinematics(q, F_T_EE), O_T_F @ F_T_EE, atol=1e-6)


def test_the_jacobian_is_the_derivative_of_the_pose() -> None:
    rng = np.random.default_rng(1)
    for q in rng.uniform(JOINT_MIN, JOINT_MAX, (50, 7)):
        dq, h = rng.normal(size=7), 1e-6
        before, after = (forward_kinematics(q + sign * h * dq, F_T_EE) for sign in (-1, 1))
        rate = np.concatenate(pose_difference(before, after)) / (2 * h)
        np.testing.assert_allclose(jacobian(q, F_T_EE) @ dq, rate, atol=1e-6)


def test_mujocos_panda_has_the_same_joint_limits() -> None:
    model = mujoco.MjModel.from_xml_path(str(find_panda_file()))
    np.testing.assert_allclose(model.jnt_range[:7].T, (JOINT_MIN, JOINT_MAX), atol=1e-3)
