"""What the twin's cameras see: where the optics say that things are, at the simulated instant, with looks that vary."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from actor.workcell import vary_looks
from policy.errors import ConfigError
from robot.backends.fake import FakeBackend
from robot.backends.twin.backend import TwinBackend
from robot.cameras import make_camera
from robot.cameras.optics import MOUNTS, find_mount
from robot.errors import RobotConfigError, RobotError
from robot.geometry import CUBE_EDGE_M
from robot.interface import Array, RobotCommand, ScenePlacement
from robot.pose import O_R_DOWN, make_pose, rotation_from_rotvec, translation

CAMERAS = tuple(MOUNTS)
# The hand beside the cubes, in the sight of both cameras.
O_T_EE = make_pose(rotation_from_rotvec([0.05, -0.03, 0.1]) @ O_R_DOWN, (0.47, 0.0, 0.16))


def placement(x: float = 0.50, y: float = 0.03) -> ScenePlacement:
    cubes = {"cube_top": translation(x, y, CUBE_EDGE_M / 2), "cube_bottom": translation(0.51, -0.06, CUBE_EDGE_M / 2)}
    return ScenePlacement(O_T_EE=O_T_EE, objects=cubes)


@pytest.fixture(scope="module")
def twin() -> Iterator[TwinBackend]:
    backend = TwinBackend("cube_stacking")
    backend.connect()
    backend.reset(placement())
    try:
        backend.photograph("wrist")
    except RobotError as error:
        pytest.skip(str(error))
    yield backend
    backend.close()


def photograph(twin: TwinBackend, where: ScenePlacement, camera: str) -> NDArray[np.float64]:
    twin.reset(where)
    return twin.photograph(camera).astype(np.float64)


def corners(O_T_cube: Array) -> list[Array]:
    half = CUBE_EDGE_M / 2
    return [O_T_cube[:3, 3] + O_T_cube[:3, :3] @ signs for signs in itertools.product((-half, half), repeat=3)]


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("xy", [(0.49, 0.0), (0.50, 0.05)])
def test_a_cube_is_seen_where_the_optics_project_it(twin: TwinBackend, camera: str, xy: tuple[float, float]) -> None:
    """The outline of what is red in the picture against the projection of the cube's eight corners."""
    image = photograph(twin, placement(*xy), camera)
    rows, columns = np.nonzero((image[..., 0] > 100) & (image[..., 1:].max(axis=2) < 0.5 * image[..., 0]))
    O_T_EE_measured = twin.read_state().O_T_EE
    pixels = np.array([find_mount(camera).project(corner, O_T_EE_measured) for corner in corners(
        twin.object_poses()["cube_top"])])[:, :2]  # fmt: skip
    assert len(rows) > 500
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(seen, [*pixels.min(axis=0), *pixels.max(axis=0)], atol=1.5)


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_frame_has_the_cameras_size_and_the_simulated_instant(twin: TwinBackend, camera: str) -> None:
    twin.reset(placement())
    reader = make_camera("twin", camera, backend=twin)
    with pytest.raises(RobotError, match="not connected"):
        reader.read()
    reader.connect()
    first = reader.read()
    assert first.image.shape == (reader.height, reader.width, 3)
    assert reader.read() is first  # time stood still
    twin.send_command(RobotCommand(delta_position=np.array([0.0, 0.0, 0.02]), delta_rotation=np.zeros(3)))
    twin.advance(0.1)
    second = reader.read()
    assert second.sequence == first.sequence + 1
    assert (second.image != first.image).any(axis=2).mean() > 0.01


def test_a_camera_of_the_twin_needs_the_twin() -> None:
    with pytest.raises(RobotConfigError, match="backend here is FakeBackend"):
        make_camera("twin", "wrist", backend=FakeBackend("reach"))


@pytest.fixture
def varied(twin: TwinBackend) -> Iterator[TwinBackend]:
    twin.vary_looks(1.0)
    yield twin
    twin.vary_looks(0.0)


@pytest.mark.parametrize("camera", CAMERAS)
def test_without_variation_only_what_moved_looks_different(twin: TwinBackend, camera: str) -> None:
    here, there = (photograph(twin, where, camera) for where in (placement(), placement(x=0.501)))
    changed = np.abs(here - there).max(axis=2) > 8
    assert 0 < changed.mean() < 0.02  # the edges of a cube that is a millimetre further on
    np.testing.assert_array_equal(photograph(twin, placement(), camera), here)


@pytest.mark.parametrize("camera", CAMERAS)
def test_looks_vary_with_the_placement_and_come_back_with_it(varied: TwinBackend, camera: str) -> None:
    here, there = (photograph(varied, where, camera) for where in (placement(), placement(x=0.501)))
    assert (np.abs(here - there).max(axis=2) > 8).mean() > 0.3  # table, light and view
    np.testing.assert_array_equal(photograph(varied, placement(), camera), here)  # at a later reset
    varied.vary_looks(0.0)
    assert np.abs(photograph(varied, placement(), camera) - here).mean() > 2.0


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_little_variation_changes_little(varied: TwinBackend, camera: str) -> None:
    """Materials stay: the arm white, the gripper black."""
    varied.vary_looks(0.01)
    slightly = photograph(varied, placement(), camera)
    varied.vary_looks(0.0)
    assert 0.0 < np.abs(photograph(varied, placement(), camera) - slightly).mean() < 1.0


def test_looks_of_another_twin_are_the_same(varied: TwinBackend) -> None:
    other = TwinBackend("cube_stacking")
    other.connect()
    other.vary_looks(1.0)
    other.reset(placement(x=0.48))  # an episode more
    np.testing.assert_array_equal(
        photograph(other, placement(), "third_person"), photograph(varied, placement(), "third_person")
    )
    other.close()


def test_the_physics_know_nothing_of_looks(twin: TwinBackend) -> None:
    def final_state(amount: float) -> NDArray[np.float64]:
        twin.vary_looks(amount)
        twin.reset(placement())
        for _ in range(5):
            twin.photograph("wrist")
            twin.send_command(RobotCommand(delta_position=np.array([0.01, 0.0, -0.03]), delta_rotation=np.zeros(3)))
            twin.advance(0.1)
        return twin.read_state().q

    varied, plain = final_state(1.0), final_state(0.0)
    np.testing.assert_array_equal(varied, plain)


def test_impossible_variation_is_refused(twin: TwinBackend) -> None:
    with pytest.raises(ConfigError, match=r"actor.looks_variation: .*4.0.*from 0 to 3"):
        vary_looks(twin, 4.0)
    with pytest.raises(ConfigError, match=r"actor.looks_variation = 1.0: only the twin .* FakeBackend. Set it to 0"):
        vary_looks(FakeBackend("reach"), 1.0)
    vary_looks(FakeBackend("reach"), 0.0)
