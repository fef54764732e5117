"""RobotEnv: a task on a robot, real or simulated, as a gymnasium environment.

Importing this module registers each task on the twin, such as cgpo/PegInHole-v0, its variant with images,
cgpo/PegInHolePixels-v0, and both with "Fake" before the version on the kinematic fake.
"""

import itertools
import logging
from collections.abc import Callable
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from actor.camera_rig import CameraRig, RigReading
from actor.config import ActorConfig, CameraConfig, CamerasConfig
from actor.rate import RateKeeper
from actor.tasks import TASKS, make_task
from actor.tasks.base import ObjectPoses, Outcome, Task, TaskOptions
from actor.tasks.cartesian import commands_close
from policy.errors import CgpoError, ConfigError
from robot.backends import make_backend
from robot.cameras import make_camera
from robot.errors import MissingDependencyError, OutageError, RobotConfigError, RobotError
from robot.grippers import make_gripper
from robot.guard import Guard, Mode
from robot.interface import (
    Array,
    Camera,
    Gripper,
    RobotBackend,
    RobotCommand,
    RobotState,
    Room,
    SimulatedBackend,
    SimulatedWorld,
)

_log = logging.getLogger(__name__)

HOLD_AFTER_LATE_PERIODS = 3
_UNKNOWN = Outcome(reward=0.0, terminated=False, is_success=False)  # without ground truth, others judge
_HOLD = RobotCommand(delta_position=np.zeros(3), delta_rotation=np.zeros(3))

RENDER_WIDTH, RENDER_HEIGHT = 512, 384  # multiples of 16, which video codecs want
_INSET = RENDER_HEIGHT // 2  # px a side: the cameras' images, one above the other

EnvObservation = dict[str, Any]  # field -> float32 vector, image -> uint8; Any is what gymnasium's Dict space declares


class RobotEnv(gymnasium.Env[EnvObservation, NDArray[np.float32]]):
    """One task on one backend. Actions are in [-1, 1]; observations in the units of the task's spec.

    Every action passes the safety gate. info["executed_action"] is what was really sent, normalised and in the policy's
    frame; info["clip_reasons"] says why it differs from the action; info["is_success"] is the task's own verdict;
    info["gripper_toggled"] whether the action opened or closed the gripper; info["stale_cameras"] whose image is old.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - gymnasium's own shape

    def __init__(
        self,
        task: Task,
        backend: RobotBackend,
        rate: RateKeeper | None = None,
        render_mode: str | None = None,
        cameras: CameraRig | None = None,
        guard: Guard | None = None,
        room: Room | None = None,
    ) -> None:
        """Backend, cameras and room must be connected and stay the caller's to close.

        Without `rate` nothing paces the steps. guard: the backend's, where several environments share it; all of them
        have the task's control rate. room: the simulated world around a backend that is none.
        Raises ConfigError for a task with images without `cameras`.
        """
        self.task = task
        self.render_mode = render_mode
        self.rate = rate or RateKeeper(1.0 / task.control_rate_hz, pace=0.0)
        self.is_human_driving = False  # whose the next actions are; for the guard's account of who has the arm
        self._backend = backend
        self._period_s = 1.0 / task.control_rate_hz
        self.guard = guard or Guard(backend, task.safety, self._period_s)
        self._room = room
        self._world: SimulatedWorld | None = room
        self.waits_for_commands = isinstance(backend, SimulatedBackend)  # time passes in `advance` alone
        if isinstance(backend, SimulatedBackend):
            self._world = backend
        if self._world is None and not task.observation_spec.images:
            raise ConfigError(
                f"task {task.name!r} without pixels observes where objects are, which nothing tells on a robot: set "
                "actor.pixels = true"
            )
        if task.observation_spec.images and cameras is None:
            raise ConfigError(f"task {task.name!r} with pixels needs cameras (actor.camera_rig.CameraRig)")
        self._cameras = cameras if task.observation_spec.images else None
        self._reading = RigReading({}, ())
        self._state: RobotState | None = None
        self._O_T_reset: Array = np.eye(4)
        self._objects: ObjectPoses = {}
        self._is_gripper_closed = False  # as last commanded
        self._step = 0
        self.action_space = spaces.Box(-1.0, 1.0, (task.action_spec.dim,), np.float32)
        # The spec's bounds scale the network's input; a measurement may pass them, so they bound no space.
        vectors = {field.name: spaces.Box(-np.inf, np.inf, (field.size,)) for field in task.observation_spec.fields}
        images = {
            image.name: spaces.Box(0, 255, (image.height, image.width, 3), np.uint8)
            for image in task.observation_spec.images
        }
        self.observation_space = spaces.Dict({**vectors, **images})

    @property
    def state(self) -> RobotState:
        """The latest measurement. Raises ConfigError before the first reset."""
        if self._state is None:
            raise ConfigError("the environment has no state yet; call reset() first")
        return self._state

    @property
    def objects(self) -> ObjectPoses:
        """O_T_object of each object at the latest measurement."""
        return self._objects

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[EnvObservation, dict[str, Any]]:
        """Draw a placement, move there, observe. Equal seeds give equal episodes in a simulator.

        Raises as `step` does.
        """
        super().reset(seed=seed, options=options)
        placement = self.task.sample_placement(self.np_random)
        state = self.guard.reset(placement)
        if self._room is not None:
            self._room.place(placement)  # the hand is out of the way now
        self._O_T_reset = state.O_T_EE
        self._is_gripper_closed = commands_close(state.gripper_width)
        self._step = 0
        observation = self._measure()
        self.rate.start()  # a simulated camera builds what it draws from at its first picture: no part of a period
        return observation, {"stale_cameras": self._reading.stale_cameras}

    def step(self, action: NDArray[np.float32]) -> tuple[EnvObservation, float, bool, bool, dict[str, Any]]:
        """Send one action, let the control period pass, observe.

        Waiting for the period's end happens here, before measuring: waiting elsewhere would age the observation.
        An action with a value that is not finite is a hold. Raises WireError for one of the wrong shape; after the arm
        has been told to hold, OutageError when state or images are too old to go on and RobotFaultError for a fault.
        """
        sent, reasons = self._command(action)
        executed_action = self._executed_action(action, sent)
        gripper_toggled = self._note_gripper(sent)
        self._let_period_pass()
        observation = self._measure()
        self._step += 1
        outcome = self.task.outcome(self.state, self.objects) if self._world is not None else _UNKNOWN
        truncated = not outcome.terminated and self._step >= self.task.max_episode_steps
        info = {
            "executed_action": executed_action,
            "gripper_toggled": gripper_toggled,
            "clip_reasons": reasons,
            "is_success": outcome.is_success,
            "stale_cameras": self._reading.stale_cameras,
        }
        return observation, outcome.reward, outcome.terminated, truncated, info

    def look(self) -> None:
        """Measure, and no more: whether state and images are fresh. Raises as `step` does."""
        self._measure()

    def hold(self, reason: str) -> EnvObservation:
        """Let the arm hold for one control period, which is no step of the episode; observe. Raises as `step` does."""
        self.guard.hold(reason)
        self._let_period_pass()
        return self._measure()

    def render(self) -> NDArray[np.uint8]:
        """Return an RGB image: the whole arm (384, 512, 3), beside it what it works on, and what the policy sees.

        Without images in the observation it is (384, 1024, 3), with them (384, 1216, 3); on a robot it is what the
        policy sees alone, (384, 192, 3). Raises RobotError where a simulator cannot draw, ConfigError for a robot
        without cameras.
        """
        views = []
        if self._world is not None:
            views += [self._world.render(RENDER_WIDTH, RENDER_HEIGHT, name) for name in ("overview", "close")]
        elif not self._reading.images:
            raise ConfigError("there is nothing to see: this backend is no simulator, and the task has no cameras")
        if self._reading.images:
            insets = [
                cv2.resize(image, (_INSET, _INSET), interpolation=cv2.INTER_NEAREST)
                for image in self._reading.images.values()
            ]
            views.append(np.vstack(insets).astype(np.uint8))
        return np.hstack(views)

    def _command(self, action: NDArray[np.float32]) -> tuple[RobotCommand, tuple[str, ...]]:
        """Command an action; return what was sent, and why it is not what the action says."""
        problem = ""
        if self.rate.late_in_a_row >= HOLD_AFTER_LATE_PERIODS:
            problem = (
                f"overrun: {self.rate.late_in_a_row} control periods in a row took more than 1.5 times "
                f"{self._period_s * 1e3:.0f} ms; the arm holds until one is in time. Is the computer busy, or the "
                "policy too slow for this rate?"
            )
        elif not np.isfinite(action).all():
            problem = f"malformed: action {np.asarray(action).tolist()} is not finite; the arm holds"
        if problem:
            was_holding = self.guard.mode is Mode.HOLD
            self.guard.hold(problem)  # first: whoever reads the log may be slow
            if not was_holding:
                _log.warning("%s", problem)
            return _HOLD, (problem,)
        result = self.guard.act(
            self.task.command(action, self.state),
            is_human=self.is_human_driving,
            shorten=lambda command: self.task.sayable(command, self.state),
        )
        return result.command, result.reasons

    def _let_period_pass(self) -> None:
        self._backend.advance(self._period_s)
        self.rate.wait()

    def _executed_action(self, action: NDArray[np.float32], command: RobotCommand) -> NDArray[np.float32]:
        """Return the action that stands for what is sent from the present state."""
        executed = self.task.action_of(command, self.state)
        if command is _HOLD:
            return executed
        asked_width = self.task.command(action, self.state).gripper_width
        if self.task.action_spec.gripper == "continuous" and command.gripper_width == asked_width:
            executed[-1] = np.clip(action[-1], -1.0, 1.0)  # many values say the same; this one was the policy's
        return executed

    def _note_gripper(self, command: RobotCommand) -> bool:
        """Return whether the command opens a closed gripper or closes an open one."""
        if command.gripper_width is None:
            return False
        was_closed, self._is_gripper_closed = self._is_gripper_closed, commands_close(command.gripper_width)
        return was_closed != self._is_gripper_closed

    def _measure(self) -> EnvObservation:
        self._state = self.guard.read_state()
        if self._world is not None:
            self._objects = self._world.object_poses()
        observation = dict(self.task.observe(self._state, self._objects, self._O_T_reset))
        if self._cameras is not None:
            try:
                self._reading = self._cameras.read(self._state.O_T_EE[:3, 3])
            except OutageError as error:
                self.guard.hold(str(error))
                raise
            observation.update(self._reading.images)
        self.task.observation_spec.check(observation)
        return observation


class _OwningEnv(RobotEnv):
    """A RobotEnv that made its own backend, for gymnasium.make."""

    def __init__(self, task_name: str, backend_name: str, pixels: bool = False, render_mode: str | None = None) -> None:
        task = make_task(task_name, TaskOptions(pixels=pixels))
        backend = connect_backend(backend_name, task)
        cameras = connect_cameras(CamerasConfig(), task, backend_name, backend)
        super().__init__(task, backend, render_mode=render_mode, cameras=cameras)

    def close(self) -> None:
        if self._cameras is not None:
            self._cameras.close()
        self._backend.close()


class RobotFailureError(CgpoError):
    """The robot cannot go on; the message is its driver's."""


def connect_backend(name: str, task: Task, **options: object) -> RobotBackend:
    """Return the connected backend `name` for a task's scene; options go to its constructor.

    Raises ConfigError for an unknown name, listing the valid ones, and for a backend whose packages are missing;
    RobotFailureError when the robot does not answer.
    """
    try:
        backend = make_backend(name, task.scene, **options)
        backend.connect()
    except (RobotConfigError, MissingDependencyError) as error:
        raise ConfigError(str(error)) from error
    except RobotError as error:
        raise RobotFailureError(str(error)) from error
    return backend


def connect_robot(config: ActorConfig, task: Task, should_stop: Callable[[], bool]) -> RobotBackend:
    """Return the configured backend, connected, with its gripper. should_stop() ends a real arm's reset.

    Raises as `connect_backend` does.
    """
    if config.backend != "deoxys":
        return connect_backend(config.backend, task)
    try:
        gripper = configured_gripper(config)
    except (RobotConfigError, MissingDependencyError) as error:
        raise ConfigError(str(error)) from error
    return connect_backend(config.backend, task, options=config.deoxys, gripper=gripper, should_stop=should_stop)


def configured_gripper(config: ActorConfig) -> Gripper | None:
    """Return the gripper on an arm behind Deoxys, not yet connected; None for "none".

    Raises as `make_gripper` does, and RobotConfigError for a network file that a Franka Hand needs and nobody can read.
    """
    if config.hand.driver != "franka_hand":
        return make_gripper(config.hand)
    from robot.backends.deoxys.config import load_network  # needs YAML, which a machine without a robot may lack

    return make_gripper(config.hand, network=load_network(config.deoxys.network))


def connect_room(address: str, task: Task) -> Room | None:
    """Return the simulated world around the robot, connected; None without an address.

    Raises ConfigError when it is not the task's scene, RobotFailureError when nothing answers there.
    """
    if not address:
        return None
    from robot.backends.twin.room import RoomClient  # needs pyzmq, which a robot without a room may lack

    try:
        room: Room = RoomClient(address, scene=task.scene)
        room.connect()
    except RobotConfigError as error:
        raise ConfigError(str(error)) from error
    except RobotError as error:
        raise RobotFailureError(str(error)) from error
    return room


def connect_cameras(config: CamerasConfig, task: Task, backend_name: str, backend: RobotBackend) -> CameraRig | None:
    """Return the cameras of a task with images, connected; None for a task without.

    Raises ConfigError for an unknown driver, one whose packages are missing or a crop outside its camera's frame;
    RobotFailureError when a camera does not answer.
    """
    cameras: dict[str, Camera] = {}
    try:
        for image in task.observation_spec.images:
            chosen: CameraConfig = getattr(config, image.name)
            cameras[image.name] = make_camera(
                chosen.driver or backend_name, image.name, device=chosen.device, backend=backend, **chosen.options()
            )
        if not cameras:
            return None
        rig = CameraRig(cameras, config)
        rig.connect()
    except (RobotConfigError, MissingDependencyError) as error:
        raise ConfigError(str(error)) from error
    except RobotError as error:
        raise RobotFailureError(str(error)) from error
    return rig


def _register() -> None:
    variants = itertools.product(TASKS, (("", False), ("Pixels", True)), (("", "twin"), ("Fake", "fake")))
    for task_name, (images, pixels), (suffix, backend_name) in variants:
        camel_case = "".join(word.capitalize() for word in task_name.split("_"))
        env_id = f"cgpo/{camel_case}{images}{suffix}-v0"
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id,
                entry_point="actor.env:_OwningEnv",
                kwargs={"task_name": task_name, "backend_name": backend_name, "pixels": pixels},
            )


_register()
