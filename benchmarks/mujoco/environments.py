"""Gymnasium environments as the training loop sees them: actions in [-1, 1], float32 observations, exact resume."""

import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from policy.errors import ConfigError
from policy.process import killed_with_parent
from policy.spec import ActionSpec, Field, ObservationSpec, Specs

Array = NDArray[np.float32]
Env = gymnasium.Env[Any, Any]

_TRAINING, _EVALUATION = 1, 2  # first word of what an episode's seed is made of


def make_environment(task: str) -> Env:
    """Make an environment; raises ConfigError for an unknown one, a missing simulator or spaces that do not fit."""
    if task.endswith(("-v2", "-v3")):
        raise ConfigError(f"task {task!r}: Gymnasium no longer has it. Take {task[:-1]}4, which is nearest, or v5.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # v4 is meant: it is nearest to the paper's v3
            env: Env = gymnasium.make(task, disable_env_checker=True)
    except gymnasium.error.UnregisteredEnv as error:
        raise ConfigError(
            f"unknown task {task!r}: {error} The paper's are Ant, HalfCheetah, Hopper, Humanoid and Walker2d, each as "
            "-v4 or -v5."
        ) from error
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise ConfigError(
            f"task {task!r} needs a package that is not installed: {error} Install it with "
            "`pip install -c constraints.txt -e .[sim]`."
        ) from error
    spaces = (env.observation_space, env.action_space)
    if not all(isinstance(space, Box) and len(space.shape) == 1 for space in spaces):
        raise ConfigError(f"task {task!r} has spaces {spaces}; observations and actions must be vectors")
    return env


def specs_of(task: str) -> Specs:
    """Return specs with the task's dimensions and action bounds. Observations are unbounded and used as they are."""
    env = make_environment(task)
    low, high = _bounds(env)
    width = env.observation_space.shape[0]  # type: ignore[index]
    env.close()
    observation = Field(name="observation", unit="", low=(-1.0,) * width, high=(1.0,) * width)
    action = Field(name="action", unit="", low=tuple(low.tolist()), high=tuple(high.tolist()))
    return Specs(ObservationSpec((observation,)), ActionSpec((action,)))


def _bounds(env: Env) -> tuple[Array, Array]:
    space = env.action_space
    assert isinstance(space, Box)
    return space.low.astype(np.float32), space.high.astype(np.float32)


class ActionScale:
    """From [-1, 1] to the task's own bounds: Humanoid's are 0.4."""

    def __init__(self, env: Env) -> None:
        low, high = _bounds(env)
        self._centre, self._half_range = (high + low) / 2, (high - low) / 2

    def __call__(self, action: Array) -> Array:
        """(..., A) clipped to [-1, 1] and scaled."""
        scaled = self._centre + self._half_range * np.clip(action, -1, 1)
        return scaled.astype(np.float32, copy=False)


def training_seed(seed: int, episode: int) -> int:
    return _seed_from(_TRAINING, seed, episode)


def evaluation_seed(seed: int, evaluation: int, episode: int) -> int:
    """Seed of an evaluation episode's start, the same for every algorithm and number of candidates."""
    return _seed_from(_EVALUATION, seed, evaluation, episode)


def _seed_from(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1)[0])


class SeededEpisodes(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose n-th episode follows from its seed and n, so that n and the actions since are its state."""

    def __init__(self, env: Env, seed: int) -> None:
        super().__init__(env)
        self._seed = seed
        self._episode = -1
        self._actions: list[Array] = []
        self.saved: tuple[int, Array] | None = None  # set from outside before `resume`

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode; a seed from outside is not used."""
        self._episode += 1
        self._actions.clear()
        observation, _ = self.env.reset(seed=training_seed(self._seed, self._episode), options=options)
        return observation, {}

    def step(self, action: Array) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._actions.append(action.copy())
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return observation, reward, terminated, truncated, {}  # nobody reads the info, and merging it takes time

    def state(self) -> tuple[int, Array]:
        """Return the episode's number and its actions so far (n, A), in the task's own units."""
        return self._episode, np.array(self._actions, np.float32).reshape(-1, *self.action_space.shape)  # type: ignore[misc]

    def resume(self) -> Any:
        """Bring the environment to `saved`, by playing the episode again; returns its observation."""
        assert self.saved is not None
        episode, actions = self.saved
        self._episode = episode - 1
        observation, _ = self.reset()
        for action in actions:
            observation, *_ = self.step(action)
        return observation


class Step(NamedTuple):
    """One step of every agent; next_observation is the true one, also at an episode's end."""

    reward: Array  # (P,)
    next_observation: Array  # (P, F)
    terminated: NDArray[np.bool_]  # (P,)
    truncated: NDArray[np.bool_]  # (P,)


class TrainingEnvironments:
    """P environments, one for each seed: in this process, or each in a worker process of its own."""

    def __init__(self, task: str, seeds: Sequence[int], *, in_workers: bool) -> None:
        makers = [_Maker(task, seed) for seed in seeds]
        self._envs = vector_environment(makers, AutoresetMode.SAME_STEP, in_workers=in_workers)
        env = make_environment(task)
        self._scale = ActionScale(env)
        env.close()
        self.observation: Array = self._envs.reset()[0].astype(np.float32)
        """What the next action is chosen for, (P, F)."""

    def step(self, action: Array) -> Step:
        """Take one step (P, A) in each; an episode that ends is followed by the next one."""
        observation, reward, terminated, truncated, info = self._envs.step(self._scale(action))
        self.observation = observation.astype(np.float32)
        following = self.observation
        if "final_obs" in info:
            following = following.copy()
            for index in np.flatnonzero(info["_final_obs"]):
                following[index] = info["final_obs"][index]
        return Step(reward.astype(np.float32), following, terminated, truncated)

    def state(self) -> list[tuple[int, Array]]:
        """Return each environment's episode and its actions so far."""
        return list(self._envs.call("state"))

    def resume(self, state: Sequence[tuple[int, Array]]) -> None:
        """Bring all environments to `state`, exactly."""
        self._envs.set_attr("saved", list(state))
        self.observation = np.stack(self._envs.call("resume")).astype(np.float32)

    def close(self) -> None:
        self._envs.close()


def vector_environment(
    makers: Sequence[Callable[[], Env]], autoreset: AutoresetMode, *, in_workers: bool
) -> AsyncVectorEnv | SyncVectorEnv:
    """Return environments that are stepped as one: in this process, or each in a worker process."""
    return (AsyncVectorEnv if in_workers else SyncVectorEnv)(makers, autoreset_mode=autoreset)


def keep_from_signals() -> None:
    """Have a worker process leave Ctrl-C and SIGTERM, which all may get, to its parent, and end with it."""
    if multiprocessing.parent_process() is not None:
        killed_with_parent()


class _Maker:
    """Makes the environment of one seed, in the process that will step it."""

    def __init__(self, task: str, seed: int) -> None:
        self._task, self._seed = task, seed

    def __call__(self) -> Env:
        keep_from_signals()
        return SeededEpisodes(make_environment(self._task), self._seed)
