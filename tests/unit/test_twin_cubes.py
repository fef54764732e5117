"""Fingers and cubes in the twin: cubes rest, are gripped by friction, lifted and stacked; nothing sinks in or jumps."""

import math
from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import pytest

from robot.backends.twin.backend import TwinBackend
from robot.geometry import CUBE_EDGE_M, GRIPPER_OPEN_M, GRIPPER_SPEED_M_S
from robot.interface import Array, RobotCommand, ScenePlacement
from robot.pose import O_R_DOWN, make_pose, pose_difference, rotation_from_rotvec, translation

HALF_M = CUBE_EDGE_M / 2
MAX_PENETRATION_M = 0.0005
TOP = (0.47, -0.05)
BOTTOM = (0.54, 0.04)


@pytest.fixture(scope="module")
def twin() -> Iterator[TwinBackend]:
    backend = TwinBackend("cube_stacking")
    backend.connect()
    yield backend
    backend.close()


def place(
    twin: TwinBackend, EE: tuple[float, float, float], *, yaw: float = 0.0, top: tuple[float, ...] = (*TOP, HALF_M)
) -> None:
    cube_top = make_pose(rotation_from_rotvec((0.0, 0.0, yaw)), top)
    objects = {"cube_top": cube_top, "cube_bottom": translation(*BOTTOM, HALF_M)}
    twin.reset(ScenePlacement(O_T_EE=make_pose(O_R_DOWN, EE), objects=objects))


def data_of(twin: TwinBackend) -> Any:
    assert twin._simulation is not None
    return twin._simulation.data


def go(twin: TwinBackend, target: tuple[float, float, float], width: float, steps: int) -> float:
    """Servo the upright hand to `target` at 10 Hz; return the deepest penetration at any physics step, m."""
    deepest = 0.0
    for _ in range(steps):
        missing, turn = pose_difference(twin.read_state().O_T_EE, make_pose(O_R_DOWN, target))
        delta = np.clip(2.5 * missing, -0.02, 0.02)
        twin.send_command(RobotCommand(delta_position=delta, delta_rotation=turn, gripper_width=width))
        for _ in range(50):
            twin.advance(0.002)
            deepest = max(deepest, -float(data_of(twin).contact.dist.min(initial=0.0)))
    return deepest


def cube(twin: TwinBackend, name: str = "cube_top") -> Array:
    position: Array = twin.object_poses()[name][:3, 3]
    return position


def test_untouched_cubes_stay_where_they_were_put(twin: TwinBackend) -> None:
    place(twin, (0.5, 0.0, 0.2), yaw=0.3)
    before = twin.object_poses()
    twin.advance(10.0)
    for name, pose in twin.object_poses().items():
        np.testing.assert_allclose(pose, before[name], atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("offset_x_m", "offset_y_m", "yaw"), [(0.0, 0.0, 0.0), (0.006, 0.0, 0.0), (0.0, 0.012, 0.0), (0.0, -0.01, 0.2)]
)
def test_a_cube_is_gripped_centred_lifted_and_held(
    twin: TwinBackend, offset_x_m: float, offset_y_m: float, yaw: float
) -> None:
    place(twin, (TOP[0] + offset_x_m, TOP[1] + offset_y_m, HALF_M), yaw=yaw)
    here = (TOP[0] + offset_x_m, TOP[1] + offset_y_m)
    deepest = go(twin, (*here, HALF_M), 0.0, 8)
    assert twin.read_state().gripper_width == pytest.approx(CUBE_EDGE_M, abs=2 * MAX_PENETRATION_M)
    deepest = max(deepest, go(twin, (*here, 0.12), 0.0, 20))
    assert cube(twin)[2] > 0.1
    assert cube(twin)[1] == pytest.approx(here[1], abs=0.001)  # the pads push it to their middle
    held = twin.read_state().O_T_EE[:3, 3] - cube(twin)
    deepest = max(deepest, go(twin, (*here, 0.12), 0.0, 50))
    np.testing.assert_allclose(twin.read_state().O_T_EE[:3, 3] - cube(twin), held, atol=0.0005)  # 5 s without slipping
    assert deepest < MAX_PENETRATION_M


def test_stacked_and_released_a_cube_stays(twin: TwinBackend) -> None:
    place(twin, (*TOP, HALF_M))
    deepest = go(twin, (*TOP, HALF_M), 0.0, 8)
    for target, width, steps in (
        ((*TOP, 0.13), 0.0, 18),
        ((*BOTTOM, 0.13), 0.0, 20),
        ((*BOTTOM, 3 * HALF_M), 0.0, 15),
        ((*BOTTOM, 3 * HALF_M), GRIPPER_OPEN_M, 6),
        ((*BOTTOM, 0.15), GRIPPER_OPEN_M, 15),
    ):
        deepest = max(deepest, go(twin, target, width, steps))
    stacked = twin.object_poses()
    assert stacked["cube_top"][2, 3] == pytest.approx(3 * HALF_M, abs=0.0005)
    assert np.abs(stacked["cube_top"][:2, 3] - stacked["cube_bottom"][:2, 3]).max() < 0.003
    assert deepest < MAX_PENETRATION_M
    twin.advance(5.0)
    for name, pose in twin.object_poses().items():
        np.testing.assert_allclose(pose, stacked[name], atol=2e-5, err_msg=name)


def test_a_cube_let_go_over_the_edge_of_the_other_topples(twin: TwinBackend) -> None:
    place(twin, (0.4, 0.0, 0.2), top=(BOTTOM[0] + 1.3 * HALF_M, BOTTOM[1], 3 * HALF_M))
    twin.advance(2.0)
    assert cube(twin)[2] < 2 * HALF_M


def test_a_dropped_cube_falls_as_fast_as_a_body_does_and_comes_to_rest(twin: TwinBackend) -> None:
    place(twin, (0.4, 0.0, 0.25), top=(*TOP, 0.15))
    twin.advance(0.1)
    assert cube(twin)[2] == pytest.approx(0.15 - 0.5 * 9.81 * 0.1**2, abs=0.001)
    heights = []
    for _ in range(500):
        twin.advance(0.002)
        heights.append(cube(twin)[2])
    assert min(heights) > HALF_M - 0.004  # it comes down at 1.5 m/s, 3 mm in one physics step
    assert max(heights[100:]) < HALF_M + 0.01  # it does not bounce off by more than it should
    assert heights[-1] == pytest.approx(HALF_M, abs=1e-4)
    assert np.abs(data_of(twin).qvel[9:]).max() < 1e-3


@pytest.mark.parametrize("push", [(0.0, 0.0, -0.02), (0.02, 0.02, -0.01)])
def test_pressing_a_held_cube_onto_table_and_other_cube_keeps_it_out_of_them(
    twin: TwinBackend, push: tuple[float, float, float]
) -> None:
    for EE in ((*TOP, HALF_M), (*BOTTOM, 3 * HALF_M)):
        place(twin, EE, top=EE)
        deepest = go(twin, EE, 0.0, 6)
        for _ in range(15):
            twin.send_command(RobotCommand(delta_position=np.array(push), delta_rotation=np.zeros(3)))
            for _ in range(50):
                twin.advance(0.002)
                deepest = max(deepest, -float(data_of(twin).contact.dist.min(initial=0.0)))
        assert deepest < 0.001
        speed = np.abs(data_of(twin).qvel).max()
        assert math.isfinite(speed)
        assert speed < 3.0  # nothing is shot away


def test_width_follows_the_command_no_faster_than_the_gripper(twin: TwinBackend) -> None:
    place(twin, (0.5, 0.0, 0.2))
    assert twin.read_state().gripper_width == pytest.approx(GRIPPER_OPEN_M)
    hold = np.zeros(3)
    widths = [twin.read_state().gripper_width]
    for command in (0.0, 0.05, GRIPPER_OPEN_M):
        twin.send_command(RobotCommand(delta_position=hold, delta_rotation=hold, gripper_width=command))
        for _ in range(80):
            twin.advance(0.01)
            widths.append(twin.read_state().gripper_width)
        assert widths[-1] == pytest.approx(command, abs=0.0005)
        twin.send_command(RobotCommand(delta_position=hold, delta_rotation=hold))  # None keeps it
        twin.advance(0.3)
        assert twin.read_state().gripper_width == pytest.approx(command, abs=0.0005)
    speeds = np.abs(np.diff(widths)) / 0.01
    assert GRIPPER_SPEED_M_S * 0.9 < speeds.max() < GRIPPER_SPEED_M_S * 1.1


def test_opening_lets_go_at_once(twin: TwinBackend) -> None:
    """The set point of closed fingers lies inside the cube: an opening gripper does not have to come out from there."""
    place(twin, (*TOP, HALF_M))
    go(twin, (*TOP, HALF_M), 0.0, 8)
    go(twin, (*TOP, 0.1), 0.0, 15)
    hold = np.zeros(3)
    twin.send_command(RobotCommand(delta_position=hold, delta_rotation=hold, gripper_width=GRIPPER_OPEN_M))
    twin.advance(0.1)
    assert twin.read_state().gripper_width > CUBE_EDGE_M + 0.005


def test_both_pads_stay_equally_far_from_the_middle_when_one_meets_the_cube_first(twin: TwinBackend) -> None:
    place(twin, (TOP[0], TOP[1] + 0.015, HALF_M))
    apart = []
    for _ in range(40):
        go(twin, (TOP[0], TOP[1] + 0.015, HALF_M), 0.0, 1)
        left, right = data_of(twin).qpos[7:9]
        apart.append(abs(left - right))
    assert max(apart) < 0.0005


def test_a_gripped_cube_pulls_at_the_hand_with_its_weight(twin: TwinBackend) -> None:
    place(twin, (*TOP, HALF_M))
    go(twin, (*TOP, HALF_M), 0.0, 8)
    go(twin, (*TOP, 0.1), 0.0, 15)
    twin.stop()
    twin.advance(1.0)
    twin.advance(0.1)
    assert twin._simulation is not None
    weight = float(twin._simulation.model.body("cube_top").mass[0]) * 9.81
    np.testing.assert_allclose(twin.read_state().O_F_ext_hat_K[:3], [0.0, 0.0, -weight], atol=0.1)


def test_a_run_with_contacts_repeats_bit_by_bit(twin: TwinBackend) -> None:
    def rollout() -> list[bytes]:
        place(twin, (TOP[0], TOP[1] + 0.01, HALF_M), yaw=0.1)
        rng = np.random.default_rng(3)
        seen = []
        for index in range(25):
            delta = rng.uniform((-0.02, -0.02, -0.01), (0.02, 0.02, 0.03))
            width = 0.0 if index < 18 else GRIPPER_OPEN_M
            twin.send_command(RobotCommand(delta_position=delta, delta_rotation=np.zeros(3), gripper_width=width))
            twin.advance(0.1)
            seen.append(data_of(twin).qpos.tobytes())
        return seen

    first = rollout()
    assert len(set(first)) == len(first)
    twin.advance(0.5)
    assert rollout() == first


def test_cubes_touch_all_there_is_to_touch(twin: TwinBackend) -> None:
    assert twin._simulation is not None
    model = twin._simulation.model

    def meet(one: str, other: str) -> bool:
        a, b = model.geom(one), model.geom(other)
        return bool((a.contype & b.conaffinity) | (b.contype & a.conaffinity))

    for cube_name in ("cube_top", "cube_bottom"):
        for other in ("table", "left_pad", "right_pad", "left_link", "right_link"):
            assert meet(cube_name, other), (cube_name, other)
    assert meet("cube_top", "cube_bottom")
    assert meet("left_pad", "table")
    assert not meet("left_pad", "right_pad")
    assert model.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC
