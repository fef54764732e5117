"""Who acts: the arbiter between policy and human, and a scripted stand-in for the human."""

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actor.deviation import DeviationWatch
from actor.env import RobotEnv
from actor.intervention_config import Assistance, InterventionConfig
from policy.transition import ActionSource

_log = logging.getLogger(__name__)

Action = NDArray[np.float32]


@dataclass(frozen=True)
class HumanInput:
    """What a human wants now."""

    action: Action  # (A,) in [-1, 1]; zeros when nothing is wanted
    is_active: bool
    fault: str | None = None  # why the device cannot be trusted; then the action is zero and not active


class HumanDriver(Protocol):
    """A source of human actions."""

    def begin_episode(self, is_demonstration: bool, assistance: Assistance) -> None:
        """Told before each episode's first step. `assistance` is for a scripted human; a person decides alone."""

    def read(self) -> HumanInput:
        """Return the present input. Called once per step; never blocks."""


class NoHuman:
    """Nobody is at the robot."""

    def __init__(self, action_dim: int) -> None:
        self._nothing = HumanInput(np.zeros(action_dim, np.float32), is_active=False)

    def begin_episode(self, is_demonstration: bool, assistance: Assistance) -> None:
        pass

    def read(self) -> HumanInput:
        return self._nothing


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

    When the device fails in the human's hand, the intervention ends and the arm holds: the human took over for a
    reason, so the policy does not go on. It holds until a working device is moved again, the operator's key for
    intervening, or the episode's end. Nobody wanted these steps, so they count as the policy's: standing still is no
    example to learn from.
    """

    def __init__(self, driver: HumanDriver, hold_steps: int) -> None:
        self._driver = driver
        self._hold_steps = hold_steps
        self._fault: str | None = None
        self._forget()

    def _forget(self) -> None:
        self._is_demonstration = False
        self._is_forced = False
        self._is_abandoned = False
        self._steps_since_active: int | None = None
        self._was_human = False
        self._take_overs = self._human_steps = 0
        self._episode_fault: str | None = None

    @property
    def fault(self) -> str | None:
        """Why the input device cannot be trusted at the moment; None when all is well."""
        return self._fault

    @property
    def episode_fault(self) -> str | None:
        """The first such fault of this episode, also when the device works again."""
        return self._episode_fault

    def misses_a_hand(self) -> bool:
        """Return whether the device failed in the human's hand, in this episode or the last one, and still does.

        Ask between episodes: the policy should not go on where nobody could take over again.
        """
        if self._is_abandoned:
            self._note_fault(self._driver.read())
        return self._is_abandoned and self._fault is not None

    @property
    def take_overs(self) -> int:
        """How often the human took over in this episode."""
        return self._take_overs

    @property
    def human_steps(self) -> int:
        """Steps of this episode in which the human drove, demonstrations included."""
        return self._human_steps

    def begin_episode(self, is_demonstration: bool, assistance: Assistance = "random") -> None:
        """Forget the last episode's human. Call before the first step."""
        self._forget()
        self._is_demonstration = is_demonstration
        self._driver.begin_episode(is_demonstration, assistance)

    def toggle_intervention(self) -> bool:
        """Give the human control until the next call or the episode's end (OperatorSignal.INTERVENE).

        Returns whether the human has it now. What an untouched device says is then a zero action: the arm holds.
        """
        self._is_forced = not self._is_forced
        self._is_abandoned = False
        self._steps_since_active = None
        return self._is_forced

    def decide(self, policy_action: Action) -> Decision:
        """Choose who acts in this step. Never blocks."""
        human = self._driver.read()
        self._note_fault(human)
        decision = self._choose(human, policy_action)
        is_human = decision.source is not ActionSource.POLICY
        self._human_steps += is_human
        self._take_overs += is_human and not self._was_human and not self._is_demonstration
        self._was_human = is_human
        return decision

    def _choose(self, human: HumanInput, policy_action: Action) -> Decision:
        if human.is_active:
            self._steps_since_active = 0
        elif self._steps_since_active is not None:
            self._steps_since_active += 1
        is_held = self._steps_since_active is not None and self._steps_since_active <= self._hold_steps
        is_human = self._is_demonstration or self._is_forced or is_held
        if human.fault is not None and (is_human or self._was_human):
            self._is_abandoned, self._is_forced, self._steps_since_active = True, False, None
        elif human.is_active or self._is_demonstration:
            self._is_abandoned = False
        if self._is_abandoned:
            return Decision(np.zeros_like(policy_action), ActionSource.POLICY)
        if self._is_demonstration:
            return Decision(human.action, ActionSource.HUMAN_DEMONSTRATION)
        if is_human:
            return Decision(human.action, ActionSource.HUMAN_INTERVENTION)
        return Decision(policy_action, ActionSource.POLICY)

    def _note_fault(self, human: HumanInput) -> None:
        if human.fault is not None and self._fault is None:
            _log.error("input device: %s", human.fault)
        elif human.fault is None and self._fault is not None:
            _log.info("the input device works again")
        self._fault = human.fault
        self._episode_fault = self._episode_fault or human.fault


class ScriptedTeleop:
    """The task's scripted operator at the input device of a simulated robot.

    Drives demonstrations from the first step. In a training episode, by assistance: "none" never; "random" takes over
    with a probability that falls to 0 over the configured number of steps, at a random step, and drives to the
    episode's end; "on_deviation" corrects for some steps when the policy deviates (see DeviationWatch), and drives to
    the end of an episode that takes too long.
    """

    def __init__(self, env: RobotEnv, config: InterventionConfig, seed: int, training_steps: int = 0) -> None:
        """training_steps is how many were made before, by an earlier process of the same run."""
        self._env = env
        self._config = config
        self._rng = np.random.default_rng(seed)
        self._training_steps = training_steps
        self._watch = DeviationWatch(config.deviation_steps, config.deviation_progress)

    @property
    def probability(self) -> float:
        """Probability that it takes over in the next training episode with random assistance."""
        if self._config.decay_steps == 0:
            return 0.0
        return self._config.probability * max(0.0, 1.0 - self._training_steps / self._config.decay_steps)

    def begin_episode(self, is_demonstration: bool, assistance: Assistance = "random") -> None:
        self._operator = self._env.task.make_operator()
        self._is_demonstration = is_demonstration
        self._step = 0
        self._correction_end = 0
        self._watches = not is_demonstration and assistance == "on_deviation"
        self._watch.restart()
        self._noise = self._config.demonstration_noise if is_demonstration else self._config.action_noise
        self._start_step = 0 if is_demonstration else self._draw_start(assistance)

    def read(self) -> HumanInput:
        """Ask the operator about the environment's latest measurement, once per step."""
        step = self._step
        self._step += 1
        self._training_steps += not self._is_demonstration
        is_active = step >= self._start_step or step < self._correction_end
        if not is_active and not self._watches:
            return self._at_rest()
        action = self._operator.act(self._env.state, self._env.objects)
        if not is_active and not self._takes_over(step, action):
            return self._at_rest()
        noisy = action + self._noise * self._rng.standard_normal(action.shape)
        return HumanInput(np.clip(noisy, -1, 1).astype(np.float32), is_active=True)

    def _draw_start(self, assistance: Assistance) -> int:
        """Return the step from which it drives to the episode's end; the step limit for never."""
        limit = self._env.task.max_episode_steps
        if assistance == "on_deviation":
            return round(self._config.deviation_latest * limit)
        if assistance == "none":
            return limit
        takes_over = self._rng.random() < self.probability
        start_step = int(self._rng.integers(max(1, round(self._config.latest_start * limit))))
        return start_step if takes_over else limit

    def _takes_over(self, step: int, action: Action) -> bool:
        """Return whether a correction begins at this step, where the operator would do `action`."""
        state = self._env.state
        wish = self._env.task.command(action, state).delta_position
        if not self._watch.see(state.O_T_EE[:3, 3], wish):
            return False
        self._correction_end = step + self._config.correction_steps
        self._watch.restart()
        return True

    def _at_rest(self) -> HumanInput:
        return HumanInput(np.zeros(self._env.task.action_spec.dim, np.float32), is_active=False)
