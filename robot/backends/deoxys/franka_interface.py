"""A way to the controller through an installed `deoxys.franka_interface.FrankaInterface`, for labs with their own fork.

It carries the same goals and states as our own client (link.py), and everything that watches, holds and latches is
shared. Deoxys' client sleeps to keep a rate, scales what it is given, keeps every state that it ever received, cannot
be closed and makes a folder logs/ when it is imported: each but the last is worked around where it is met.
"""

import inspect
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from robot.backends.deoxys.config import Network
from robot.backends.deoxys.link import Goal
from robot.backends.deoxys.messages import ArmState, GarbledMessageError, OscPose, decode_arm_state
from robot.errors import MissingDependencyError, RobotError

_log = logging.getLogger(__name__)

_NO_SLEEP_HZ = 10_000.0  # Deoxys' client sleeps to keep this rate, before it sends
_STATES_KEPT = 500
_POLL_S = 0.002

# Its threads and sockets last as long as the process, and its ports are taken once: one for each network file.
_interfaces: dict[Path, Any] = {}


class InterfaceLink:
    """Satisfies ArmLink. `release` cannot be interrupted: it goes on for up to 1 s, telling the NUC to do nothing."""

    def __init__(self, network: Network) -> None:
        self.garbled = 0
        self._network = network
        self._interface: Any = None
        self._last_state: Any = None
        self._last_controller = ""

    def open(self) -> None:
        self.garbled = 0
        interface_class = find_interface_class()
        path = self._network.path.resolve()
        if path not in _interfaces:
            arguments = {"control_freq": _NO_SLEEP_HZ, "has_gripper": False, "automatic_gripper_reset": False}
            known = inspect.signature(interface_class).parameters
            if "automatic_gripper_reset" not in known:
                _log.warning("this FrankaInterface opens a Franka Hand whenever the arm's controller changes")
            try:
                _interfaces[path] = interface_class(str(path), **{n: v for n, v in arguments.items() if n in known})
            except Exception as error:  # ZMQError, or anything of a fork
                raise RobotError(
                    f"deoxys.franka_interface.FrankaInterface({str(path)!r}) failed: {error!r}. Is another Deoxys "
                    f"client running? `ss -ltnp 'sport = :{self._network.command_port}'` names it."
                ) from error
        self._interface = _interfaces[path]
        self._last_state = self._interface.last_state  # from before, if it has been open before

    def receive(self, timeout_s: float) -> list[ArmState]:
        # Deoxys' own thread receives; of what came since the last call only the newest counts.
        deadline_s = time.monotonic() + timeout_s
        while (state := self._interface.last_state) is None or state is self._last_state:
            if time.monotonic() >= deadline_s:
                return []
            time.sleep(_POLL_S)
        self._last_state = state
        if self._interface.state_buffer_size > _STATES_KEPT:
            self._interface.reset()
        try:
            return [decode_arm_state(state.SerializeToString())]
        except GarbledMessageError:
            self.garbled += 1
            return []

    def release(self, should_stop: Callable[[], bool]) -> None:
        if not should_stop():
            self._interface.preprocess()
            self._last_controller = ""

    def send(self, goal: Goal) -> None:
        if isinstance(goal, OscPose):
            values = (*goal.position, *goal.rotvec, 0.0)  # the last one is for a gripper that it is told not to have
            self._control("OSC_POSE", values, _osc_configuration(goal))
        else:
            self._control("JOINT_POSITION", (*goal.q, 0.0), _joint_configuration())

    def terminate(self) -> None:
        if self._last_controller == "JOINT_POSITION":
            self._control("JOINT_POSITION", (0.0,) * 8, _joint_configuration(is_delta=True), termination=True)
        else:  # a step of zero, in case that a fork looks at it
            zeros = (0.0, 0.0, 0.0)
            step = OscPose(position=zeros, rotvec=zeros, is_delta=True)
            self._control("OSC_POSE", (0.0,) * 7, _osc_configuration(step), termination=True)

    def close(self) -> None:
        # Its own close() waits a second for a thread that never ends, and leaves its ports taken.
        self._interface = self._last_state = None

    def _control(self, controller: str, values: tuple[float, ...], configuration: "_Settings", **more: bool) -> None:
        if self._last_controller != controller:
            # Its control() would release the arm again, for a second, at a controller that it does not know of.
            self._interface._last_controller_type = controller
            self._last_controller = controller
        self._interface.control(
            controller_type=controller, action=np.array(values, dtype=np.float64), controller_cfg=configuration, **more
        )


class _Settings(dict[str, Any]):
    """A dictionary whose keys are attributes too, as Deoxys' client reads its configuration in both ways."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def find_interface_class() -> Any:
    """Return Deoxys' FrankaInterface. Raises MissingDependencyError when another `deoxys`, or none, is installed."""
    remedy = (
        "Install Deoxys' Python package from the repository UT-Austin-RPL/deoxys_control, or from your lab's fork, at "
        'the commit that runs on the NUC; or set deoxys.interface = "wire", which needs nothing installed.'
    )
    try:
        import deoxys
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f'deoxys.interface = "deoxys-control" needs Deoxys: {error}. {remedy}') from error
    if getattr(deoxys, "__file__", None) is None:  # a folder `deoxys`, such as the one that holds network.yml
        raise MissingDependencyError(f'deoxys.interface = "deoxys-control" needs Deoxys, which is missing. {remedy}')
    try:
        from deoxys.franka_interface import FrankaInterface
    except ModuleNotFoundError as error:
        if error.name == "deoxys.franka_interface":
            raise MissingDependencyError(
                f"the installed `deoxys` ({getattr(deoxys, '__file__', None)}) has nothing to do with robots: it is "
                f"the package of that name on PyPI. `pip uninstall deoxys`. {remedy}"
            ) from error
        raise MissingDependencyError(
            f"Deoxys is installed but cannot be imported: {error}. Its README names what it needs; on Python 3.12 it "
            f"lacks asyncore. {remedy}"
        ) from error
    return FrankaInterface


def _osc_configuration(goal: OscPose) -> _Settings:
    gains = goal.gains
    return _Settings(
        controller_type="OSC_POSE",
        is_delta=goal.is_delta,
        traj_interpolator_cfg=_Settings(
            traj_interpolator_type=gains.interpolator.name, time_fraction=gains.time_fraction
        ),
        Kp=_Settings(translation=list(gains.translational_stiffness), rotation=list(gains.rotational_stiffness)),
        action_scale=_Settings(translation=1.0, rotation=1.0),  # metres and radians as they are
        residual_mass_vec=list(gains.residual_mass),
        state_estimator_cfg=_estimator(gains.is_estimation, gains.smoothing),
    )


def _joint_configuration(is_delta: bool = False) -> _Settings:
    return _Settings(
        controller_type="JOINT_POSITION",
        is_delta=is_delta,
        traj_interpolator_cfg=_Settings(traj_interpolator_type="SMOOTH_JOINT_POSITION", time_fraction=0.3),
        state_estimator_cfg=_estimator(False, (0.9, 0.9, 1.0, 1.0)),
    )


def _estimator(is_estimation: bool, smoothing: tuple[float, ...]) -> _Settings:
    return _Settings(
        is_estimation=is_estimation,
        state_estimator_type="EXPONENTIAL_SMOOTHING",
        **dict(zip(("alpha_q", "alpha_dq", "alpha_eef", "alpha_eef_vel"), smoothing, strict=True)),
    )
