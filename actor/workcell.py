"""What one process has at the robot: the arm, its cameras, the person's devices, and the judge of success."""

import contextlib
import time
from collections.abc import Callable, Mapping

from torch import Tensor

from actor.config import ActorConfig
from actor.device_driver import connect_device, make_driver
from actor.env import RobotEnv, RobotFailureError, connect_backend, connect_cameras
from actor.intervention import Arbiter
from actor.operator import OperatorInput, open_operator
from actor.policy_runner import WeightsSource
from actor.rate import RateKeeper
from actor.reviewer import TruthReviewer
from actor.rewards import RewardSource, make_rewards
from actor.tasks import make_task
from actor.tasks.base import Task, TaskOptions
from policy.encoder import EncoderInput, ObservationEncoder
from policy.errors import ConfigError, unknown_name
from policy.spec import Observation, Specs
from policy.success_classifier import TENSOR_PREFIX
from robot.backends import BACKENDS
from robot.cameras.twin import Photographed
from robot.errors import RobotConfigError, RobotError
from robot.interface import RobotBackend, SimulatedBackend

_CAMERA_POLL_S = 0.2


def configured_task(config: ActorConfig) -> Task:
    """Return the task with the configured observations and actions. Raises ConfigError, before anything is written."""
    if config.backend not in BACKENDS:
        raise unknown_name("robot backend", config.backend, list(BACKENDS))
    options = TaskOptions(
        pixels=config.pixels, image_size_px=config.cameras.image_size_px, gripper=config.gripper, frame=config.frame
    )
    return make_task(config.task, options)


class Workcell:
    """Opens everything and hands the closing to `closing`; the robot is opened last, so that it is stopped first."""

    def __init__(
        self,
        config: ActorConfig,
        task: Task,
        weights: WeightsSource,
        closing: contextlib.ExitStack,
        say: Callable[[str], None],
        *,
        operator_seed: int,
        training_steps: int = 0,
    ) -> None:
        """training_steps were made before, by earlier processes of the same run.

        Raises ConfigError for what cannot work together, RobotFailureError for what does not answer.
        """
        self._config = config
        self._say = say
        device = connect_device(config.teleop, config.run_dir)
        if device is not None:
            closing.callback(device.close)
        keys = open_operator(config.keys, say)
        closing.callback(keys.close)
        backend = connect_backend(config.backend, task)
        self.is_simulated = isinstance(backend, SimulatedBackend)
        _check_simulation(config, self.is_simulated)
        closing.callback(backend.close)
        vary_looks(backend, config.looks_variation)
        self._cameras = connect_cameras(config.cameras, task, config.backend, backend)
        if self._cameras is not None:
            closing.callback(self._cameras.close)
        closing.callback(backend.stop)

        period_s = 1.0 / task.control_rate_hz
        self.env = RobotEnv(task, backend, RateKeeper(period_s, config.pace), cameras=self._cameras)
        # An environment of its own, so that drawing videos does not count as overruns of the control loop.
        self.evaluation_env = RobotEnv(task, backend, RateKeeper(period_s, config.eval_pace), cameras=self._cameras)
        driver = make_driver(
            self.env, config.intervention, config.teleop, device, seed=operator_seed, training_steps=training_steps
        )
        self.arbiter = Arbiter(driver, round(config.intervention.settings.hold_s * task.control_rate_hz))
        self.operator: OperatorInput = keys
        self.rewards: RewardSource = _make_rewards(config, task, weights)
        if config.reward.reviewer == "task":
            self.rewards = self.operator = TruthReviewer(self.rewards, keys)

    def wait_for_cameras(self, fault: str, should_stop: Callable[[], bool]) -> None:
        """Wait until all cameras deliver again, or a stop is asked for. The arm holds meanwhile.

        Raises RobotFailureError when that takes longer than cameras.return_within_s.
        """
        limit_s = self._config.cameras.return_within_s
        self._say(f"{fault} Waiting up to {limit_s:.0f} s for it to come back.")
        start_s = time.monotonic()
        while not should_stop():
            try:
                assert self._cameras is not None, "only a camera's fault leads here"
                self._cameras.read(self.env.state.O_T_EE[:3, 3])
            except RobotError as error:
                fault = str(error)
            else:
                self._say(f"all cameras deliver again after {time.monotonic() - start_s:.1f} s")
                return
            if time.monotonic() - start_s >= limit_s:
                raise RobotFailureError(
                    f"after {limit_s:.0f} s (cameras.return_within_s) still: {fault} Everything recorded is kept: "
                    "start the actor again in the same folder when the camera works."
                )
            time.sleep(_CAMERA_POLL_S)


class _PublishedClassifier:
    """The success classifier's tensors among the newest weights; the same object until other weights arrive."""

    def __init__(self, weights: WeightsSource) -> None:
        self._weights = weights
        self._version = 0
        self._tensors: Mapping[str, Tensor] = {}

    def __call__(self) -> Mapping[str, Tensor]:
        newest = self._weights.latest_weights()
        if newest is not None and newest.version != self._version:
            self._version = newest.version
            tensors = {name: tensor for name, tensor in newest.tensors.items() if name.startswith(TENSOR_PREFIX)}
            self._tensors = {name.removeprefix(TENSOR_PREFIX): tensor for name, tensor in tensors.items()}
        return self._tensors


def _make_rewards(config: ActorConfig, task: Task, weights: WeightsSource) -> RewardSource:
    specs = Specs(task.observation_spec, task.action_spec)
    needs_encoder = config.reward.source == "classifier"
    encode = ObservationEncoder(specs, config.policy).inputs if needs_encoder else _never_encode
    return make_rewards(config.reward, specs, config.policy, encode, _PublishedClassifier(weights))


def _never_encode(observation: Observation) -> EncoderInput:
    raise AssertionError("only a classifier looks at observations")


def vary_looks(backend: RobotBackend, amount: float) -> None:
    """Raises ConfigError for a backend whose looks are not drawn, or too much of it."""
    if not amount:
        return
    if not isinstance(backend, Photographed):
        raise ConfigError(
            f"actor.looks_variation = {amount}: only the twin draws pictures whose looks can be varied, the backend is "
            f"{type(backend).__name__}. Set it to 0."
        )
    try:
        backend.vary_looks(amount)
    except RobotConfigError as error:
        raise ConfigError(f"actor.looks_variation: {error}") from error


def _check_simulation(config: ActorConfig, is_simulated: bool) -> None:
    """Raise ConfigError for what only a simulated robot can do."""
    if is_simulated:
        return
    if (config.pace, config.eval_pace) != (1.0, 1.0) or config.max_steps_per_version:
        raise ConfigError(
            f"actor.pace = {config.pace}, eval_pace = {config.eval_pace} and max_steps_per_version = "
            f"{config.max_steps_per_version}: backend {config.backend!r} is no simulator, it runs in real time (both "
            "paces 1) and never waits for its learner (0)"
        )
    if config.teleop.device == "scripted":
        raise ConfigError(
            "the scripted operator knows where objects are in a simulation only: choose an input device with "
            "--teleop.device"
        )
    if config.reward.source == "task" or config.reward.reviewer == "task":
        raise ConfigError(
            f"actor.reward.source = {config.reward.source!r}, reviewer = {config.reward.reviewer!r}: backend "
            f"{config.backend!r} is no simulator and knows no ground truth. Choose the source classifier or human, and "
            "the reviewer none."
        )
