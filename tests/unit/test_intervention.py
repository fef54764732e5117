"""Who acts: the arbiter, and the scripted operator's schedule."""

import numpy as np
import pytest

from actor.env import RobotEnv, connect_backend
from actor.intervention import Arbiter, HumanInput, ScriptedTeleop
from actor.intervention_config import Assistance, InterventionConfig
from actor.tasks import make_task
from policy.errors import ConfigError
from policy.transition import ActionSource

POLICY, HUMAN, DEMONSTRATION = (
    ActionSource.POLICY,
    ActionSource.HUMAN_INTERVENTION,
    ActionSource.HUMAN_DEMONSTRATION,
)
POLICY_ACTION = np.full(3, 0.5, np.float32)


class ScriptedInput:
    """Active in the given steps, with the step number as action."""

    def __init__(self, active: set[int]) -> None:
        self._active = active
        self._step = -1

    def begin_episode(self, is_demonstration: bool, assistance: Assistance) -> None:
        self._step = -1

    def read(self) -> HumanInput:
        self._step += 1
        is_active = self._step in self._active
        return HumanInput(np.full(3, self._step if is_active else 0, np.float32), is_active)


def sources(arbiter: Arbiter, steps: int) -> list[ActionSource]:
    return [arbiter.decide(POLICY_ACTION).source for _ in range(steps)]


def test_the_human_wins_at_once_and_keeps_control_for_the_hold() -> None:
    arbiter = Arbiter(ScriptedInput({2, 3}), hold_steps=2)
    arbiter.begin_episode(is_demonstration=False)
    assert sources(arbiter, 8) == [POLICY, POLICY, HUMAN, HUMAN, HUMAN, HUMAN, POLICY, POLICY]


def test_a_pause_shorter_than_the_hold_does_not_cut_a_correction() -> None:
    arbiter = Arbiter(ScriptedInput({0, 3, 4}), hold_steps=2)
    arbiter.begin_episode(is_demonstration=False)
    assert sources(arbiter, 8) == [HUMAN] * 7 + [POLICY]


def test_during_the_hold_the_arm_gets_the_human_action_which_is_rest() -> None:
    arbiter = Arbiter(ScriptedInput({0}), hold_steps=1)
    arbiter.begin_episode(is_demonstration=False)
    arbiter.decide(POLICY_ACTION)
    np.testing.assert_array_equal(arbiter.decide(POLICY_ACTION).action, np.zeros(3))
    np.testing.assert_array_equal(arbiter.decide(POLICY_ACTION).action, POLICY_ACTION)


def test_a_hold_does_not_reach_into_the_next_episode() -> None:
    arbiter = Arbiter(ScriptedInput({3}), hold_steps=5)
    arbiter.begin_episode(is_demonstration=False)
    assert sources(arbiter, 4)[-1] is HUMAN
    arbiter.begin_episode(is_demonstration=False)
    assert sources(arbiter, 3) == [POLICY] * 3


def test_the_policy_never_acts_in_a_demonstration() -> None:
    arbiter = Arbiter(ScriptedInput({1}), hold_steps=0)
    arbiter.begin_episode(is_demonstration=True)
    decisions = [arbiter.decide(POLICY_ACTION) for _ in range(4)]
    assert {decision.source for decision in decisions} == {DEMONSTRATION}
    assert [decision.action[0] for decision in decisions] == [0, 1, 0, 0]


@pytest.fixture
def env() -> RobotEnv:
    task = make_task("reach")
    env = RobotEnv(task, connect_backend("fake", task))
    env.reset(seed=0)
    return env


def first_active_steps(teleop: ScriptedTeleop, env: RobotEnv, episodes: int) -> list[int | None]:
    """Return the step at which it takes over in each episode, and check that it then drives to the end."""
    firsts: list[int | None] = []
    for _ in range(episodes):
        teleop.begin_episode(is_demonstration=False)
        active = [teleop.read().is_active for _ in range(env.task.max_episode_steps)]
        first = active.index(True) if any(active) else None
        assert first is None or all(active[first:])
        firsts.append(first)
    return firsts


def test_takes_over_with_the_configured_probability_at_a_random_early_step(env: RobotEnv) -> None:
    config = InterventionConfig(probability=0.7, decay_steps=10**9, latest_start=0.6)
    firsts = first_active_steps(ScriptedTeleop(env, config, seed=0), env, 400)
    starts = [first for first in firsts if first is not None]
    assert len(starts) / 400 == pytest.approx(0.7, abs=0.07)  # three standard deviations
    assert min(starts) == 0
    assert max(starts) == 29  # 60 % of 50 steps


def test_the_probability_falls_linearly_to_zero_over_training_steps(env: RobotEnv) -> None:
    teleop = ScriptedTeleop(env, InterventionConfig(probability=0.8, decay_steps=100), seed=0)
    teleop.begin_episode(is_demonstration=True)
    for _ in range(50):
        teleop.read()
    assert teleop.probability == 0.8  # demonstrations do not count
    first_active_steps(teleop, env, 1)
    assert teleop.probability == pytest.approx(0.4)
    first_active_steps(teleop, env, 1)
    assert teleop.probability == 0
    assert first_active_steps(teleop, env, 50) == [None] * 50
    resumed = ScriptedTeleop(env, InterventionConfig(probability=0.8, decay_steps=100), seed=0, training_steps=75)
    assert resumed.probability == pytest.approx(0.2)
    assert ScriptedTeleop(env, InterventionConfig(probability=0.8, decay_steps=0), seed=0).probability == 0


def test_noise_moves_corrections_and_leaves_demonstrations_alone(env: RobotEnv) -> None:
    teleop = ScriptedTeleop(env, InterventionConfig(probability=1.0, action_noise=0.1), seed=0)
    ideal = env.task.make_operator().act(env.state, env.objects)
    teleop.begin_episode(is_demonstration=True)
    np.testing.assert_array_equal(teleop.read().action, ideal)
    while not (human := _begun(teleop)).is_active:
        pass
    assert not np.array_equal(human.action, ideal)
    assert np.abs(human.action).max() <= 1


def _begun(teleop: ScriptedTeleop) -> HumanInput:
    teleop.begin_episode(is_demonstration=False)
    return teleop.read()


@pytest.mark.parametrize("bad", [{"probability": 1.5}, {"latest_start": 0.0}, {"hold_s": -1.0}, {"decay_steps": -1}])
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        InterventionConfig(**bad)  # type: ignore[arg-type]
