"""What every simulated backend promises, in every scene. A new backend is covered once it is registered."""

import math
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from robot.backends import SIMULATED_BACKENDS, make_backend
from robot.errors import MissingDependencyError, RobotConfigError, RobotError
from robot.geometry import (
    CUBE_EDGE_M,
    GRIPPER_OPEN_M,
    GRIPPER_SPEED_M_S,
    HOLE_DEPTH_M,
    HOLE_RADIUS_M,
    PEG_LENGTH_M,
    PEG_RADIUS_M,
)
from robot.interface import Array, RobotCommand, RobotState, ScenePlacement, SimulatedBackend
from robot.pose import O_R_DOWN, inverse, make_pose, pose_difference, rotation_from_rotvec, translation
from robot.scenes import SCENES

PERIOD_S = 0.1
STATE_SHAPES = {
    "O_T_EE": (4, 4),
    "O_twist_EE": (6,),
    "q": (7,),
    "dq": (7,),
    "tau_J": (7,),
    "O_F_ext_hat_K": (6,),
}
RIM_M = 0.06
# Turned about several axes, so that a step taken in a wrong frame goes a wrong way.
TILTED = rotation_from_rotvec((0.15, -0.1, 0.6)) @ O_R_DOWN


def placement_in(scene: str, rotation: Array = O_R_DOWN, height_m: float = 0.22) -> ScenePlacement:
    objects = {
        "reach": {"target": translation(0.55, 0.1, 0.3)},
        "peg_in_hole": {"hole": translation(0.5, 0.02, RIM_M), "peg": translation(0.002, 0.001, PEG_LENGTH_M)},
        "cube_stacking": {
            "cube_top": make_pose(rotation_from_rotvec((0.0, 0.0, 0.2)), (0.45, -0.06, CUBE_EDGE_M / 2)),
            "cube_bottom": translation(0.53, 0.05, CUBE_EDGE_M / 2),
        },
    }
    return ScenePlacement(O_T_EE=make_pose(rotation, (0.48, 0.01, height_m)), objects=objects[scene])


def step(delta_position: tuple[float, ...] = (0, 0, 0), delta_rotation: tuple[float, ...] = (0, 0, 0)) -> RobotCommand:
    return RobotCommand(
        delta_position=np.array(delta_position, dtype=np.float64),
        delta_rotation=np.array(delta_rotation, dtype=np.float64),
    )


@pytest.fixture(scope="module", params=[(name, scene) for name in SIMULATED_BACKENDS for scene in SCENES], ids="-".join)
def backend_and_scene(request: pytest.FixtureRequest) -> Iterator[tuple[SimulatedBackend, str]]:
    name, scene = request.param
    backend = make_backend(name, scene)
    assert isinstance(backend, SimulatedBackend)
    backend.connect()
    yield backend, scene
    backend.close()


def test_reset_reaches_the_placement_at_rest(backend_and_scene: tuple[SimulatedBackend, str]) -> None:
    backend, scene = backend_and_scene
    placement = placement_in(scene, TILTED)
    state = backend.reset(placement)
    missing_position, missing_rotation = pose_difference(state.O_T_EE, placement.O_T_EE)
    assert np.linalg.norm(missing_position) < 0.0005
    assert np.linalg.norm(missing_rotation) < 0.005
    assert not state.O_twist_EE.any()
    assert not state.dq.any()


def test_objects_stand_where_they_were_placed(backend_and_scene: tuple[SimulatedBackend, str]) -> None:
    backend, scene = backend_and_scene
    placement = placement_in(scene, TILTED)
    backend.reset(placement)
    poses = backend.object_poses()
    assert set(poses) == set(SCENES[scene])
    for name, frame in SCENES[scene].items():
        expected = placement.objects[name] if frame == "O" else placement.O_T_EE @ placement.objects[name]
        np.testing.assert_allclose(poses[name], expected, atol=1e-6)


def test_state_has_the_promised_shapes_and_belongs_to_the_caller(
    backend_and_scene: tuple[SimulatedBackend, str],
) -> None:
    backend, scene = backend_and_scene
    backend.reset(placement_in(scene))
    before = backend.read_state()
    kept = before.O_T_EE.copy()
    backend.send_command(step((0.01, 0, 0)))
    backend.advance(PERIOD_S)
    np.testing.assert_array_equal(before.O_T_EE, kept)  # an old state does not follow the robot
    state = backend.read_state()
    for name, shape in STATE_SHAPES.items():
        value = getattr(state, name)
        assert (value.shape, value.dtype) == (shape, np.float64), name
        assert np.isfinite(value).all(), name
        value[:] = math.nan  # and the robot does not follow the caller's arrays
    assert np.isfinite(backend.read_state().O_T_EE).all()
    assert 0.0 <= state.gripper_width <= 0.085


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_position_step_moves_along_its_axis_of_the_base(
    backend_and_scene: tuple[SimulatedBackend, str], axis: int, sign: int
) -> None:
    backend, scene = backend_and_scene
    start = backend.reset(placement_in(scene, TILTED))
    wanted = np.zeros(3)
    wanted[axis] = sign * 0.01
    backend.send_command(step(tuple(wanted)))
    backend.advance(1.0)
    moved, turned = pose_difference(start.O_T_EE, backend.read_state().O_T_EE)
    np.testing.assert_allclose(moved, wanted, atol=0.001)
    assert np.linalg.norm(turned) < 0.01


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_rotation_step_turns_about_its_axis_of_the_base(
    backend_and_scene: tuple[SimulatedBackend, str], axis: int, sign: int
) -> None:
    backend, scene = backend_and_scene
    start = backend.reset(placement_in(scene, TILTED))
    wanted = np.zeros(3)
    wanted[axis] = sign * 0.05
    backend.send_command(step(delta_rotation=tuple(wanted)))
    backend.advance(1.0)
    moved, turned = pose_difference(start.O_T_EE, backend.read_state().O_T_EE)
    np.testing.assert_allclose(turned, wanted, atol=0.003)
    assert np.linalg.norm(moved) < 0.001


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_period_covers_a_fifth_to_two_fifths_of_a_step(
    backend_and_scene: tuple[SimulatedBackend, str], axis: int
) -> None:
    """All backends answer alike, so that what is tried on the fake carries over; the ideal law covers 35 %."""
    backend, scene = backend_and_scene
    start = backend.reset(placement_in(scene))
    wanted = np.zeros(3)
    wanted[axis] = 0.01
    backend.send_command(step(tuple(wanted)))
    backend.advance(PERIOD_S)
    covered = (backend.read_state().O_T_EE - start.O_T_EE)[axis, 3] / 0.01
    assert 0.18 < covered < 0.42


def test_a_step_starts_from_the_measured_pose_not_from_the_last_goal(
    backend_and_scene: tuple[SimulatedBackend, str],
) -> None:
    backend, scene = backend_and_scene
    backend.reset(placement_in(scene))
    backend.send_command(step((0.02, 0, 0)))
    backend.advance(PERIOD_S)
    measured = backend.read_state().O_T_EE
    backend.send_command(step())
    backend.advance(1.0)
    final = backend.read_state().O_T_EE
    assert measured[0, 3] < 0.492  # far from the first goal, 0.50
    np.testing.assert_allclose(final[:3, 3], measured[:3, 3], atol=0.001)


def test_equal_placements_and_commands_give_bit_identical_states(
    backend_and_scene: tuple[SimulatedBackend, str],
) -> None:
    backend, scene = backend_and_scene

    def rollout() -> list[RobotState]:
        rng = np.random.default_rng(7)
        states = [backend.reset(placement_in(scene, height_m=RIM_M + PEG_LENGTH_M + 0.01))]
        for _ in range(12):  # down onto the plate, so that contacts take part
            delta = rng.uniform((-0.01, -0.01, -0.02), (0.01, 0.01, 0.0))
            backend.send_command(step(tuple(delta), tuple(rng.uniform(-0.03, 0.03, 3))))
            backend.advance(PERIOD_S)
            states.append(backend.read_state())
        return states

    first = rollout()
    backend.send_command(step((0.0, 0.0, 0.02)))  # another history before the second run
    backend.advance(0.3)
    for one, two in zip(first, rollout(), strict=True):
        for name in STATE_SHAPES:
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)


def test_stop_holds_the_pose(backend_and_scene: tuple[SimulatedBackend, str]) -> None:
    backend, scene = backend_and_scene
    backend.reset(placement_in(scene))
    backend.send_command(step((0.02, 0, 0)))
    backend.advance(PERIOD_S)
    backend.stop()
    stopped = backend.read_state().O_T_EE
    backend.stop()
    backend.advance(1.0)
    held = backend.read_state()
    np.testing.assert_allclose(held.O_T_EE, stopped, atol=0.001)
    assert np.abs(held.O_twist_EE).max() < 0.002


def test_twist_is_the_rate_of_the_pose(backend_and_scene: tuple[SimulatedBackend, str]) -> None:
    backend, scene = backend_and_scene
    backend.reset(placement_in(scene, TILTED))
    backend.send_command(step((0.01, -0.02, 0.01), (0.05, 0.03, -0.04)))
    backend.advance(0.06)
    before = backend.read_state()
    backend.advance(0.002)
    after = backend.read_state()
    rate = np.concatenate(pose_difference(before.O_T_EE, after.O_T_EE)) / 0.002
    mean_twist = (before.O_twist_EE + after.O_twist_EE) / 2
    assert np.abs(mean_twist).max() > 0.05  # else the comparison says nothing
    np.testing.assert_allclose(mean_twist, rate, atol=0.005)


def test_robot_time_counts_periods_and_survives_a_reset(backend_and_scene: tuple[SimulatedBackend, str]) -> None:
    backend, scene = backend_and_scene
    start_s = backend.reset(placement_in(scene)).robot_time_s
    backend.advance(PERIOD_S)
    assert backend.read_state().robot_time_s - start_s == pytest.approx(PERIOD_S)
    assert backend.reset(placement_in(scene)).robot_time_s - start_s == pytest.approx(PERIOD_S)


@pytest.mark.parametrize(("offset_m", "goes_in"), [(0.0, True), (0.02, False)])
@pytest.mark.parametrize("name", SIMULATED_BACKENDS)
def test_the_peg_enters_the_hole_and_not_the_plate_beside_it(name: str, offset_m: float, goes_in: bool) -> None:
    backend = make_backend(name, "peg_in_hole")
    assert isinstance(backend, SimulatedBackend)
    backend.connect()
    hole = translation(0.5, 0.0, RIM_M)
    start = make_pose(O_R_DOWN, (0.5 + offset_m, 0.0, RIM_M + PEG_LENGTH_M + 0.01))
    backend.reset(ScenePlacement(O_T_EE=start, objects={"hole": hole, "peg": translation(0, 0, PEG_LENGTH_M)}))
    for _ in range(15):
        backend.send_command(step((0.0, 0.0, -0.01)))
        backend.advance(PERIOD_S)
    hole_p_peg = (inverse(hole) @ backend.object_poses()["peg"])[:3, 3]
    backend.close()
    if goes_in:
        assert hole_p_peg[2] == pytest.approx(-HOLE_DEPTH_M, abs=0.001)
        assert math.hypot(*hole_p_peg[:2]) < HOLE_RADIUS_M - PEG_RADIUS_M + 0.0005
    else:
        assert hole_p_peg[2] > -0.001


CUBE_TOP = (0.45, -0.06)
CUBE_BOTTOM = (0.53, 0.05)


@pytest.fixture(scope="module", params=SIMULATED_BACKENDS)
def cubes_backend(request: pytest.FixtureRequest) -> Iterator[SimulatedBackend]:
    backend = make_backend(request.param, "cube_stacking")
    assert isinstance(backend, SimulatedBackend)
    backend.connect()
    yield backend
    backend.close()


def place_hand(backend: SimulatedBackend, position: tuple[float, float, float]) -> None:
    objects = placement_in("cube_stacking").objects
    backend.reset(ScenePlacement(O_T_EE=make_pose(O_R_DOWN, position), objects=objects))


def go(backend: SimulatedBackend, target: tuple[float, float, float], width: float, steps: int = 15) -> None:
    """Servo the upright hand to `target` while the fingers go to `width`."""
    for _ in range(steps):
        missing, turn = pose_difference(backend.read_state().O_T_EE, make_pose(O_R_DOWN, target))
        delta = np.clip(2.5 * missing, -0.02, 0.02)
        backend.send_command(RobotCommand(delta_position=delta, delta_rotation=turn, gripper_width=width))
        backend.advance(PERIOD_S)


def test_a_cube_is_grasped_carried_and_stacked(cubes_backend: SimulatedBackend) -> None:
    backend = cubes_backend
    place_hand(backend, (*CUBE_TOP, 0.1))
    assert backend.read_state().gripper_width == pytest.approx(GRIPPER_OPEN_M)
    go(backend, (*CUBE_TOP, CUBE_EDGE_M / 2), GRIPPER_OPEN_M)
    go(backend, (*CUBE_TOP, CUBE_EDGE_M / 2), 0.0, steps=6)
    assert backend.read_state().gripper_width == pytest.approx(CUBE_EDGE_M, abs=0.001)
    go(backend, (*CUBE_TOP, 0.12), 0.0)
    assert backend.object_poses()["cube_top"][2, 3] > 0.1
    go(backend, (*CUBE_BOTTOM, 0.12), 0.0, steps=20)
    go(backend, (*CUBE_BOTTOM, 1.5 * CUBE_EDGE_M), 0.0)
    go(backend, (*CUBE_BOTTOM, 1.5 * CUBE_EDGE_M), GRIPPER_OPEN_M, steps=4)
    go(backend, (*CUBE_BOTTOM, 0.15), GRIPPER_OPEN_M)
    poses = backend.object_poses()
    np.testing.assert_allclose(
        poses["cube_top"][:3, 3] - poses["cube_bottom"][:3, 3], [0.0, 0.0, CUBE_EDGE_M], atol=0.003
    )
    yaw = math.atan2(poses["cube_top"][1, 0], poses["cube_top"][0, 0])
    assert math.remainder(yaw, math.pi / 2) == pytest.approx(0.0, abs=0.02)  # turned straight by the fingers
    assert backend.read_state().gripper_width == pytest.approx(GRIPPER_OPEN_M, abs=0.001)


def test_a_cube_let_go_in_the_air_falls_to_the_table(cubes_backend: SimulatedBackend) -> None:
    backend = cubes_backend
    place_hand(backend, (*CUBE_TOP, CUBE_EDGE_M / 2))
    go(backend, (*CUBE_TOP, CUBE_EDGE_M / 2), 0.0, steps=6)
    go(backend, (0.5, -0.05, 0.09), 0.0)
    go(backend, (0.5, -0.05, 0.09), GRIPPER_OPEN_M, steps=8)
    np.testing.assert_allclose(backend.object_poses()["cube_top"][:3, 3], [0.5, -0.05, CUBE_EDGE_M / 2], atol=0.004)


def test_fingers_beside_a_cube_close_on_nothing_at_the_speed_of_the_gripper(cubes_backend: SimulatedBackend) -> None:
    backend = cubes_backend
    place_hand(backend, (0.52, -0.06, 0.1))
    command = RobotCommand(delta_position=np.zeros(3), delta_rotation=np.zeros(3), gripper_width=0.0)
    backend.send_command(command)
    backend.advance(0.2)
    expected = GRIPPER_OPEN_M - 0.2 * GRIPPER_SPEED_M_S
    assert backend.read_state().gripper_width == pytest.approx(expected, abs=0.004)
    backend.send_command(step())  # no width: the last one still counts
    backend.advance(0.5)
    assert backend.read_state().gripper_width == pytest.approx(0.0, abs=0.001)
    assert backend.object_poses()["cube_top"][2, 3] == pytest.approx(CUBE_EDGE_M / 2, abs=1e-4)


def test_a_held_cube_stops_at_the_table(cubes_backend: SimulatedBackend) -> None:
    backend = cubes_backend
    place_hand(backend, (*CUBE_TOP, CUBE_EDGE_M / 2 + 0.01))
    go(backend, (*CUBE_TOP, CUBE_EDGE_M / 2 + 0.01), 0.0, steps=6)
    go(backend, (*CUBE_TOP, CUBE_EDGE_M / 2 - 0.03), 0.0)
    assert backend.object_poses()["cube_top"][2, 3] == pytest.approx(CUBE_EDGE_M / 2, abs=0.001)
    assert backend.read_state().O_T_EE[2, 3] > CUBE_EDGE_M / 2 + 0.005


def test_a_grasp_repeats_bit_by_bit(cubes_backend: SimulatedBackend) -> None:
    def rollout() -> list[bytes]:
        place_hand(cubes_backend, (CUBE_TOP[0], CUBE_TOP[1] + 0.01, CUBE_EDGE_M / 2))
        seen = []
        for width in (0.0, GRIPPER_OPEN_M):
            for _ in range(4):
                go(cubes_backend, (*CUBE_TOP, 0.08), width, steps=2)
                poses = cubes_backend.object_poses()
                seen.append(b"".join(pose.tobytes() for pose in poses.values()))
        return seen

    assert rollout() == rollout()


@pytest.mark.parametrize("name", SIMULATED_BACKENDS)
def test_fingers_around_a_peg_are_frozen(name: str) -> None:
    backend = make_backend(name, "peg_in_hole")
    backend.connect()
    backend.reset(placement_in("peg_in_hole"))
    backend.send_command(
        RobotCommand(delta_position=np.zeros(3), delta_rotation=np.zeros(3), gripper_width=GRIPPER_OPEN_M)
    )
    backend.advance(0.5)
    assert backend.read_state().gripper_width == 2 * PEG_RADIUS_M
    backend.close()


def test_a_placement_that_does_not_fit_the_scene_is_refused(backend_and_scene: tuple[SimulatedBackend, str]) -> None:
    backend, scene = backend_and_scene
    good = placement_in(scene)
    with pytest.raises(RobotConfigError, match=r"places the objects .* names \['cube'\]"):
        backend.reset(ScenePlacement(O_T_EE=good.O_T_EE, objects={"cube": np.eye(4)}))
    with pytest.raises(RobotConfigError, match="O_T_EE is not a rigid transform"):
        backend.reset(ScenePlacement(O_T_EE=np.diag([2.0, 1.0, 1.0, 1.0]), objects=good.objects))


@pytest.mark.parametrize("name", SIMULATED_BACKENDS)
def test_use_before_reset_is_refused_and_close_is_safe_at_any_time(name: str) -> None:
    backend = make_backend(name, "reach")
    backend.stop()
    backend.close()
    with pytest.raises(RobotError):
        backend.read_state()
    backend.connect()
    with pytest.raises(RobotError, match="call reset"):
        backend.advance(PERIOD_S)
    backend.close()
    backend.close()
    backend.stop()


def test_unknown_names_are_answered_with_the_nearest_and_all_valid_ones() -> None:
    with pytest.raises(RobotConfigError, match=r"unknown robot backend 'twn'.*'twin'\? Valid: deoxys, fake, twin"):
        make_backend("twn", "reach")
    for name in SIMULATED_BACKENDS:
        with pytest.raises(RobotConfigError, match=r"unknown scene 'peg_in_hol'.*'peg_in_hole'\? Valid: .*reach"):
            make_backend(name, "peg_in_hol")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("robot.backends.twin")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "mujoco", None)  # makes `import mujoco` fail as if it were not installed
    with pytest.raises(MissingDependencyError, match=r"'mujoco'.*pip install -e '\.\[sim\]'"):
        make_backend("twin", "reach")


def test_the_fake_says_that_it_cannot_draw_and_what_can() -> None:
    backend = make_backend("fake", "reach")
    assert isinstance(backend, SimulatedBackend)
    with pytest.raises(RobotError, match="backend 'twin'"):
        backend.render(64, 48)
