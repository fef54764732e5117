"""Evaluation inside a run: the policy alone, on placements that every run shares. Nothing goes to the learner.

Comparing policies afterwards is actor/evaluate.py's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from actor.env import RobotEnv
from actor.film import Film
from actor.policy_runner import PolicyRunner
from actor.statistics import wilson_interval
from policy.image_codec import ImageCodec, code_images
from robot.errors import InterruptionError

_PLACEMENT_STREAM = 0x5EED  # the placements of evaluation episode k depend on this and k, never on a run's seed


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


def evaluation_seed(*index: int) -> int:
    """Return the placement seed of evaluation episode `index`.

    As a spawn key, and not part of the entropy: numpy pads entropy with zeros, so that there (0x5EED, 0) would also be
    the seed (0x5EED, 0, 0) of the first training episode of a run with --seed 24301.
    """
    return int(np.random.SeedSequence(_PLACEMENT_STREAM, spawn_key=index).generate_state(1)[0])


def evaluate(
    env: RobotEnv,
    policy: PolicyRunner,
    *,
    kind: Literal["interim", "final"],
    episodes: int,
    env_steps: int,
    candidates: int | None = None,
    codec: ImageCodec = "jpeg",
    videos: int = 0,
    video_dir: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    recover: Callable[[InterruptionError], None] | None = None,
) -> Evaluation:
    """Run `episodes` episodes and film the first `videos` of them into video_dir (mp4).

    The policy sees images as in training, coded and decoded. An episode that should_stop() interrupts does not count;
    one that an outage or a fault interrupts is run again after recover(), and without `recover` that is raised.
    A backend that cannot draw costs the videos only.
    """
    frozen = policy.frozen_copy(seed=evaluation_seed(episodes))
    returns, lengths, successes = [], [], 0
    for index in range(episodes):
        result = None
        while result is None and not should_stop():
            film = Film(env) if index < videos and video_dir is not None else None
            try:
                result = _run(env, frozen, evaluation_seed(index), candidates, codec, film, should_stop)
            except InterruptionError as error:
                if recover is None:
                    raise
                recover(error)
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
    codec: ImageCodec,
    film: Film | None,
    should_stop: Callable[[], bool],
) -> tuple[bool, float, int] | None:
    """Return (is_success, return, length) of one episode; None if it was interrupted."""
    observation, _ = env.reset(seed=seed)
    episode_return, length = 0.0, 0
    while not should_stop():
        if film is not None:
            film.take()
        proposal = policy.propose(code_images(observation, codec), candidates)
        observation, reward, terminated, truncated, info = env.step(proposal.action)
        episode_return += reward
        length += 1
        if terminated or truncated:
            if film is not None:
                film.take()
            return info["is_success"], episode_return, length
    return None
