"""Environments of the MuJoCo benchmark: true next observations, action bounds, and states that can be gone back to."""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from benchmarks.mujoco.environments import (
    ActionScale,
    SeededEpisodes,
    TrainingEnvironments,
    make_environment,
    specs_of,
)
from benchmarks.mujoco.evaluation import Evaluator
from policy.errors import ConfigError

LIMIT = 6  # steps of an episode that nothing ends


class Counting(gymnasium.Env[Any, Any]):
    """Observes (a number drawn at reset, steps, last action); ends by itself after 4 steps where that number is odd."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float64)
    action_space = Box(np.array([-0.4], np.float32), np.array([1.2], np.float32))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.drawn, self.steps = int(self.np_random.integers(1000)), 0
        return np.array([self.drawn, 0, 0.0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        ends = self.drawn % 2 == 1 and self.steps == 4
        return np.array([self.drawn, self.steps, action[0]]), 1.0, ends, False, {}


@pytest.fixture(autouse=True)
def counting() -> Iterator[None]:
    gymnasium.register("Counting-v0", lambda **_: Counting(), max_episode_steps=LIMIT)
    yield
    del gymnasium.registry["Counting-v0"]


@pytest.mark.parametrize("in_workers", [False, True])
def test_next_observation_is_the_last_of_its_episode_and_the_following_one_the_first_of_the_next(
    in_workers: bool,
) -> None:
    envs = TrainingEnvironments("Counting-v0", [0, 1], in_workers=in_workers)
    ends: set[tuple[bool, bool]] = set()
    for _ in range(60):
        before = envs.observation
        step = envs.step(np.zeros((2, 1), np.float32))
        for agent in range(2):
            drawn, steps, _ = step.next_observation[agent]
            assert drawn == before[agent, 0]
            assert steps == before[agent, 1] + 1
            terminated, truncated = bool(step.terminated[agent]), bool(step.truncated[agent])
            assert terminated == (drawn % 2 == 1 and steps == 4)
            assert truncated == (steps == LIMIT)
            begins_anew = envs.observation[agent, 1] == 0
            assert begins_anew == (terminated or truncated)
            if begins_anew:
                ends.add((terminated, truncated))
    envs.close()
    assert ends == {(True, False), (False, True)}, "both kinds of end must have been seen"


def test_actions_of_minus_one_to_one_become_those_of_the_task() -> None:
    envs = TrainingEnvironments("Counting-v0", [0], in_workers=False)
    reached = [envs.step(np.full((1, 1), action, np.float32)).next_observation[0, 2] for action in (-1, 0, 0.5, 1, 3)]
    np.testing.assert_allclose(reached, [-0.4, 0.4, 0.8, 1.2, 1.2], atol=1e-6)
    specs = specs_of("Counting-v0")
    assert (specs.observation.vector_dim, specs.action.dim) == (3, 1)


def test_an_episode_follows_from_its_seed_and_number() -> None:
    def starts(seed: int) -> list[float]:
        env = SeededEpisodes(make_environment("Counting-v0"), seed)
        return [float(env.reset()[0][0]) for _ in range(5)]

    assert starts(0) == starts(0)
    assert len(set(starts(0) + starts(1))) > 7


def test_an_environment_goes_on_bit_for_bit_from_a_state_in_mid_episode() -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (70, 2, 3)).astype(np.float32)
    whole = TrainingEnvironments("Hopper-v4", [3, 4], in_workers=False)
    for action in actions[:50]:
        whole.step(action)
    state = whole.state()
    assert min(len(done) for _, done in state) > 0, "nobody is in mid-episode: the test shows nothing"
    again = TrainingEnvironments("Hopper-v4", [3, 4], in_workers=False)
    again.resume(state)
    np.testing.assert_array_equal(again.observation, whole.observation)
    for action in actions[50:]:
        for one, other in zip(whole.step(action), again.step(action), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("in_workers", [False, True])
def test_an_evaluation_plays_each_first_episode_to_its_end_and_depends_on_its_number_alone(in_workers: bool) -> None:
    evaluator = Evaluator("Counting-v0", [0, 1], 3, in_workers=in_workers)
    drawn: list[Any] = []

    def act(observation: Any) -> Any:
        drawn.append(observation[..., 0].copy())
        return np.zeros((2, 3, 1), np.float32)

    first = evaluator.run(act, 1, lambda: None)
    starts = drawn[0]
    np.testing.assert_array_equal(first.lengths, np.where(starts % 2 == 1, 4, LIMIT))
    np.testing.assert_array_equal(first.returns, first.lengths)
    drawn.clear()
    evaluator.run(act, 2, lambda: None)
    assert (drawn[0] != starts).any(), "another evaluation has other starts"
    drawn.clear()
    evaluator.run(act, 1, lambda: None)
    np.testing.assert_array_equal(drawn[0], starts)
    evaluator.close()


def test_unknown_and_unfit_tasks_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="unknown task 'Hoper-v4'"):
        make_environment("Hoper-v4")
    with pytest.raises(ConfigError, match="unknown task 'Hopper-v9'"):
        make_environment("Hopper-v9")
    with pytest.raises(ConfigError, match="Take Hopper-v4"):
        make_environment("Hopper-v3")
    with pytest.raises(ConfigError, match="must be vectors"):
        make_environment("CartPole-v1")  # its actions are not


def test_the_scale_of_a_task_with_bounds_of_one_is_the_identity() -> None:
    env = make_environment("Hopper-v4")
    action = np.random.default_rng(0).uniform(-1, 1, (4, 3)).astype(np.float32)
    np.testing.assert_array_equal(ActionScale(env)(action), action)
