"""Reads Deoxys' own YAML files: the network file and the OSC_POSE controller file. Nothing here writes them."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from robot.backends.deoxys.messages import Interpolator, OscGains
from robot.errors import RobotConfigError

_log = logging.getLogger(__name__)

_POSE_INTERPOLATORS = (Interpolator.LINEAR_POSE, Interpolator.LINEAR_POSITION, Interpolator.MIN_JERK_POSE)


@dataclass(frozen=True, kw_only=True)
class Network:
    """Who is where, as Deoxys' network file says it."""

    path: Path
    nuc_ip: str
    command_port: int  # NUC.SUB_PORT: bound on this PC, the NUC connects
    state_port: int  # NUC.PUB_PORT: bound on the NUC
    gripper_command_port: int
    gripper_state_port: int
    pc_ip: str = ""
    state_rate_hz: float = 100.0
    policy_rate_hz: float = 20.0  # the controller looks for a command this often


class _Section:
    """One mapping of a YAML file, read key by key with errors that name file, key and value."""

    def __init__(self, path: Path, values: Any, name: str, remedy: str) -> None:
        self._path, self._name, self._remedy = path, name, remedy
        if not isinstance(values, Mapping):
            raise self.error(f"{name or 'the file'} is {values!r}, not a mapping of names to values")
        self._values = values

    def error(self, what: str) -> RobotConfigError:
        return RobotConfigError(f"{self._path}: {what}. {self._remedy}")

    def section(self, key: str) -> "_Section":
        return _Section(self._path, self._values.get(key, {}), self._full(key), self._remedy)

    def get(self, key: str, default: Any = None) -> Any:
        value = self._values.get(key)
        if value is None:
            if default is None:
                raise self.error(f"{self._full(key)} is missing")
            return default
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.get(key, default)
        if not isinstance(value, str) or (not value and default is None):
            raise self.error(f"{self._full(key)} = {value!r} is not a text")
        return value

    def number(self, key: str, default: float | None = None, *, low: float = 0.0, high: float = math.inf) -> float:
        return self._checked(key, self.get(key, default), low, high)

    def port(self, key: str, default: int) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
            raise self.error(f"{self._full(key)} = {value!r} is not a port number from 1 to 65535")
        return value

    def numbers(
        self, key: str, default: tuple[float, ...], *, low: float, is_scalar_for_all: bool
    ) -> tuple[float, ...]:
        """Return as many numbers as `default` holds; one number alone may stand for all of them."""
        value = self.get(key, list(default))
        if is_scalar_for_all and not isinstance(value, list):
            value = [value] * len(default)
        if not isinstance(value, list) or len(value) != len(default):
            alone = ", or one for all" if is_scalar_for_all else ""
            raise self.error(f"{self._full(key)} = {value!r} is not a list of {len(default)} numbers{alone}")
        return tuple(self._checked(key, each, low, math.inf) for each in value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(f"{self._full(key)} = {value!r} is neither true nor false")
        return value

    def _checked(self, key: str, value: Any, low: float, high: float) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not low <= value <= high:
            raise self.error(f"{self._full(key)} = {value!r} is not a number from {low:g} to {high:g}")
        return float(value)

    def _full(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key


def _load(path: Path, remedy: str) -> _Section:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RobotConfigError(f"{path} cannot be read: {error.strerror}. {remedy}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RobotConfigError(f"{path} is not YAML: {error}. {remedy}") from error
    return _Section(path, values, "", remedy)


def load_network(path: Path) -> Network:
    """Return what Deoxys' network file says. Raises RobotConfigError, naming file, key, value and remedy."""
    remedy = (
        "Point deoxys.network at the file that Deoxys runs with on both machines, such as its config/charmander.yml: "
        "NUC needs IP, PUB_PORT and SUB_PORT"
    )
    file = _load(path, remedy)
    nuc, control = file.section("NUC"), file.section("CONTROL")
    network = Network(
        path=path,
        nuc_ip=nuc.text("IP"),
        command_port=nuc.port("SUB_PORT", 5555),
        state_port=nuc.port("PUB_PORT", 5556),
        gripper_command_port=nuc.port("GRIPPER_SUB_PORT", 5557),
        gripper_state_port=nuc.port("GRIPPER_PUB_PORT", 5558),
        pc_ip=file.section("PC").text("IP", ""),
        state_rate_hz=control.number("STATE_PUBLISHER_RATE", 100.0, low=1.0, high=1000.0),
        policy_rate_hz=control.number("POLICY_RATE", 20.0, low=1.0, high=1000.0),
    )
    ports = (network.command_port, network.state_port, network.gripper_command_port, network.gripper_state_port)
    if len(set(ports)) < len(ports):
        raise file.error(f"NUC's four ports {ports} are not all different")
    return network


def load_osc_gains(path: Path | None) -> OscGains:
    """Return what Deoxys' OSC_POSE controller file sets, with Deoxys' defaults for what it leaves out.

    action_scale and is_delta are not used: goals are sent as absolute poses in metres and radians.
    Raises RobotConfigError, naming file, key, value and remedy.
    """
    defaults = OscGains()
    if path is None:
        return defaults
    file = _load(path, "Point deoxys.controller at an OSC_POSE file such as Deoxys' config/osc-pose-controller.yml")
    kind = file.text("controller_type")
    if kind != "OSC_POSE":
        raise file.error(f"controller_type is {kind}, and only OSC_POSE can be used")
    stiffness, interpolation = file.section("Kp"), file.section("traj_interpolator_cfg")
    estimator = file.section("state_estimator_cfg")
    name = interpolation.text("traj_interpolator_type", defaults.interpolator.name)
    if name not in [interpolator.name for interpolator in _POSE_INTERPOLATORS]:
        valid = ", ".join(interpolator.name for interpolator in _POSE_INTERPOLATORS)
        raise file.error(f"traj_interpolator_cfg.traj_interpolator_type = {name} is none for poses: {valid}")
    smoothing = tuple(
        estimator.number(key, default, low=0.0, high=1.0)
        for key, default in zip(("alpha_q", "alpha_dq", "alpha_eef", "alpha_eef_vel"), defaults.smoothing, strict=True)
    )
    gains = OscGains(
        translational_stiffness=stiffness.numbers(
            "translation", defaults.translational_stiffness, low=1e-3, is_scalar_for_all=True
        ),
        rotational_stiffness=stiffness.numbers(
            "rotation", defaults.rotational_stiffness, low=1e-3, is_scalar_for_all=True
        ),
        residual_mass=file.numbers("residual_mass_vec", defaults.residual_mass, low=0.0, is_scalar_for_all=False),
        interpolator=Interpolator[name],
        time_fraction=interpolation.number("time_fraction", defaults.time_fraction, low=1e-3, high=1.0),
        is_estimation=estimator.flag("is_estimation", defaults.is_estimation),
        smoothing=smoothing,
    )
    _log.info("%s: gains in use; its action_scale and is_delta are not, goals are absolute poses", path)
    return gains
