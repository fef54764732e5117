"""Interventions transition by transition: what a hand on a device executes, records, and leaves in which buffer."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actor.device_driver import DeviceDriver
from actor.env import RobotEnv, connect_backend
from actor.intervention import Arbiter
from actor.intervention_config import STYLES, InterventionSettings, TeleopConfig
from actor.loop import run_episode
from actor.policy_runner import PolicyRunner
from actor.tasks import make_task
from learner.config import ReplayConfig
from learner.replay import Replay
from learner.replay_buffer import ReplayBuffer
from policy.config import PolicyConfig
from policy.spec import Specs
from policy.transition import ActionSource, Recordable, RecordId, Transition
from robot.teleop.fake import Entry, FakeDevice

AWAY = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]  # up, and never to the target
REST = [0.0] * 6
LETTERS = {
    ActionSource.POLICY: "p",
    ActionSource.HUMAN_INTERVENTION: "h",
    ActionSource.HUMAN_DEMONSTRATION: "d",
}
SERL_2_STEPS = replace(STYLES["serl"], hold_s=0.2)
DEAD_ZONE = replace(STYLES["ours"], hold_s=0.0, dead_zone=0.2)


class Nothing:
    def latest_weights(self) -> None:
        return None


class Outbox:
    def __init__(self) -> None:
        self.steps: list[Transition] = []

    def offer(self, body: Recordable) -> None:
        assert isinstance(body, Transition)
        self.steps.append(body)


def drive(hand: str, settings: InterventionSettings, is_demonstration: bool = False) -> list[Transition]:
    """Run an episode with a hand that pushes (P), pushes slightly (s) or rests (.) in each step."""
    task = make_task("reach")
    env = RobotEnv(task, connect_backend("fake", task))
    deflections = {"P": AWAY, "s": [0.15 * value for value in AWAY], ".": REST}
    script: list[Entry] = [(1, deflections[letter], (False, False)) for letter in hand]
    device = FakeDevice(script)
    device.connect()
    driver = DeviceDriver(env, device, settings, TeleopConfig(device="fake"))
    config = PolicyConfig(denoising_steps=2, denoiser_hidden=(8,), behavior_candidates=1)
    policy = PolicyRunner(Specs(task.observation_spec, task.action_spec), config, 0, Nothing())
    outbox = Outbox()
    run_episode(
        env,
        policy,
        Arbiter(driver, round(settings.hold_s * task.control_rate_hz)),
        outbox,
        episode=0,
        seed=1,
        is_demonstration=is_demonstration,
        should_stop=lambda: len(outbox.steps) == len(hand) - 1,
    )
    assert len(outbox.steps) == len(hand)
    return outbox.steps


def learned(steps: list[Transition]) -> tuple[str, str]:
    """Feed the steps to a replay; return for each buffer which of them it holds, as their numbers."""
    task = make_task("reach")
    replay = Replay(ReplayConfig(capacity=100), task.observation_spec, task.action_spec.dim, seed=0)
    for sequence, step in enumerate(steps):
        replay.add(RecordId("robot", "a", sequence), step)
    return held(replay.online, steps), held(replay.demonstrations, steps)


def held(buffer: ReplayBuffer, steps: list[Transition]) -> str:
    if not len(buffer):
        return ""
    spec = make_task("reach").observation_spec
    every_row = buffer._valid.at(torch.arange(len(buffer)))
    features, actions, *_ = (column.numpy() for column in buffer.gather(every_row))
    numbers = []
    for feature, action in zip(features, actions, strict=True):
        (number,) = [
            step.step for step in steps if np.array_equal(spec.normalise(step.observation), feature)
        ]  # every observation is another one: the arm moves, or the order tells
        np.testing.assert_array_equal(action, steps[number].executed_action)
        numbers.append(str(number))
    return "".join(sorted(numbers))


@pytest.mark.parametrize(
    ("settings", "hand", "sources"),
    [
        (STYLES["hil_serl"], ".PP..P..", "phhpphpp"),  # control returns with the first neutral sample
        (SERL_2_STEPS, ".PP..P..", "phhhhhhh"),  # two more steps: one correction, not two
        (SERL_2_STEPS, ".P......", "phhhpppp"),
        (DEAD_ZONE, ".ssP.s..", "ppphpppp"),  # a touch of the table does not take over
        (STYLES["hil_serl"], ".ssP.s..", "phhhphpp"),
    ],
    ids=["hil_serl", "serl joins", "serl releases", "dead zone", "no dead zone"],
)
def test_who_acts_what_is_executed_and_where_it_goes(settings: InterventionSettings, hand: str, sources: str) -> None:
    steps = drive(hand, settings)
    assert "".join(LETTERS[step.source] for step in steps) == sources
    for step, letter in zip(steps, hand, strict=True):
        if not step.is_human:
            np.testing.assert_allclose(step.executed_action, step.policy_action, atol=1e-6)
            continue
        deflection = {"P": 1.0, "s": 0.15, ".": 0.0}[letter]  # of a hand at rest in its hold the arm stays
        beyond = max(0.0, deflection - settings.dead_zone) / (1 - settings.dead_zone)
        np.testing.assert_allclose(step.executed_action, [0, 0, beyond], atol=1e-6)
        assert not np.allclose(step.policy_action, step.executed_action, atol=1e-3)  # kept apart
    online, demonstrations = learned(steps)
    assert online == "01234567"
    assert demonstrations == "".join(str(number) for number, letter in enumerate(sources) if letter == "h")


def test_a_demonstration_enters_the_demonstrations_only() -> None:
    steps = drive("P.PP", STYLES["ours"], is_demonstration=True)
    assert {LETTERS[step.source] for step in steps} == {"d"}
    np.testing.assert_allclose([step.executed_action[2] for step in steps], [1, 0, 1, 1], atol=1e-6)
    assert learned(steps) == ("", "0123")
