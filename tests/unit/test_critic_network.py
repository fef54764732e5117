"""The critic ensemble against separate networks, and the conservative value by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from policy.critic_network import CriticEnsemble, conservative_value

HAND = torch.tensor([[[1.0, 2.0, 3.0, 4.0], [0.0, 8.0, 9.0, 10.0]]])  # (B, N, M) = (1, 2, 4)


def make_ensemble(layer_norm: bool) -> CriticEnsemble:
    torch.manual_seed(0)
    ensemble = CriticEnsemble(2, 3, hidden=(8, 7), num_critics=3, num_quantiles=5, layer_norm=layer_norm)
    with torch.no_grad():
        for parameter in ensemble.parameters():  # biases and gains start equal, which would hide a mix-up
            parameter.add_(0.3 * torch.randn_like(parameter))
    return ensemble


def separate_network(ensemble: CriticEnsemble, member: int) -> nn.Sequential:
    """Build critic `member` from torch's own layers."""
    layers: list[nn.Module] = []
    for index, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data = weight[member].detach().T.clone()
        linear.bias.data = bias[member, 0].detach().clone()
        layers.append(linear)
        if index == len(ensemble.weights) - 1:
            break
        if len(ensemble.norm_gains):
            norm = nn.LayerNorm(weight.shape[2])
            norm.weight.data = ensemble.norm_gains[index][member, 0].detach().clone()
            norm.bias.data = ensemble.norm_biases[index][member, 0].detach().clone()
            layers += [norm, nn.Tanh()]
        else:
            layers.append(nn.Mish())
    return nn.Sequential(*layers)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_ensemble_equals_separate_networks_in_values_and_action_gradients(layer_norm: bool) -> None:
    ensemble = make_ensemble(layer_norm)
    feature, action = torch.randn(6, 3), torch.randn(6, 2)

    def value_and_gradient(quantiles_of: nn.Module | CriticEnsemble, member: int) -> tuple[Tensor, Tensor]:
        probe = action.clone().requires_grad_()
        if isinstance(quantiles_of, CriticEnsemble):
            quantiles = quantiles_of(feature, probe)[:, member]
        else:
            quantiles = quantiles_of(torch.cat([feature, probe], dim=-1))
        return quantiles.detach(), torch.autograd.grad(quantiles.sum(), probe)[0]

    for member in range(3):
        separate = separate_network(ensemble, member)
        torch.testing.assert_close(value_and_gradient(ensemble, member), value_and_gradient(separate, member))


def test_members_of_a_new_ensemble_differ() -> None:
    torch.manual_seed(0)
    quantiles = CriticEnsemble(2, 3, (8,), 3, 5, layer_norm=False)(torch.randn(4, 3), torch.randn(4, 2))
    assert quantiles.shape == (4, 3, 5)
    assert not torch.allclose(quantiles[:, 0], quantiles[:, 1])


def test_initial_weights_scale_with_each_members_own_fan_in() -> None:
    torch.manual_seed(0)
    ensemble = CriticEnsemble(6, 17, (256, 256), 5, 25, layer_norm=False)
    for weight, fan_in in zip(ensemble.weights, (23, 256, 256), strict=True):
        std = 1 / (2 * math.sqrt(fan_in))
        assert weight.abs().max() <= 2 * std
        # A normal cut at 2 deviations keeps 0.8796 of its own; 5 standard errors.
        assert weight.std().item() == pytest.approx(0.8796 * std, rel=5 / math.sqrt(2 * weight.numel()))
    assert not any(bias.any() for bias in ensemble.biases)


@pytest.mark.parametrize(("num_dropped", "expected"), [(1, (2 + 17 / 3) / 2), (0, 4.625), (3, 0.5)])
def test_conservative_value_drops_within_each_critic(num_dropped: int, expected: float) -> None:
    """Pooled truncation would give 3.0 for one dropped quantile."""
    assert conservative_value(HAND, num_dropped).item() == pytest.approx(expected)


@given(st.permutations(range(4)), st.permutations(range(4)), st.integers(0, 3))
def test_conservative_value_does_not_depend_on_the_order_of_quantiles(
    first: list[int], second: list[int], num_dropped: int
) -> None:
    shuffled = torch.stack([HAND[:, 0, first], HAND[:, 1, second]], dim=1)
    torch.testing.assert_close(conservative_value(shuffled, num_dropped), conservative_value(HAND, num_dropped))


def test_only_kept_quantiles_carry_gradient() -> None:
    quantiles = HAND.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(conservative_value(quantiles, 1).sum(), quantiles)
    torch.testing.assert_close(gradient, torch.tensor([[[1.0, 1, 1, 0], [1, 1, 1, 0]]]) / 6)


def test_rows_have_their_own_value() -> None:
    quantiles = torch.cat([HAND, 7 * HAND + 3])
    value = conservative_value(quantiles, 1)
    assert value.shape == (2,)
    assert value[1].item() == pytest.approx(7 * value[0].item() + 3)


def test_scalar_critics_are_as_good_as_the_worse_one() -> None:
    assert conservative_value(torch.tensor([[[3.0], [-1.0]], [[0.5], [2.0]]]), 0).tolist() == [-1.0, 0.5]
