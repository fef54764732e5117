"""Evaluation: every agent's episodes in lock-step, so that one call of the policy serves all of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from benchmarks.mujoco.environments import (
    ActionScale,
    Array,
    evaluation_seed,
    keep_from_signals,
    make_environment,
    vector_environment,
)

Act = Callable[[Array], Array]
"""From observations (P, E, F) to actions (P, E, A)."""


class Outcome(NamedTuple):
    """What the episodes of one evaluation came to."""

    returns: NDArray[np.float64]  # (P, E)
    lengths: NDArray[np.int64]  # (P, E), steps


class Episodes(gymnasium.Env[Array, Array]):
    """One agent's E environments as one: observations (E, F), actions (E, A). Each plays one episode, then waits."""

    def __init__(self, task: str, seed: int, count: int) -> None:
        self._envs = [make_environment(task) for _ in range(count)]
        self._seed = seed
        self.observation_space = batch_space(self._envs[0].observation_space, count)
        self.action_space = batch_space(self._envs[0].action_space, count)
        self.evaluation = 0  # set from outside before `reset`

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin the episodes of `evaluation`; a seed from outside is not used."""
        starts = [
            env.reset(seed=evaluation_seed(self._seed, self.evaluation, index))[0]
            for index, env in enumerate(self._envs)
        ]
        self._observation = np.array(starts, np.float32)
        self._returns, self._lengths = np.zeros(len(starts)), np.zeros(len(starts), np.int64)
        self._is_running = np.ones(len(starts), np.bool_)
        return self._observation, {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        for index in np.flatnonzero(self._is_running):
            self._observation[index], reward, terminated, truncated, _ = self._envs[index].step(action[index])
            self._returns[index] += float(reward)
            self._lengths[index] += 1
            self._is_running[index] = not (terminated or truncated)
        return self._observation, 0.0, False, False, {"running": int(self._is_running.sum())}

    def outcome(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        return self._returns, self._lengths

    def close(self) -> None:
        for env in self._envs:
            env.close()


class Evaluator:
    """E episodes for each of P seeds, each seed's in a worker process if asked for.

    It needs no state to be resumed: what an evaluation begins with follows from its number.
    """

    def __init__(self, task: str, seeds: Sequence[int], episodes: int, *, in_workers: bool) -> None:
        makers = [_Maker(task, seed, episodes) for seed in seeds]
        self._envs = vector_environment(makers, AutoresetMode.DISABLED, in_workers=in_workers)
        env = make_environment(task)
        self._scale = ActionScale(env)
        env.close()

    def run(self, act: Act, evaluation: int, check_stop: Callable[[], None]) -> Outcome:
        """Play each environment until its first episode ends; `check_stop` is called at every step and may raise."""
        self._envs.set_attr("evaluation", evaluation)
        observation, _ = self._envs.reset()
        num_running = 1
        while num_running:
            check_stop()
            observation, _, _, _, info = self._envs.step(self._scale(act(observation.astype(np.float32, copy=False))))
            num_running = info["running"].sum()
        returns, lengths = zip(*self._envs.call("outcome"), strict=True)
        return Outcome(np.stack(returns), np.stack(lengths))

    def close(self) -> None:
        self._envs.close()


class _Maker:
    """Makes the episodes of one seed, in the process that will step them."""

    def __init__(self, task: str, seed: int, count: int) -> None:
        self._values = (task, seed, count)

    def __call__(self) -> Episodes:
        keep_from_signals()
        return Episodes(*self._values)
