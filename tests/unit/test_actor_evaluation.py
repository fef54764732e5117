"""Evaluation inside a run: fixed placements, counts, films."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from actor.config import CamerasConfig
from actor.env import RobotEnv, connect_backend, connect_cameras
from actor.evaluation import evaluate, evaluation_seed
from actor.policy_runner import PolicyRunner, Proposal
from actor.rate import RateKeeper
from actor.statistics import wilson_interval
from actor.tasks import make_task
from actor.tasks.base import TaskOptions
from policy.config import PolicyConfig
from policy.spec import Observation, Specs


class Nothing:
    def latest_weights(self) -> None:
        return None


class CountingEnv(RobotEnv):
    """Knows which episode it is in."""

    episode = -1

    def reset(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        self.episode += 1
        return super().reset(**kwargs)


class Scripted(PolicyRunner):
    """Solves reach in the episodes of the given numbers and holds still in the others."""

    weights_version = 5

    def __init__(self, env: CountingEnv, solved: set[int]) -> None:
        self._env = env
        self._solved = solved

    def propose(self, observation: Observation) -> Proposal:
        is_solved = self._env.episode in self._solved
        action = np.clip(observation["EE_to_target"] / 0.02, -1, 1) * is_solved
        return Proposal(action.astype(np.float32), 5, 1.0)

    def swap_if_newer(self) -> bool:
        return False

    def frozen_copy(self, seed: int, candidates: int | None = None) -> "Scripted":
        return self


@pytest.fixture
def env() -> CountingEnv:
    task = make_task("reach")
    return CountingEnv(task, connect_backend("fake", task))


def untrained(env: CountingEnv) -> PolicyRunner:
    config = PolicyConfig(denoising_steps=2, denoiser_hidden=(8,), behavior_candidates=1)
    return PolicyRunner(Specs(env.task.observation_spec, env.task.action_spec), config, 0, Nothing())


def test_repeats_exactly_whatever_happened_before(env: CountingEnv) -> None:
    policy = untrained(env)
    first = evaluate(env, policy, kind="final", episodes=6, env_steps=0)
    env.reset(seed=123)
    env.step(np.ones(3, np.float32))
    assert evaluate(env, policy, kind="final", episodes=6, env_steps=0) == first
    assert first.weights_version == 0


def test_the_policy_sees_what_training_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images coded as the loop codes them, by the configured codec."""
    task = make_task("reach", TaskOptions(pixels=True, image_size_px=32))
    backend = connect_backend("fake", task)
    config = CamerasConfig(image_size_px=32)
    env = CountingEnv(task, backend, cameras=connect_cameras(config, task, "fake", backend))
    policy = Scripted(env, solved=set())
    seen = []

    def propose(observation: Observation) -> Proposal:
        seen.append({observation[image.name].codec for image in task.observation_spec.images})
        return Proposal(np.zeros(task.action_spec.dim, np.float32), 5, 1.0)

    monkeypatch.setattr(policy, "propose", propose)
    evaluate(env, policy, kind="final", episodes=1, env_steps=0, codec="png")
    assert seen == [{"png"}] * task.max_episode_steps


def test_placements_are_distinct_and_the_first_ones_are_shared(env: CountingEnv) -> None:
    seeds = [evaluation_seed(index) for index in range(50)]
    assert len(set(seeds)) == 50
    assert seeds[:10] == [evaluation_seed(index) for index in range(10)]


def test_a_stop_request_leaves_the_finished_episodes(env: CountingEnv) -> None:
    steps = 0

    def stop_in_the_third_episode() -> bool:
        nonlocal steps
        steps += 1
        return steps > 2 * env.task.max_episode_steps + 10

    policy = Scripted(env, solved=set())
    result = evaluate(
        env,
        policy,
        kind="final",
        episodes=9,
        env_steps=77,
        should_stop=stop_in_the_third_episode,
    )
    assert (result.requested_episodes, result.episodes, result.successes) == (9, 2, 0)
    assert (result.mean_length, result.env_steps) == (50.0, 77)


def test_counts_successes_lengths_and_returns(env: CountingEnv) -> None:
    result = evaluate(env, Scripted(env, {0, 2}), kind="interim", episodes=4, env_steps=0)
    assert (result.successes, result.success_rate, result.mean_return) == (2, 0.5, 0.5)
    assert (result.wilson_low, result.wilson_high) == wilson_interval(2, 4)
    assert 25 < result.mean_length < 50  # two at the limit, two shorter
    assert (result.kind, result.weights_version) == ("interim", 5)


def test_a_backend_that_cannot_draw_costs_the_films_only(
    env: CountingEnv, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "videos"
    result = evaluate(env, untrained(env), kind="final", episodes=2, env_steps=0, videos=2, video_dir=directory)
    assert result.episodes == 2
    assert not directory.exists()
    assert caplog.text.count("no video of this episode: the fake backend cannot draw") == 2


def test_films_the_first_episodes(env: CountingEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imageio = pytest.importorskip("imageio.v2")
    directory = tmp_path / "videos"
    frames = iter(range(10**6))
    now_s = 0.0

    def sleep(duration_s: float) -> None:
        nonlocal now_s
        now_s += duration_s

    def slow_render() -> NDArray[np.uint8]:
        sleep(1.0)
        return np.full((64, 64, 3), next(frames) % 255, np.uint8)

    env.rate = RateKeeper(0.1, 1.0, clock=lambda: now_s, sleep=sleep)
    monkeypatch.setattr(env, "render", slow_render)
    policy = Scripted(env, {0})
    evaluate(env, policy, kind="final", episodes=3, env_steps=0, videos=2, video_dir=directory)
    films = sorted(path.name for path in directory.iterdir())
    assert env.rate.statistics().overruns == 0
    assert films == ["final_00_success.mp4", "final_01_failure.mp4"]
    with imageio.get_reader(directory / films[1]) as reader:
        assert reader.count_frames() == 51  # every observation, the last included


def test_the_streams_of_training_and_evaluation_do_not_meet() -> None:
    """Nor in a run with the seed that the evaluation's placements are drawn from."""
    training = {
        int(np.random.SeedSequence((seed, stream, episode)).generate_state(1)[0])
        for seed in (*range(5), 0x5EED)
        for stream in range(6)
        for episode in range(100)
    }
    assert training.isdisjoint(evaluation_seed(index) for index in range(200))
    assert training.isdisjoint(evaluation_seed(seed, index) for seed in range(3) for index in range(100))
