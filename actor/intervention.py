"""Who acts: the arbiter between policy and human, and a scripted stand-in for the human."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actor.config import InterventionConfig
from actor.env import RobotEnv
from policy.transition import ActionSource

Action = NDArray[np.float32]


@dataclass(frozen=True)
class HumanInput:
    """What an input device says now."""

    action: Action  # (A,) in [-1, 1]; zeros when untouched
    is_active: bool


class TeleopDevice(Protocol):
    """A source of human actions."""

    def begin_episode(self, is_demonstration: bool) -> None:
        """Told before each episode's first step."""

    def read(self) -> HumanInput:
        """Return the present input. Never blocks."""


@dataclass(frozen=True)
class Decision:
    """The action for one step and who chose it."""

    action: Action
    source: ActionSource


class Arbiter:
    """Lets the human win: at once when active, and for a while after release.

    The hold avoids the policy and the human alternating within one correction, which would cut it into many short
    interventions in the replay buffer. It is counted in control steps, so that a simulation faster than real time
    behaves the same. In a demonstration the policy never acts.
    """

    def __init__(self, teleop: TeleopDevice, hold_steps: int) -> None:
        self._teleop = teleop
        self._hold_steps = hold_steps
        self.begin_episode(is_demonstration=False)

    def begin_episode(self, is_demonstration: bool) -> None:
        """Forget the last episode's human. Call before the first step."""
        self._is_demonstration = is_demonstration
        self._steps_since_active: int | None = None
        self._teleop.begin_episode(is_demonstration)

    def decide(self, policy_action: Action) -> Decision:
        """Choose who acts in this step. Never blocks."""
        human = self._teleop.read()
        if self._is_demonstration:
            return Decision(human.action, ActionSource.HUMAN_DEMONSTRATION)
        if human.is_active:
            self._steps_since_active = 0
        elif self._steps_since_active is not None:
            self._steps_since_active += 1
        if self._steps_since_active is not None and self._steps_since_active <= self._hold_steps:
            return Decision(human.action, ActionSource.HUMAN_INTERVENTION)
        return Decision(policy_action, ActionSource.POLICY)


class ScriptedTeleop:
    """The task's scripted operator at the input device of a simulated robot.

    Drives demonstrations from the first step; in a training episode it takes over with a probability that falls to 0
    over the configured number of steps, at a random step, and drives to the episode's end.
    """

    def __init__(self, env: RobotEnv, config: InterventionConfig, seed: int, training_steps: int = 0) -> None:
        """training_steps is how many were made before, by an earlier process of the same run."""
        self._env = env
        self._config = config
        self._rng = np.random.default_rng(seed)
        self._training_steps = training_steps

    @property
    def probability(self) -> float:
        """Probability that it takes over in the next training episode."""
        if self._config.decay_steps == 0:
            return 0.0
        return self._config.probability * max(0.0, 1.0 - self._training_steps / self._config.decay_steps)

    def begin_episode(self, is_demonstration: bool) -> None:
        self._operator = self._env.task.make_operator()
        self._is_demonstration = is_demonstration
        self._step = 0
        if is_demonstration:
            self._start_step = 0
            self._noise = self._config.demonstration_noise
            return
        limit = self._env.task.max_episode_steps
        takes_over = self._rng.random() < self.probability
        start_step = int(self._rng.integers(max(1, round(self._config.latest_start * limit))))
        self._start_step = start_step if takes_over else limit
        self._noise = self._config.action_noise

    def read(self) -> HumanInput:
        """Ask the operator about the environment's latest measurement, once per step."""
        is_active = self._step >= self._start_step
        self._step += 1
        self._training_steps += not self._is_demonstration
        if not is_active:
            return HumanInput(np.zeros(self._env.task.action_spec.dim, np.float32), is_active=False)
        action = self._operator.act(self._env.state, self._env.objects)
        noisy = action + self._noise * self._rng.standard_normal(action.shape)
        return HumanInput(np.clip(noisy, -1, 1).astype(np.float32), is_active=True)
