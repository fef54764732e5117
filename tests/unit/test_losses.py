"""Losses and targets by hand."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner.losses import (
    advantage_weight,
    annealed_entropy_weight,
    combine_denoising_errors,
    mean_over_human_rows,
    quantile_huber_loss,
    scalar_critic_loss,
    target_atoms,
)

# --- critic -------------------------------------------------------------------------------------------------------


def test_quantile_huber_loss_and_gradient_by_hand() -> None:
    quantiles = torch.tensor([[[0.0, 1.0]]], requires_grad=True)
    loss = quantile_huber_loss(quantiles, torch.tensor([[0.5, 2.0]]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(0.203125)
    assert quantiles.grad is not None
    assert quantiles.grad.flatten().tolist() == pytest.approx([-0.09375, -0.15625])


@given(copies=st.integers(1, 4), kappa=st.sampled_from([0.1, 1.0, 3.0]))
def test_quantile_huber_loss_is_a_mean_over_batch_critics_and_atoms(copies: int, kappa: float) -> None:
    quantiles, targets = torch.tensor([[[0.0, 1.0, -2.0]]]), torch.tensor([[0.5, 2.0]])
    once = quantile_huber_loss(quantiles, targets, kappa)
    repeated = quantile_huber_loss(quantiles.repeat(copies, 3, 1), targets.repeat(copies, 2), kappa)
    torch.testing.assert_close(repeated, once)


def test_small_kappa_gives_the_pinball_loss() -> None:
    """|tau - 1[error < 0]| |error|: errors .5 and 2 at tau .25, errors -.5 and 1 at tau .75."""
    loss = quantile_huber_loss(torch.tensor([[[0.0, 1.0]]]), torch.tensor([[0.5, 2.0]]), kappa=1e-4)
    pinball = (0.25 * 0.5 + 0.25 * 2.0 + 0.25 * 0.5 + 0.75 * 1.0) / 4
    assert loss.item() == pytest.approx(pinball, abs=1e-4)


def test_quantiles_of_a_coin_converge_to_their_closed_form() -> None:
    """Reward 20 with probability 0.4, else 0.

    Setting the loss's slope to zero at a quantile z within kappa = 1 of 0 gives z = p tau / ((1 - p)(1 - tau)), within
    1 of 20 the mirror image. The step of the distribution lies at tau = 1 - p = 0.6.
    """
    probability, jackpot, num_quantiles = 0.4, 20.0, 5
    targets = jackpot * torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]])
    quantiles = torch.zeros(1, 1, num_quantiles, requires_grad=True)
    optimiser = torch.optim.LBFGS([quantiles], max_iter=500, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = quantile_huber_loss(quantiles, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    odds = probability / (1 - probability)
    expected = []
    for tau in (0.1, 0.3, 0.5, 0.7, 0.9):
        ratio = odds * tau / (1 - tau)
        expected.append(ratio if ratio < 1 else jackpot - 1 / ratio)
    assert quantiles.flatten().tolist() == pytest.approx(expected, abs=1e-2)


# Two critics of three quantiles, unsorted: pooled and per-critic truncation keep different atoms.
ATOMS = torch.tensor([[[3.0, 1.0, 2.0], [9.0, 0.0, 8.0]]])


@pytest.mark.parametrize(
    ("truncation", "num_dropped", "kept"),
    [
        ("pooled", 1, [0, 1, 2, 3]),
        ("per_net", 1, [0, 1, 2, 8]),
        ("pooled", 2, [0, 1]),
        ("per_net", 2, [0, 1]),
        ("none", 1, [0, 1, 2, 3, 8, 9]),
        ("pooled", 0, [0, 1, 2, 3, 8, 9]),
        ("per_net", 0, [0, 1, 2, 3, 8, 9]),
    ],
)
def test_truncation_of_target_atoms(
    truncation: Literal["pooled", "per_net", "none"], num_dropped: int, kept: list[float]
) -> None:
    atoms = target_atoms(torch.cat([ATOMS, -ATOMS]), num_dropped, truncation)
    assert atoms.shape == (2, len(kept))
    assert sorted(atoms[0].tolist()) == kept
    assert atoms[1].max() <= 0  # the other row keeps its own


def test_pooled_and_per_critic_truncation_have_the_printed_means() -> None:
    quantiles = torch.tensor([[[4.0, 2.0, 1.0, 3.0], [10.0, 0.0, 8.0, 9.0]]])
    assert target_atoms(quantiles, 1, "pooled").mean().item() == pytest.approx(3.0)
    assert target_atoms(quantiles, 1, "per_net").mean().item() == pytest.approx(3.833333, abs=1e-6)
    assert target_atoms(quantiles, 0, "pooled").mean().item() == pytest.approx(4.625)


def test_scalar_critics_share_one_target() -> None:
    """Errors of the two critics at two rows: 1, 2 and 0, -3."""
    loss = scalar_critic_loss(torch.tensor([[[2.0], [3.0]], [[5.0], [2.0]]]), torch.tensor([[1.0], [5.0]]))
    assert loss.item() == pytest.approx((1 + 4 + 0 + 9) / 4)


# --- actor --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reduction", "expected"), [("concat", 3.0), ("mean", 6.0)])
def test_actor_loss_by_hand(reduction: Literal["concat", "mean"], expected: float) -> None:
    """One state, one uniform action, A = 2: errors (1, 1) and (2, 0), so 1 and 2 as means over dimensions."""
    loss = combine_denoising_errors(
        target_error=torch.tensor([1.0]),
        uniform_error=torch.tensor([[2.0]]),
        weight=torch.tensor([3.0]),
        entropy_weight=0.5,
        reduction=reduction,
    )
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize(("reduction", "uniform_share"), [("concat", 0.2), ("mean", 0.02)])
def test_uniform_mass_relative_to_the_target(reduction: Literal["concat", "mean"], uniform_share: float) -> None:
    """lambda N_e under concat, lambda under mean: equal errors everywhere weigh the two terms."""
    target_error, uniform_error = torch.ones(4, requires_grad=True), torch.ones(4, 10, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 0.0, 5.0])
    combine_denoising_errors(target_error, uniform_error, weight, 0.02, reduction).backward()  # type: ignore[no-untyped-call]
    assert target_error.grad is not None
    assert uniform_error.grad is not None
    # Row by row: a state's uniform actions share the weight of its own target.
    torch.testing.assert_close(uniform_error.grad.sum(dim=1), uniform_share * target_error.grad)
    torch.testing.assert_close(target_error.grad / target_error.grad[0], weight)


def test_weights_by_hand_and_without_gradient() -> None:
    target_value = torch.tensor([2.0, 1.0], requires_grad=True)
    weight = advantage_weight(target_value, torch.tensor([1.5, 1.5]))
    assert weight.tolist() == [0.5, 0.0]
    assert not weight.requires_grad
    assert advantage_weight(torch.tensor([2.0, -1.0]), torch.zeros(2)).tolist() == [2.0, 0.0]


def test_entropy_weight_falls_to_a_tenth_and_stays_there() -> None:
    steps = torch.tensor([0, 500_000, 900_000, 1_000_000, 5_000_000])
    at = [float(annealed_entropy_weight(0.02, step, 1_000_000)) for step in steps]
    assert at == pytest.approx([0.02, 0.01, 0.002, 0.002, 0.002])
    assert annealed_entropy_weight(0.02, torch.tensor(10**9), 0) == 0.02


def test_each_agent_of_a_population_has_the_loss_of_its_own_rows() -> None:
    generator = torch.Generator().manual_seed(0)

    def pair(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator)

    quantiles, targets, values, weight = pair(6, 3, 5), pair(6, 9), pair(6, 2, 1), pair(6).abs()
    errors, is_human = pair(6, 4), pair(6) > 0
    losses: dict[str, Callable[[int | slice], Tensor]] = {
        "quantile": lambda p: quantile_huber_loss(quantiles[p], targets[p]),
        "scalar": lambda p: scalar_critic_loss(values[p], targets[p][..., :1]),
        "concat": lambda p: combine_denoising_errors(errors[p][..., 0], errors[p][..., 1:], weight[p], 0.02, "concat"),
        "mean": lambda p: combine_denoising_errors(errors[p][..., 0], errors[p][..., 1:], weight[p], 0.02, "mean"),
        "human": lambda p: mean_over_human_rows(errors[p][..., 0], is_human[p]),
        "atoms": lambda p: target_atoms(quantiles[p], 1, "pooled"),
    }
    for loss in losses.values():
        torch.testing.assert_close(loss(slice(None)), torch.stack([loss(0), loss(1)]))
