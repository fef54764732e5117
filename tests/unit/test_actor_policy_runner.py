"""Weights in the actor: newest wins, bad ones are refused, an evaluation keeps its own."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from actor.policy_runner import PolicyRunner
from policy.config import PolicyConfig
from policy.diffusion_policy import make_denoiser
from policy.spec import ActionSpec, Field, ObservationSpec, Specs

CONFIG = PolicyConfig(denoising_steps=3, denoiser_hidden=(8,), behavior_candidates=1)
SPECS = Specs(
    ObservationSpec((Field(name="x", unit="m", low=(-1.0,), high=(1.0,)),)),
    ActionSpec((Field(name="dx", unit="m", low=(-1.0,), high=(1.0,)),)),
)
OBSERVATION = {"x": np.zeros(1, np.float32)}


@dataclass(frozen=True)
class Weights:
    version: int
    tensors: Mapping[str, Tensor]
    published_wall_s: float = 0.0
    learner_step: int = 0


class Source:
    """Hands out whatever the test put there."""

    newest: Weights | None = None

    def latest_weights(self) -> Weights | None:
        return self.newest


def tensors(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {f"denoiser.{name}": tensor for name, tensor in make_denoiser(SPECS, CONFIG).state_dict().items()}


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def runner(source: Source) -> PolicyRunner:
    return PolicyRunner(SPECS, CONFIG, 0, source)


def actions(runner: PolicyRunner, count: int = 5) -> list[float]:
    return [float(runner.propose(OBSERVATION).action[0]) for _ in range(count)]


def test_the_newest_weights_replace_the_last_ones_once(runner: PolicyRunner, source: Source) -> None:
    assert not runner.swap_if_newer()
    assert runner.propose(OBSERVATION).weights_version == 0
    source.newest = Weights(4, tensors(1))
    assert runner.swap_if_newer()
    assert not runner.swap_if_newer()
    assert runner.propose(OBSERVATION).weights_version == 4


def test_a_learner_that_starts_over_is_followed(runner: PolicyRunner, source: Source) -> None:
    source.newest = Weights(40, tensors(1))
    runner.swap_if_newer()
    source.newest = Weights(1, tensors(2))
    assert runner.swap_if_newer()
    assert runner.weights_version == 1


def test_a_new_run_that_has_come_to_the_same_version_is_followed(runner: PolicyRunner, source: Source) -> None:
    source.newest = Weights(3, tensors(1))
    assert runner.swap_if_newer()
    source.newest = Weights(3, tensors(2))
    assert runner.swap_if_newer()
    assert not runner.swap_if_newer()


def test_bad_weights_are_refused_once_and_the_last_good_ones_stay(
    runner: PolicyRunner, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    good = tensors(1)
    source.newest = Weights(1, good)
    runner.swap_if_newer()
    reference = actions(runner.frozen_copy(seed=9))
    name = next(iter(good))
    for version, bad in (
        (2, {key: value for key, value in good.items() if key != name}),
        (3, good | {name: torch.full_like(good[name], torch.nan)}),
    ):
        source.newest = Weights(version, bad)
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            assert not runner.swap_if_newer()
            assert not runner.swap_if_newer()
        assert len(caplog.records) == 1
        assert f"version {version} refused, version 1 stays" in caplog.text
        assert name in caplog.text
    assert runner.weights_version == 1
    assert actions(runner.frozen_copy(seed=9)) == reference
    source.newest = Weights(4, tensors(2))
    assert runner.swap_if_newer()


def test_age_is_never_negative_when_the_machines_clocks_differ(source: Source) -> None:
    source.newest = Weights(1, tensors(1), published_wall_s=500.0)
    for now_s, age_s in ((499.0, 0.0), (507.5, 7.5)):
        runner = PolicyRunner(SPECS, CONFIG, 0, source, clock=lambda now_s=now_s: now_s)  # type: ignore[misc]
        runner.swap_if_newer()
        assert runner.propose(OBSERVATION).weights_age_s == age_s


def test_the_lag_counts_the_learners_steps_since_the_weights_in_use(source: Source) -> None:
    heard = 0
    runner = PolicyRunner(SPECS, CONFIG, 0, source, learner_step=lambda: heard)
    heard = 500
    assert runner.propose(OBSERVATION).weights_lag_steps == 0  # no weights, no lag
    source.newest = Weights(1, tensors(1), learner_step=450)
    runner.swap_if_newer()
    assert runner.propose(OBSERVATION).weights_lag_steps == 50
    heard = 20  # a learner that starts over
    assert runner.propose(OBSERVATION).weights_lag_steps == 0


def test_an_evaluation_neither_sees_later_weights_nor_disturbs_the_training_noise(source: Source) -> None:
    def training_actions(evaluate: bool) -> list[float]:
        runner = PolicyRunner(SPECS, CONFIG, 0, source)
        source.newest = Weights(1, tensors(1))
        runner.swap_if_newer()
        before = actions(runner)
        if evaluate:
            copy = runner.frozen_copy(seed=5)
            source.newest = Weights(2, tensors(2))
            actions(copy)
            assert not copy.swap_if_newer()
            assert copy.weights_version == 1
        return before + actions(runner)

    assert training_actions(evaluate=True) == training_actions(evaluate=False)
