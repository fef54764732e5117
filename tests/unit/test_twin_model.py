"""The twin's model: the gripper closed around the peg, the shape of the hole, and what may touch what."""

import math
from typing import Any

import mujoco
import numpy as np
import pytest

from robot.backends.twin.model import EE_SITE, build_model, find_panda_file
from robot.franka import Q_HOME
from robot.geometry import HOLE_DEPTH_M, HOLE_RADIUS_M, PEG_RADIUS_M
from robot.interface import Array
from robot.pose import O_R_DOWN


@pytest.fixture(scope="module")
def model() -> Any:
    return build_model("peg_in_hole")


@pytest.fixture
def data(model: Any) -> Any:
    data = mujoco.MjData(model)
    data.qpos[:] = Q_HOME
    mujoco.mj_forward(model, data)
    return data


def in_EE(data: Any, point: Array) -> Array:
    site = data.site(EE_SITE)
    moved: Array = (point - site.xpos) @ site.xmat.reshape(3, 3)
    return moved


def mesh_corners(model: Any, data: Any, geom_id: int) -> Array:
    """Return the mesh's vertices (N, 3) in O."""
    mesh = model.geom_dataid[geom_id]
    first = model.mesh_vertadr[mesh]
    corners = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]
    moved: Array = corners @ data.geom_xmat[geom_id].reshape(3, 3).T + data.geom_xpos[geom_id]
    return moved


def test_seven_joints_and_seven_motors_remain(model: Any) -> None:
    assert (model.nq, model.nv, model.nu, model.neq, model.nsensor) == (7, 7, 7, 0, 0)


def test_home_points_the_gripper_straight_down_with_libfranka_axes(data: Any) -> None:
    np.testing.assert_allclose(data.site(EE_SITE).xmat.reshape(3, 3), O_R_DOWN, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_frozen_linkage_is_still_closed(data: Any, side: str) -> None:
    """The wheel's model ties the follower's origin to a point of the coupler: where it is in the open gripper."""
    wheel = mujoco.MjModel.from_xml_path(str(find_panda_file()))
    wheel_data = mujoco.MjData(wheel)
    mujoco.mj_forward(wheel, wheel_data)
    coupler, follower = wheel_data.body(f"{side}_coupler"), wheel_data.body(f"{side}_follower")
    coupler_p_joint = (follower.xpos - coupler.xpos) @ coupler.xmat.reshape(3, 3)
    frozen_coupler, frozen_follower = data.body(f"{side}_coupler"), data.body(f"{side}_follower")
    closing = frozen_coupler.xpos + frozen_coupler.xmat.reshape(3, 3) @ coupler_p_joint
    np.testing.assert_allclose(closing, frozen_follower.xpos, atol=0.0002)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_pads_hold_the_peg(model: Any, data: Any, side: str) -> None:
    body_id = model.body(f"{side}_silicone_pad").id
    pad = next(g for g in range(model.ngeom) if model.geom_bodyid[g] == body_id)
    inner = np.abs(in_EE(data, mesh_corners(model, data, pad))[:, 1]).min()
    assert inner == pytest.approx(PEG_RADIUS_M, abs=0.0003)  # the pads are soft and give that much


def test_the_hole_takes_the_whole_circle_and_little_more(model: Any, data: Any) -> None:
    """The walls touch the circle and meet without gaps; in the corners between them 0.25 mm are left over."""
    is_mesh = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    sectors = [g for g in np.flatnonzero(is_mesh).tolist() if "sector" in model.mesh(model.geom_dataid[g]).name]
    assert len(sectors) >= 12
    O_p_hole = data.body("hole").xpos
    for geom_id in sectors:
        corners = mesh_corners(model, data, geom_id) - O_p_hole
        wall = corners[(corners[:, 2] < -0.5 * HOLE_DEPTH_M)]
        radii = np.sort(np.hypot(wall[:, 0], wall[:, 1]))[:2]  # the two lower corners of the wall
        middle = wall[np.argsort(np.hypot(wall[:, 0], wall[:, 1]))[:2], :2].mean(axis=0)
        assert math.hypot(*middle) == pytest.approx(HOLE_RADIUS_M, abs=1e-6)
        np.testing.assert_allclose(radii, HOLE_RADIUS_M / math.cos(math.pi / len(sectors)), atol=1e-6)


def test_only_peg_and_finger_tips_touch_things(model: Any) -> None:
    names = {model.geom(g).name for g in range(model.ngeom) if model.geom_contype[g]}
    assert names == {"peg", "finger_tips"}
