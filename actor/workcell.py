"""What one process has at the robot: the arm, its cameras, the person's devices, and the judge of success."""

import contextlib
import gc
import time
from collections.abc import Callable, Mapping

from torch import Tensor

from actor.config import ActorConfig
from actor.device_driver import connect_device, make_driver
from actor.env import RobotEnv, RobotFailureError, connect_cameras, connect_robot, connect_room
from actor.intervention import Arbiter
from actor.operator import OperatorInput, OperatorSignal, open_operator
from actor.policy_runner import WeightsSource
from actor.rate import RateKeeper
from actor.reviewer import TruthReviewer
from actor.rewards import RewardSource, TaskReward, make_rewards
from actor.safety_log import SafetyLog
from actor.tasks import make_task
from actor.tasks.base import Task, TaskOptions
from policy.encoder import EncoderInput, ObservationEncoder
from policy.errors import ConfigError, unknown_name
from policy.spec import Observation, Specs
from policy.success_classifier import TENSOR_PREFIX
from robot.backends import BACKENDS
from robot.cameras.twin import Photographed
from robot.errors import InterruptionError, RobotConfigError, RobotError, RobotFaultError
from robot.grippers.options import GripperOptions
from robot.guard import CONFIRM_WITHIN_S, Guard, Mode
from robot.interface import RobotBackend, SimulatedBackend
from robot.safety import SafetyConfig, check_gripper_force

_POLL_S = 0.05
_COLLECTION_PERIOD_S = 10.0


def configured_task(config: ActorConfig) -> Task:
    """Return the task with the configured observations and actions. Raises ConfigError, before anything is written."""
    if config.backend not in BACKENDS:
        raise unknown_name("robot backend", config.backend, list(BACKENDS))
    options = TaskOptions(
        pixels=config.pixels,
        image_size_px=config.cameras.image_size_px,
        gripper=config.gripper,
        frame=config.frame,
        control_rate_hz=config.control_rate_hz,
        offset_m=config.offset_m,
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
        should_stop: Callable[[], bool],
        training_steps: int = 0,
    ) -> None:
        """training_steps were made before, by earlier processes of the same run. should_stop() also ends a reset.

        Raises ConfigError for what cannot work together, RobotFailureError for what does not answer.
        """
        self._config = config
        self._say = say
        self._next_collection_s = 0.0
        device = connect_device(config.teleop, config.run_dir)
        if device is not None:
            closing.callback(device.close)
        keys = open_operator(config.keys, say)
        closing.callback(keys.close)
        self._keys = keys
        self.safety_log = SafetyLog(config.run_dir / "safety.jsonl")
        closing.callback(self.safety_log.close)
        safety = config.limits.applied_to(task.safety)
        _check_grip(safety, config.hand)
        backend = connect_robot(config, task, should_stop)
        closing.callback(backend.close)
        room = connect_room(config.room, task)
        if room is not None:
            closing.callback(room.close)
        self.is_simulated = room is not None or isinstance(backend, SimulatedBackend)
        _check_simulation(config, self.is_simulated, is_in_lock_step=isinstance(backend, SimulatedBackend))
        vary_looks(backend, config.looks_variation)
        cameras = connect_cameras(config.cameras, task, config.backend, backend)
        if cameras is not None:
            closing.callback(cameras.close)
        closing.callback(backend.stop)

        period_s = 1.0 / task.control_rate_hz
        self.guard = Guard(backend, safety, period_s, observe_event=self.safety_log.observe)
        # An environment of its own for evaluations, so that drawing videos is no overrun of the control loop.
        self.env, self.evaluation_env = (
            RobotEnv(task, backend, RateKeeper(period_s, pace), cameras=cameras, guard=self.guard, room=room)
            for pace in (config.pace, config.eval_pace)
        )
        driver = make_driver(
            self.env, config.intervention, config.teleop, device, seed=operator_seed, training_steps=training_steps
        )
        self.arbiter = Arbiter(driver, round(config.intervention.settings.hold_s * task.control_rate_hz))
        self.operator: OperatorInput = keys
        self.rewards: RewardSource = _make_rewards(config, task, weights)
        # Evaluations in a simulation know the truth, whoever judges its training.
        self.truth: RewardSource = TaskReward() if self.is_simulated else self.rewards
        if config.reward.reviewer == "task":
            self.rewards = self.operator = TruthReviewer(self.rewards, keys)

    def rest(self, reason: str) -> None:
        """Let the arm hold for a moment between two episodes."""
        self.guard.hold(reason)
        self._pause()

    def _pause(self) -> None:
        """Let a moment pass in which nothing moves, and collect garbage now and then: a session switches that off.

        A wait may last for days, and each attempt to connect in it leaves some.
        """
        now_s = time.monotonic()
        if now_s >= self._next_collection_s:
            self._next_collection_s = now_s + _COLLECTION_PERIOD_S
            gc.collect()
        time.sleep(_POLL_S)

    def recover_from(self, error: InterruptionError, should_stop: Callable[[], bool]) -> None:
        """Wait until the robot can go on, or a stop is asked for. The arm holds, or is stopped by a fault, meanwhile.

        Raises RobotFailureError when what is missing takes longer than cameras.return_within_s to come back, and when
        there is nobody who could acknowledge a fault.
        """
        if self.guard.mode is not Mode.FAULT:
            self._await_return(error, should_stop)
        if self.guard.mode is Mode.FAULT and not should_stop():
            self._await_acknowledgement(should_stop)

    def _await_return(self, error: InterruptionError, should_stop: Callable[[], bool]) -> None:
        """Return when state and images are fresh again, or a fault latched."""
        limit_s = self._config.cameras.return_within_s
        self._say(f"{error} Waiting up to {limit_s:.0f} s for it to come back.")
        start_s = time.monotonic()
        while not should_stop():
            try:
                self.env.look()
            except RobotFaultError:
                return
            except InterruptionError as still:
                error = still
            else:
                self._say(f"state and images are fresh again after {time.monotonic() - start_s:.1f} s")
                self._await_go_ahead(should_stop)
                return
            if time.monotonic() - start_s >= limit_s:
                raise RobotFailureError(
                    f"after {limit_s:.0f} s (cameras.return_within_s) still: {error} Everything recorded is kept: "
                    "start the actor again in the same folder when it works."
                )
            self._pause()

    def _await_go_ahead(self, should_stop: Callable[[], bool]) -> None:
        """Return when a person says that the arm may move to its next start: a hand may be at what was mended."""
        if self._config.teleop.device == "scripted" or not self._keys.is_heard:
            return
        self._say(f"[{self._config.keys.confirm}] lets the arm move to its next start")
        while not should_stop() and self._keys.is_heard and self.guard.mode is not Mode.FAULT:
            if OperatorSignal.CONFIRM in self._keys.poll():
                return
            with contextlib.suppress(InterruptionError):  # a fault shows in the guard's mode
                self.env.look()
            self._pause()

    def await_device(self, should_stop: Callable[[], bool]) -> None:
        """Return when the input device that failed in a person's hand works again, or that person goes on without."""
        if not self.arbiter.misses_a_hand():
            return
        key = self._config.keys.confirm
        way_out = f", or [{key}] goes on without it" if self._keys.is_heard else ""
        self._say(f"the input device failed in use: {self.arbiter.fault} The next episode waits for it{way_out}")
        while not should_stop() and self.arbiter.misses_a_hand():
            if OperatorSignal.CONFIRM in self._keys.poll():
                return
            self._pause()

    def _await_acknowledgement(self, should_stop: Callable[[], bool]) -> None:
        """Return when a person has acknowledged the fault in two steps, and the robot has recovered from it."""
        keys = self._config.keys
        self._say(f"FAULT: {self.guard.fault}")
        self._require_a_person()
        self._say(
            f"nothing moves until you have looked at the robot: [{keys.acknowledge}] acknowledges, [{keys.confirm}] "
            f"within {CONFIRM_WITHIN_S:.0f} s lets it move again (fault {self.guard.faults_in_the_last_hour} of the "
            "last hour)"
        )
        while not should_stop():
            self._require_a_person()
            for signal in self._keys.poll():
                if signal is OperatorSignal.ACKNOWLEDGE:
                    self.guard.acknowledge()
                    self._say(f"acknowledged. Is the arm clear, and a hand at the stop? [{keys.confirm}] lets it move")
                elif signal is OperatorSignal.CONFIRM and self._confirm():
                    return
            self._pause()

    def _require_a_person(self) -> None:
        if not self._keys.is_heard:
            raise RobotFailureError(
                f"{self.guard.fault} Nobody can acknowledge this fault: the standard input is no terminal in the "
                "foreground. Everything recorded is kept: start the actor again in the same folder when the robot is "
                "in order."
            )

    def _confirm(self) -> bool:
        try:
            if self.guard.confirm():
                self._say("the fault is left behind: the arm holds, and goes on with the next episode")
                return True
            self._say(f"not confirmed: press [{self._config.keys.acknowledge}] first, then this key")
        except RobotError as error:
            self._say(f"still stopped: {error}")
        return False


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


def _check_grip(safety: SafetyConfig, hand: GripperOptions) -> None:
    try:
        check_gripper_force(safety, hand.force_n)
    except RobotConfigError as error:
        raise ConfigError(f"actor.{error}") from error


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


def _check_simulation(config: ActorConfig, is_simulated: bool, is_in_lock_step: bool) -> None:
    """Raise ConfigError for what only a simulated robot, or one whose time waits for us, can do."""
    if not is_in_lock_step and ((config.pace, config.eval_pace) != (1.0, 1.0) or config.max_steps_per_version):
        raise ConfigError(
            f"actor.pace = {config.pace}, eval_pace = {config.eval_pace} and max_steps_per_version = "
            f"{config.max_steps_per_version}: backend {config.backend!r} runs in real time (both paces 1) and never "
            "waits for its learner (0)"
        )
    if is_simulated:
        return
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
