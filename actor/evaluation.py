"""Evaluation inside a run: the policy alone, on placements that every run shares. Nothing goes to the learner.

Comparing policies afterwards is actor/evaluate.py's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from actor.env import RobotEnv
from actor.film import Film
from actor.intervention import Arbiter, NoHuman
from actor.loop import EpisodeTally, run_episode
from actor.operator import OperatorInput
from actor.policy_runner import PolicyRunner
from actor.rewards import RewardSource
from actor.statistics import wilson_interval
from policy.image_codec import ImageCodec
from policy.transition import Recordable
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
    arbiter: Arbiter | None = None,
    rewards: RewardSource | None = None,
    operator: OperatorInput | None = None,
    videos: int = 0,
    video_dir: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    recover: Callable[[InterruptionError], None] | None = None,
) -> Evaluation:
    """Run `episodes` episodes and film the first `videos` of them into video_dir (mp4).

    The policy sees images as in training, coded and decoded. arbiter: lets a person take over, after which an episode
    is no success; without one nobody can. rewards, operator: who judges; the task's own outcome unless given.

    An episode that should_stop() interrupts does not count, nor one that the operator discards; one that an outage or a
    fault interrupts is run again after recover(), and without `recover` that is raised. A backend that cannot draw
    costs the videos only.
    """
    frozen = policy.frozen_copy(seed=evaluation_seed(episodes), candidates=candidates)
    tallies: list[EpisodeTally] = []
    index = 0
    while index < episodes and not should_stop():
        film = Film(env) if index < videos and video_dir is not None else None
        tally = _run(
            lambda film=film, index=index: run_episode(  # type: ignore[misc]
                env,
                frozen,
                arbiter or Arbiter(NoHuman(env.task.action_spec.dim), hold_steps=0),
                _Nowhere(),
                episode=index,
                seed=evaluation_seed(index),
                assistance="none",
                rewards=rewards,
                operator=operator,
                codec=codec,
                watch=film.take if film is not None else lambda: None,
                should_stop=should_stop,
            ),
            recover,
        )
        if tally is None:
            continue
        index += 1
        if tally.stopped or tally.is_discarded:
            continue
        tallies.append(tally)
        if film is not None and video_dir is not None:
            film.save(video_dir / f"{kind}_{index - 1:02d}_{'success' if _is_success(tally) else 'failure'}.mp4")
    return _summary(tallies, kind, episodes, frozen.weights_version, env_steps)


def _run(drive: Callable[[], EpisodeTally], recover: Callable[[InterruptionError], None] | None) -> EpisodeTally | None:
    """Return one episode's tally; None when it was interrupted and has to be run again."""
    interruption: InterruptionError | None
    try:
        tally = drive()
        interruption = tally.interruption
    except InterruptionError as error:
        interruption = error
    if interruption is None:
        return tally
    if recover is None:
        raise interruption
    recover(interruption)
    return None


class _Nowhere:
    """An evaluation's steps go to no learner."""

    def offer(self, body: Recordable) -> None:
        pass


def _is_success(tally: EpisodeTally) -> bool:
    return tally.is_success and tally.interventions == 0


def _summary(
    tallies: Sequence[EpisodeTally],
    kind: Literal["interim", "final"],
    requested: int,
    weights_version: int,
    env_steps: int,
) -> Evaluation:
    successes = sum(map(_is_success, tallies))
    low, high = wilson_interval(successes, len(tallies))
    return Evaluation(
        kind=kind,
        requested_episodes=requested,
        episodes=len(tallies),
        successes=successes,
        success_rate=successes / max(1, len(tallies)),
        wilson_low=low,
        wilson_high=high,
        mean_return=float(np.mean([tally.episode_return for tally in tallies])) if tallies else 0.0,
        mean_length=float(np.mean([tally.length for tally in tallies])) if tallies else 0.0,
        weights_version=weights_version,
        env_steps=env_steps,
    )
