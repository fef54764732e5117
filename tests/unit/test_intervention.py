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


def test_the_key_gives_the_human_control_until_pressed_again_or_the_episode_ends() -> None:
    arbiter = Arbiter(ScriptedInput(set()), hold_steps=3)
    arbiter.begin_episode(is_demonstration=False)
    assert arbiter.toggle_intervention()
    assert sources(arbiter, 5) == [HUMAN] * 5
    assert not arbiter.toggle_intervention()
    assert sources(arbiter, 2) == [POLICY] * 2
    arbiter.toggle_intervention()
    arbiter.begin_episode(is_demonstration=False)
    assert sources(arbiter, 2) == [POLICY] * 2


def test_take_overs_and_human_steps_are_counted_per_episode() -> None:
    arbiter = Arbiter(ScriptedInput({1, 2, 5}), hold_steps=1)
    arbiter.begin_episode(is_demonstration=False)
    sources(arbiter, 8)  # human in 1, 2, 3 and 5, 6
    assert (arbiter.take_overs, arbiter.human_steps) == (2, 5)
    arbiter.begin_episode(is_demonstration=True)
    sources(arbiter, 4)
    assert (arbiter.take_overs, arbiter.human_steps) == (0, 4)


class FaultyInput:
    """Plays a table: "-" untouched, "h" the human acts, "x" the device has failed."""

    def __init__(self, table: str) -> None:
        self._table = iter(table)

    def begin_episode(self, is_demonstration: bool, assistance: Assistance) -> None:
        pass

    def read(self) -> HumanInput:
        now = next(self._table)
        return HumanInput(np.full(3, now == "h", np.float32), now == "h", fault="unplugged" if now == "x" else None)


@pytest.mark.parametrize(
    ("says", "does"),
    [
        # p policy, h human, 0 the arm holds and nobody drives
        ("--hhh----", "pphhhhhpp"),
        ("--hhxx---", "pphh00000"),  # back, but untouched: whoever took over has not given back
        ("--hhxxh---", "pphh00hhhp"),  # moved again: the human has it, then the hold, then the policy
        ("--h-x----", "pphh00000"),  # failed during the hold: the human had control
        ("--xxx--", "ppppppp"),  # failed while the policy drove
        ("--xxh---", "pppphhhp"),
    ],
)
def test_a_device_that_fails_in_the_humans_hand_leaves_the_arm_holding(says: str, does: str) -> None:
    arbiter = Arbiter(FaultyInput(says), hold_steps=2)
    arbiter.begin_episode(is_demonstration=False)
    done = ""
    for _ in says:
        decision = arbiter.decide(POLICY_ACTION)
        if decision.source is HUMAN:
            done += "h"
        else:
            done += "p" if decision.action.any() else "0"
    assert done == does


def test_a_failed_device_is_reported_once_and_the_key_ends_the_holding(caplog: pytest.LogCaptureFixture) -> None:
    arbiter = Arbiter(FaultyInput("hxxx-"), hold_steps=0)
    arbiter.begin_episode(is_demonstration=False)
    for _ in range(3):
        decision = arbiter.decide(POLICY_ACTION)
    assert arbiter.fault == "unplugged"
    assert not decision.action.any()
    assert [record.message for record in caplog.records] == ["input device: unplugged"]
    arbiter.toggle_intervention()
    arbiter.toggle_intervention()
    assert arbiter.decide(POLICY_ACTION).action.any()
    arbiter.decide(POLICY_ACTION)
    assert [arbiter.fault, arbiter.episode_fault] == [None, "unplugged"]
    arbiter.begin_episode(is_demonstration=False)
    assert arbiter.episode_fault is None


def test_while_its_device_has_failed_a_demonstration_holds_and_nothing_of_it_is_an_example() -> None:
    arbiter = Arbiter(FaultyInput("hxx-h"), hold_steps=0)
    arbiter.begin_episode(is_demonstration=True)
    decisions = [arbiter.decide(POLICY_ACTION) for _ in range(5)]
    assert [decision.source for decision in decisions] == [DEMONSTRATION, POLICY, POLICY, DEMONSTRATION, DEMONSTRATION]
    assert [bool(decision.action.any()) for decision in decisions] == [True, False, False, False, True]


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


def drive(env: RobotEnv, teleop: ScriptedTeleop, policy_action: str) -> str:
    """Run an episode in which the policy does what is named; return who acted in each step."""
    env.reset(seed=3)
    teleop.begin_episode(is_demonstration=False, assistance="on_deviation")
    who, operator = "", env.task.make_operator()
    while True:
        good = operator.act(env.state, env.objects)
        policy = {"good": good, "away": -good, "nothing": np.zeros_like(good), "half": 0.5 * good}[policy_action]
        human = teleop.read()
        who += "h" if human.is_active else "p"
        _, _, terminated, truncated, _ = env.step(human.action if human.is_active else policy)
        if terminated or truncated:
            return who


DEVIATION = InterventionConfig(action_noise=0.0, deviation_steps=4, correction_steps=3, deviation_latest=0.6)


@pytest.mark.parametrize("policy_action", ["good", "half"])
def test_on_deviation_a_policy_that_gets_there_is_left_alone(env: RobotEnv, policy_action: str) -> None:
    assert "h" not in drive(env, ScriptedTeleop(env, DEVIATION, seed=0), policy_action)


@pytest.mark.parametrize("policy_action", ["away", "nothing"])
def test_on_deviation_a_policy_that_goes_astray_is_corrected_for_some_steps(env: RobotEnv, policy_action: str) -> None:
    """Four judged steps need five measurements; a correction has three steps, and then the policy tries again."""
    who = drive(env, ScriptedTeleop(env, DEVIATION, seed=0), policy_action)
    assert who.startswith("pppphhhpppphhh")


def test_on_deviation_an_episode_that_takes_too_long_is_driven_to_its_end(env: RobotEnv) -> None:
    patient = InterventionConfig(action_noise=0.0, deviation_steps=10**6, deviation_latest=0.6)
    who = drive(env, ScriptedTeleop(env, patient, seed=0), "nothing")
    assert who.rstrip("h") == "p" * 30  # 60 % of 50 steps


def test_without_assistance_the_scripted_human_never_takes_over(env: RobotEnv) -> None:
    teleop = ScriptedTeleop(env, InterventionConfig(probability=1.0), seed=0)
    for _ in range(20):
        teleop.begin_episode(is_demonstration=False, assistance="none")
        assert not any(teleop.read().is_active for _ in range(env.task.max_episode_steps))


def _begun(teleop: ScriptedTeleop) -> HumanInput:
    teleop.begin_episode(is_demonstration=False)
    return teleop.read()


@pytest.mark.parametrize(
    "bad",
    [
        {"probability": 1.5},
        {"latest_start": 0.0},
        {"hold_s": -1.0},
        {"decay_steps": -1},
        {"dead_zone": 1.0},
        {"correction_steps": 0},
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        InterventionConfig(**bad)  # type: ignore[arg-type]
