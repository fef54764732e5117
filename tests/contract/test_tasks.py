"""What every task promises, on the kinematic fake and, where it is quick, on the twin."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from actor.env import RobotEnv, connect_backend
from actor.tasks import TASKS, make_task
from actor.tasks.base import Task, TaskOptions
from policy.errors import ConfigError, WireError
from robot.backends.fake import FakeBackend
from robot.geometry import CUBE_EDGE_M
from robot.interface import RobotCommand
from robot.pose import O_R_DOWN, make_pose, rotation_from_rotvec
from robot.safety import SafetyGate
from robot.scenes import SCENES

EPISODES = {"fake": 50, "twin": 8}
VARIANTS = {name: (name, TaskOptions()) for name in TASKS} | {
    "peg_in_hole in the reset frame": ("peg_in_hole", TaskOptions(frame="reset")),
    "cube_stacking in the reset frame": ("cube_stacking", TaskOptions(frame="reset", gripper="continuous")),
}
FloatArray = NDArray[np.float32]


@pytest.fixture(params=sorted(VARIANTS))
def task(request: pytest.FixtureRequest) -> Task:
    return make_task(*VARIANTS[request.param])


@pytest.fixture(params=["fake", "twin"])
def backend_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def env(backend_name: str, task: Task) -> Iterator[RobotEnv]:
    backend = connect_backend(backend_name, task)
    yield RobotEnv(task, backend)
    backend.close()


@pytest.fixture
def fake_env(task: Task) -> RobotEnv:
    return RobotEnv(task, connect_backend("fake", task))


def random_action(task: Task, rng: np.random.Generator) -> FloatArray:
    action = rng.uniform(-1, 1, task.action_spec.dim).astype(np.float32)
    if task.action_spec.gripper != "none":
        action[-1] = rng.integers(-1, 2)
    return action


def test_an_unknown_task_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'peg_in_hol'.*Did you mean 'peg_in_hole'.*reach"):
        make_task("peg_in_hol")


def test_observations_fit_their_spec_and_its_bounds(env: RobotEnv) -> None:
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    for _ in range(env.task.max_episode_steps):
        assert list(observation) == [field.name for field in env.task.observation_spec.fields]
        for field in env.task.observation_spec.fields:
            value = observation[field.name]
            assert value.dtype == np.float32
            # The network clips 1.5 times the bounds; a random policy must not drive it there.
            centre, half = (np.add(field.high, field.low)) / 2, np.subtract(field.high, field.low) / 2
            assert (np.abs(value - centre) <= 1.5 * half).all(), (field.name, value)
        observation, _, terminated, truncated, _ = env.step(random_action(env.task, rng))
        if terminated or truncated:
            break


def test_placements_start_inside_the_workspace_and_unsolved(fake_env: RobotEnv) -> None:
    task = fake_env.task
    low, high = np.array(task.safety.workspace_min_m), np.array(task.safety.workspace_max_m)
    starts = set()
    for seed in range(200):
        fake_env.reset(seed=seed)
        O_p_EE = fake_env.state.O_T_EE[:3, 3]
        assert ((low < O_p_EE) & (O_p_EE < high)).all()
        assert not task.outcome(fake_env.state, fake_env.objects).terminated
        starts.add(tuple(O_p_EE))
    assert len(starts) == 200


def test_equal_seeds_give_equal_episodes(env: RobotEnv) -> None:
    def rollout(seed: int) -> list[FloatArray]:
        rng = np.random.default_rng(0)
        observation, _ = env.reset(seed=seed)
        observations = [np.concatenate(list(observation.values()))]
        for _ in range(15):
            observation, *_ = env.step(random_action(env.task, rng))
            observations.append(np.concatenate(list(observation.values())))
        return observations

    first = rollout(3)
    other = rollout(4)
    np.testing.assert_array_equal(rollout(3), first)
    assert not np.array_equal(first[0], other[0])


def test_action_of_inverts_command(fake_env: RobotEnv) -> None:
    rng = np.random.default_rng(0)
    fake_env.reset(seed=0)
    for _ in range(100):
        action = random_action(fake_env.task, rng)
        command = fake_env.task.command(action, fake_env.state)
        np.testing.assert_allclose(fake_env.task.action_of(command, fake_env.state), action, atol=1e-6)


def test_every_action_passes_the_gate_unchanged_inside_the_workspace(fake_env: RobotEnv) -> None:
    """Were the gate tighter than the action space, distinct actions would do the same thing."""
    task = fake_env.task
    fake_env.reset(seed=0)
    gate = SafetyGate(task.safety)
    for sign in (-1, 1):
        corner = np.full(task.action_spec.dim, sign, np.float32)
        result = gate.apply(fake_env.state, task.command(corner, fake_env.state), 1 / task.control_rate_hz)
        assert result.reasons == ()


@pytest.mark.parametrize("name", sorted(TASKS))
@pytest.mark.parametrize("frame", ["base", "reset"])
def test_with_pixels_the_vectors_are_the_arms_alone(name: str, frame: Literal["base", "reset"]) -> None:
    """Moving the objects must change nothing: the policy has to see them."""
    task = make_task(name, TaskOptions(pixels=True, image_size_px=64, frame=frame))
    names = {
        "base": ["O_p_EE", "O_rotvec_EE", "O_twist_EE", "gripper_width"],
        "reset": ["reset_p_EE", "reset_rotvec_EE", "EE_twist_EE", "gripper_width"],
    }[frame]
    assert [(image.name, image.height, image.width) for image in task.observation_spec.images] == [
        ("wrist", 64, 64),
        ("third_person", 64, 64),
    ]
    backend = FakeBackend(task.scene)
    state = backend.reset(task.sample_placement(np.random.default_rng(0)))
    moved = {key: pose + 0.01 for key, pose in backend.object_poses().items()}
    here = task.observe(state, backend.object_poses(), state.O_T_EE)
    there = task.observe(state, moved, state.O_T_EE)
    assert list(here) == [field.name for field in task.observation_spec.fields] == names
    for key in names:
        assert here[key].dtype == np.float32
        np.testing.assert_array_equal(here[key], there[key])
    if frame == "reset":
        np.testing.assert_allclose(np.concatenate([here[key] for key in names[:3]]), 0.0, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "gripper", "message"),
    [
        ("peg_in_hole", "discrete", "never opens or closes it. Valid: task, fixed"),
        ("reach", "continuous", "never opens or closes it. Valid: task, fixed"),
        ("cube_stacking", "fixed", "cannot do without it. Valid: task, discrete, continuous"),
    ],
)
def test_a_gripper_mode_that_a_task_cannot_have_is_refused(
    name: str, gripper: Literal["fixed", "continuous", "discrete"], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"task '{name}' cannot have gripper = '{gripper}': it {message}"):
        make_task(name, TaskOptions(gripper=gripper))


@pytest.mark.parametrize(
    ("name", "gripper", "mode", "dim", "continuous_dim"),
    [
        ("peg_in_hole", "task", "none", 3, 3),
        ("peg_in_hole_rotation", "fixed", "none", 6, 6),
        ("cube_stacking", "task", "discrete", 4, 3),
        ("cube_stacking", "continuous", "continuous", 4, 4),
    ],
)
def test_the_gripper_mode_shapes_the_action(
    name: str, gripper: Literal["task", "fixed", "continuous"], mode: str, dim: int, continuous_dim: int
) -> None:
    spec = make_task(name, TaskOptions(gripper=gripper)).action_spec
    assert (spec.gripper, spec.dim, spec.continuous_dim) == (mode, dim, continuous_dim)


@pytest.mark.parametrize("mode", ["discrete", "continuous"])
def test_the_gripper_latches_between_commands_and_says_when_it_toggled(mode: Literal["discrete", "continuous"]) -> None:
    task = make_task("cube_stacking", TaskOptions(gripper=mode))
    env = RobotEnv(task, FakeBackend("cube_stacking"))
    env.reset(seed=0)
    asked = [0.4, 0.5, -0.49, -0.5, -0.8, 0.2, 1.0, 0.7]
    discrete = [0.0, 1.0, 0.0, -1.0, -1.0, 0.0, 1.0, 1.0]
    toggled = [False, False, False, True, False, False, True, False]
    for element, said, has_toggled in zip(asked, discrete, toggled, strict=True):
        *_, info = env.step(np.array([0.0, 0.0, 0.0, element], np.float32))
        assert info["executed_action"][-1] == np.float32(said if mode == "discrete" else element)
        assert info["gripper_toggled"] is has_toggled
    env.step(np.array([0.0, 0.0, 0.0, -1.0], np.float32))
    env.reset(seed=1)  # opens it
    *_, info = env.step(np.array([0.0, 0.0, 0.0, 1.0], np.float32))
    assert info["gripper_toggled"] is False


@pytest.mark.parametrize("name", TASKS)
def test_a_task_moves_as_a_whole(name: str) -> None:
    offset = np.array([0.05, -0.1, 0.02])
    here, there = make_task(name), make_task(name, TaskOptions(offset_m=(0.05, -0.1, 0.02)))
    before, after = (task.sample_placement(np.random.default_rng(3)) for task in (here, there))
    np.testing.assert_allclose(after.O_T_EE[:3, 3] - before.O_T_EE[:3, 3], offset)
    for object_name, frame in SCENES[here.scene].items():
        moved = after.objects[object_name][:3, 3] - before.objects[object_name][:3, 3]
        np.testing.assert_allclose(moved, offset if frame == "O" else np.zeros(3), atol=1e-12)
    for bound in ("workspace_min_m", "workspace_max_m"):
        np.testing.assert_allclose(np.subtract(getattr(there.safety, bound), getattr(here.safety, bound)), offset)


def test_an_action_of_the_wrong_shape_is_refused() -> None:
    task = make_task("reach")
    env = RobotEnv(task, connect_backend("fake", task))
    env.reset(seed=0)
    with pytest.raises(WireError, match="3 finite values"):
        env.step(np.zeros(2, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_action_that_is_not_finite_holds_the_arm(value: float) -> None:
    task = make_task("reach")
    env = RobotEnv(task, connect_backend("fake", task))
    env.reset(seed=0)
    before = env.state.O_T_EE
    *_, info = env.step(np.array([1.0, value, 0.0], np.float32))
    assert info["clip_reasons"][0].startswith("malformed: action [1.0, ")
    np.testing.assert_array_equal(info["executed_action"], np.zeros(3))
    np.testing.assert_array_equal(env.state.O_T_EE, before)
    *_, info = env.step(np.ones(3, np.float32))
    assert info["clip_reasons"] == ()


def test_the_operator_solves_the_task(env: RobotEnv, backend_name: str) -> None:
    solved = [run_operator(env, seed, noise=0.0) for seed in range(EPISODES[backend_name])]
    assert all(solved), solved


def test_the_operator_bears_noise_on_its_actions(env: RobotEnv, backend_name: str) -> None:
    solved = [run_operator(env, seed, noise=0.2) for seed in range(EPISODES[backend_name])]
    assert np.mean(solved) >= 0.95


def test_the_operator_rescues_an_episode(env: RobotEnv, backend_name: str) -> None:
    limit = env.task.max_episode_steps
    solved = [
        run_operator(env, seed, noise=0.0, spoilt_steps=limit // 5 + seed % (limit // 5))
        for seed in range(EPISODES[backend_name])
    ]
    assert np.mean(solved) >= 0.95


def run_operator(env: RobotEnv, seed: int, noise: float, spoilt_steps: int = 0) -> bool:
    """Return whether the operator solves an episode whose first steps were random actions."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    operator = env.task.make_operator()
    for step in range(env.task.max_episode_steps):
        action = operator.act(env.state, env.objects) + noise * rng.standard_normal(env.task.action_spec.dim)
        if step < spoilt_steps:
            action = rng.uniform(-1, 1, env.task.action_spec.dim)
        _, reward, terminated, truncated, info = env.step(np.clip(action, -1, 1).astype(np.float32))
        assert reward == float(info["is_success"])
        assert terminated == info["is_success"]
        if terminated or truncated:
            return bool(info["is_success"])
    raise AssertionError("the step limit did not end the episode")


def test_peg_in_hole_is_solved_two_centimetres_below_the_rim_and_nowhere_else() -> None:
    task = make_task("peg_in_hole")
    env = RobotEnv(task, connect_backend("fake", task))
    env.reset(seed=0)
    state, objects = env.state, dict(env.objects)

    def outcome_at(x: float, z: float) -> float:
        objects["peg"] = objects["peg"].copy()
        objects["peg"][:3, 3] = objects["hole"][:3, 3] + [x, 0.0, z]
        outcome = task.outcome(state, objects)
        assert outcome.terminated == outcome.is_success
        return outcome.reward

    assert outcome_at(0.0, -0.0201) == 1.0
    assert outcome_at(0.0, -0.0199) == 0.0
    assert outcome_at(0.001, -0.0201) == 1.0
    assert outcome_at(0.05, -0.0201) == 0.0  # beside the plate


def test_cube_stacking_is_solved_by_a_cube_that_stands_on_the_other_with_the_hand_away() -> None:
    task = make_task("cube_stacking")
    backend = FakeBackend("cube_stacking")
    state = backend.reset(task.sample_placement(np.random.default_rng(0)))
    bottom = backend.object_poses()["cube_bottom"]

    def reward(
        x: float = 0.0, z: float = CUBE_EDGE_M, *, tilt: float = 0.0, width: float = 0.085, above: float = 0.05
    ) -> float:
        turn = rotation_from_rotvec([0.0, 0.0, 0.3]) @ rotation_from_rotvec([tilt, 0.0, 0.0])
        top = bottom @ make_pose(turn, [x, 0.0, z])
        hand = make_pose(O_R_DOWN, top[:3, 3] + [0.0, 0.0, above])
        outcome = task.outcome(
            replace(state, O_T_EE=hand, gripper_width=width), {"cube_top": top, "cube_bottom": bottom}
        )
        assert outcome.terminated == outcome.is_success
        return outcome.reward

    assert reward() == 1.0
    assert reward(x=0.49 * CUBE_EDGE_M) == 1.0
    assert reward(x=0.51 * CUBE_EDGE_M) == 0.0
    assert reward(z=CUBE_EDGE_M + 0.0045) == 0.0  # in the air
    assert reward(x=0.3 * CUBE_EDGE_M, z=0.5 * CUBE_EDGE_M) == 0.0
    assert reward(tilt=0.15) == 0.0  # leans
    assert reward(tilt=math.pi / 2) == 1.0  # on another face
    assert reward(width=CUBE_EDGE_M + 0.001) == 0.0  # still held
    assert reward(above=0.015) == 0.0  # the hand is still around it


def test_reach_is_solved_at_one_centimetre() -> None:
    task = make_task("reach")
    env = RobotEnv(task, connect_backend("fake", task))
    env.reset(seed=0)
    for distance, reward in ((0.0099, 1.0), (0.0101, 0.0)):
        target = np.eye(4)
        target[:3, 3] = env.state.O_T_EE[:3, 3] + [0.0, distance, 0.0]
        assert task.outcome(env.state, {"target": target}).reward == reward


@pytest.mark.parametrize("name", ["peg_in_hole", "reach"])
def test_without_rotation_the_gripper_is_turned_back_down(name: str) -> None:
    """Steps are relative to the measured pose: a tilt from contact would stay, and the next one add to it."""
    task = make_task(name)
    backend = connect_backend("fake", task)
    env = RobotEnv(task, backend)
    env.reset(seed=0)
    tilt = np.array([0.1, -0.05, 0.0])
    backend.send_command(RobotCommand(delta_position=np.zeros(3), delta_rotation=tilt))
    backend.advance(1.0)
    env.step(np.zeros(3, np.float32))
    assert env.state.O_T_EE[2, 2] > -0.999  # still tilted, by more than one step can mend
    for _ in range(15):
        env.step(np.zeros(3, np.float32))
    np.testing.assert_allclose(env.state.O_T_EE[:3, :3], np.diag([1.0, -1.0, -1.0]), atol=2e-3)
