"""The twin behind Deoxys' own door: `python -m robot.backends.twin.nuc` runs MuJoCo in real time as Deoxys' NUC would.

One thread does everything: physics every 2 ms, and between two steps whatever is due of sockets. Drawing is a process
of its own. Beside the door is the room: what people, cameras and rulers see of a real one (room.py).
"""

import argparse
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
import zmq

from robot.backends.deoxys.config import Network, load_network
from robot.backends.twin.model import PHYSICS_STEP_S
from robot.backends.twin.nuc_arm import ArmNode
from robot.backends.twin.nuc_faults import Faults, seconds_of
from robot.backends.twin.nuc_gripper import STATE_RATE_HZ, GripperNode
from robot.backends.twin.nuc_robot import Robot
from robot.backends.twin.osc import OscConfig
from robot.backends.twin.room_cameras import end_with_parent
from robot.backends.twin.room_process import CameraProcess
from robot.backends.twin.room_server import RoomServer
from robot.backends.twin.room_wire import DEFAULT_ADDRESS
from robot.backends.twin.simulation import Simulation
from robot.errors import RobotConfigError, RobotError, unknown_name
from robot.geometry import CUBE_EDGE_M, PEG_LENGTH_M
from robot.interface import Array, ScenePlacement
from robot.pose import translation
from robot.scenes import SCENES

_log = logging.getLogger(__name__)

ROOM_RATE_HZ = 100.0
_LOOK_RATE_HZ = 10.0  # after the process that draws
_NICE = -10
_CATCH_UP_S = 0.1  # more than this behind, the physics go on from now
# Deoxys' controller pulls the elbow towards this posture, rad, with a torque of 1 N m/rad.
_Q_POSTURE: Array = np.array([0.09017809, -0.98242035, 0.03050972, -2.69422963, 0.05770068, 1.86029871, 0.87137595])
_OSC = OscConfig(posture_stiffness=1.0, deoxys_errors=True)
_FIRST_OBJECTS = {
    "reach": {"target": translation(0.5, 0.1, 0.3)},
    "peg_in_hole": {"hole": translation(0.5, 0.0, 0.06), "peg": translation(0.0, 0.0, PEG_LENGTH_M)},
    "cube_stacking": {
        "cube_top": translation(0.45, -0.08, CUBE_EDGE_M / 2),
        "cube_bottom": translation(0.45, 0.08, CUBE_EDGE_M / 2),
    },
}
_NO_CAMERAS = {"frames_port": 0, "render_port": 0, "cameras_error": "it was started with --camera-fps 0"}
_EVENTS = ("reflex", "estop", "restart", "freeze_s")


class Pacer:
    """Waits for the next of evenly spaced instants, and keeps account of being late."""

    def __init__(self, period_s: float) -> None:
        self.late_steps = 0  # begun after the next one was due
        self.max_late_s = 0.0
        self.lost_s = 0.0  # given up
        self._period_s = period_s
        self._due_s = time.monotonic()

    def wait(self) -> float:
        """Wait until the next instant, not at all when late. Return the time given up, s: none unless very late."""
        self._due_s += self._period_s
        late_s = time.monotonic() - self._due_s
        if late_s < 0.0:
            time.sleep(-late_s)
            late_s = max(time.monotonic() - self._due_s, 0.0)
        self.late_steps += late_s > self._period_s
        self.max_late_s = max(self.max_late_s, late_s)
        if late_s <= _CATCH_UP_S:
            return 0.0
        self._due_s += late_s
        self.lost_s += late_s
        return late_s


class Nuc:
    """Arm, gripper and room of one scene."""

    def __init__(self, scene: str, network: Network, room: str, faults: Faults, restart_delay_s: float) -> None:
        """room: address "host:port". Raises RobotError for a port that is taken, MissingDependencyError for the sim."""
        simulation = Simulation(scene, _OSC, _Q_POSTURE)
        placement = ScenePlacement(O_T_EE=simulation.home_pose(), objects=_FIRST_OBJECTS[scene])
        simulation.reset(placement)
        self.pacer = Pacer(PHYSICS_STEP_S)
        self.cameras: CameraProcess | None = None
        self._scene = scene
        self._network = network
        self._faults = faults
        self._context = zmq.Context()
        self._robot = Robot(simulation)
        self._arm = ArmNode(self._robot, self._context, network, faults, restart_delay_s)
        self._gripper = GripperNode(simulation.fingers, self._context, network)
        self.room = RoomServer(self._context, room, scene, self._robot, placement)
        self._steps = 0

    def start_cameras(self, fps: float, looks_variation: float) -> None:
        """Start the process that draws, at the two ports after the room's own."""
        room = self.room
        port = room.port + 2 if room.has_fixed_ports else 0
        self.cameras = CameraProcess(self._scene, room.host, room.poses_port, port, fps, looks_variation)

    def tick(self) -> None:
        """Wait for the next physics step, take it, and do what is due."""
        if lost_s := self.pacer.wait():
            self._robot.skip(lost_s)
            _log.warning("%.0f ms behind: the physics go on from now", lost_s * 1e3)
        self._robot.step()
        self._steps += 1
        if self._is_due(self._network.state_rate_hz):
            self._arm.publish()
        if self._is_due(self._network.policy_rate_hz):
            self._arm.poll()
        if self._is_due(STATE_RATE_HZ):
            self._gripper.publish(self._robot.time_s)
        if self.cameras is not None and self._is_due(_LOOK_RATE_HZ):
            self.cameras.look()
        if self._is_due(ROOM_RATE_HZ):
            self._gripper.poll()
            self.room.publish(self._gripper.width)
            self.room.answer(self._gripper.width, self.tell, self.turn_knob)

    def tell(self) -> dict[str, Any]:
        """Return what this process says about itself."""
        return {
            **(self.cameras.report if self.cameras is not None else _NO_CAMERAS),
            "robot_time_s": self._robot.time_s,
            "robot_mode": self._robot.mode.name,
            "is_node_up": self._arm.is_up,
            "physics_steps": self._steps,
            "late_steps": self.pacer.late_steps,
            "max_late_s": self.pacer.max_late_s,
            "lost_s": self.pacer.lost_s,
            "processor_s": time.process_time(),
            "counts": dict(self._arm.counts),
        }

    def turn_knob(self, name: str, value: object) -> None:
        """Turn one of the knobs of docs/twin.md. Raises RobotConfigError."""
        if name == "reflex":
            self._robot.reflex("cartesian_reflex")
        elif name == "restart":
            self._arm.exit("a knob")
        elif name == "freeze_s":
            self._arm.freeze(seconds_of(name, value))
        elif name == "estop":
            if value:
                self._robot.press_stop()
            else:
                self._robot.release_stop()
        elif name in vars(self._faults):
            self._faults.set(name, value)
        else:
            raise unknown_name("knob", name, [*_EVENTS, *vars(self._faults)])

    def close(self) -> None:
        """Close everything. Safe to call twice."""
        if self.cameras is not None:
            self.cameras.close()
        self._arm.close()
        self._gripper.close()
        self.room.close()
        self._context.term()

    def _is_due(self, rate_hz: float) -> bool:
        """Whether a multiple of 1 / rate_hz lies between the last physics step and this one."""
        per_step = rate_hz * PHYSICS_STEP_S
        return int(self._steps * per_step) != int((self._steps - 1) * per_step)


def make_network_file(path: Path) -> None:
    """Write Deoxys' network file for this machine alone, with four free ports."""
    names = ("SUB_PORT", "PUB_PORT", "GRIPPER_SUB_PORT", "GRIPPER_PUB_PORT")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}
    for each in sockets:
        each.close()
    here = "127.0.0.1"
    values = {
        "PC": {"NAME": "this machine", "IP": here},
        "NUC": {"NAME": "the twin", "IP": here, **ports},
        "ROBOT": {"IP": here},
        "CONTROL": {"STATE_PUBLISHER_RATE": 100, "POLICY_RATE": 20, "TRAJ_RATE": 500, "ZMQ_NOBLOCK": True},
        "GRIPPER": {"PUB_RATE": int(STATE_RATE_HZ)},
    }
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m robot.backends.twin.nuc", description=__doc__)
    parser.add_argument("--scene", choices=sorted(SCENES), default="peg_in_hole")
    parser.add_argument(
        "--network", type=Path, default=Path("launch/deoxys/twin.yml"), help="Deoxys' network file, the client's own"
    )
    parser.add_argument("--write-network", type=Path, help="write such a file, with free ports, and use it")
    parser.add_argument("--room", default=DEFAULT_ADDRESS, help="host:port; the three ports after it are used too")
    parser.add_argument("--camera-fps", type=float, default=15.0, help="images per second of each camera; 0: none")
    parser.add_argument("--looks-variation", type=float, default=0.0, help="how much they vary from episode to episode")
    parser.add_argument(
        "--restart-delay-s", type=float, default=1.0, help="from an exit of the arm's node to its start"
    )
    parser.add_argument("--with-parent", action="store_true", help="end when the process that started this one does")
    for name in vars(Faults()):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=0.0, help="fault: see docs/twin.md")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM. Returns the exit code: 0, or 1 after an error that a person can mend."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options = _parse(arguments)
    if options.with_parent:
        end_with_parent(os.getppid())
    _go_first()
    stopping: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopping.append(number))
    try:
        nuc = _open(options)
    except RobotError as error:
        _log.error("%s", error)
        return 1
    try:
        gc.freeze()
        is_ready = False
        while not stopping:
            nuc.tick()
            if not is_ready and (nuc.cameras is None or nuc.cameras.has_reported):
                is_ready = True
                sys.stdout.write(f"ready: scene {options.scene}, network {options.network}, room {nuc.room.address}\n")
                sys.stdout.flush()
    finally:
        nuc.close()
    return 0


def _go_first() -> None:
    """Ask for the processor before others, as a NUC has one to itself. Where that is not allowed, go on without."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)


def _open(options: argparse.Namespace) -> Nuc:
    if options.write_network is not None:
        make_network_file(options.write_network)
        options.network = options.write_network
    faults = Faults()
    for name in vars(faults):
        faults.set(name, getattr(options, name))
    if not 0.0 <= options.camera_fps <= 60.0 or not 0.0 <= options.restart_delay_s <= 60.0:
        raise RobotConfigError(
            f"--camera-fps {options.camera_fps:g} and --restart-delay-s {options.restart_delay_s:g} have to be 0 to 60"
        )
    nuc = Nuc(options.scene, load_network(options.network), options.room, faults, options.restart_delay_s)
    if options.camera_fps:
        nuc.start_cameras(options.camera_fps, options.looks_variation)
    return nuc


if __name__ == "__main__":
    sys.exit(main())
