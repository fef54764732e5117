"""The twin: a simulated Franka in MuJoCo, stepped in lock-step by whoever calls `advance`."""

import logging
import math
import time

import numpy as np
from numpy.typing import NDArray

from robot.backends.twin.model import PHYSICS_STEP_S
from robot.backends.twin.osc import OscConfig
from robot.backends.twin.render import OVERVIEW, Renderer, View
from robot.backends.twin.simulation import Simulation
from robot.errors import RobotConfigError, RobotError, unknown_name
from robot.geometry import PEG_RADIUS_M
from robot.interface import Array, RobotCommand, RobotState, ScenePlacement
from robot.pose import apply_delta
from robot.scenes import check_placement, check_scene

_log = logging.getLogger(__name__)


class TwinBackend:
    """A Panda with the peg's gripper, under operational-space control at 500 Hz. Satisfies SimulatedBackend."""

    def __init__(self, scene: str, *, osc: OscConfig | None = None) -> None:
        """scene: see robot/scenes.py. osc: gains and torque limit; Deoxys' defaults unless given."""
        check_scene(scene)
        self._scene = scene
        self._osc_config = osc or OscConfig()
        self._simulation: Simulation | None = None
        self._placement: ScenePlacement | None = None
        self._goal = np.eye(4)
        self._renderer: Renderer | None = None

    def connect(self) -> None:
        """Build the model (about half a second). Raises MissingDependencyError without the gym-hil wheel."""
        if self._simulation is None:
            start_s = time.monotonic()
            self._simulation = Simulation(self._scene, self._osc_config)
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
            O_twist_EE=simulation.jacobian @ simulation.dq,
            q=simulation.q.copy(),
            dq=simulation.dq.copy(),
            tau_J=simulation.tau.copy(),
            O_F_ext_hat_K=simulation.external_wrench(),
            gripper_width=simulation.fingers.width if simulation.fingers else 2.0 * PEG_RADIUS_M,
            robot_time_s=simulation.time_s,
            received_monotonic_s=time.monotonic(),
        )

    def send_command(self, command: RobotCommand) -> None:
        """Set the goal to the measured pose plus the step. Fingers frozen around a peg ignore a gripper width."""
        simulation = self._placed()
        self._goal = apply_delta(simulation.O_T_EE(), command.delta_position, command.delta_rotation)
        if command.gripper_width is not None and simulation.fingers is not None:
            simulation.fingers.command(command.gripper_width)

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
        return {name: simulation.object_pose(name) for name in self._placement.objects}

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

    def _connected(self) -> Simulation:
        if self._simulation is None:
            raise RobotError("the twin is not connected (or was closed); call connect() first")
        return self._simulation

    def _placed(self) -> Simulation:
        simulation = self._connected()
        if self._placement is None:
            raise RobotError("the twin's arm has no pose yet; call reset(placement) first")
        return simulation
