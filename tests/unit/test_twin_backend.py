"""The twin as a robot: how it answers steps, what it refuses, and its pictures."""

import sys
from collections.abc import Iterator

import numpy as np
import pytest

from robot.backends.twin.backend import TwinBackend
from robot.errors import RobotConfigError, RobotError
from robot.interface import Array, RobotCommand, ScenePlacement
from robot.pose import O_R_DOWN, make_pose, pose_difference, translation

START = ScenePlacement(O_T_EE=make_pose(O_R_DOWN, (0.5, 0.0, 0.3)), objects={"target": translation(0.55, 0.1, 0.25)})


@pytest.fixture(scope="module")
def twin() -> Iterator[TwinBackend]:
    backend = TwinBackend("reach")
    backend.connect()
    yield backend
    backend.close()


def step(delta_position: Array, delta_rotation: Array) -> RobotCommand:
    return RobotCommand(delta_position=delta_position, delta_rotation=delta_rotation)


@pytest.mark.parametrize("axis", range(6))
def test_a_step_is_approached_and_held(twin: TwinBackend, axis: int) -> None:
    """1 cm or 0.05 rad: most of it after 0.5 s, at most a tenth too far, nearly all of it after 2 s."""
    start = twin.reset(START).O_T_EE
    wanted = np.zeros(6)
    wanted[axis] = 0.01 if axis < 3 else 0.05
    twin.send_command(step(wanted[:3], wanted[3:]))
    reached = []
    for _ in range(20):
        twin.advance(0.1)
        moved = np.concatenate(pose_difference(start, twin.read_state().O_T_EE))
        reached.append(moved[axis] / wanted[axis])
    assert reached[4] > 0.8
    assert max(reached) < 1.1
    assert reached[-1] == pytest.approx(1.0, abs=0.02)


def test_torques_beyond_gravity_stay_within_five_newton_metres(twin: TwinBackend) -> None:
    holding = twin.reset(START).tau_J
    assert np.abs(holding).max() > 10.0  # gravity alone needs more than the clamp allows
    twin.send_command(step(np.array([0.3, -0.3, -0.3]), np.zeros(3)))
    twin.advance(0.002)
    assert np.abs(twin.read_state().tau_J - holding).max() == pytest.approx(5.0)


def test_a_pose_out_of_reach_is_refused_and_the_next_reset_works(twin: TwinBackend) -> None:
    far = ScenePlacement(O_T_EE=make_pose(O_R_DOWN, (1.2, 0.0, 0.3)), objects=START.objects)
    with pytest.raises(RobotError, match=r"cannot reach O_T_EE at \[1\.2, 0\.0, 0\.3\] m.*mm and .* rad away"):
        twin.reset(far)
    with pytest.raises(RobotError, match="call reset"):
        twin.read_state()
    state = twin.reset(START)
    np.testing.assert_allclose(state.O_T_EE, START.O_T_EE, atol=1e-6)


@pytest.mark.parametrize("period_s", [0.0, -0.1, 0.0005, 1 / 30])
def test_a_period_that_is_no_whole_number_of_physics_steps_is_refused(twin: TwinBackend, period_s: float) -> None:
    twin.reset(START)
    with pytest.raises(RobotConfigError, match="whole number of physics steps"):
        twin.advance(period_s)


def test_the_finger_tips_stop_at_the_table(twin: TwinBackend) -> None:
    twin.reset(ScenePlacement(O_T_EE=make_pose(O_R_DOWN, (0.5, 0.0, 0.05)), objects=START.objects))
    for _ in range(15):
        twin.send_command(step(np.array([0.0, 0.0, -0.02]), np.zeros(3)))
        twin.advance(0.1)
    assert twin.read_state().O_T_EE[2, 3] > 0.012  # the tips end 17 mm below EE


@pytest.fixture(scope="module")
def drawing_twin(twin: TwinBackend) -> TwinBackend:
    twin.reset(START)
    try:
        twin.render(32, 32)
    except RobotError as error:
        pytest.skip(str(error))
    return twin


def test_images_show_the_scene_from_two_sides_and_follow_the_arm(drawing_twin: TwinBackend) -> None:
    drawing_twin.reset(START)
    overview, close = drawing_twin.render(64, 48), drawing_twin.render(64, 48, "close")
    assert overview.shape == (48, 64, 3)
    assert overview.dtype == np.uint8
    assert overview.std() > 10.0  # something is in the picture
    assert np.abs(overview.astype(float) - close).mean() > 5.0
    elsewhere = make_pose(O_R_DOWN, (0.4, 0.2, 0.4))
    drawing_twin.reset(ScenePlacement(O_T_EE=elsewhere, objects=START.objects))
    assert np.abs(overview.astype(float) - drawing_twin.render(64, 48)).mean() > 1.0


def test_image_size_may_change_from_call_to_call(drawing_twin: TwinBackend) -> None:
    drawing_twin.reset(START)
    small = drawing_twin.render(64, 48)
    assert drawing_twin.render(160, 120).shape == (120, 160, 3)
    np.testing.assert_array_equal(drawing_twin.render(64, 48), small)


def test_impossible_images_are_refused(twin: TwinBackend) -> None:
    twin.reset(START)
    with pytest.raises(RobotConfigError, match=r"unknown camera 'overvew'.*'overview'\? Valid: close, overview"):
        twin.render(64, 48, "overvew")
    with pytest.raises(RobotConfigError, match="image size 0 x 48 px"):
        twin.render(0, 48)


def test_without_the_drawing_library_its_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setitem(sys.modules, "mujoco.egl", None)  # makes its import fail
    backend = TwinBackend("reach")
    backend.connect()
    backend.reset(START)
    with pytest.raises(RobotError, match=r"with egl.*apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri"):
        backend.render(64, 48)
    backend.advance(0.1)  # physics goes on without pictures
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(RobotConfigError, match="MUJOCO_GL is 'vulkan'"):
        backend.render(64, 48)
