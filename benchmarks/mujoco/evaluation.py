"""Evaluation: every agent's episodes in lock-step, so that one call of the policy serves all of them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.mujoco.environments import ActionScale, Array, evaluation_seed, make_environment

Act = Callable[[Array], Array]
"""From observations (P, E, F) to actions (P, E, A)."""


class Outcome(NamedTuple):
    """What the episodes of one evaluation came to."""

    returns: NDArray[np.float64]  # (P, E)
    lengths: NDArray[np.int64]  # (P, E), steps


class Evaluator:
    """E environments for each of P seeds. Needs no state: an evaluation follows from its number."""

    def __init__(self, task: str, seeds: Sequence[int], episodes: int) -> None:
        self._seeds = tuple(seeds)
        self._envs = [[make_environment(task) for _ in range(episodes)] for _ in seeds]
        self._scale = ActionScale(self._envs[0][0])

    def run(self, act: Act, evaluation: int, check_stop: Callable[[], None]) -> Outcome:
        """Play each environment until its first episode ends; `check_stop` is called at every step and may raise."""
        observation = np.array(
            [
                [env.reset(seed=evaluation_seed(seed, evaluation, index))[0] for index, env in enumerate(envs)]
                for seed, envs in zip(self._seeds, self._envs, strict=True)
            ],
            np.float32,
        )
        returns, lengths = np.zeros(observation.shape[:2]), np.zeros(observation.shape[:2], np.int64)
        is_running = np.ones(observation.shape[:2], np.bool_)
        while is_running.any():
            check_stop()
            action = self._scale(act(observation))
            for agent, index in np.argwhere(is_running):
                env = self._envs[agent][index]
                observation[agent, index], reward, terminated, truncated, _ = env.step(action[agent, index])
                returns[agent, index] += float(reward)
                lengths[agent, index] += 1
                is_running[agent, index] = not (terminated or truncated)
        return Outcome(returns, lengths)

    def close(self) -> None:
        for envs in self._envs:
            for env in envs:
                env.close()
