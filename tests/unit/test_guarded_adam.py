"""The guard before every optimiser step: what is not finite changes nothing, what is finite is plain Adam."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from learner.algorithms import ALGORITHMS, make_algorithm
from learner.algorithms.guarded_adam import GuardedAdam, read_counters
from tests.oracles import make_specs, random_batch, small_config

POISON = {
    "loss nan": lambda weight: weight.sum() * torch.nan,
    "loss infinite": lambda weight: weight.square().sum() * torch.inf,
    "only the gradient infinite": lambda weight: (weight - weight.detach()).abs().sqrt().sum(),
    "gradient too large for its square": lambda weight: 1e30 * weight.sum(),
}


def good_loss(weight: Tensor) -> Tensor:
    return (weight - 3.0).square().sum()


@pytest.mark.parametrize("max_norm", [0.0, 0.5])
@pytest.mark.parametrize("poison", POISON)
def test_a_step_that_is_not_finite_is_as_if_it_had_never_been(poison: str, max_norm: float) -> None:
    weights = [nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2)]
    guarded, untouched = (GuardedAdam([weight], 0.1) for weight in weights)
    for step in range(6):
        if step in (0, 3, 4):
            guarded.descend(POISON[poison](weights[0]), max_norm)
        for optimiser, weight in zip((guarded, untouched), weights, strict=True):
            optimiser.descend(good_loss(weight), max_norm)
        assert torch.equal(weights[0], weights[1])
    assert read_counters({"a": guarded.counters(), "b": untouched.counters()})["a"].total == 3
    assert read_counters({"a": guarded.counters(), "b": untouched.counters()})["b"].total == 0


def test_the_steps_skipped_in_a_row_are_counted_and_the_last_loss_is_known() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimiser = GuardedAdam([weight], 0.1)
    for bad, total, in_a_row in ((True, 1, 1), (True, 2, 2), (False, 2, 0), (True, 3, 1)):
        optimiser.descend(weight.sum() * (torch.inf if bad else 2.0))
        counters = read_counters({"critic": optimiser.counters()})["critic"]
        assert (counters.total, counters.in_a_row) == (total, in_a_row)
    assert counters.loss == float("inf")


@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_finite_steps_are_those_of_adam(max_norm: float) -> None:
    weights = [nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2)]
    guarded, plain = GuardedAdam([weights[0]], 0.1, eps=1e-5), torch.optim.Adam([weights[1]], 0.1, eps=1e-5)
    for _ in range(20):
        guarded.descend(good_loss(weights[0]), max_norm)
        plain.zero_grad()
        good_loss(weights[1]).backward()  # type: ignore[no-untyped-call]
        if max_norm:
            nn.utils.clip_grad_norm_([weights[1]], max_norm)
        plain.step()
    torch.testing.assert_close(weights[0], weights[1])


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_no_algorithm_lets_a_bad_batch_into_its_networks(name: str, poison: float) -> None:
    """Neither into what is trained nor into the targets that follow it."""
    algorithm = make_algorithm(small_config(algorithm=name), make_specs(feature_dim=3, action_dim=2))
    for step in range(4):
        batch = random_batch(8, 3, 2, step)
        if step in (1, 2):
            batch = replace(batch, reward=batch.reward * poison, action=batch.action * poison)
        algorithm.update_step(lambda batch=batch: batch)  # type: ignore[misc]
    state = algorithm.state()
    assert not [key for key, tensor in state.items() if not tensor.isfinite().all()]
    skipped = algorithm.skipped_steps()
    assert sum(counters.total for counters in skipped.values()) >= 2
    assert all(counters.in_a_row == 0 for counters in skipped.values())


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_restored_algorithm_knows_what_was_left_out_and_its_state_is_finite(name: str) -> None:
    """The last loss was not; a graph goes on using the same counters."""
    learned, restored = (make_algorithm(small_config(algorithm=name), make_specs(3, 2)) for _ in range(2))
    for step in range(4):
        batch = random_batch(8, 3, 2, step)
        bad = replace(batch, reward=batch.reward * torch.nan, action=batch.action * torch.nan)
        learned.update_step(lambda batch=bad if step in (0, 3) else batch: batch)  # type: ignore[misc]
    state = learned.state()
    assert all(tensor.isfinite().all() for tensor in state.values())
    before = {name: counters.data_ptr() for name, counters in restored.counters().items()}
    restored.load_state(state)
    assert {name: counters.data_ptr() for name, counters in restored.counters().items()} == before
    expected, found = learned.skipped_steps(), restored.skipped_steps()
    assert sum(steps.total for steps in expected.values()) >= 2
    assert any(steps.in_a_row for steps in expected.values())
    assert {name: steps[:2] for name, steps in found.items()} == {name: steps[:2] for name, steps in expected.items()}
    fresh = make_algorithm(small_config(algorithm=name), make_specs(3, 2)).state()
    restored.load_state(fresh)
    assert not any(steps.total for steps in restored.skipped_steps().values())


def test_gradients_may_come_in_any_memory_order() -> None:
    weights = [nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2)]
    gradient = torch.arange(6.0).view(3, 2).t() - 2.5
    assert not gradient.is_contiguous()
    for weight, own in zip(weights, (gradient, gradient.contiguous()), strict=True):
        GuardedAdam([weight], 0.1).step_along([own], torch.tensor(1.0))
    assert torch.equal(weights[0], weights[1])
    assert torch.equal((torch.arange(6.0).view(2, 3) - weights[0]).sign(), gradient.sign())
