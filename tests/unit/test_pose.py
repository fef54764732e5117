"""Rotation vectors and poses: group laws, and the conventions (frame, side) that a wrong sign would break."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot.interface import Array
from robot.pose import (
    O_R_DOWN,
    apply_delta,
    inverse,
    make_pose,
    pose_difference,
    rotation_from_rotvec,
    rotvec_from_rotation,
    translation,
)

coordinates = st.floats(-2.0, 2.0)
vectors = st.tuples(coordinates, coordinates, coordinates).map(np.array)
rotations = vectors.map(rotation_from_rotvec)
poses = st.builds(make_pose, rotations, vectors)
# Angles where formulas change over or lose digits, besides ordinary ones.
angles = st.one_of(
    st.floats(0.0, math.pi),
    st.sampled_from([0.0, 1e-12, 1e-7, 0.99e-4, 1.01e-4, math.pi - 1e-4, math.pi - 1e-7, math.pi - 1e-12, math.pi]),
)


@st.composite
def rotvecs(draw: st.DrawFn) -> Array:
    axis = draw(vectors.filter(lambda v: float(np.linalg.norm(v)) > 0.1))
    rotvec: Array = axis / np.linalg.norm(axis) * draw(angles)
    return rotvec


@given(rotvecs())
def test_exponential_is_a_rotation(rotvec: Array) -> None:
    rotation = rotation_from_rotvec(rotvec)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)
    assert np.linalg.det(rotation) == pytest.approx(1.0)


@given(rotvecs())
def test_logarithm_undoes_the_exponential(rotvec: Array) -> None:
    rotation = rotation_from_rotvec(rotvec)
    found = rotvec_from_rotation(rotation)
    assert np.linalg.norm(found) <= math.pi + 1e-12
    # At half a turn both signs are the same rotation, so rotations are compared and not vectors.
    np.testing.assert_allclose(rotation_from_rotvec(found), rotation, atol=2e-9)


@given(rotvecs().filter(lambda v: float(np.linalg.norm(v)) < math.pi - 1e-3))
def test_short_of_half_a_turn_the_vector_itself_comes_back(rotvec: Array) -> None:
    np.testing.assert_allclose(rotvec_from_rotation(rotation_from_rotvec(rotvec)), rotvec, atol=1e-11)


def test_a_quarter_turn_about_z_takes_x_to_y() -> None:
    np.testing.assert_allclose(rotation_from_rotvec((0, 0, math.pi / 2)) @ [1, 0, 0], [0, 1, 0], atol=1e-15)


@given(poses)
def test_inverse_composes_to_identity(A_T_B: Array) -> None:
    np.testing.assert_allclose(A_T_B @ inverse(A_T_B), np.eye(4), atol=1e-13)


@given(poses, poses)
def test_the_difference_of_two_poses_is_the_step_between_them(O_T_from: Array, O_T_to: Array) -> None:
    np.testing.assert_allclose(apply_delta(O_T_from, *pose_difference(O_T_from, O_T_to)), O_T_to, atol=2e-9)


def test_a_step_is_taken_in_the_base_frame_whatever_the_hand_does() -> None:
    """A gripper that points down has its own z against O's; a wrong side or frame flips the signs below."""
    O_T_EE = make_pose(O_R_DOWN, (0.5, 0.0, 0.3))
    goal = apply_delta(O_T_EE, np.array([0.0, 0.0, 0.1]), np.array([0.0, 0.0, math.pi / 2]))
    np.testing.assert_allclose(goal[:3, 3], [0.5, 0.0, 0.4])
    np.testing.assert_allclose(goal[:3, 0], [0, 1, 0], atol=1e-15)  # EE x was along O x, now along O y
    np.testing.assert_allclose(goal[:3, 2], [0, 0, -1], atol=1e-15)


def test_translation_moves_only() -> None:
    np.testing.assert_array_equal(translation(1, 2, 3) @ [0, 0, 0, 1], [1, 2, 3, 1])
