"""An installed Deoxys, as far as its FrankaInterface goes: on real sockets, with the habits to be minded."""

import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
import zmq

from tests.deoxys_fake import schema


class FrankaInterface:
    """Sleeps to keep a rate, releases the arm before another controller, scales actions, keeps states, stays open."""

    release_s = 1.0
    opened = 0
    has_opened_a_hand = False

    def __init__(
        self,
        general_cfg_file: str,
        control_freq: float = 20.0,
        state_freq: float = 100.0,
        control_timeout: float = 1.0,
        has_gripper: bool = True,
        use_visualizer: bool = False,
        automatic_gripper_reset: bool = True,
    ) -> None:
        type(self).opened += 1
        nuc = yaml.safe_load(Path(general_cfg_file).read_text())["NUC"]
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._publisher = context.socket(zmq.PUB)
        self._publisher.bind(f"tcp://*:{nuc['SUB_PORT']}")
        self._subscriber = context.socket(zmq.SUB)
        self._subscriber.subscribe(b"")
        self._subscriber.connect(f"tcp://{nuc['IP']}:{nuc['PUB_PORT']}")
        self._interval_s = 1.0 / control_freq
        self._opens_hand = has_gripper or automatic_gripper_reset
        self._state_buffer: list[Any] = []
        self._last_controller_type = "Dummy"
        self.last_time: float | None = None
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        while True:
            message = schema().FrankaRobotStateMessage()
            try:
                message.ParseFromString(self._subscriber.recv())
                self._state_buffer.append(message)
            except zmq.ContextTerminated:
                return
            except Exception:  # as Deoxys does
                continue

    @property
    def state_buffer_size(self) -> int:
        return len(self._state_buffer)

    @property
    def last_state(self) -> Any:
        return self._state_buffer[-1] if self._state_buffer else None

    def reset(self) -> None:
        self._state_buffer = []
        self.last_time = None

    def preprocess(self) -> None:
        type(self).has_opened_a_hand |= self._opens_hand
        for _ in range(20):
            self._publish("NO_CONTROL", schema().FrankaDummyControllerMessage())
            time.sleep(self.release_s / 20)

    def control(self, controller_type: str, action: Any, controller_cfg: Any = None, termination: bool = False) -> None:
        action = np.array(action)
        now_s = time.monotonic()
        if self.last_time is not None and not termination:
            time.sleep(max(0.0, self.last_time + self._interval_s - now_s))
        self.last_time = time.monotonic()
        if self._last_controller_type != controller_type:
            self.preprocess()
            self._last_controller_type = controller_type
        if controller_type == "OSC_POSE":
            assert len(action) == 7
            assert controller_cfg["controller_type"] == "OSC_POSE"
            inner = schema().FrankaOSCPoseControllerMessage()
            inner.translational_stiffness[:] = controller_cfg.Kp.translation
            inner.rotational_stiffness[:] = controller_cfg.Kp["rotation"]
            inner.config.residual_mass_vec[:] = controller_cfg.residual_mass_vec
            action[0:3] *= controller_cfg.action_scale.translation
            action[3:-1] *= controller_cfg.action_scale.rotation
            inner.goal.is_delta = controller_cfg.is_delta
            for name, value in zip(("x", "y", "z", "ax", "ay", "az"), action[:6].tolist(), strict=True):
                setattr(inner.goal, name, value)
        else:
            assert controller_type == "JOINT_POSITION"
            assert len(action) == 8
            inner = schema().FrankaJointPositionControllerMessage(speed_factor=0.1)
            inner.goal.is_delta = controller_cfg.is_delta
            for joint in range(7):
                setattr(inner.goal, f"q{joint + 1}", float(action[joint]))
        self._publish(controller_type, inner, controller_cfg, termination)

    def _publish(self, controller: str, inner: Any, configuration: Any = None, termination: bool = False) -> None:
        kind = schema().FrankaControlMessage
        message = kind(controller_type=kind.ControllerType.Value(controller), timeout=0.2, termination=termination)
        if configuration is not None:
            cfg = configuration.traj_interpolator_cfg
            message.traj_interpolator_type = kind.TrajInterpolatorType.Value(cfg.traj_interpolator_type)
            message.traj_interpolator_time_fraction = cfg["time_fraction"]
            message.state_estimator_msg.is_estimation = configuration.state_estimator_cfg.is_estimation
            message.state_estimator_msg.estimator_type = 1
            smoothing = schema().ExponentialSmoothingConfig(alpha_q=configuration.state_estimator_cfg.alpha_q)
            message.state_estimator_msg.config.Pack(smoothing)
        message.control_msg.Pack(inner)
        self._publisher.send(message.SerializeToString())

    def close(self) -> None:
        time.sleep(1.0)  # its thread does not end, its ports stay taken


def install(monkeypatch: pytest.MonkeyPatch) -> type[FrankaInterface]:
    """Make `import deoxys` find this one."""
    package, module = ModuleType("deoxys"), ModuleType("deoxys.franka_interface")
    package.__path__, package.__file__ = [], "deoxys/__init__.py"
    module.FrankaInterface = FrankaInterface  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deoxys", package)
    monkeypatch.setitem(sys.modules, "deoxys.franka_interface", module)
    return FrankaInterface
