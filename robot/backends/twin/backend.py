"""The twin: a simulated Franka in MuJoCo, stepped in lock-step by whoever calls `advance`."""

import logging
import math
import time
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from robot.backends.twin.inverse_kinematics import solve_joints
from robot.backends.twin.model import EE_SITE, HOLE_BODY, PEG_BODY, PHYSICS_STEP_S, TARGET_BODY, build_model
from robot.backends.twin.osc import OperationalSpaceController, OscConfig
from robot.backends.twin.render import OVERVIEW, Renderer, View
from robot.errors import RobotConfigError, RobotError, unknown_name
from robot.geometry import PEG_RADIUS_M
from robot.interface import Array, RobotCommand, RobotState, ScenePlacement
from robot.pose import apply_delta, make_pose
from robot.scenes import check_placement, check_scene

_log = logging.getLogger(__name__)

# EE above the middle of the table, gripper down, every joint at least 0.6 rad from its limits.
Q_HOME: Array = np.array([0.0, 0.2, 0.0, -2.2, 0.0, 2.4, math.pi / 4])
Q_HOME.setflags(write=False)


class TwinBackend:
    """A Panda with the peg's gripper, under operational-space control at 500 Hz. Satisfies SimulatedBackend.

    Between calls the simulation's positions, velocities and all that follows from them (mj_step1) are up to date.
    """

    def __init__(self, scene: str, *, osc: OscConfig | None = None) -> None:
        """scene: see robot/scenes.py. osc: gains and torque limit; Deoxys' defaults unless given."""
        check_scene(scene)
        self._scene = scene
        self._osc_config = osc or OscConfig()
        self._simulation: _Simulation | None = None
        self._placement: ScenePlacement | None = None
        self._goal = np.eye(4)
        self._renderer: Renderer | None = None

    def connect(self) -> None:
        """Build the model (about half a second). Raises MissingDependencyError without the gym-hil wheel."""
        if self._simulation is None:
            start_s = time.monotonic()
            self._simulation = _Simulation(self._scene, self._osc_config)
            _log.info("built scene %r in %.2f s", self._scene, time.monotonic() - start_s)

    def reset(self, placement: ScenePlacement) -> RobotState:
        """Put arm and objects at `placement`, at rest. The same placement gives bit-identical states.

        Raises RobotConfigError if the placement does not fit the scene, RobotError if the arm cannot reach it.
        """
        check_placement(self._scene, placement)
        simulation = self._connected()
        self._placement = None  # if the pose cannot be reached there is no valid state to read
        simulation.reset(placement)
        self._placement = placement
        self._goal = simulation.O_T_EE()
        return self.read_state()

    def read_state(self) -> RobotState:
        """Return the state now, in arrays of its own."""
        simulation = self._placed()
        return RobotState(
            O_T_EE=simulation.O_T_EE(),
            O_twist_EE=simulation.jacobian @ simulation.data.qvel,
            q=simulation.data.qpos.copy(),
            dq=simulation.data.qvel.copy(),
            tau_J=simulation.data.ctrl.copy(),
            O_F_ext_hat_K=simulation.external_wrench(),
            gripper_width=2.0 * PEG_RADIUS_M,  # the fingers are frozen around the peg
            robot_time_s=simulation.time_s,
            received_monotonic_s=time.monotonic(),
        )

    def send_command(self, command: RobotCommand) -> None:
        """Set the goal to the measured pose plus the step; the gripper width is ignored (see docs/twin.md)."""
        O_T_EE = self._placed().O_T_EE()
        self._goal = apply_delta(O_T_EE, command.delta_position, command.delta_rotation)

    def advance(self, period_s: float) -> None:
        """Simulate period_s, a whole number of 2 ms steps, as fast as the machine can. Pacing is the caller's."""
        steps = round(period_s / PHYSICS_STEP_S)
        if steps < 1 or not math.isclose(steps * PHYSICS_STEP_S, period_s, rel_tol=1e-6):
            raise RobotConfigError(
                f"control period {period_s} s is not a whole number of physics steps of {PHYSICS_STEP_S} s; "
                "choose a control rate such as 10, 20 or 50 Hz"
            )
        simulation = self._placed()
        simulation.start_wrench_average()
        for _ in range(steps):
            simulation.step(self._goal)

    def stop(self) -> None:
        """Hold the present pose. Does nothing before the first reset."""
        if self._simulation is not None and self._placement is not None:
            self._goal = self._simulation.O_T_EE()

    def close(self) -> None:
        """Free the simulation and the drawing context."""
        if self._renderer is not None:
            self._renderer.close()
        self._renderer = self._simulation = self._placement = None

    def object_poses(self) -> dict[str, Array]:
        """Return name -> O_T_object (4, 4) for each object of the scene."""
        simulation = self._placed()
        assert self._placement is not None
        poses = {name: pose.astype(np.float64) for name, pose in self._placement.objects.items()}
        if self._scene == "peg_in_hole":
            poses["peg"] = simulation.O_T_EE() @ poses["peg"]
        return poses

    def render(self, width: int, height: int, camera: str = "overview") -> NDArray[np.uint8]:
        """Return an RGB image (height, width, 3) from the camera "overview" or "close".

        Call it from one thread only: that one owns the drawing context. Raises RobotConfigError for another camera and
        RobotError, naming the packages to install, where the machine cannot draw off screen.
        """
        simulation = self._placed()
        views = {"overview": OVERVIEW, "close": self._close_view()}
        if camera not in views:
            raise unknown_name("camera", camera, views)
        if self._renderer is None:
            self._renderer = Renderer(simulation.model)
        return self._renderer.render(simulation.data, width, height, views[camera])

    def _close_view(self) -> View:
        """Return a view of the hole with room for the peg above it, or of the target with room for the arm."""
        assert self._placement is not None
        name, height_m, distance_m = ("hole", 0.03, 0.32) if self._scene == "peg_in_hole" else ("target", 0.0, 0.70)
        x, y, z = self._placement.objects[name][:3, 3].tolist()
        return View(lookat_m=(x, y, z + height_m), distance_m=distance_m, azimuth_deg=150.0, elevation_deg=-32.0)

    def _connected(self) -> "_Simulation":
        if self._simulation is None:
            raise RobotError("the twin is not connected (or was closed); call connect() first")
        return self._simulation

    def _placed(self) -> "_Simulation":
        simulation = self._connected()
        if self._placement is None:
            raise RobotError("the twin's arm has no pose yet; call reset(placement) first")
        return simulation


class _Simulation:
    """MuJoCo's model and data with the controller, and the buffers they share."""

    def __init__(self, scene: str, osc: OscConfig) -> None:
        self.model: Any = build_model(scene)
        self.data: Any = mujoco.MjData(self.model)
        self.jacobian = np.zeros((6, 7))
        self._mass_matrix = np.zeros((7, 7))
        self._controller = OperationalSpaceController(osc, Q_HOME)
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
        self._earlier_s = self.time_s
        self._place_objects(placement)
        mujoco.mj_resetData(self.model, self.data)
        solve_joints(self.model, self.data, self._site_id, placement.O_T_EE, Q_HOME)
        self.start_wrench_average()
        self._refresh()
        self.data.ctrl[:] = self.data.qfrc_bias  # the torque that holds the arm, as the state should say

    def _place_objects(self, placement: ScenePlacement) -> None:
        model = self.model
        for name, pose in placement.objects.items():
            body_id = model.body({"target": TARGET_BODY, "hole": HOLE_BODY, "peg": PEG_BODY}[name]).id
            if name == "peg":  # given in EE; its body hangs in the gripper's frame, in which EE is a fixed site
                gripper_R_EE = np.empty(9)
                mujoco.mju_quat2Mat(gripper_R_EE, model.site_quat[self._site_id])
                pose = make_pose(gripper_R_EE.reshape(3, 3), model.site_pos[self._site_id]) @ pose
            model.body_pos[body_id] = pose[:3, 3]
            mujoco.mju_mat2Quat(model.body_quat[body_id], np.ascontiguousarray(pose[:3, :3]).ravel())
        mujoco.mj_setConst(model, self.data)  # the peg's place changes what the contact solver knows of inertia

    def step(self, goal: Array) -> None:
        """Advance by one physics step under the controller's torque for `goal` (4, 4)."""
        data = self.data
        mujoco.mj_fullM(self.model, self._mass_matrix, data.qM)
        data.ctrl[:] = self._controller.torque(
            goal, self.O_T_EE(), data.qpos, data.qvel, self.jacobian, self._mass_matrix, data.qfrc_bias
        )
        mujoco.mj_step2(self.model, data)
        self._contact_torque_sum += data.qfrc_constraint
        self._contact_steps += 1
        self._refresh()

    def O_T_EE(self) -> Array:
        return make_pose(self._site_rotation, self._site_position)

    def start_wrench_average(self) -> None:
        self._contact_torque_sum[:] = 0.0
        self._contact_steps = 0

    def external_wrench(self) -> Array:
        """Return the mean external wrench (6,) on EE, in O, over the last `advance`; zeros right after a reset.

        As on the robot it is not measured at the tip but taken from joint torques: those of the contacts, through the
        dynamically consistent inverse of J^T, Lambda J M^-1. The mean stands in for the robot's low-pass filter.
        """
        if self._contact_steps == 0:
            return np.zeros(6)
        mujoco.mj_fullM(self.model, self._mass_matrix, self.data.qM)
        M_inv_J_T = np.linalg.solve(self._mass_matrix, self.jacobian.T)
        contact_torque = self._contact_torque_sum / self._contact_steps
        wrench: Array = np.linalg.solve(self.jacobian @ M_inv_J_T, contact_torque @ M_inv_J_T)
        return wrench

    def _refresh(self) -> None:
        """Bring everything that depends on position and velocity up to date."""
        mujoco.mj_step1(self.model, self.data)
        mujoco.mj_jacSite(self.model, self.data, self.jacobian[:3], self.jacobian[3:], self._site_id)
