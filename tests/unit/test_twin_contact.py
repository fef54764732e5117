"""Peg against hole in the twin: it goes in smoothly, stays, and no push makes it sink into the plate."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import mujoco
import numpy as np
import pytest

from robot.backends.twin.backend import TwinBackend
from robot.geometry import HOLE_DEPTH_M, HOLE_RADIUS_M, PEG_LENGTH_M, PEG_RADIUS_M
from robot.interface import Array, RobotCommand, RobotState, ScenePlacement
from robot.pose import O_R_DOWN, inverse, make_pose, rotation_from_rotvec, translation

CLEARANCE_M = HOLE_RADIUS_M - PEG_RADIUS_M
MAX_PENETRATION_M = 0.0005
O_T_HOLE = translation(0.5, 0.0, 0.06)
DOWN = (0.0, 0.0, -0.02)
Deltas = Callable[[int], tuple[float, ...]]


@pytest.fixture(scope="module")
def twin() -> Iterator[TwinBackend]:
    backend = TwinBackend("peg_in_hole")
    backend.connect()
    yield backend
    backend.close()


def place(
    twin: TwinBackend, lateral_m: float = 0.0, tilt: float = 0.0, tilt_in_hand: float = 0.0, yaw: float = 0.0
) -> None:
    """Put the peg's tip 1 cm over the rim, the hole turned by yaw (its walls are a polygon). Angles in rad."""
    hole = make_pose(rotation_from_rotvec((0.0, 0.0, yaw)), O_T_HOLE[:3, 3])
    O_T_peg = make_pose(rotation_from_rotvec((tilt, 0.0, 0.0)) @ O_R_DOWN, O_T_HOLE[:3, 3] + [lateral_m, 0.0, 0.01])
    EE_T_peg = make_pose(rotation_from_rotvec((tilt_in_hand, 0.0, 0.0)), (0.0, 0.0, PEG_LENGTH_M))
    start = O_T_peg @ inverse(EE_T_peg)
    twin.reset(ScenePlacement(O_T_EE=start, objects={"hole": hole, "peg": EE_T_peg}))


def push(twin: TwinBackend, steps: int, delta: Deltas, turn: Deltas = lambda _: (0.0, 0.0, 0.0)) -> float:
    """Send steps at 10 Hz and return the deepest penetration seen at any physics step, m."""
    deepest = 0.0
    for index in range(steps):
        command = RobotCommand(delta_position=np.array(delta(index)), delta_rotation=np.array(turn(index)))
        twin.send_command(command)
        for _ in range(50):
            twin.advance(0.002)
            contacts = data_of(twin).contact
            deepest = max(deepest, -contacts.dist.min(initial=0.0))
    return deepest


def data_of(twin: TwinBackend) -> Any:
    assert twin._simulation is not None
    return twin._simulation.data


def tip_in_hole(twin: TwinBackend) -> Array:
    position: Array = (inverse(O_T_HOLE) @ twin.object_poses()["peg"])[:3, 3]
    return position


@pytest.mark.parametrize("yaw", [0.0, math.pi / 16])
@pytest.mark.parametrize("lateral_m", [0.0, 0.9 * CLEARANCE_M, 1.5 * CLEARANCE_M])
def test_the_peg_goes_in_over_the_whole_clearance_and_the_chamfer(
    twin: TwinBackend, lateral_m: float, yaw: float
) -> None:
    place(twin, lateral_m, yaw=yaw)
    deepest = push(twin, 15, lambda _: DOWN)
    tip = tip_in_hole(twin)
    assert tip[2] == pytest.approx(-HOLE_DEPTH_M, abs=0.0012)
    assert math.hypot(tip[0], tip[1]) < CLEARANCE_M + 0.0005
    assert deepest < MAX_PENETRATION_M


def test_once_in_the_peg_stays_and_comes_to_rest(twin: TwinBackend) -> None:
    place(twin)
    push(twin, 12, lambda _: DOWN)
    twin.stop()
    twin.advance(1.0)
    settled = tip_in_hole(twin)
    speeds, heights = [], []
    for _ in range(200):
        twin.advance(0.002)
        speeds.append(float(np.abs(twin.read_state().O_twist_EE).max()))
        heights.append(tip_in_hole(twin)[2])
    assert settled[2] < -0.02
    assert max(speeds) < 1e-3  # no jitter: a contact that gains energy never comes to rest
    assert max(heights) - min(heights) < 1e-5


@pytest.mark.parametrize(
    ("delta", "turn"),
    [
        (lambda i: (0.02 * math.cos(i), 0.02 * math.sin(i), 0.0), lambda _: (0.0, 0.0, 0.0)),
        (lambda _: (0.015, 0.015, -0.01), lambda _: (0.0, 0.0, 0.0)),
        (lambda _: (0.0, 0.0, 0.0), lambda _: (0.1, 0.0, 0.0)),
        (lambda _: (0.0, 0.0, 0.0), lambda _: (0.0, 0.0, 0.1)),
    ],
    ids=["stir", "lean", "tilt", "spin"],
)
def test_no_push_inside_the_hole_breaks_its_walls(twin: TwinBackend, delta: Deltas, turn: Deltas) -> None:
    place(twin)
    push(twin, 8, lambda _: DOWN)
    deepest = push(twin, 12, delta, turn)
    tip = tip_in_hole(twin)
    assert deepest < MAX_PENETRATION_M
    assert -HOLE_DEPTH_M - MAX_PENETRATION_M < tip[2] < 0.0
    assert math.hypot(tip[0], tip[1]) < CLEARANCE_M + 0.001  # a tilted peg's tip may lean a little further


@pytest.mark.parametrize("lateral_m", [0.02, 0.03])
def test_beside_the_hole_the_peg_stays_on_the_plate(twin: TwinBackend, lateral_m: float) -> None:
    place(twin, lateral_m)
    deepest = push(twin, 8, lambda _: DOWN)
    assert tip_in_hole(twin)[2] > -MAX_PENETRATION_M
    assert deepest < MAX_PENETRATION_M


@pytest.mark.parametrize("tilt", [0.15, -0.15])
def test_a_tilted_peg_jams(twin: TwinBackend, tilt: float) -> None:
    """2 mm of play let a peg tilted by 0.15 rad in by 13 mm."""
    place(twin, tilt=tilt)
    push(twin, 4, lambda _: DOWN)
    assert tip_in_hole(twin)[2] > -0.016


@pytest.mark.parametrize("tilt_in_hand", [0.15, -0.15])
def test_a_peg_tilted_in_the_hand_goes_in_when_the_hand_makes_up_for_it(twin: TwinBackend, tilt_in_hand: float) -> None:
    place(twin, tilt_in_hand=tilt_in_hand)
    push(twin, 12, lambda _: DOWN)
    assert tip_in_hole(twin)[2] < -0.028


def test_the_reported_wrench_is_that_of_the_contacts(twin: TwinBackend) -> None:
    place(twin, 0.02)
    assert not twin.read_state().O_F_ext_hat_K.any()
    push(twin, 6, lambda _: (0.0, 0.0, -0.005))
    twin.stop()
    twin.advance(1.0)
    twin.send_command(RobotCommand(delta_position=np.array([0.0, 0.0, -0.005]), delta_rotation=np.zeros(3)))
    twin.advance(1.0)
    twin.advance(0.002)
    state = twin.read_state()
    np.testing.assert_allclose(state.O_F_ext_hat_K[:3], contact_force(twin), atol=0.3)
    assert state.O_F_ext_hat_K[2] > 2.0  # the plate pushes the hand up


def contact_force(twin: TwinBackend) -> Array:
    """Return the sum of all contact forces on the peg (3,), N, in O."""
    data = data_of(twin)
    assert twin._simulation is not None
    total, wrench = np.zeros(3), np.zeros(6)
    for index in range(data.ncon):
        mujoco.mj_contactForce(twin._simulation.model, data, index, wrench)
        contact = data.contact[index]
        peg_is_second = twin._simulation.model.geom(int(contact.geom[1])).name == "peg"
        total += (1.0 if peg_is_second else -1.0) * contact.frame.reshape(3, 3).T @ wrench[:3]
    return total


def test_free_motion_reports_no_force(twin: TwinBackend) -> None:
    place(twin)
    twin.send_command(RobotCommand(delta_position=np.array([0.0, 0.0, 0.02]), delta_rotation=np.zeros(3)))
    twin.advance(0.1)
    state: RobotState = twin.read_state()
    assert not state.O_F_ext_hat_K.any()
