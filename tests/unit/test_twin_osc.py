"""The operational-space controller alone, against what its law promises about accelerations."""

import math
from typing import Any

import numpy as np
import pytest

from robot.backends.twin.osc import OperationalSpaceController, OscConfig, solve_symmetric3
from robot.errors import RobotConfigError
from robot.interface import Array
from robot.pose import apply_delta, make_pose, rotation_from_rotvec

UNCLAMPED = OscConfig(max_torque_nm=1e9)
Q_POSTURE = np.array([0.0, 0.2, 0.0, -2.2, 0.0, 2.4, 0.8])
POSE = make_pose(rotation_from_rotvec((3.0, 0.3, 0.2)), (0.5, 0.1, 0.3))
BIAS = np.array([0.0, -20.0, 1.0, 15.0, 0.5, 2.0, 0.0])


def arm(seed: int = 0) -> tuple[Array, Array]:
    """Return a plausible Jacobian (6, 7) and mass matrix (7, 7)."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(7, 7)) * 0.4
    return rng.normal(size=(6, 7)) * 0.5, root @ root.T + 0.3 * np.eye(7)


def decoupled_arm(seed: int = 0) -> tuple[Array, Array]:
    """Return an arm whose EE has unit inertia in each direction: J M^-1 J^T = I."""
    rng = np.random.default_rng(seed)
    _, mass_matrix = arm(seed)
    directions = np.linalg.qr(rng.normal(size=(7, 6)))[0].T  # orthonormal rows
    return directions @ np.linalg.cholesky(mass_matrix).T, mass_matrix


def torque_of(config: OscConfig, goal: Array, q: Array, dq: Array, dynamics: tuple[Array, Array]) -> Array:
    controller = OperationalSpaceController(config, Q_POSTURE)
    return controller.torque(goal, POSE, q, dq, *dynamics, BIAS).copy()


def test_at_the_goal_and_at_rest_only_the_bias_remains() -> None:
    torque = torque_of(OscConfig(), POSE, Q_POSTURE, np.zeros(7), arm())
    np.testing.assert_allclose(torque, BIAS, atol=1e-9)


def test_unit_inertia_accelerates_as_a_critically_damped_spring() -> None:
    jacobian, mass_matrix = decoupled_arm()
    error_position, error_rotation = np.array([0.01, -0.02, 0.005]), np.array([0.02, 0.05, -0.03])
    goal = apply_delta(POSE, error_position, error_rotation)
    dq = np.array([0.1, -0.05, 0.2, 0.0, 0.1, -0.1, 0.3])
    torque = torque_of(UNCLAMPED, goal, Q_POSTURE, dq, (jacobian, mass_matrix))
    acceleration = jacobian @ np.linalg.solve(mass_matrix, torque - BIAS)  # J dq' left out: J is held constant
    twist = jacobian @ dq
    expected = np.concatenate(
        [
            150.0 * error_position - 2 * math.sqrt(150.0) * twist[:3],
            250.0 * error_rotation - 2 * math.sqrt(250.0) * twist[3:],
        ]
    )
    np.testing.assert_allclose(acceleration, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_posture_term_moves_the_elbow_and_not_the_hand(seed: int) -> None:
    jacobian, mass_matrix = arm(seed)
    q = Q_POSTURE + np.linspace(-0.5, 0.5, 7)
    torque = torque_of(UNCLAMPED, POSE, q, np.zeros(7), (jacobian, mass_matrix)) - BIAS
    dd_q = np.linalg.solve(mass_matrix, torque)
    np.testing.assert_allclose(jacobian @ dd_q, 0.0, atol=1e-3)
    assert np.abs(dd_q).max() > 0.1
    assert dd_q @ mass_matrix @ (Q_POSTURE - q) > 0.0  # towards the posture


def test_no_joint_gets_more_than_the_limit_beside_its_bias() -> None:
    goal = apply_delta(POSE, np.array([0.5, -0.5, 0.5]), np.array([1.0, 1.0, 1.0]))
    torque = torque_of(OscConfig(max_torque_nm=5.0), goal, Q_POSTURE, np.zeros(7), arm())
    assert np.abs(torque - BIAS).max() == pytest.approx(5.0)


def test_a_singular_posture_gives_finite_torques() -> None:
    jacobian, mass_matrix = arm()
    jacobian[5] = jacobian[4]
    jacobian[2] = 0.0
    goal = apply_delta(POSE, np.array([0.01, 0.0, 0.01]), np.array([0.0, 0.05, 0.0]))
    torque = torque_of(OscConfig(), goal, Q_POSTURE, np.zeros(7), (jacobian, mass_matrix))
    assert np.isfinite(torque).all()


@pytest.mark.parametrize("seed", range(5))
def test_small_solver_agrees_with_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(3, 3))
    matrix, right = root @ root.T + 0.01 * np.eye(3), rng.normal(size=3)
    a, b, c, d, e, f = matrix[np.triu_indices(3)].tolist()
    x, y, z = right.tolist()
    np.testing.assert_allclose(solve_symmetric3(a, b, c, d, e, f, x, y, z), np.linalg.solve(matrix, right), rtol=1e-8)


@pytest.mark.parametrize("change", [{"translation_stiffness": -1.0}, {"max_torque_nm": math.inf}])
def test_gains_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RobotConfigError, match=next(iter(change))):
        OscConfig(**change)
