"""The twin: a simulated Franka in MuJoCo, stepped in lock-step by whoever calls `advance`."""

import logging
import math
import time

import numpy as np
from numpy.typing import NDArray

from robot.backends.twin.looks import MAX_AMOUNT
from robot.backends.twin.model import PHYSICS_STEP_S
from robot.backends.twin.osc import OscConfig
from robot.backends.twin.pictures import Pictures
from robot.backends.twin.simulation import Simulation
from robot.errors import RobotConfigError, RobotError
from robot.geometry import PEG_RADIUS_M
from robot.interface import Array, RobotCommand, RobotState, ScenePlacement
from robot.pose import apply_delta
from robot.scenes import check_placement, check_scene

_log = logging.getLogger(__name__)


class TwinBackend:
    """A Panda with a Robotiq 2F-85, under operational-space control at 500 Hz. Satisfies SimulatedBackend."""

    def __init__(self, scene: str, *, osc: OscConfig | None = None) -> None:
        """scene: see robot/scenes.py. osc: gains and torque limit; Deoxys' defaults unless given."""
        check_scene(scene)
        self._scene = scene
        self._osc_config = osc or OscConfig()
        self._simulation: Simulation | None = None
        self._placement: ScenePlacement | None = None
        self._goal = np.eye(4)
        self._looks_variation = 0.0
        self._pictures: Pictures | None = None
        self._episode = -1  # counts resets
        self._instant = 0

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
        self._episode += 1
        self._instant += 1
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
        self._instant += 1

    def stop(self) -> None:
        """Hold the present pose. Does nothing before the first reset."""
        if self._simulation is not None and self._placement is not None:
            self._goal = self._simulation.O_T_EE()

    def recover(self) -> None:
        """Nothing to leave behind: a twin that is called directly has no faults (robot/backends/twin/nuc.py has)."""

    def close(self) -> None:
        """Free the simulation and the drawing context."""
        self._drop_pictures()
        self._simulation = self._placement = None

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
        return self._posed_pictures().look(camera, width, height)

    def vary_looks(self, amount: float) -> None:
        """Let light, colours and camera mounts differ from episode to episode (looks.py): 1 as written there, 0 not.

        They are drawn from the placement, so that equal placements look equal; the physics know nothing of it.
        Raises RobotConfigError for an amount outside 0 to 3.
        """
        if not 0.0 <= amount <= MAX_AMOUNT:
            raise RobotConfigError(f"looks that vary by {amount}: the amount must be from 0 to {MAX_AMOUNT:g}")
        self._looks_variation = amount
        self._drop_pictures()

    @property
    def instant(self) -> int:
        """Grows whenever simulated time goes on and at each reset: equal values, equal pictures."""
        return self._instant

    def photograph(self, camera: str) -> NDArray[np.uint8]:
        """Return what the workplace's camera "wrist" or "third_person" (robot/cameras/optics.py) sees now, RGB.

        Of the camera's own size. Threads and errors as in `render`.
        """
        return self._posed_pictures().photograph(camera)

    def _posed_pictures(self) -> Pictures:
        """Return the pictures with everything in them where it is now."""
        simulation = self._placed()
        assert self._placement is not None
        if self._pictures is None:
            self._pictures = Pictures(self._scene, self._looks_variation)
        width = simulation.fingers.width if simulation.fingers else 2.0 * PEG_RADIUS_M
        self._pictures.begin_episode(self._episode, self._placement)
        self._pictures.pose(simulation.q, width, simulation.O_T_EE(), self.object_poses())
        return self._pictures

    def _drop_pictures(self) -> None:
        if self._pictures is not None:
            self._pictures.close()
        self._pictures = None

    def _connected(self) -> Simulation:
        if self._simulation is None:
            raise RobotError("the twin is not connected (or was closed); call connect() first")
        return self._simulation

    def _placed(self) -> Simulation:
        simulation = self._connected()
        if self._placement is None:
            raise RobotError("the twin's arm has no pose yet; call reset(placement) first")
        return simulation
