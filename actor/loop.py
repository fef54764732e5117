"""The control loop: one episode, step by step. It waits for the robot's period and for nothing else."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from actor.env import RobotEnv
from actor.intervention import Arbiter
from actor.policy_runner import PolicyRunner
from policy.transition import ActionSource, Transition


class Outbox(Protocol):
    """Takes every step (actor.spool.Spool)."""

    def offer(self, transition: Transition) -> object:
        """Keep a transition for the learner. Never blocks."""


@dataclass
class EpisodeTally:
    """What an episode came to."""

    length: int = 0
    episode_return: float = 0.0
    is_success: bool = False
    stopped: bool = False
    interventions: int = 0
    intervention_steps: int = 0
    clipped_steps: int = 0
    weights_version: int = 0
    weights_ages_s: list[float] = field(default_factory=list)
    _previous_source: ActionSource = ActionSource.POLICY

    def add(self, transition: Transition, info: dict[str, Any]) -> None:
        self.length += 1
        self.episode_return += transition.reward
        self.is_success = info["is_success"]
        self.intervention_steps += transition.is_intervention
        self.interventions += transition.is_intervention and transition.source != self._previous_source
        self._previous_source = transition.source
        self.clipped_steps += bool(info["clip_reasons"])
        self.weights_version = transition.weights_version
        if transition.weights_version > 0:
            self.weights_ages_s.append(transition.weights_age_s)


def run_episode(
    env: RobotEnv,
    policy: PolicyRunner,
    arbiter: Arbiter,
    outbox: Outbox,
    *,
    episode: int,
    seed: int,
    is_demonstration: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> EpisodeTally:
    """Run one episode with the newest weights and offer each step to the outbox.

    Blocks only in env.step(): send, wait for the period's end, observe. When should_stop() turns true the present
    step is finished and closes the episode as truncated.
    """
    policy.swap_if_newer()
    observation, _ = env.reset(seed=seed)
    arbiter.begin_episode(is_demonstration)
    tally = EpisodeTally()
    while True:
        proposal = policy.propose(observation)
        decision = arbiter.decide(proposal.action)
        next_observation, reward, terminated, truncated, info = env.step(decision.action)
        tally.stopped = should_stop() and not (terminated or truncated)
        is_last = terminated or truncated or tally.stopped
        transition = Transition(
            episode=episode,
            step=tally.length,
            observation=observation,
            policy_action=proposal.action,
            executed_action=info["executed_action"],
            source=decision.source,
            reward=reward,
            terminated=terminated,
            truncated=is_last and not terminated,
            weights_version=proposal.weights_version,
            weights_age_s=proposal.weights_age_s,
            wall_time_s=time.time(),
            monotonic_time_s=time.monotonic(),
            final_observation=next_observation if is_last else None,
        )
        outbox.offer(transition)
        tally.add(transition, info)
        if is_last:
            return tally
        observation = next_observation
