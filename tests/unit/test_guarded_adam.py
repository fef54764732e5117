"""The guard before every optimiser step: what is not finite changes nothing, what is finite is plain Adam."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from learner.algorithms import ALGORITHMS, make_algorithm
from learner.algorithms.guarded_adam import GuardedAdam, read_counters
from policy.fast.native_check import why_unused
from tests.oracles import make_specs, random_batch, small_config

FORMS = [
    False,
    pytest.param(True, marks=pytest.mark.skipif(why_unused() is not None, reason="no compiled kernels here")),
]
POISON = {
    "loss nan": lambda weight: weight.sum() * torch.nan,
    "loss infinite": lambda weight: weight.square().sum() * torch.inf,
    "only the gradient infinite": lambda weight: (weight - weight.detach()).abs().sqrt().sum(),
    "gradient too large for its square": lambda weight: 1e30 * weight.sum(),
}


def good_loss(weight: Tensor) -> Tensor:
    return (weight - 3.0).square().sum()


@pytest.mark.parametrize("is_compiled", FORMS)
@pytest.mark.parametrize("max_norm", [0.0, 0.5])
@pytest.mark.parametrize("poison", POISON)
def test_a_step_that_is_not_finite_is_as_if_it_had_never_been(poison: str, max_norm: float, is_compiled: bool) -> None:
    weights = [nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2)]
    guarded, untouched = (GuardedAdam([weight], 0.1, is_compiled=is_compiled) for weight in weights)
    for step in range(6):
        if step in (0, 3, 4):
            guarded.descend(POISON[poison](weights[0]), max_norm)
        for optimiser, weight in zip((guarded, untouched), weights, strict=True):
            optimiser.descend(good_loss(weight), max_norm)
        assert torch.equal(weights[0], weights[1])
    assert read_counters({"a": guarded.counters(), "b": untouched.counters()})["a"].total == 3
    assert read_counters({"a": guarded.counters(), "b": untouched.counters()})["b"].total == 0


@pytest.mark.parametrize("is_compiled", FORMS)
def test_the_steps_skipped_in_a_row_are_counted_and_the_last_loss_is_known(is_compiled: bool) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimiser = GuardedAdam([weight], 0.1, is_compiled=is_compiled)
    for bad, total, in_a_row in ((True, 1, 1), (True, 2, 2), (False, 2, 0), (True, 3, 1)):
        optimiser.descend(weight.sum() * (torch.inf if bad else 2.0))
        counters = read_counters({"critic": optimiser.counters()})["critic"]
        assert (counters.total, counters.in_a_row) == (total, in_a_row)
    assert counters.loss == float("inf")


@pytest.mark.parametrize("is_compiled", FORMS)
@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_finite_steps_are_those_of_adam(max_norm: float, is_compiled: bool) -> None:
    weights = [nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2)]
    guarded = GuardedAdam([weights[0]], 0.1, eps=1e-5, is_compiled=is_compiled)
    plain = torch.optim.Adam([weights[1]], 0.1, eps=1e-5)
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


@pytest.mark.parametrize("is_compiled", FORMS)
def test_gradients_may_come_in_any_memory_order(is_compiled: bool) -> None:
    weights = [nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2)]
    gradient = torch.arange(6.0).view(3, 2).t() - 2.5
    assert not gradient.is_contiguous()
    for weight, own in zip(weights, (gradient, gradient.contiguous()), strict=True):
        optimiser = GuardedAdam([weight], 0.1, is_compiled=is_compiled)
        for _ in range(2):  # the first of which makes the moments
            optimiser.step_along([own], torch.tensor(1.0))
    assert torch.equal(weights[0], weights[1])
    assert torch.equal((torch.arange(6.0).view(2, 3) - weights[0]).sign(), gradient.sign())


@pytest.mark.skipif(why_unused() is not None, reason="no compiled kernels here")
def test_the_compiled_step_is_the_fused_one() -> None:
    """Over many tensors, of which one has a gradient now and then; that they changed is to be seen from their versions,
    and a state of either goes on in the other."""
    shapes = ((40, 17), (2, 5, 3), (1,), (5000,))
    twins = [[nn.Parameter(random(*shape)) for shape in shapes] for _ in range(2)]
    optimisers = [GuardedAdam(own, 0.01, is_compiled=index == 1) for index, own in enumerate(twins)]
    for step in range(12):
        if step == 8:
            states = [optimiser.state_dict() for optimiser in optimisers]
            for optimiser, state in zip(optimisers, states[::-1], strict=True):
                optimiser.load_state_dict(state)
        versions = [parameter._version for parameter in twins[1]]
        for optimiser in optimisers:
            gradients: list[Tensor | None] = [random(*shape, seed=step) for shape in shapes]
            if step % 3:
                gradients[1] = None
            optimiser.step_along(gradients, torch.tensor(float(step)), max_norm=20.0 * (step % 2))
        assert [parameter._version for parameter in twins[1]] == [version + 1 for version in versions]
    torch.testing.assert_close(twins[1], twins[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(optimisers[1].counters(), optimisers[0].counters())
    states = [optimiser.state_dict()["state"] for optimiser in optimisers]
    torch.testing.assert_close(states[1], states[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("is_compiled", FORMS)
def test_a_step_without_any_gradient_changes_nothing(is_compiled: bool) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimiser = GuardedAdam([weight], 0.1, is_compiled=is_compiled)
    optimiser.step_along([None], torch.tensor(1.0, dtype=torch.float64))
    optimiser.step_along([torch.zeros(2)], torch.tensor(1.0, dtype=torch.float64))
    assert torch.equal(weight, torch.ones(2))
    assert optimiser.counters().tolist() == [0, 0, 1, 0]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
