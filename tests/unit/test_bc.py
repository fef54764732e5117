"""Behaviour cloning: human rows and nothing else, and the average of the networks acts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithms.bc import BehaviourCloning
from policy.encoder import EncoderInput
from policy.noise_schedule import make_noise_schedule
from policy.sampler import draw_noise, sample
from tests.oracles import make_specs, random_batch, small_config

SPECS = make_specs(feature_dim=2, action_dim=2)


def make_bc(**bc: float) -> BehaviourCloning:
    return BehaviourCloning(Agents.single(small_config(algorithm="bc", bc=bc)), SPECS)


def denoiser_of(algorithm: BehaviourCloning) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in algorithm.state().items() if name.startswith("denoiser.")}


def test_rows_of_the_policy_do_not_matter() -> None:
    batch = random_batch(16, 2, 2)
    assert 0 < int(batch.is_human.sum()) < 16
    others = ~batch.is_human[:, None]
    disturbed = replace(batch, action=torch.where(others, -batch.action, batch.action), reward=batch.reward + 5)
    first, second = make_bc(), make_bc()
    assert first.update_step([batch].pop)["actor_loss"] == second.update_step([disturbed].pop)["actor_loss"]
    for name, tensor in denoiser_of(first).items():
        torch.testing.assert_close(tensor, denoiser_of(second)[name], rtol=0, atol=0)


def test_the_loss_is_a_mean_over_human_rows() -> None:
    """Rows of the policy beside them do not dilute it: a tenth as many human rows keep the size of the loss."""
    batch = random_batch(4000, 2, 2)
    losses = []
    for share in (1.0, 0.1):
        shared = replace(batch, is_human=torch.arange(4000) < 4000 * share)
        losses.append(float(make_bc().update_step([shared].pop)["actor_loss"]))
    # A row's error varies by about its mean: four standard errors of the 400 rows.
    assert losses[1] == pytest.approx(losses[0], rel=0.2)


def test_a_batch_without_human_rows_changes_nothing() -> None:
    algorithm = make_bc()
    before = denoiser_of(algorithm)
    batch = replace(random_batch(8, 2, 2), is_human=torch.zeros(8, dtype=torch.bool))
    assert float(algorithm.update_step(lambda: batch)["actor_loss"]) == 0
    for name, tensor in denoiser_of(algorithm).items():
        assert torch.equal(tensor, before[name])


def test_the_average_of_the_networks_is_published() -> None:
    algorithm = make_bc(target_update_rate=0.25, learning_rate=0.01)
    expected = {name: tensor.clone() for name, tensor in denoiser_of(algorithm).items()}
    for seed in range(3):
        algorithm.update_step([random_batch(16, 2, 2, seed)].pop)
        for name, tensor in denoiser_of(algorithm).items():
            expected[name] = 0.75 * expected[name] + 0.25 * tensor
    published = algorithm.policy_tensors()
    for name, tensor in expected.items():
        torch.testing.assert_close(published[name], tensor)


def test_demonstrators_with_two_habits_are_cloned_with_both() -> None:
    """What a Gaussian policy would average to 0: actions of -0.6 and 0.6 in equal parts."""
    config = small_config(
        algorithm="bc",
        policy={"denoising_steps": 10, "denoiser_hidden": [32, 32, 32], "time_embedding_dim": 16},
        bc={"learning_rate": 0.01, "target_update_rate": 0.02},
    )
    algorithm = BehaviourCloning(Agents.single(config), make_specs(1, 1))
    batch = random_batch(64, 1, 1)
    habits = torch.tensor([[-0.6], [0.6]]).repeat(32, 1)
    batch = replace(
        batch, observation=EncoderInput(torch.zeros(64, 1)), action=habits, is_human=torch.ones(64, dtype=torch.bool)
    )
    for _ in range(1000):
        algorithm.update_step(lambda: batch)
    schedule = make_noise_schedule("cosine", 10)
    noise = draw_noise(schedule, 1000, 1, torch.Generator().manual_seed(0))
    actions = sample(algorithm._averaged_denoiser, schedule, torch.zeros(1000, 1), noise)
    for habit in (-0.6, 0.6):
        assert 0.3 < ((actions - habit).abs() < 0.2).float().mean() < 0.7  # measured .43 to .49
