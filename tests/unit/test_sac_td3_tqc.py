"""SAC, TD3 and TQC against values worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithms.base import update_ema
from learner.algorithms.guarded_adam import GuardedAdam
from learner.algorithms.sac import Sac
from learner.algorithms.td3 import Td3
from learner.algorithms.tqc import Tqc
from learner.noise import Noise
from learner.replay import Batch
from policy.critic_network import CriticEnsemble
from policy.deterministic_policy import DeterministicPolicy
from policy.encoder import EncoderInput
from policy.errors import ConfigError
from policy.gaussian_policy import GaussianPolicy
from tests.oracles import make_specs, random_batch, small_config

SPECS = make_specs(feature_dim=3, action_dim=2)


def make(name: str, **tables: Any) -> Any:
    algorithms: dict[str, Any] = {"sac": Sac, "td3": Td3, "tqc": Tqc}
    return algorithms[name](Agents.single(small_config(algorithm=name, **tables)), SPECS)


def one_rewarded_step(rows: int = 2) -> Batch:
    """r = 1 everywhere; the last row is terminal."""
    is_terminal = torch.zeros(rows)
    is_terminal[-1] = 1
    return replace(random_batch(rows, 3, 2), reward=torch.ones(rows), is_terminal=is_terminal)


def fix_policy(algorithm: Any, monkeypatch: pytest.MonkeyPatch, log_density: float) -> None:
    """Let the policy draw zeros of that log-density."""

    def sample(feature: Tensor, source: Noise) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(feature), 2), torch.full((len(feature),), log_density)

    monkeypatch.setattr(algorithm._actor, "_sample", sample)


def fix_values(algorithm: Any, monkeypatch: pytest.MonkeyPatch, name: str, values: list[list[float]]) -> None:
    """Let the critics of that name answer the same quantiles (N, M) everywhere."""
    table = torch.tensor(values)
    monkeypatch.setattr(algorithm._critics, name, lambda feature, action: table.expand(len(feature), -1, -1))


def targets_of(algorithm: Any, batch: Batch) -> list[list[float]]:
    targets: Tensor = algorithm._critic_targets(batch, algorithm._critics.next_feature(batch))
    return [[round(value, 5) for value in row] for row in targets.tolist()]


def test_sac_targets_the_smallest_value_and_the_next_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make("sac", sac={"discount": 0.5, "initial_temperature": 0.1})
    fix_policy(algorithm, monkeypatch, log_density=-3.0)
    fix_values(algorithm, monkeypatch, "target_quantiles", [[5.0], [2.0]])
    assert targets_of(algorithm, one_rewarded_step()) == [[1 + 0.5 * (2 + 0.1 * 3)], [1.0]]


def test_tqc_targets_the_lowest_of_all_quantiles_and_the_next_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """k = 1 of each of two critics: the two highest of the pool go, which are both the second critic's."""
    algorithm = make("tqc", tqc={"discount": 0.5, "initial_temperature": 0.1})
    fix_policy(algorithm, monkeypatch, log_density=-3.0)
    fix_values(algorithm, monkeypatch, "target_quantiles", [[4.0, 0.0, 2.0], [8.0, 1.0, 6.0]])
    kept = [1 + 0.5 * (value + 0.3) for value in (0, 1, 2, 4)]
    targets = [sorted(row) for row in targets_of(algorithm, one_rewarded_step())]
    assert targets == [[round(value, 5) for value in kept], [1.0] * 4]


@pytest.mark.parametrize(("name", "rises"), [("sac", False), ("tqc", True)])
def test_sac_climbs_the_smallest_value_and_tqc_the_mean(
    name: str, rises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One critic loves the first element twice as much as the other hates it; the smallest of both is best at 0."""
    algorithm = make(name, **{name: {"actor_learning_rate": 3e-2, "initial_temperature": 1e-3}})
    slopes = torch.tensor([2.0, -1.0])

    def quantiles(feature: Tensor, action: Tensor) -> Tensor:
        return (action[:, :1] * slopes)[:, :, None]

    monkeypatch.setattr(algorithm._critics, "quantiles", quantiles)
    monkeypatch.setattr(algorithm._critics, "descend", lambda *_: {})
    batch = random_batch(64, 3, 2)
    for _ in range(80):
        algorithm.update_step(lambda: batch)
    acted = algorithm.exploit(batch.observation, Noise([0], is_population=False), 1)[:, 0]
    assert (acted > 0.9).all() if rises else (acted.abs() < 0.3).all()


@pytest.mark.parametrize("name", ["sac", "tqc"])
@pytest.mark.parametrize(("target", "sign"), [(-5.0, -1), (5.0, 1)])
def test_log_alpha_moves_by_one_step_of_adam_towards_the_target_entropy(name: str, target: float, sign: int) -> None:
    """Adam's first step has the length of its rate, whatever the gradient's: alpha is changed in its logarithm."""
    table = {"target_entropy_per_element": target, "temperature_learning_rate": 0.01, "initial_temperature": 0.5}
    algorithm = make(name, **{name: table})
    metrics = algorithm.update_step(lambda: random_batch(8, 3, 2))
    assert algorithm._actor._temperature().item() == pytest.approx(0.5 * math.exp(0.01 * sign), rel=1e-5)
    (moments,) = algorithm._actor._temperature_optimiser.state.values()
    gradient = float(metrics["entropy"]) - 2 * target  # whatever alpha is
    assert moments["exp_avg"].item() == pytest.approx(0.1 * gradient, rel=1e-5)
    fixed = make(name, **{name: {**table, "tune_temperature": False}})
    metrics = fixed.update_step(lambda: random_batch(8, 3, 2))
    assert float(metrics["temperature"]) == fixed._actor._temperature().item() == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["sac", "tqc"])
def test_target_critics_follow_at_every_step(name: str) -> None:
    algorithm = make(name)
    for step in range(3):
        before = [parameter.clone() for parameter in algorithm._critics.target_critic.parameters()]
        algorithm.update_step(lambda step=step: random_batch(8, 3, 2, seed=step))
        online, after = algorithm._critics.critic.parameters(), algorithm._critics.target_critic.parameters()
        for old, goal, now in zip(before, online, after, strict=True):
            torch.testing.assert_close(now, torch.lerp(old, goal.detach(), 0.005))
            assert not torch.equal(now, old)


# --- TD3 ------------------------------------------------------------------------------------------------------------


def test_td3_targets_the_smallest_value_of_a_smoothed_action(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of 100 sigma is cut to 0.5; actions beyond the limit are cut to it. The critics answer the action."""
    algorithm = make("td3", td3={"discount": 0.5})
    monkeypatch.setattr(algorithm, "_target_actor", lambda feature: torch.tensor([[0.2, 0.9]]).expand(len(feature), -1))
    monkeypatch.setattr(algorithm._target_noise, "normal", lambda *shape: torch.full(shape, 100.0))
    seen = []

    def target_quantiles(feature: Tensor, action: Tensor) -> Tensor:
        seen.append(action)
        return torch.tensor([[5.0], [2.0]]).expand(len(feature), -1, -1)

    monkeypatch.setattr(algorithm._critics, "target_quantiles", target_quantiles)
    assert targets_of(algorithm, one_rewarded_step()) == [[2.0], [1.0]]
    torch.testing.assert_close(seen[0], torch.tensor([[0.7, 1.0]]).expand(2, -1))


def test_the_smoothing_noise_has_its_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make("td3", td3={"target_noise": 0.2, "noise_clip": 0.5}, policy={"deterministic_hidden": [4]})
    for parameter in algorithm._target_actor.parameters():
        parameter.zero_()
    seen: list[Tensor] = []

    def target_quantiles(feature: Tensor, action: Tensor) -> Tensor:
        seen.append(action)
        return torch.zeros(len(feature), 2, 1)

    monkeypatch.setattr(algorithm._critics, "target_quantiles", target_quantiles)
    batch = random_batch(20_000, 3, 2)
    algorithm._critic_targets(batch, algorithm._critics.next_feature(batch))
    assert seen[0].std().item() == pytest.approx(0.196, abs=0.003)  # of a normal of 0.2 cut at 2.5 sigma: 0.1955
    assert seen[0].abs().max().item() == pytest.approx(0.5)


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_actor_and_targets_move_at_every_nth_step_only(delay: int) -> None:
    """And then by exactly what they would have moved: the steps between leave no trace in Adam or in its counters."""
    algorithm = make("td3", td3={"policy_delay": delay})

    def tensors(name: str) -> Tensor:
        module = {
            "critic": algorithm._critics.critic,
            "target_critic": algorithm._critics.target_critic,
            "actor": algorithm._actor,
            "target_actor": algorithm._target_actor,
        }[name]
        return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])

    for step in range(1, 7):
        before = {name: tensors(name) for name in ("critic", "target_critic", "actor", "target_actor")}
        algorithm.update_step(lambda step=step: random_batch(8, 3, 2, seed=step))
        moved = {name for name, old in before.items() if not torch.equal(old, tensors(name))}
        assert moved == (set(before) if step % delay == 0 else {"critic"})
        for name in ("critic", "actor"):
            rate = 0.005 if step % delay == 0 else 0.0
            expected = torch.lerp(before[f"target_{name}"], tensors(name), rate)
            torch.testing.assert_close(tensors(f"target_{name}"), expected)
    adam = algorithm._actor_optimiser.state_dict()["state"][0]
    assert float(adam["step"]) == 6 // delay


def test_the_delay_hides_no_step_that_is_not_finite_and_counts_no_other() -> None:
    algorithm = make("td3")

    def poisoned(step: int) -> Batch:
        batch = random_batch(8, 3, 2, seed=step)
        batch.observation.vector.fill_(torch.nan)
        return batch

    for step in range(5):  # the second and the fourth are the actor's
        algorithm.update_step(lambda step=step: poisoned(step))
    skipped = algorithm.skipped_steps()
    assert (skipped["critic_optimiser"].total, skipped["critic_optimiser"].in_a_row) == (5, 5)
    assert (skipped["actor_optimiser"].total, skipped["actor_optimiser"].in_a_row) == (2, 2)
    for step in range(5, 9):
        algorithm.update_step(lambda step=step: random_batch(8, 3, 2, seed=step))
    skipped = algorithm.skipped_steps()
    assert (skipped["actor_optimiser"].total, skipped["actor_optimiser"].in_a_row) == (2, 0)
    assert algorithm._critics.critic.weights[0].isfinite().all()


def test_a_step_that_is_not_due_changes_nothing() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = GuardedAdam([weight], 0.1)
    not_due, due = torch.zeros(()), torch.ones(())
    optimiser.descend(weight.sum() * torch.nan, is_due=not_due)
    assert optimiser.counters().tolist() == [0, 0, 0, 0]
    optimiser.descend(weight.sum(), is_due=due)
    moved = weight.detach().clone()
    optimiser.descend(weight.square().sum(), is_due=not_due)
    assert torch.equal(weight.detach(), moved)
    torch.testing.assert_close(moved, torch.full((3,), 0.9))  # Adam's first step, not its third
    target, online = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    target.requires_grad_(False)
    old = target.weight.clone()
    update_ema(target, online, 0.25 * not_due)
    assert torch.equal(target.weight, old)
    update_ema(target, online, 0.25 * due)
    torch.testing.assert_close(target.weight, 0.75 * old + 0.25 * online.weight.detach())


def test_td3_climbs_the_first_critic_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make("td3", td3={"actor_learning_rate": 3e-2, "policy_delay": 1})
    slopes = torch.tensor([1.0, -5.0])

    def quantiles(feature: Tensor, action: Tensor) -> Tensor:
        return (action[:, :1] * slopes)[:, :, None]

    monkeypatch.setattr(algorithm._critics, "quantiles", quantiles)
    monkeypatch.setattr(algorithm._critics, "descend", lambda *_: {})
    batch = random_batch(64, 3, 2)
    for _ in range(60):
        algorithm.update_step(lambda: batch)
    assert (algorithm.exploit(batch.observation, Noise([0], is_population=False), 1)[:, 0] > 0.9).all()


def test_exploration_is_noisy_and_stays_within_the_limits() -> None:
    algorithm = make("td3", policy={"exploration_noise": 0.1})
    observation = EncoderInput(torch.tensor([[0.2, 0.3, -0.1]]).expand(20_000, -1))
    noise = Noise([0], is_population=False)
    exact, explored = algorithm.exploit(observation, noise, 1), algorithm.explore(observation, noise)
    assert (explored - exact).std().item() == pytest.approx(0.1, rel=0.03)
    with torch.no_grad():
        algorithm._actor.action.bias.fill_(10.0)
    edge = algorithm.explore(observation, noise)
    assert edge.max() == 1
    assert edge.min() < 0.8


# --- networks -------------------------------------------------------------------------------------------------------


def test_plain_networks_are_relu_layers_that_start_as_pytorch_makes_them() -> None:
    critic = CriticEnsemble(2, 3, (400,), 2, 1, layer_norm=False, activation="relu")
    for weight, bias in zip(critic.weights, critic.biases, strict=True):
        limit = weight.shape[1] ** -0.5
        for tensor in (weight, bias):
            assert tensor.abs().max() <= limit
        assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.1)
    assert critic.biases[0].std().item() == pytest.approx(5**-0.5 / math.sqrt(3), rel=0.1)
    feature, action = torch.randn(6, 3), torch.randn(6, 2)
    inputs = torch.cat([feature, action], dim=1)
    for index in range(2):
        hidden = (inputs @ critic.weights[0][index] + critic.biases[0][index]).clamp(min=0)
        expected = hidden @ critic.weights[1][index] + critic.biases[1][index]
        torch.testing.assert_close(critic(feature, action)[:, index], expected)


def test_the_plain_gaussian_has_the_limits_of_sac() -> None:
    policy = GaussianPolicy(SPECS, small_config(algorithm="sac").policy)
    assert [type(layer) for layer in policy.trunk] == [torch.nn.Linear, torch.nn.ReLU]
    for bias, log_std in ((-100.0, -20.0), (100.0, 2.0)):
        torch.nn.init.constant_(policy.log_std.bias, bias)
        std = policy(torch.zeros(1, 3))[1].detach()
        torch.testing.assert_close(std, torch.full((1, 2), math.exp(log_std)))


def test_the_deterministic_policy_is_the_tanh_of_its_last_layer() -> None:
    policy = DeterministicPolicy(SPECS, small_config(algorithm="td3").policy)
    feature = torch.randn(5, 3)
    expected = torch.tanh(policy.action(policy.trunk[0](feature).clamp(min=0)))
    torch.testing.assert_close(policy(feature), expected)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"algorithm": "sac", "policy": {"distribution": "diffusion"}}, "'gaussian'. The preset paper_mujoco_sac fits"),
        ({"algorithm": "td3", "policy": {"distribution": "gaussian"}}, "goes with 'deterministic'"),
        ({"algorithm": "tqc", "policy": {"distribution": "deterministic"}}, "goes with 'gaussian'"),
        ({"algorithm": "bc", "policy": {"distribution": "deterministic"}}, "goes with 'diffusion'"),
        ({"algorithm": "sac", "policy": {"num_quantiles": 25}}, r"num_quantiles = 1 \(not 25\)"),
        ({"algorithm": "td3", "policy": {"num_quantiles": 25}}, r"num_quantiles = 1 \(not 25\)"),
        ({"algorithm": "tqc", "policy": {"num_quantiles": 1, "drop_quantiles": 0}}, "num_quantiles = 25"),
        ({"algorithm": "tqc", "policy": {"behavior_candidates": 4}}, "behavior_candidates = 1"),
        ({"sac": {"discount": 1.0}}, "discount = 1.0"),
        ({"tqc": {"initial_temperature": 0.0}}, "initial_temperature = 0.0"),
        ({"td3": {"policy_delay": 0}}, "policy_delay = 0"),
        ({"td3": {"discount": 0.0}}, "td3.discount = 0.0"),
        ({"policy": {"exploration_noise": -0.1}}, "exploration_noise = -0.1"),
        ({"policy": {"critic_layer_norm": True, "critic_activation": "relu"}}, "critic_activation to 'mish'"),
        ({"policy": {"deterministic_hidden": []}}, "deterministic_hidden"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        small_config(**settings)
