"""The scripted operator of cube stacking where the task's own placements do not lead, but a policy or a drop may."""

import numpy as np
import pytest

from actor.env import RobotEnv
from actor.tasks import make_task
from actor.tasks.base import TaskOptions
from robot.backends.twin.backend import TwinBackend
from robot.geometry import CUBE_EDGE_M
from robot.interface import ScenePlacement
from robot.pose import O_R_DOWN, make_pose, rotation_from_rotvec, translation


@pytest.fixture(scope="module")
def twin() -> TwinBackend:
    backend = TwinBackend("cube_stacking")
    backend.connect()
    return backend


def is_stacked(
    twin: TwinBackend,
    monkeypatch: pytest.MonkeyPatch,
    yaw_rad: float = 0.0,
    distance_m: float = 0.09,
    options: TaskOptions | None = None,
) -> bool:
    """Whether the operator stacks a cube that lies at that angle, that far along y from the other one."""
    height = CUBE_EDGE_M / 2
    start = ScenePlacement(
        O_T_EE=make_pose(O_R_DOWN, (0.5, 0.0, 0.16)),
        objects={
            "cube_top": make_pose(rotation_from_rotvec([0.0, 0.0, yaw_rad]), (0.5, 0.03, height)),
            "cube_bottom": translation(0.5, 0.03 - distance_m, height),
        },
    )
    task = make_task("cube_stacking", options)
    monkeypatch.setattr(task, "sample_placement", lambda rng: start)
    env = RobotEnv(task, twin)
    env.reset(seed=0)
    operator = task.make_operator()
    for _ in range(50):
        *_, terminated, _, info = env.step(operator.act(env.state, env.objects).astype(np.float32))
        if terminated:
            return bool(info["is_success"])
    return False


@pytest.mark.parametrize("yaw_rad", [-0.5, 0.6, np.pi / 4])
def test_a_cube_that_lies_askew(twin: TwinBackend, monkeypatch: pytest.MonkeyPatch, yaw_rad: float) -> None:
    """Beyond some 30 degrees the fingers do not turn it straight but jam on its diagonal."""
    assert is_stacked(twin, monkeypatch, yaw_rad=yaw_rad)


@pytest.mark.parametrize("distance_m", [0.058, 0.065])
def test_a_cube_with_little_room_beside_it(
    twin: TwinBackend, monkeypatch: pytest.MonkeyPatch, distance_m: float
) -> None:
    assert is_stacked(twin, monkeypatch, distance_m=distance_m)


@pytest.mark.parametrize(
    "options",
    [
        TaskOptions(gripper="discrete"),
        TaskOptions(gripper="continuous"),
        TaskOptions(frame="reset"),
    ],
)
def test_every_kind_of_action(twin: TwinBackend, monkeypatch: pytest.MonkeyPatch, options: TaskOptions) -> None:
    assert is_stacked(twin, monkeypatch, options=options)
