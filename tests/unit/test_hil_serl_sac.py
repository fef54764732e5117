"""HIL-SERL's SAC and the gripper's critic against hand-computed values."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithms.base import NextFeature, next_feature_of
from learner.algorithms.gripper import GripperLearner
from learner.algorithms.hil_serl_sac import HilSerlSac
from policy.errors import ConfigError
from policy.gaussian_policy import GaussianPolicy, sample_tanh_gaussian
from policy.gripper_critic import choice_of, element_of
from tests.oracles import make_specs, random_batch, small_config, with_gripper

SPECS = make_specs(feature_dim=3, action_dim=2)


def make_sac(**tables: Any) -> HilSerlSac:
    return HilSerlSac(Agents.single(small_config(algorithm="hil_serl_sac", **tables)), SPECS)


def test_the_log_density_is_that_of_a_squashed_normal() -> None:
    """Against torch.distributions, also where tanh saturates."""
    policy = GaussianPolicy(SPECS, small_config(algorithm="hil_serl_sac").policy)
    feature = 3 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    mean, std = policy(feature)
    action, log_density = sample_tanh_gaussian(mean, std, noise)
    mean, std = mean.double(), std.double()
    raw = mean + std * noise.double()
    base = torch.distributions.Normal(mean, std)
    expected = (base.log_prob(raw) - torch.log1p(-(raw.tanh() ** 2))).sum(dim=1)  # type: ignore[no-untyped-call]
    assert torch.allclose(action.double(), raw.tanh(), atol=1e-6)
    assert torch.allclose(log_density.double(), expected, atol=1e-3)
    assert action.abs().max() <= 1


def test_the_standard_deviation_keeps_its_limits() -> None:
    policy = GaussianPolicy(SPECS, small_config(algorithm="hil_serl_sac").policy)
    for bias, limit in ((-100.0, 1e-5), (100.0, 5.0)):
        torch.nn.init.constant_(policy.log_std.bias, bias)
        assert policy(torch.zeros(1, 3))[1].detach().flatten().tolist() == pytest.approx([limit, limit])


@pytest.mark.parametrize(
    ("sac", "expected"),
    [
        ({}, 1 + 0.5 * 2),  # the smallest of all critics
        ({"critic_subset": 1}, None),
        ({"backup_entropy": True, "initial_temperature": 0.1}, 1 + 0.5 * (2 - 0.1 * -3)),
    ],
)
def test_targets_by_hand(sac: dict[str, Any], expected: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three target critics value every next action 2, 5 and 8; log-density -3; r = 1; gamma = 0.5."""
    algorithm = make_sac(policy={"num_critics": 3}, hil_serl_sac={"discount": 0.5, **sac})
    values = torch.tensor([2.0, 5.0, 8.0])[None, :, None]
    monkeypatch.setattr(algorithm, "_target_critic", lambda feature, action: values.expand(len(feature), -1, -1))
    monkeypatch.setattr(algorithm, "_sample", lambda feature, _: (torch.zeros(2, 2), torch.full((2,), -3.0)))
    batch = replace(random_batch(2, 3, 2), reward=torch.ones(2), is_terminal=torch.tensor([0.0, 1.0]))
    following = next_feature_of(batch, algorithm._heads, algorithm._target_heads)
    drawn = set()
    for _ in range(30):
        bootstrapped, terminal = algorithm._critic_targets(batch, following).tolist()
        assert terminal == 1
        drawn.add(round(bootstrapped, 6))
    assert drawn == ({round(expected, 6)} if expected else {2.0, 3.5, 5.0})


def test_the_actor_climbs_the_mean_over_critics_and_leaves_them_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One critic loves the first element twice as much as the other hates it: their mean rises, their minimum falls."""
    algorithm = make_sac(hil_serl_sac={"actor_learning_rate": 1e-2, "tune_temperature": False})
    slopes = torch.tensor([2.0, -1.0])
    monkeypatch.setattr(algorithm, "_critic", lambda feature, action: (action[:, :1] * slopes)[:, :, None])
    batch = random_batch(32, 3, 2)
    before = algorithm._sample(batch.observation.vector, torch.Generator().manual_seed(0))[0].mean(dim=0)
    for _ in range(50):
        algorithm._update_actor(batch)
    after = algorithm._sample(batch.observation.vector, torch.Generator().manual_seed(0))[0].mean(dim=0)
    assert after[0] > before[0] + 0.3


@pytest.mark.parametrize("initial_temperature", [1e-2, 1.0])
def test_the_temperature_moves_the_entropy_to_its_target(initial_temperature: float) -> None:
    """With values that do not depend on the action the entropy is above -A/2 at first, so alpha falls."""
    algorithm = make_sac(hil_serl_sac={"initial_temperature": initial_temperature})
    assert algorithm._temperature().item() == pytest.approx(initial_temperature)
    metrics = [algorithm.update_step(lambda: random_batch(32, 3, 2)) for _ in range(5)]
    assert float(metrics[0]["entropy"]) > -1
    assert float(metrics[-1]["temperature"]) < initial_temperature
    fixed = make_sac(hil_serl_sac={"initial_temperature": initial_temperature, "tune_temperature": False})
    for _ in range(5):
        metrics = [fixed.update_step(lambda: random_batch(32, 3, 2))]
    assert float(metrics[-1]["temperature"]) == pytest.approx(initial_temperature)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"algorithm": "cgpo", "policy": {"distribution": "gaussian"}}, "goes with 'diffusion'"),
        ({"algorithm": "hil_serl_sac", "policy": {"distribution": "diffusion"}}, "presets hil_serl_sac and"),
        ({"algorithm": "hil_serl_sac", "policy": {"num_quantiles": 25}}, "num_quantiles = 1"),
        ({"algorithm": "hil_serl_sac", "policy": {"behavior_candidates": 4}}, "behavior_candidates = 1"),
        ({"algorithm": "hil_serl_sac", "hil_serl_sac": {"critic_subset": 3}}, "critic_subset = 3"),
        ({"hil_serl_sac": {"discount": 1.0}}, "discount = 1.0"),
        ({"hil_serl_sac": {"initial_temperature": 0.0}}, "initial_temperature"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        small_config(**settings)


# --- the gripper's critic -------------------------------------------------------------------------------------------


def test_choices_are_those_of_the_action_spec() -> None:
    elements = torch.tensor([-1.0, -0.6, -0.5, 0.0, 0.5, 0.6, 1.0])
    assert choice_of(elements).tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert element_of(torch.tensor([0, 1, 2])).tolist() == [-1.0, 0.0, 1.0]


def test_double_dqn_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Online values (1, 2, 9) choose open, which the target values 4 of (7, 6, 4); reward scale 10, penalty 0.02."""
    config = small_config(gripper_penalty=0.02, replay={"reward_scale": 10.0})
    gripper = GripperLearner(Agents.single(config), with_gripper(SPECS), discount=0.5)
    online, target = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([7.0, 6.0, 4.0])
    monkeypatch.setattr(gripper, "critic", lambda feature: online.expand(len(feature), 3))
    monkeypatch.setattr(gripper, "target", lambda feature: target.expand(len(feature), 3))
    action = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    batch = replace(
        random_batch(3, 3, 3),
        action=action,
        reward=torch.tensor([0.0, 0.0, 10.0]),
        is_terminal=torch.tensor([0.0, 0.0, 1.0]),
        gripper_toggled=torch.tensor([True, False, False]),
    )
    feature = torch.zeros(3, 3)
    targets = [0.5 * 4 - 0.2, 0.5 * 4, 10.0]
    expected = sum((value - wanted) ** 2 for value, wanted in zip((1.0, 2.0, 9.0), targets, strict=True)) / 3
    loss: Tensor = gripper.loss(batch, feature, NextFeature(feature, feature))
    assert float(loss) == pytest.approx(expected)


def test_without_a_discrete_gripper_toggles_change_nothing() -> None:
    toggled = random_batch(16, 3, 2)
    quiet = replace(toggled, gripper_toggled=torch.zeros(16, dtype=torch.bool))
    first, second = make_sac(), make_sac()
    metrics = first.update_step(lambda: toggled)
    second.update_step(lambda: quiet)
    assert "gripper_loss" not in metrics
    for name, tensor in first.state().items():
        assert torch.equal(tensor, second.state()[name])
    assert math.isfinite(float(metrics["critic_loss"]))
