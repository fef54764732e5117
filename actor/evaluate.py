"""Unassisted evaluation: the policy alone, on placements that every run shares. Nothing goes to the learner."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from actor.env import RobotEnv
from actor.policy_runner import PolicyRunner
from policy.errors import ConfigError
from robot.errors import RobotError

_log = logging.getLogger(__name__)

_PLACEMENT_STREAM = 0x5EED  # the placements of evaluation episode k depend on this and k, never on a run's seed
_NORMAL_QUANTILE_95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result of unassisted episodes. Wilson bounds are those of a 95 % interval of the success rate."""

    kind: Literal["interim", "final"]
    requested_episodes: int
    episodes: int  # fewer than requested when stopped early
    successes: int
    success_rate: float
    wilson_low: float
    wilson_high: float
    mean_return: float
    mean_length: float
    weights_version: int
    env_steps: int  # training steps made before


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a success rate; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    z2 = _NORMAL_QUANTILE_95**2
    rate = successes / trials
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _NORMAL_QUANTILE_95 * math.sqrt(rate * (1 - rate) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, min(rate, centre - half)), min(
        1.0, max(rate, centre + half)
    )  # rounding must not leave the rate out


def evaluation_seed(index: int) -> int:
    """Return the placement seed of evaluation episode `index`."""
    return int(np.random.SeedSequence((_PLACEMENT_STREAM, index)).generate_state(1)[0])


def evaluate(
    env: RobotEnv,
    policy: PolicyRunner,
    *,
    kind: Literal["interim", "final"],
    episodes: int,
    env_steps: int,
    candidates: int | None = None,
    videos: int = 0,
    video_dir: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Run `episodes` episodes and film the first `videos` of them into video_dir (mp4).

    An episode that should_stop() interrupts does not count. A backend that cannot draw costs the videos only.
    """
    frozen = policy.frozen_copy(seed=evaluation_seed(episodes))
    returns, lengths, successes = [], [], 0
    for index in range(episodes):
        film = _Film(env) if index < videos and video_dir is not None else None
        result = _run(env, frozen, evaluation_seed(index), candidates, film, should_stop)
        if result is None:
            break
        is_success, episode_return, length = result
        successes += is_success
        returns.append(episode_return)
        lengths.append(length)
        if film is not None and video_dir is not None:
            film.save(video_dir / f"{kind}_{index:02d}_{'success' if is_success else 'failure'}.mp4")
    low, high = wilson_interval(successes, len(returns))
    return Evaluation(
        kind=kind,
        requested_episodes=episodes,
        episodes=len(returns),
        successes=successes,
        success_rate=successes / max(1, len(returns)),
        wilson_low=low,
        wilson_high=high,
        mean_return=float(np.mean(returns)) if returns else 0.0,
        mean_length=float(np.mean(lengths)) if lengths else 0.0,
        weights_version=frozen.weights_version,
        env_steps=env_steps,
    )


def _run(
    env: RobotEnv,
    policy: PolicyRunner,
    seed: int,
    candidates: int | None,
    film: "_Film | None",
    should_stop: Callable[[], bool],
) -> tuple[bool, float, int] | None:
    """Return (is_success, return, length) of one episode; None if it was interrupted."""
    observation, _ = env.reset(seed=seed)
    episode_return, length = 0.0, 0
    while not should_stop():
        if film is not None:
            film.take()
        proposal = policy.propose(observation, candidates)
        observation, reward, terminated, truncated, info = env.step(proposal.action)
        episode_return += reward
        length += 1
        if terminated or truncated:
            if film is not None:
                film.take()
            return info["is_success"], episode_return, length
    return None


class _Film:
    """Frames of one episode. Gives up, once and aloud, where there is nothing to draw or to encode with."""

    def __init__(self, env: RobotEnv) -> None:
        self._env = env
        self._frames: list[NDArray[np.uint8]] = []
        self._is_possible = True

    def take(self) -> None:
        if not self._is_possible:
            return
        try:
            self._frames.append(self._env.render())
            self._env.rate.start()  # drawing is no part of the control period
        except (RobotError, ConfigError) as error:
            self._is_possible = False
            _log.warning("no video of this episode: %s", error)

    def save(self, path: Path) -> None:
        if not self._frames:
            return
        try:
            import imageio.v2 as imageio
        except ImportError:
            _log.warning("no video: install the package imageio with pip install -e '.[sim]' -c constraints.txt")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        imageio.mimwrite(path, self._frames, fps=self._env.task.control_rate_hz)  # type: ignore[arg-type]
