"""Frames of observations and actions: against finite differences of moving frames, and as exact round trips."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from actor.env import RobotEnv
from actor.reference_frame import ReferenceFrame, adjoint
from actor.tasks import make_task
from actor.tasks.base import TaskOptions
from actor.tasks.cartesian import CartesianDelta
from policy.spec import Field, GripperMode
from robot.backends.fake import FakeBackend
from robot.franka import Q_HOME
from robot.interface import Array, RobotCommand, RobotState
from robot.pose import O_R_DOWN, inverse, make_pose, rotation_from_rotvec, rotvec_from_rotation, translation
from robot.safety import SafetyGate

FRAMES = ("base", "reset")
coordinates = st.floats(-1.0, 1.0)
vectors = st.tuples(coordinates, coordinates, coordinates).map(np.array)
poses = st.builds(make_pose, vectors.map(rotation_from_rotvec), vectors)
twists = st.tuples(*[coordinates] * 6).map(np.array)


def state_at(O_T_EE: Array) -> RobotState:
    return RobotState(
        O_T_EE=O_T_EE,
        O_twist_EE=np.zeros(6),
        q=Q_HOME,
        dq=np.zeros(7),
        tau_J=np.zeros(7),
        O_F_ext_hat_K=np.zeros(6),
        gripper_width=0.085,
        robot_time_s=0.0,
        received_monotonic_s=0.0,
    )


def moved(A_T_B: Array, B_twist: Array, duration_s: float) -> Array:
    """Return A_T_B after a body moved with a twist given in B, to first order."""
    return A_T_B @ make_pose(rotation_from_rotvec(B_twist[3:] * duration_s), B_twist[:3] * duration_s)


def body_twist(A_T_B_before: Array, A_T_B_after: Array, duration_s: float) -> Array:
    """Return the twist in B, by finite difference."""
    step = inverse(A_T_B_before) @ A_T_B_after
    return np.concatenate([step[:3, 3], rotvec_from_rotation(step[:3, :3])]) / duration_s


@given(poses, poses, twists)
def test_the_adjoint_agrees_with_two_frames_on_one_moving_body(O_T_A: Array, A_T_B: Array, B_twist: Array) -> None:
    """A and B are fixed to a body that moves with B_twist. What A sees is found by differentiating its own pose."""
    dt = 1e-6
    O_T_B_after = moved(O_T_A @ A_T_B, B_twist, dt)
    A_twist = body_twist(O_T_A, O_T_B_after @ inverse(A_T_B), dt)
    np.testing.assert_allclose(adjoint(A_T_B) @ B_twist, A_twist, atol=1e-5)


def test_a_turn_about_a_distant_axis_moves_the_origin_and_a_velocity_turns_nothing() -> None:
    """By hand: B is 2 m along x. The cross term belongs to what rotation does to velocity (upper right)."""
    about_z, along_y = np.eye(6)[5], np.eye(6)[1]
    np.testing.assert_allclose(adjoint(translation(2.0, 0.0, 0.0)) @ about_z, [0.0, -2.0, 0.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(adjoint(translation(2.0, 0.0, 0.0)) @ along_y, along_y)


@given(poses, poses)
def test_adjoints_compose_like_poses(A_T_B: Array, B_T_C: Array) -> None:
    np.testing.assert_allclose(adjoint(A_T_B) @ adjoint(B_T_C), adjoint(A_T_B @ B_T_C), atol=1e-12)


@given(poses, poses, twists)
def test_the_observed_twist_is_the_rate_of_the_observed_pose(O_T_reset: Array, O_T_EE: Array, O_twist: Array) -> None:
    """O_twist is what a robot reports: the velocity of EE's origin and its angular velocity, along O's axes."""
    dt = 1e-6
    O_T_after = make_pose(
        rotation_from_rotvec(O_twist[3:] * dt) @ O_T_EE[:3, :3], O_T_EE[:3, 3] + O_twist[:3] * dt
    )  # fmt: skip
    reset_T_O = inverse(O_T_reset)
    expected = body_twist(reset_T_O @ O_T_EE, reset_T_O @ O_T_after, dt)
    np.testing.assert_allclose(ReferenceFrame("reset").twist(O_twist, O_T_EE), expected, atol=1e-5)
    np.testing.assert_array_equal(ReferenceFrame("base").twist(O_twist, O_T_EE), O_twist)


@given(poses, poses, poses)
def test_the_relative_pose_does_not_know_where_the_episode_began(
    O_T_reset: Array, reset_T_EE: Array, O_T_moved: Array
) -> None:
    frame = ReferenceFrame("reset")
    here = frame.pose(O_T_reset @ reset_T_EE, O_T_reset)
    there = frame.pose(O_T_moved @ O_T_reset @ reset_T_EE, O_T_moved @ O_T_reset)
    np.testing.assert_allclose(here[0], reset_T_EE[:3, 3], atol=1e-12)
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)


def test_base_poses_are_in_o_with_turns_from_straight_down() -> None:
    turn = np.array([0.1, -0.2, 0.05])
    position, rotvec = ReferenceFrame("base").pose(
        make_pose(rotation_from_rotvec(turn) @ O_R_DOWN, [0.5, 0.1, 0.2]), np.eye(4)
    )
    np.testing.assert_allclose(position, [0.5, 0.1, 0.2])
    np.testing.assert_allclose(rotvec, turn)


def test_bounds_turn_with_the_hand_that_points_down() -> None:
    above = Field(name="d", unit="m", low=(-1.0, -2.0, -0.1), high=(3.0, 4.0, 0.5))
    turned = ReferenceFrame("reset").field(above)
    assert (turned.low, turned.high) == ((-1.0, -4.0, -0.5), (3.0, 2.0, 0.1))
    assert ReferenceFrame("base").field(above) == above


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("gripper", ["none", "continuous", "discrete"])
@given(O_T_EE=poses, step=vectors, turn=vectors, element=st.sampled_from([-1.0, 0.0, 1.0]))
def test_action_of_undoes_command(
    frame: str, gripper: GripperMode, O_T_EE: Array, step: Array, turn: Array, element: float
) -> None:
    cartesian = CartesianDelta(
        rotation=True, gripper=gripper, frame=ReferenceFrame("reset" if frame == "reset" else "base")
    )
    parts = [step, turn] + [np.array([element])] * (gripper != "none")
    action = np.concatenate(parts).astype(np.float32)
    state = state_at(O_T_EE)
    np.testing.assert_allclose(cartesian.action_of(cartesian.command(action, state), state), action, atol=1e-6)


@given(O_T_EE=poses, step=vectors, turn=vectors)
def test_a_trajectory_in_o_sends_the_robot_the_same_steps_in_either_frame(
    O_T_EE: Array, step: Array, turn: Array
) -> None:
    """Steps within the ball that both frames' cubes of actions hold."""
    state = state_at(O_T_EE)
    step, turn = 0.02 * step / math.sqrt(3), 0.05 * turn / math.sqrt(3)
    for frame in (ReferenceFrame("base"), ReferenceFrame("reset")):
        cartesian = CartesianDelta(rotation=True, frame=frame)
        command = cartesian.command(cartesian.action(step, turn, 0.0, state), state)
        np.testing.assert_allclose(command.delta_position, step, atol=1e-8)
        np.testing.assert_allclose(command.delta_rotation, turn, atol=1e-8)


def test_what_the_gate_leaves_of_a_step_can_be_recorded_in_the_hands_frame() -> None:
    """The gate cuts along O's axes, and along those of a turned hand more than a whole step can be left."""
    cartesian = CartesianDelta(frame=ReferenceFrame("reset"))
    O_T_EE = make_pose(rotation_from_rotvec([0.0, 0.0, 0.3]) @ O_R_DOWN, [0.5, 0.0, 0.3])
    state = state_at(O_T_EE)
    gate = SafetyGate(cartesian.safety(np.array([0.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0])))
    asked = cartesian.command(np.array([1.0, 1.0, 0.0], np.float32), state)  # in O: forwards, and out of the box in y
    gated = gate.apply(state, asked, 0.1).command
    assert gated.delta_position[1] == 0.0
    assert np.abs(O_T_EE[:3, :3].T @ gated.delta_position).max() > 0.02
    sent = cartesian.sayable(gated, state)
    assert gate.apply(state, sent, 0.1).reasons == ()
    np.testing.assert_allclose(cartesian.command(cartesian.action_of(sent, state), state).delta_position,
                               sent.delta_position, atol=1e-9)  # fmt: skip


class RecordingBackend(FakeBackend):
    def __init__(self, scene: str) -> None:
        super().__init__(scene)
        self.sent: list[RobotCommand] = []

    def send_command(self, command: RobotCommand) -> None:
        self.sent.append(command)
        super().send_command(command)


def test_the_recorded_action_stands_for_what_was_sent_also_at_the_workspaces_wall() -> None:
    task = make_task("peg_in_hole_rotation", TaskOptions(frame="reset"))
    backend = RecordingBackend(task.scene)
    env = RobotEnv(task, backend)
    rng = np.random.default_rng(0)
    clipped = 0
    for seed in range(3):
        env.reset(seed=seed)
        push = rng.uniform(-1, 1, 6)
        for _ in range(40):
            state = env.state
            *_, info = env.step((push + 0.3 * rng.standard_normal(6)).clip(-1, 1).astype(np.float32))
            again = task.command(info["executed_action"], state)
            np.testing.assert_allclose(again.delta_position, backend.sent[-1].delta_position, atol=1e-8)
            np.testing.assert_allclose(again.delta_rotation, backend.sent[-1].delta_rotation, atol=1e-8)
            clipped += bool(info["clip_reasons"])
    assert clipped > 20


@pytest.mark.parametrize("name", ["reach", "peg_in_hole", "peg_in_hole_rotation"])
def test_in_the_reset_frame_differences_lie_along_the_hands_axes(name: str) -> None:
    """The same episode in both frames: one is the other, turned by the measured orientation."""
    observations: dict[str, dict[str, NDArray[np.float32]]] = {}
    for frame in ("base", "reset"):
        task = make_task(name, TaskOptions(frame="reset" if frame == "reset" else "base"))
        env = RobotEnv(task, FakeBackend(task.scene))
        env.reset(seed=1)
        for _ in range(5):
            step = np.array([0.01, -0.004, 0.005])
            observation, *_ = env.step(task.cartesian.action(step, np.full(3, 0.01), 0.0, env.state))  # type: ignore[attr-defined]
        observations[frame] = observation
        O_R_EE, O_T_reset = env.state.O_T_EE[:3, :3], env._O_T_reset
    base, reset = observations["base"], observations["reset"]
    for field in task.observation_spec.fields[2:]:
        np.testing.assert_allclose(reset[field.name], O_R_EE.T @ base[field.name], atol=1e-6)
    np.testing.assert_allclose(reset["EE_v_EE"], O_R_EE.T @ base["O_v_EE"], atol=1e-6)
    np.testing.assert_allclose(
        reset["reset_p_EE"], O_T_reset[:3, :3].T @ (base["O_p_EE"] - O_T_reset[:3, 3]), atol=1e-6
    )
