"""One simulated arm: what MuJoCo holds, moved by the controller step by step."""

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from robot.backends.twin.fingers import Fingers
from robot.backends.twin.inverse_kinematics import solve_joints
from robot.backends.twin.model import EE_SITE, build_model
from robot.backends.twin.osc import OperationalSpaceController, OscConfig
from robot.errors import RobotError
from robot.franka import Q_HOME
from robot.interface import Array, ScenePlacement
from robot.pose import inverse, make_pose, translation

_FLANGE_M = 0.107  # from the last joint's frame to the flange; Panda data sheet

# Of the tracking of joint angles: 30 rad/s, critically damped. The robot's own is stiffer still.
_JOINT_STIFFNESS = 900.0  # 1/s^2
_JOINT_DAMPING = 60.0  # 1/s
_MAX_OVERLAP_M = 0.001  # of what is placed with anything else: contacts are soft, and resting things overlap a little
_MOST_STATE: Any = mujoco.mjtState.mjSTATE_INTEGRATION


class Simulation:
    """MuJoCo's model and data with the controller, and the buffers they share. The arm's seven joints come first.

    Between calls positions, velocities and all that follows from them (mj_step1) are up to date.
    """

    def __init__(self, scene: str, osc: OscConfig, q_posture: Array = Q_HOME) -> None:
        """Build the scene. Raises MissingDependencyError without the gym-hil wheel.

        q_posture (7,), rad: where the controller pulls the elbow.
        """
        self.model: Any = build_model(scene)
        self.data: Any = mujoco.MjData(self.model)
        # Views of the arm's share: where it is all there is, the whole arrays.
        self.q: Array = self.data.qpos[:7]
        self.dq: Array = self.data.qvel[:7]
        self.tau: Array = self.data.ctrl[:7]
        self._bias: Array = self.data.qfrc_bias[:7]
        self._contact_torque: Array = self.data.qfrc_constraint[:7]
        self._whole_jacobian = np.zeros((6, self.model.nv))
        self.jacobian: Array = self._whole_jacobian[:, :7]
        self._whole_mass_matrix = np.zeros((self.model.nv, self.model.nv))
        self._mass_matrix: Array = self._whole_mass_matrix[:7, :7]
        self.fingers = Fingers(self.model, self.data) if scene == "cube_stacking" else None
        self._controller = OperationalSpaceController(osc, q_posture)
        self._joint_friction: Array = self.model.dof_damping[:7]
        self._max_joint_torque: Array = self.model.actuator_ctrlrange[:7, 1]
        self._site_id = self.model.site(EE_SITE).id
        self._site_position: Array = self.data.site_xpos[self._site_id]
        self._site_rotation: Array = self.data.site_xmat[self._site_id].reshape(3, 3)
        self._contact_torque_sum = np.zeros(7)
        self._contact_steps = 0
        self._earlier_s = 0.0  # simulated time before the last reset

    @property
    def time_s(self) -> float:
        """Simulated time since the start, which resets do not turn back."""
        return self._earlier_s + float(self.data.time)

    def reset(self, placement: ScenePlacement) -> None:
        """Put arm and objects at `placement`, at rest; RobotError if the arm cannot reach it."""
        self._earlier_s = self.time_s
        self._place_fixed_objects(placement)
        mujoco.mj_resetData(self.model, self.data)
        self._place_free_objects(placement)
        if self.fingers is not None:
            self.fingers.reset()
        solve_joints(self.model, self.data, self._site_id, placement.O_T_EE, Q_HOME)
        self.start_wrench_average()
        self._refresh()
        self.tau[:] = self._bias  # the torque that holds the arm, as the state should say

    def place_objects(self, placement: ScenePlacement) -> None:
        """Put the objects in place around the arm, which stays as it is, in motion or not; so do time and fingers.

        Raises RobotError, and changes nothing, when one of them would overlap with something by more than 1 mm.
        """
        state = np.empty(mujoco.mj_stateSize(self.model, _MOST_STATE))
        mujoco.mj_getState(self.model, self.data, state, _MOST_STATE)
        fixed_before = self.model.body_pos.copy(), self.model.body_quat.copy()
        self._place_fixed_objects(placement)
        mujoco.mj_setState(self.model, self.data, state, _MOST_STATE)
        self._place_free_objects(placement)
        self._refresh()
        contact = self.data.contact
        overlap_m = -float(contact.dist.min(initial=0.0))
        if overlap_m <= _MAX_OVERLAP_M:
            return
        touching = contact.geom[int(contact.dist.argmin())]
        names = " and ".join(sorted(self.model.body(self.model.geom_bodyid[geom]).name for geom in touching))
        self.model.body_pos[:], self.model.body_quat[:] = fixed_before
        mujoco.mj_setConst(self.model, self.data)
        mujoco.mj_setState(self.model, self.data, state, _MOST_STATE)
        self._refresh()
        raise RobotError(
            f"the placement would put {names} {overlap_m * 1e3:.1f} mm into each other (limit "
            f"{_MAX_OVERLAP_M * 1e3:g} mm). Move the arm to the placement's start pose first, and open the hand"
        )

    def _place_fixed_objects(self, placement: ScenePlacement) -> None:
        for name, pose in placement.objects.items():  # each has a body, in the frame that its scene states
            body = self.model.body(name)
            if not body.jntnum[0]:
                self.model.body_pos[body.id] = pose[:3, 3]
                mujoco.mju_mat2Quat(self.model.body_quat[body.id], np.ascontiguousarray(pose[:3, :3]).ravel())
        mujoco.mj_setConst(self.model, self.data)  # the peg's place changes what the contact solver knows of inertia

    def _place_free_objects(self, placement: ScenePlacement) -> None:
        for name, pose in placement.objects.items():
            body = self.model.body(name)
            if body.jntnum[0]:
                qpos = self.data.joint(name).qpos
                qpos[:3] = pose[:3, 3]
                mujoco.mju_mat2Quat(qpos[3:], np.ascontiguousarray(pose[:3, :3]).ravel())
                self.data.joint(name).qvel[:] = 0.0

    def step(self, goal: Array) -> None:
        """Advance by one physics step under the controller's torque for `goal` (4, 4)."""
        mujoco.mj_fullM(self.model, self._whole_mass_matrix, self.data.qM)
        self.tau[:] = self._controller.torque(
            goal, self.O_T_EE(), self.q, self.dq, self.jacobian, self._mass_matrix, self._bias
        )
        self._integrate()

    def step_joints(self, q_goal: Array, dq_goal: Array) -> None:
        """Advance by one physics step under a stiff controller of joint angles: the robot's own, not Deoxys'.

        q_goal, dq_goal (7,): rad and rad/s.
        """
        mujoco.mj_fullM(self.model, self._whole_mass_matrix, self.data.qM)
        wanted = _JOINT_STIFFNESS * (q_goal - self.q) + _JOINT_DAMPING * (dq_goal - self.dq)
        torque = self._mass_matrix @ wanted + self._joint_friction * dq_goal + self._bias
        self.tau[:] = np.clip(torque, -self._max_joint_torque, self._max_joint_torque)
        self._integrate()

    def set_stiffness(self, translation: Sequence[float], rotation: Sequence[float]) -> None:
        """Change the stiffness of `step` along and about each axis of O, (3,) and (3,) in 1/s^2."""
        self._controller.set_stiffness(translation, rotation)

    def _integrate(self) -> None:
        """Advance by one physics step under the torques that are set."""
        data = self.data
        if self.fingers is not None:
            self.fingers.step()
        mujoco.mj_step2(self.model, data)
        self._contact_torque_sum += self._contact_torque
        self._contact_steps += 1
        self._refresh()

    def home_pose(self) -> Array:
        """Put the arm at Q_HOME and return the pose of EE (4, 4) there. For a `reset` to follow."""
        self.q[:] = Q_HOME
        mujoco.mj_kinematics(self.model, self.data)
        return self.O_T_EE()

    def F_T_EE(self) -> Array:
        """Return the pose (4, 4) of EE on the flange, which does not change."""
        link = self.data.body("link7")
        O_T_F = make_pose(link.xmat.reshape(3, 3), link.xpos) @ translation(0.0, 0.0, _FLANGE_M)
        return inverse(O_T_F) @ self.O_T_EE()

    def object_pose(self, name: str) -> Array:
        """Return the pose O_T_object (4, 4) of an object of the scene, as a copy."""
        body = self.data.body(name)
        return make_pose(body.xmat.reshape(3, 3), body.xpos)

    def O_T_EE(self) -> Array:
        """Return the pose of EE (4, 4) now, as a copy."""
        return make_pose(self._site_rotation, self._site_position)

    def start_wrench_average(self) -> None:
        """Forget the contacts so far; `external_wrench` averages over what follows."""
        self._contact_torque_sum[:] = 0.0
        self._contact_steps = 0

    def external_wrench(self) -> Array:
        """Return the mean external wrench (6,) on EE, in O, over the last `advance`; zeros right after a reset.

        As on the robot it is not measured at the tip but taken from joint torques: those of the contacts, through the
        dynamically consistent inverse of J^T, Lambda J M^-1. The mean stands in for the robot's low-pass filter.
        """
        if self._contact_steps == 0:
            return np.zeros(6)
        mujoco.mj_fullM(self.model, self._whole_mass_matrix, self.data.qM)
        M_inv_J_T = np.linalg.solve(self._mass_matrix, self.jacobian.T)
        contact_torque = self._contact_torque_sum / self._contact_steps
        wrench: Array = np.linalg.solve(self.jacobian @ M_inv_J_T, contact_torque @ M_inv_J_T)
        return wrench

    def _refresh(self) -> None:
        """Bring everything that depends on position and velocity up to date."""
        mujoco.mj_step1(self.model, self.data)
        whole = self._whole_jacobian
        mujoco.mj_jacSite(self.model, self.data, whole[:3], whole[3:], self._site_id)
