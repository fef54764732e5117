"""CGPO's parts by hand, each with stubs or closed forms around it, and whether the whole learns."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learner.agents import Agents
from learner.algorithms.base import next_feature_of, update_ema
from learner.algorithms.cgpo import Cgpo
from learner.noise import Noise
from learner.replay import Batch
from policy.encoder import EncoderInput
from tests.oracles import ClosedFormDenoiser, best_of_samples, gaussian, make_specs, random_batch, small_config

Critic = Callable[[Tensor, Tensor], Tensor]


def make_cgpo(feature_dim: int = 1, action_dim: int = 1, **tables: Any) -> Cgpo:
    return Cgpo(Agents.single(small_config(**tables)), make_specs(feature_dim, action_dim))


def batch_of(rows: int, **columns: Any) -> Batch:
    """A batch of zeros, one feature and one action wide, with some columns replaced."""
    zeros = torch.zeros(rows)
    column, false = EncoderInput(zeros[:, None]), torch.zeros(rows, dtype=torch.bool)
    empty = Batch(column, zeros[:, None], zeros, column, zeros, false, false)
    return replace(empty, **columns)


def snapshot(algorithm: Cgpo, part: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in algorithm.state().items() if name.startswith(f"{part}.")}


def is_same(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


# --- critic targets -----------------------------------------------------------------------------------------------


def critic_targets(algorithm: Cgpo, batch: Batch) -> Tensor:
    (candidates,) = algorithm._next_candidates([batch])
    next_feature = next_feature_of(batch, algorithm._heads, algorithm._target_heads)
    return algorithm._critic_targets(batch, next_feature, candidates)


def update_critic(algorithm: Cgpo, batch: Batch) -> None:
    algorithm._update_critic(batch, *algorithm._next_candidates([batch]))


@pytest.mark.parametrize("population", [False, True])
def test_each_batch_gets_the_candidates_of_its_own_next_states(population: bool) -> None:
    """Those that chains of its rows alone make of its share of the noise."""
    config = small_config(cgpo={"cta_ratio": 3, "critic": {"target_candidates": 2}})
    specs = make_specs(feature_dim=2, action_dim=2)
    leading = (2,) if population else ()
    agents = Agents([replace(config, seed=seed) for seed in range(2)], is_population=True)
    algorithm = Cgpo(agents if population else Agents.single(config), specs)
    batches = []
    for seed in range(3):
        batch = random_batch(4, 2, 2, seed)
        rows = batch.next_observation.vector.expand(*leading, 4, 2)
        batches.append(replace(batch, next_observation=EncoderInput(rows)))
    source = copy.deepcopy(algorithm._critic_noise)
    noise = source.chains(config.policy.denoising_steps, 3 * 4 * 2, 2).chunk(3, dim=-2)
    for batch, own_noise, candidates in zip(batches, noise, algorithm._next_candidates(batches), strict=True):
        feature = batch.next_observation.vector
        alone = algorithm._kernels.sample(algorithm._target_denoiser, feature, own_noise.contiguous())
        torch.testing.assert_close(candidates, alone.view(*leading, 4, 2, 2))


def critic_by_candidate(first: list[list[float]], second: list[list[float]]) -> Critic:
    """Quantiles (N, M) of the two candidates of the next state 0.25, told apart by the sign of their action."""

    def quantiles(feature: Tensor, action: Tensor) -> Tensor:
        assert bool((feature == 0.25).all())
        is_second = (action[:, 0] > 0)[:, None, None]
        return torch.where(is_second, torch.tensor(second), torch.tensor(first))

    return quantiles


def with_two_candidates(monkeypatch: pytest.MonkeyPatch, algorithm: Cgpo, online: Critic, target: Critic) -> None:
    """Let every next state have the candidates -0.5 and 0.5, rated by the two critics."""

    def candidates(denoiser: object, feature: Tensor, count: int, source: Noise) -> Tensor:
        assert denoiser is algorithm._target_denoiser  # the EMA actor proposes next actions
        return torch.tensor([[-0.5], [0.5]]).repeat(len(feature), 1, 1)

    monkeypatch.setattr(algorithm._diffusion, "candidates", candidates)
    # Modules refuse plain functions as attributes; the algorithm itself does not.
    monkeypatch.setattr(algorithm, "_critic", online)
    monkeypatch.setattr(algorithm, "_target_critic", target)


@pytest.mark.parametrize(
    ("critic_config", "expected"),
    [
        ({}, [1.0, 1.9]),  # the online critic picks the second candidate, the target critic rates it
        ({"ddqn": False}, [3.7, 4.6]),  # the target critic picks the first
        ({"target_type": "scalar"}, [1.45]),
        ({"target_truncation": "none"}, [1.0, 1.9, 5.5]),
    ],
)
def test_next_action_and_target_by_hand(
    critic_config: dict[str, Any], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Online values of the candidates (1, 2), target quantiles (3, 4, 5) and (0, 1, 5), one dropped; r = 1."""
    algorithm = make_cgpo(
        policy={"num_critics": 1, "num_quantiles": 3, "drop_quantiles": 1},
        cgpo={"discount": 0.9, "critic": {"target_candidates": 2, **critic_config}},
    )
    online = critic_by_candidate([[9.0, 1.0, 1.0]], [[2.0, 9.0, 2.0]])
    target = critic_by_candidate([[4.0, 3.0, 5.0]], [[5.0, 0.0, 1.0]])
    with_two_candidates(monkeypatch, algorithm, online, target)
    following = EncoderInput(torch.full((2, 1), 0.25))
    batch = batch_of(2, reward=torch.ones(2), is_terminal=torch.tensor([0.0, 1.0]), next_observation=following)
    bootstrapped, terminal = critic_targets(algorithm, batch)
    assert sorted(bootstrapped.tolist()) == pytest.approx(expected)
    assert terminal.tolist() == [1.0] * len(expected)


def test_twin_scalar_target_is_the_smaller_value_of_the_chosen_action(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make_cgpo(
        policy={"num_critics": 2, "num_quantiles": 1, "drop_quantiles": 0},
        cgpo={"discount": 0.9, "critic": {"target_candidates": 2, "type": "twin_scalar"}},
    )
    online = critic_by_candidate([[9.0], [1.0]], [[2.0], [3.0]])
    target = critic_by_candidate([[7.0], [8.0]], [[6.0], [4.0]])
    with_two_candidates(monkeypatch, algorithm, online, target)
    targets = critic_targets(algorithm, batch_of(1, next_observation=EncoderInput(torch.full((1, 1), 0.25))))
    assert targets.tolist() == [[pytest.approx(0.9 * 4)]]


def test_candidates_belong_to_their_own_state() -> None:
    """The policy of a state is the point mass on its feature, so any mix of states shows."""
    algorithm = make_cgpo(feature_dim=2, action_dim=2)
    denoiser = ClosedFormDenoiser(lambda x, step, feature: feature, algorithm._diffusion.schedule)
    feature = random_batch(7, 2, 2).observation.vector
    best = best_of_samples(algorithm, denoiser, feature, 3)
    torch.testing.assert_close(best, feature, rtol=0, atol=1e-6)


def test_best_of_many_is_worth_more_than_one() -> None:
    algorithm = make_cgpo(feature_dim=2, action_dim=2)
    feature = random_batch(200, 2, 2).observation.vector
    values = [
        algorithm._value_of(feature, best_of_samples(algorithm, algorithm._denoiser, feature, count))
        for count in (1, 4, 16)
    ]
    assert values[0].mean() < values[1].mean() < values[2].mean()


@pytest.mark.parametrize("layer_norm", [False, True])
def test_constant_reward_without_end_is_worth_its_geometric_sum(layer_norm: bool) -> None:
    """r = 1 for ever at gamma = 0.9: every quantile is 1 / (1 - 0.9) = 10, and truncation drops nothing but 10s."""
    algorithm = make_cgpo(
        policy={"critic_layer_norm": layer_norm, "denoising_steps": 2},
        cgpo={"discount": 0.9, "critic": {"learning_rate": 0.03, "target_candidates": 1}},
    )
    batch = batch_of(4, reward=torch.ones(4), action=torch.tensor([[-1.0], [-0.3], [0.3], [1.0]]))
    for _ in range(300):
        update_critic(algorithm, batch)
        update_ema(algorithm._target_critic, algorithm._critic, 0.3)
    quantiles = algorithm._critic(batch.observation.vector, batch.action)
    # Measured 9.87 to 10.00. Forgetting the first or counting one more reward would give 9 or 10.9.
    torch.testing.assert_close(quantiles, torch.full_like(quantiles, 10.0), rtol=0, atol=0.3)


# --- actor: targets, baseline, weights ----------------------------------------------------------------------------


@pytest.mark.parametrize(("vbase_critic", "expected"), [("online", (1.0, -2.0)), ("target", (3.0, 3.0))])
def test_base_value_learns_the_mean_of_the_policys_values(vbase_critic: str, expected: tuple[float, float]) -> None:
    """Values of two states' samples are 1 +- 1 and -2 +- 1, the target critic's 3. The best would be higher."""
    algorithm = make_cgpo(cgpo={"vbase_critic": vbase_critic, "value_learning_rate": 0.02})
    algorithm._target_critic.weights[-1].data.zero_()
    algorithm._target_critic.biases[-1].data.fill_(3.0)
    feature = torch.tensor([[-1.0], [1.0]]).repeat(32, 1)
    mean = torch.tensor([1.0, -2.0]).repeat(32)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        scatter = torch.randint(0, 2, (64,), generator=generator) * 2.0 - 1  # +-1
        base_value = algorithm._base_value(feature, torch.zeros(64, 1), mean + scatter)
    # A constant-rate Adam hovers around the mean: well within a fifth of the scatter.
    assert base_value[:2].tolist() == pytest.approx(expected, abs=0.2)
    assert not base_value.requires_grad


def test_other_base_values_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero is zero; sampled is the mean value over the policy of the row's own state."""
    nothing = make_cgpo(cgpo={"vbase": "zero"})
    assert nothing._base_value(torch.zeros(3, 1), torch.zeros(3, 1), torch.ones(3)).tolist() == [0, 0, 0]
    sampled = make_cgpo(cgpo={"vbase": "sampled", "vbase_samples": 200})
    feature = torch.tensor([[-0.5], [0.0], [0.4]])

    def policy(noisy_action: Tensor, step: int, feature: Tensor) -> Tensor:
        return gaussian(feature, 0.1, sampled._diffusion.schedule)(noisy_action, step, feature)

    monkeypatch.setattr(sampled, "_denoiser", policy)
    monkeypatch.setattr(sampled, "_value_of", lambda feature, action: 10 * action.squeeze(-1))
    # 10 x the mean action; five standard errors of at most 0.1 * 10 / sqrt(200).
    base_value = sampled._base_value(feature, torch.zeros(3, 1), torch.zeros(3))
    assert base_value.tolist() == pytest.approx([-5, 0, 4], abs=0.36)


def test_human_actions_become_targets_where_they_are_human_and_better() -> None:
    algorithm = make_cgpo(cgpo={"human_targets": True})
    batch = batch_of(
        4,
        action=torch.tensor([[0.5], [0.5], [0.5], [-0.5]]),
        is_human=torch.tensor([True, True, False, True]),
    )
    human_value = torch.tensor([0.5, -0.5, 0.5, -0.5])
    target, value, metrics = algorithm._target_action(
        batch, [torch.zeros(4, 1), batch.action], [torch.zeros(4), human_value]
    )
    assert target.flatten().tolist() == [0.5, 0, 0, 0]
    assert value.tolist() == [0.5, 0, 0, 0]
    assert float(metrics["human_target_fraction"]) == 0.25


def test_actor_loss_pairs_every_row_with_its_state_and_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A denoiser that takes a state's feature for its action errs on uniform rows, and on rows of another state."""
    algorithm = make_cgpo(feature_dim=2, action_dim=2, cgpo={"entropy_samples": 3, "entropy_anneal_steps": 0})
    schedule = algorithm._diffusion.schedule

    def knowing(noisy_action: Tensor, step: Tensor, feature: Tensor) -> Tensor:
        signal = schedule.sqrt_alpha_bar[step, None] * feature
        return (noisy_action - signal) / schedule.sqrt_one_minus_alpha_bar[step, None]

    monkeypatch.setattr(algorithm, "_denoiser", knowing)
    feature = random_batch(50, 2, 2).observation.vector
    uniform_alone = algorithm._actor_loss(feature, feature, torch.ones(50))
    assert uniform_alone > 1e-3
    torch.testing.assert_close(algorithm._actor_loss(feature, feature, torch.zeros(50)), torch.tensor(0.0))
    monkeypatch.setattr(algorithm, "_entropy_weight", 0.0)
    assert algorithm._actor_loss(feature, feature, torch.ones(50)) < 1e-9  # float32
    # Wrong targets count by their own weights.
    target, weight = feature.clone(), torch.ones(50)
    target[::5] += 0.5
    assert algorithm._actor_loss(feature, target, weight) > 1e-5
    weight[::5] = 0.0
    assert algorithm._actor_loss(feature, target, weight) < 1e-9


@pytest.mark.parametrize("weight_norm", ["none", "mean"])
@pytest.mark.parametrize("reduction", ["concat", "mean"])
def test_a_batch_without_any_advantage_leaves_everything_finite(weight_norm: str, reduction: str) -> None:
    """A value network far above the critic gives every state the weight 0."""
    algorithm = make_cgpo(cgpo={"weight_norm": weight_norm, "entropy_reduction": reduction})
    last = algorithm._value[-1]
    assert isinstance(last, nn.Linear)
    last.bias.data += 1000.0
    for _ in range(3):
        metrics = algorithm.update_step(lambda: random_batch(8, 1, 1))
        assert float(metrics["weight_max"]) == 0
        assert float(metrics["actor_loss"]) == 0
    assert all(tensor.isfinite().all() for tensor in algorithm.state().values())


@pytest.mark.parametrize("guidance", [{}, {"type": "naive"}, {"through_denoiser": False}])
def test_critic_and_actor_updates_move_only_their_own_networks(guidance: dict[str, Any]) -> None:
    algorithm = make_cgpo(feature_dim=2, action_dim=2, cgpo={"guidance": guidance})
    batch = random_batch(16, 2, 2)
    parts = ("critic", "denoiser", "value", "target_critic", "target_denoiser")

    def moved_by(update: Callable[[Batch], object]) -> set[str]:
        before = {part: snapshot(algorithm, part) for part in parts}
        update(batch)
        return {part for part in parts if not is_same(before[part], snapshot(algorithm, part))}

    assert moved_by(lambda batch: update_critic(algorithm, batch)) == {"critic"}
    for parameter in algorithm._critic.parameters():
        parameter.grad = None
    assert moved_by(lambda batch: algorithm._update_actor(batch, batch.observation.vector)) == {"denoiser", "value"}
    assert all(parameter.grad is None for parameter in algorithm._critic.parameters())


# --- the learner step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("updates", "expected"), [(1, 0.005), (100, 0.394230), (1000, 0.993346)])
def test_target_networks_follow_by_their_printed_share(updates: int, expected: float) -> None:
    target, online = nn.Linear(3, 2).requires_grad_(False), nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
        for parameter in online.parameters():
            parameter.fill_(1.0)
    for _ in range(updates):
        update_ema(target, online, 0.005)
    for parameter in target.parameters():  # float32 rounds once per update
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected), rtol=0, atol=2e-6)
    assert all(bool((parameter == 1).all()) for parameter in online.parameters())


def test_targets_follow_the_new_networks_and_the_online_ones_are_published() -> None:
    algorithm = make_cgpo(cgpo={"target_update_rate": 0.25})
    before = algorithm.state()
    algorithm.update_step([random_batch(8, 1, 1)].pop)
    after, published = algorithm.state(), algorithm.policy_tensors()
    for part in ("denoiser", "critic"):
        for name in snapshot(algorithm, part):
            assert not torch.equal(after[name], before[name])
            followed = 0.75 * before[f"target_{name}"] + 0.25 * after[name]
            torch.testing.assert_close(after[f"target_{name}"], followed)
            assert torch.equal(published[name], after[name])


@pytest.mark.parametrize("cta_ratio", [1, 2, 4])
def test_a_learner_step_draws_one_batch_per_critic_update(cta_ratio: int) -> None:
    algorithm = make_cgpo(cgpo={"cta_ratio": cta_ratio})
    batches = [random_batch(4, 1, 1, seed) for seed in range(cta_ratio)]
    algorithm.update_step(lambda: batches.pop(0))
    assert not batches
    state = algorithm.state()
    assert state["critic_optimiser.0.step"] == cta_ratio
    assert state["denoiser_optimiser.0.step"] == state["value_optimiser.0.step"] == state["actor_updates"] == 1


def test_warm_up_imitates_human_rows_alone_and_trains_the_critic_meanwhile() -> None:
    algorithm = make_cgpo(cgpo={"bc_warmup_steps": 2})
    batch = random_batch(8, 1, 1)
    before = snapshot(algorithm, "denoiser")
    critic_before = snapshot(algorithm, "critic")
    algorithm.update_step(lambda: replace(batch, is_human=torch.zeros(8, dtype=torch.bool)))
    assert is_same(before, snapshot(algorithm, "denoiser"))
    assert not is_same(critic_before, snapshot(algorithm, "critic"))
    metrics = algorithm.update_step(lambda: batch)
    assert not is_same(before, snapshot(algorithm, "denoiser"))
    assert "weight_mean" not in metrics
    assert "weight_mean" in algorithm.update_step(lambda: batch)


def test_the_targets_noise_does_not_depend_on_how_actions_are_synthesised() -> None:
    """One generator per purpose: an ablation of guidance or baseline sees the same critic and loss noise."""
    tables: list[dict[str, Any]] = [
        {},
        {"guidance": {"type": "none", "best_of": 3}},
        {"guidance": {"type": "naive"}},
        {"vbase": "sampled"},
    ]
    states = []
    for table in tables:
        algorithm = make_cgpo(cgpo=table)
        algorithm.update_step(lambda: random_batch(8, 1, 1))
        states.append(algorithm.state())
    for state in states[1:]:
        assert torch.equal(state["critic_noise"], states[0]["critic_noise"])
        assert torch.equal(state["loss_noise"], states[0]["loss_noise"])
