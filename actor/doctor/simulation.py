"""The doctor's checks of simulated robots: do they build, how fast are they, can they draw?"""

import time

import numpy as np

from actor.config import ActorConfig
from actor.doctor.check import Check, Result, failed, judged, ok, refused, skipped, warning
from actor.env import connect_room
from actor.tasks.base import Task
from policy.errors import CgpoError
from robot.backends import make_backend
from robot.errors import RobotError
from robot.interface import RobotCommand, SimulatedBackend

_PHYSICS_S = 2.0  # of simulated time
_PICTURES = 10
_WARN_SPEED = 2.0  # times real time: the policy needs the rest
_DRAW_FIX = "sudo apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri; export MUJOCO_GL=egl"


def simulation_checks(config: ActorConfig, task: Task) -> list[Check]:
    """Checks of a backend that is its own world."""
    checks = [Check(group="robot", name=config.backend, run=lambda: check_physics(config, task), timeout_s=60.0)]
    if config.backend == "twin":
        checks.append(Check(group="robot", name="pictures", run=lambda: check_pictures(config, task), timeout_s=60.0))
    return checks


def room_checks(address: str, task: Task) -> list[Check]:
    """The checks of the room around a twin that stands in for a robot."""
    return [Check(group="robot", name="room", run=lambda: check_room(address, task), timeout_s=20.0)]


def _ready(config: ActorConfig, task: Task) -> SimulatedBackend:
    backend = make_backend(config.backend, task.scene)
    assert isinstance(backend, SimulatedBackend)
    backend.connect()
    backend.reset(task.sample_placement(np.random.default_rng(config.seed)))
    return backend


def check_physics(config: ActorConfig, task: Task) -> Result:
    built_s = time.monotonic()
    try:
        backend = _ready(config, task)
        built_s = time.monotonic() - built_s
        period_s = 1.0 / task.control_rate_hz
        hold = RobotCommand(delta_position=np.zeros(3), delta_rotation=np.zeros(3))
        steps = round(_PHYSICS_S / period_s)
        start_s = time.monotonic()
        for _ in range(steps):
            backend.send_command(hold)
            backend.advance(period_s)
            backend.read_state()
        speed = steps * period_s / (time.monotonic() - start_s)
        backend.close()
    except RobotError as error:
        return refused(error, fix="launch/setup.sh robot sim, or --backend fake")
    pace = max(config.pace, config.eval_pace)
    return judged(
        speed,
        f"built in {built_s:.2f} s, runs at {speed:.1f} times real time",
        warn=max(pace, 1.0) * _WARN_SPEED,
        fail=pace,
        is_low_bad=True,
        limit=f"{max(pace, 1.0) * _WARN_SPEED:g} times real time at pace {pace:g}",
        fix="close other programs (top shows which compute); see `cpu governor` above",
    )


def check_pictures(config: ActorConfig, task: Task) -> Result:
    from robot.cameras import make_camera  # they need no package, but the twin behind them does

    is_needed = bool(task.observation_spec.images)
    if not is_needed and not config.videos:
        return skipped("neither images nor videos are asked for")
    try:
        backend = _ready(config, task)
        camera = make_camera("twin", "wrist", backend=backend)
        camera.connect()
        camera.read()  # builds what pictures need
        drawn_s = 0.0
        for _ in range(_PICTURES):
            backend.advance(1.0 / task.control_rate_hz)
            start_s = time.monotonic()
            image = camera.read().image
            drawn_s += time.monotonic() - start_s
        backend.close()
    except RobotError as error:
        found = refused(error, fix=_DRAW_FIX)
        return found if is_needed else warning(found.measured, detail="No videos then.", fix=_DRAW_FIX)
    if int(image.max()) == int(image.min()):
        return failed("pictures of one colour only", fix=_DRAW_FIX)
    return ok(f"{camera.width} x {camera.height} px in {1e3 * drawn_s / _PICTURES:.1f} ms each")


def check_room(address: str, task: Task) -> Result:
    try:
        room = connect_room(address, task)
    except CgpoError as error:
        return refused(error, fix=f"python -m robot.backends.twin.nuc --scene {task.scene} --room {address}")
    assert room is not None
    try:
        objects = room.object_poses()
    except RobotError as error:
        return refused(error, fix="start python -m robot.backends.twin.nuc again")
    finally:
        room.close()
    return ok(f"{address}: {', '.join(sorted(objects))}")
