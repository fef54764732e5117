"""run_episode: what each transition says, and when weights change."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from torch import Tensor

from actor.env import RobotEnv, connect_backend
from actor.intervention import Arbiter, HumanInput
from actor.intervention_config import Assistance
from actor.loop import EpisodeTally, run_episode
from actor.policy_runner import PolicyRunner
from actor.tasks import make_task
from policy.config import PolicyConfig
from policy.diffusion_policy import make_denoiser
from policy.spec import Specs
from policy.transition import ActionSource, Transition

CONFIG = PolicyConfig(denoising_steps=2, denoiser_hidden=(8,), behavior_candidates=1)
PUBLISHED_WALL_S = 1000.0


@dataclass(frozen=True)
class Weights:
    version: int
    tensors: Mapping[str, Tensor]
    published_wall_s: float = PUBLISHED_WALL_S
    learner_step: int = 0


def weights(env: RobotEnv, version: int) -> Weights:
    denoiser = make_denoiser(specs(env), CONFIG)
    return Weights(version, {f"denoiser.{name}": tensor for name, tensor in denoiser.state_dict().items()})


def specs(env: RobotEnv) -> Specs:
    return Specs(env.task.observation_spec, env.task.action_spec)


class Learner:
    """Publishes a new version every time it is asked."""

    def __init__(self, env: RobotEnv) -> None:
        self._env = env
        self.version = 0

    def latest_weights(self) -> Weights:
        self.version += 1
        return weights(self._env, self.version)


class Nothing:
    def latest_weights(self) -> None:
        return None


class OperatorFrom:
    """The task's operator takes over at a given step."""

    def __init__(self, env: RobotEnv, first_step: int) -> None:
        self._env = env
        self._operator = env.task.make_operator()
        self._steps_left = first_step

    def begin_episode(self, is_demonstration: bool, assistance: Assistance) -> None:
        pass

    def read(self) -> HumanInput:
        self._steps_left -= 1
        return HumanInput(self._operator.act(self._env.state, self._env.objects), is_active=self._steps_left < 0)


class Outbox:
    def __init__(self) -> None:
        self.transitions: list[Transition] = []

    def offer(self, transition: Transition) -> None:
        self.transitions.append(transition)


@pytest.fixture
def env() -> RobotEnv:
    task = make_task("reach")
    return RobotEnv(task, connect_backend("fake", task))


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


def untrained(env: RobotEnv) -> PolicyRunner:
    return PolicyRunner(specs(env), CONFIG, 0, Nothing())


def run(
    env: RobotEnv, outbox: Outbox, takeover: int, policy: PolicyRunner | None = None, **kwargs: object
) -> EpisodeTally:
    arbiter = Arbiter(OperatorFrom(env, takeover), hold_steps=0)
    return run_episode(env, policy or untrained(env), arbiter, outbox, episode=7, seed=0, **kwargs)  # type: ignore[arg-type]


def test_steps_are_dense_and_chained(env: RobotEnv, outbox: Outbox) -> None:
    tally = run(env, outbox, takeover=5)
    steps = outbox.transitions
    assert [step.step for step in steps] == list(range(tally.length))
    assert {step.episode for step in steps} == {7}
    assert [step.final_observation is not None for step in steps] == [False] * (tally.length - 1) + [True]
    times = [step.monotonic_time_s for step in steps]
    assert times == sorted(times)
    for step in steps[1:]:
        assert not np.array_equal(step.observation["O_p_EE"], steps[step.step - 1].observation["O_p_EE"])


def test_the_observation_is_the_one_before_the_step(env: RobotEnv, outbox: Outbox) -> None:
    run(env, outbox, takeover=0)
    first, _ = env.reset(seed=0)
    np.testing.assert_array_equal(outbox.transitions[0].observation["EE_to_target"], first["EE_to_target"])
    second, *_ = env.step(outbox.transitions[0].executed_action)
    np.testing.assert_allclose(outbox.transitions[1].observation["EE_to_target"], second["EE_to_target"], atol=1e-6)


def test_sources_and_both_actions_are_recorded(env: RobotEnv, outbox: Outbox) -> None:
    tally = run(env, outbox, takeover=5)
    policy_steps, human_steps = outbox.transitions[:5], outbox.transitions[5:]
    assert {step.source for step in policy_steps} == {ActionSource.POLICY}
    assert {step.source for step in human_steps} == {ActionSource.HUMAN_INTERVENTION}
    assert all(np.allclose(step.policy_action, step.executed_action, atol=1e-6) for step in policy_steps)
    assert not any(np.allclose(step.policy_action, step.executed_action, atol=1e-3) for step in human_steps)
    assert (tally.interventions, tally.intervention_steps) == (1, len(human_steps))


def test_a_demonstration_is_marked_as_one_and_is_no_intervention(env: RobotEnv, outbox: Outbox) -> None:
    tally = run(env, outbox, takeover=0, is_demonstration=True)
    assert {step.source for step in outbox.transitions} == {ActionSource.HUMAN_DEMONSTRATION}
    assert (tally.interventions, tally.intervention_steps, tally.is_success) == (0, 0, True)


def test_success_terminates(env: RobotEnv, outbox: Outbox) -> None:
    tally = run(env, outbox, takeover=0)
    last = outbox.transitions[-1]
    assert (last.terminated, last.truncated, last.reward) == (True, False, 1.0)
    assert sum(step.reward for step in outbox.transitions) == tally.episode_return == 1.0


def test_the_time_limit_truncates(env: RobotEnv, outbox: Outbox) -> None:
    tally = run(env, outbox, takeover=1000)
    assert tally.length == env.task.max_episode_steps
    assert not tally.is_success
    assert [step.is_last for step in outbox.transitions[:-1]] == [False] * (tally.length - 1)
    assert (outbox.transitions[-1].terminated, outbox.transitions[-1].truncated) == (False, True)
    assert not tally.stopped


def test_a_stop_request_finishes_the_step_and_closes_the_episode_as_truncated(env: RobotEnv, outbox: Outbox) -> None:
    tally = run(env, outbox, takeover=1000, should_stop=lambda: len(outbox.transitions) == 2)
    last = outbox.transitions[-1]
    assert (len(outbox.transitions), last.terminated, last.truncated) == (3, False, True)
    assert last.final_observation is not None
    assert tally.stopped


def test_weights_change_between_episodes_only(env: RobotEnv, outbox: Outbox) -> None:
    learner = Learner(env)
    policy = PolicyRunner(specs(env), CONFIG, 0, learner, clock=lambda: PUBLISHED_WALL_S + 3.0)
    for _ in range(3):
        run(env, outbox, takeover=1000, policy=policy)
        learner.latest_weights()  # versions also go by unseen
    limit = env.task.max_episode_steps
    assert [step.weights_version for step in outbox.transitions] == [1] * limit + [3] * limit + [5] * limit
    assert {step.weights_age_s for step in outbox.transitions} == {3.0}


def test_before_any_weights_the_version_is_zero(env: RobotEnv, outbox: Outbox) -> None:
    tally = run(env, outbox, takeover=1000)
    assert {(step.weights_version, step.weights_age_s) for step in outbox.transitions} == {(0, 0.0)}
    assert tally.weights_ages_s == []
