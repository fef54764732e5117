"""QVPO's parts by hand, each with stubs or closed forms around it. What all algorithms promise is in tests/contract."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithms.qvpo import Qvpo, q_weight
from learner.noise import Noise
from learner.replay import Batch
from policy.encoder import EncoderInput
from policy.errors import ConfigError
from tests.oracles import make_specs, random_batch, small_config


def make_qvpo(feature_dim: int = 1, action_dim: int = 1, **qvpo: Any) -> Qvpo:
    config = small_config(algorithm="qvpo", kernels="plain", qvpo=qvpo)
    return Qvpo(Agents.single(config), make_specs(feature_dim, action_dim))


def snapshot(algorithm: Qvpo, part: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in algorithm.state().items() if name.startswith(f"{part}.")}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("qadv", [3.0, 1.0, 0.0, 1.5]), ("qrelu", [6.0, 0.0, 2.0, 1.0])],
)
def test_weights_by_hand(kind: Any, expected: list[float]) -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [-4.0, -2.0, -3.0], [2.0, 2.0, 2.0], [1.0, 0.5, -3.0]])
    assert q_weight(values, kind).tolist() == pytest.approx(expected)
    population = values.unflatten(0, (2, 2))  # type: ignore[no-untyped-call]
    assert q_weight(population, kind).flatten().tolist() == pytest.approx(expected)


def test_target_critics_choose_the_next_action_and_rate_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates -0.5 and 0.5. Target critics (7, 6) and (5, 8): smallest 6 and 5. Online ones choose the other."""
    algorithm = make_qvpo(target_candidates=2, discount=0.9)

    def candidates(denoiser: object, feature: Tensor, count: int, source: Noise) -> Tensor:
        assert denoiser is algorithm._target_denoiser
        assert count == 2
        return torch.tensor([[-0.5], [0.5]]).repeat(len(feature), 1, 1)

    def values(first: list[float], second: list[float]) -> Any:
        def critic(feature: Tensor, action: Tensor) -> Tensor:
            is_second = action > 0  # (rows, 1)
            return torch.where(is_second, torch.tensor(second), torch.tensor(first))[..., None]

        return critic

    monkeypatch.setattr(algorithm._diffusion, "candidates", candidates)
    monkeypatch.setattr(algorithm._critics, "critic", values([0.0, 0.0], [9.0, 9.0]))
    monkeypatch.setattr(algorithm._critics, "target_critic", values([7.0, 6.0], [5.0, 8.0]))
    batch = replace(random_batch(2, 1, 1), reward=torch.ones(2), is_terminal=torch.tensor([0.0, 1.0]))
    targets = algorithm._critic_targets(batch, algorithm._critics.next_feature(batch))
    assert targets.tolist() == [[pytest.approx(1 + 0.9 * 6)], [1.0]]


def test_each_states_best_candidate_is_the_target_with_what_it_is_above_the_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values of a = -0.5, 0, 0.5 are s a, by the smaller critic: 0.5 |s| above the mean, at the side of s's sign."""
    algorithm = make_qvpo(candidates=3)
    seen: list[Tensor] = []

    def candidates(denoiser: object, feature: Tensor, count: int, source: Noise) -> Tensor:
        assert denoiser is algorithm._denoiser
        assert count == 3
        return torch.tensor([[-0.5], [0.0], [0.5]]).repeat(len(feature), 1, 1)

    def critic(feature: Tensor, action: Tensor) -> Tensor:
        value = feature * action
        return torch.stack([value, value.square() + 5], dim=1)

    def loss(feature: Tensor, target_action: Tensor, weight: Tensor) -> Tensor:
        seen.extend([target_action, weight])
        parameter: Tensor = next(algorithm._denoiser.parameters())
        return parameter.sum()

    monkeypatch.setattr(algorithm._diffusion, "candidates", candidates)
    monkeypatch.setattr(algorithm._critics, "critic", critic)
    monkeypatch.setattr(algorithm, "_actor_loss", loss)
    state = torch.tensor([[2.0], [-1.0], [4.0]])
    metrics = algorithm._update_actor(replace(random_batch(3, 1, 1), observation=EncoderInput(state)))
    target, weight = seen
    assert target.flatten().tolist() == [0.5, -0.5, 0.5]
    assert weight.tolist() == pytest.approx([1.0, 0.5, 2.0])
    assert float(metrics["weight_mean"]) == pytest.approx(3.5 / 3)


def knowing_denoiser(algorithm: Qvpo) -> Any:
    """Takes a state's feature for its action: errs on uniform rows, and on rows of another state."""
    schedule = algorithm._diffusion.schedule

    def denoiser(noisy_action: Tensor, step: Tensor, feature: Tensor) -> Tensor:
        signal = schedule.sqrt_alpha_bar[step, None] * feature
        return (noisy_action - signal) / schedule.sqrt_one_minus_alpha_bar[step, None]

    return denoiser


def test_actor_loss_pairs_every_row_with_its_state_and_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make_qvpo(2, 2, entropy_samples=3, entropy_weight=0.0)
    monkeypatch.setattr(algorithm, "_denoiser", knowing_denoiser(algorithm))
    feature = random_batch(50, 2, 2).observation.vector
    assert algorithm._actor_loss(feature, feature, torch.ones(50)) < 1e-9  # float32
    target, weight = feature.clone(), torch.ones(50)
    target[::5] += 0.5
    assert algorithm._actor_loss(feature, target, weight) > 1e-5
    weight[::5] = 0.0
    assert algorithm._actor_loss(feature, target, weight) < 1e-9


def test_beside_each_target_stand_actions_from_all_of_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = make_qvpo(2, 2, entropy_samples=3)
    rows: list[Tensor] = []

    def denoising_error(denoiser: object, clean_action: Tensor, feature: Tensor, source: Noise) -> Tensor:
        rows.append(clean_action)
        return torch.zeros(clean_action.shape[:-1])

    monkeypatch.setattr(algorithm._diffusion, "denoising_error", denoising_error)
    target = torch.full((400, 2), 0.25)
    algorithm._actor_loss(torch.zeros(400, 2), target, torch.ones(400))
    actions = rows[0].reshape(400, 4, 2)
    assert torch.equal(actions[:, 0], target)
    uniform = actions[:, 1:]
    assert uniform.abs().max() <= 1
    # Standard errors of 2,400 uniform numbers: 0.012 of the mean, 0.005 of the deviation.
    assert uniform.mean().item() == pytest.approx(0, abs=0.05)
    assert uniform.std().item() == pytest.approx(1 / 3**0.5, abs=0.025)


@pytest.mark.parametrize(("updates", "expected"), [(0, 1.0), (300, 0.7), (900, 0.1), (5000, 0.1)])
def test_the_uniform_share_falls_to_a_tenth(updates: int, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On exact targets the loss is that of the uniform rows alone, proportional to lambda and the weights."""
    losses = []
    for count in (0, updates):
        algorithm = make_qvpo(2, 2, entropy_anneal_steps=1000)
        algorithm._actor_updates.fill_(count)
        monkeypatch.setattr(algorithm, "_denoiser", knowing_denoiser(algorithm))
        feature = random_batch(50, 2, 2).observation.vector
        losses.append(float(algorithm._actor_loss(feature, feature, torch.full((50,), 3.0))))
    assert losses[0] > 1e-3
    assert losses[1] / losses[0] == pytest.approx(expected, rel=1e-4)


def test_an_update_draws_a_batch_for_each_network_and_its_targets_follow() -> None:
    algorithm = make_qvpo(target_update_rate=0.25)
    batches: list[Batch] = [random_batch(8, 1, 1, seed) for seed in range(2)]
    before = algorithm.state()
    metrics = algorithm.update_step(lambda: batches.pop(0))
    assert not batches
    assert float(metrics["weight_max"]) >= float(metrics["weight_mean"]) > 0
    after = algorithm.state()
    assert after["actor_updates"] == 1
    for part in ("denoiser", "critic"):
        for name in snapshot(algorithm, part):
            assert not torch.equal(after[name], before[name])
            followed = 0.75 * before[f"target_{name}"] + 0.25 * after[name]
            torch.testing.assert_close(after[f"target_{name}"], followed)


def test_the_actors_update_leaves_the_critics_alone() -> None:
    algorithm = make_qvpo()
    before = {part: snapshot(algorithm, part) for part in ("critic", "target_critic", "denoiser")}
    algorithm._update_actor(random_batch(8, 1, 1))
    moved = {
        part for part, tensors in before.items()
        if any(not torch.equal(tensor, algorithm.state()[name]) for name, tensor in tensors.items())
    }  # fmt: skip
    assert moved == {"denoiser"}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"qvpo": {"candidates": 1}}, "candidates = 1"),
        ({"qvpo": {"target_candidates": 0}}, "target_candidates = 0"),
        ({"qvpo": {"discount": 1.0}}, "discount"),
        ({"qvpo": {"entropy_samples": 0}}, "entropy_weight = 0"),
        ({"policy": {"num_quantiles": 5}}, "num_quantiles"),
        ({"policy": {"behavior_candidates": 1}}, r"qvpo\.entropy_weight = 0, or behavior_candidates = 4"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config(algorithm="qvpo", **tables)
