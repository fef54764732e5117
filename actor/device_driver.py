"""A person with an input device: what they do becomes actions, and the wish to act."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from actor.env import RobotEnv, RobotFailureError
from actor.intervention import HumanDriver, HumanInput, ScriptedTeleop
from actor.intervention_config import Assistance, InterventionConfig, InterventionSettings, TeleopConfig
from policy.errors import ConfigError
from robot.errors import MissingDependencyError, RobotConfigError, RobotError
from robot.interface import Array, TeleopDevice, TeleopState
from robot.pose import rotation_from_rotvec
from robot.teleop import make_device
from robot.teleop.device_log import EpisodicDevice, LoggingDevice

_AT_REST = 0.001  # norm of the six axes up to which a device is untouched (HIL-SERL's)


class DeviceDriver:
    """A person with an input device: turns its state into actions, and into the wish to act.

    The device's axes are those of O, turned about z by where the person stands; the task knows which action they mean.
    """

    def __init__(
        self,
        env: RobotEnv,
        device: TeleopDevice,
        settings: InterventionSettings,
        config: TeleopConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The device must be connected, and stays the caller's to close. Raises ConfigError when it lacks a button."""
        if settings.trigger != "deflection" and config.intervene_button >= device.num_buttons:
            raise ConfigError(
                f"intervention.trigger = {settings.trigger!r} needs button {config.intervene_button} of the device "
                f"{config.device!r}, which has {device.num_buttons}: choose another teleop.intervene_button, or the "
                "trigger deflection"
            )
        self._env = env
        self._device = device
        self._settings = settings
        self._config = config
        self._clock = clock
        self._O_R_person = rotation_from_rotvec([0.0, 0.0, math.radians(config.yaw_deg)])
        self._forget()

    def _forget(self) -> None:
        self._gripper = 0.0
        self._is_on = False
        self._was_pressed = False

    def begin_episode(self, is_demonstration: bool, assistance: Assistance) -> None:
        """Forget latched buttons. A person decides alone when to take over."""
        del is_demonstration, assistance
        self._forget()
        if isinstance(self._device, EpisodicDevice):
            self._device.begin_episode()

    def read(self) -> HumanInput:
        """Return what the person does now. Never blocks."""
        state = self._device.read()
        fault = self._fault_of(state)
        if fault is not None:
            self._forget()
            return HumanInput(np.zeros(self._env.task.action_spec.dim, np.float32), is_active=False, fault=fault)
        twist = self._beyond_dead_zone(state.twist)
        has_gripper = self._env.task.action_spec.gripper != "none"
        closes = has_gripper and self._is_pressed(state, self._config.close_button)
        opens = has_gripper and self._is_pressed(state, self._config.open_button)
        self._gripper = self._gripper_action(closes, opens)
        is_active = self._wants_to_act(state, is_touched=closes or opens or float(np.linalg.norm(twist)) > _AT_REST)
        linear = self._config.translation_scale * (self._O_R_person @ twist[:3])
        angular = self._config.rotation_scale * (self._O_R_person @ twist[3:])
        task = self._env.task
        action = task.action_from_twist(np.concatenate([linear, angular]), self._gripper, self._env.state)
        return HumanInput(action, is_active)

    def _fault_of(self, state: TeleopState) -> str | None:
        """Return why the state says nothing about the person's hand; the last report then still claims a deflection."""
        if not state.is_connected:
            return f"{self._config.device} is unplugged or gone. Plug it in again; the arm holds if it was in use."
        silence_s = self._clock() - state.received_monotonic_s
        # A held button alone may be silent: a SpaceMouse reports its buttons when they change.
        if np.any(state.twist) and silence_s > self._config.silent_after_s:
            return (
                f"{self._config.device} is deflected and has said nothing for {silence_s:.2f} s (limit "
                f"{self._config.silent_after_s} s). Let go of it, and check its cable or battery."
            )
        return None

    def _beyond_dead_zone(self, twist: Array) -> Array:
        zone = self._settings.dead_zone
        beyond: Array = np.sign(twist) * np.maximum(np.abs(np.clip(twist, -1, 1)) - zone, 0.0) / (1.0 - zone)
        return beyond

    def _gripper_action(self, closes: bool, opens: bool) -> float:
        if closes or opens:
            return -1.0 if closes else 1.0
        return self._gripper if self._settings.gripper_latch == "latch" else 0.0

    def _wants_to_act(self, state: TeleopState, is_touched: bool) -> bool:
        if self._settings.trigger == "deflection":
            return is_touched
        is_pressed = self._is_pressed(state, self._config.intervene_button)
        if self._settings.trigger == "button":
            return is_pressed
        self._is_on ^= is_pressed and not self._was_pressed
        self._was_pressed = is_pressed
        return self._is_on

    @staticmethod
    def _is_pressed(state: TeleopState, button: int) -> bool:
        return button < len(state.buttons) and state.buttons[button]


def connect_device(config: TeleopConfig, run_dir: Path) -> TeleopDevice | None:
    """Return the connected input device, None for the scripted operator. Close it when the robot has stopped.

    Raises ConfigError for an unknown or unsuitable device and RobotFailureError, with the remedy, when it is not there.
    """
    if config.device == "scripted":
        return None
    try:
        device = configured_device(config)
        if config.keep_log and config.device != "replay":
            device = LoggingDevice(device, run_dir / "device_log.jsonl")
        device.connect()
    except (RobotConfigError, MissingDependencyError) as error:
        raise ConfigError(str(error)) from error
    except RobotError as error:
        raise RobotFailureError(str(error)) from error
    return device


def configured_device(config: TeleopConfig) -> TeleopDevice:
    """Return the input device, not yet connected. Raises ConfigError, and as `make_device` does."""
    if config.path and config.device == "keyboard":
        raise ConfigError(f"teleop.path = {config.path!r}: the keyboard is that of this terminal and has no path")
    options: dict[str, object] = {"path": config.path} if config.path else {}
    if config.device == "keyboard":
        options["layout"] = config.layout
    if config.device == "spacemouse":
        options["axis_scale"] = config.axis_scale
    return make_device(config.device, **options)


def make_driver(
    env: RobotEnv,
    intervention: InterventionConfig,
    teleop: TeleopConfig,
    device: TeleopDevice | None,
    *,
    seed: int,
    training_steps: int = 0,
) -> HumanDriver:
    """Return the person with `device`, or the scripted operator where there is none."""
    if device is None:
        return ScriptedTeleop(env, intervention, seed, training_steps)
    return DeviceDriver(env, device, intervention.settings, teleop)
