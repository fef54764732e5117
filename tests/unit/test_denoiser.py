"""The denoising network: time embedding, layout, initial weights."""

import math

import pytest
import torch
from torch import nn

from policy.denoiser import Denoiser, sinusoidal_table


def test_time_embedding_of_level_three_in_four_dimensions() -> None:
    embedding = sinusoidal_table(num_steps=4, dim=4)[3]
    expected = torch.tensor([math.sin(3), math.sin(3e-4), math.cos(3), math.cos(3e-4)])
    torch.testing.assert_close(embedding, expected)
    torch.testing.assert_close(embedding, torch.tensor([0.14112001, 0.0003, -0.98999250, 0.99999996]))


def test_one_level_for_all_rows_equals_that_level_in_every_row() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(action_dim=3, feature_dim=4, hidden=(16, 16), num_steps=7)
    x, feature = torch.randn(5, 3), torch.randn(5, 4)
    for step in range(7):
        torch.testing.assert_close(denoiser(x, step, feature), denoiser(x, torch.full((5,), step), feature))


def test_rows_are_independent_and_keep_their_own_level_and_feature() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(action_dim=3, feature_dim=4, hidden=(16, 16), num_steps=7)
    x, feature, step = torch.randn(5, 3), torch.randn(5, 4), torch.tensor([6, 0, 3, 3, 1])
    one_by_one = [denoiser(x[i : i + 1], int(step[i]), feature[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(denoiser(x, step, feature), torch.cat(one_by_one))


def test_output_depends_on_action_level_and_feature() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(action_dim=2, feature_dim=3, hidden=(16,), num_steps=4)
    x, feature = torch.zeros(1, 2), torch.zeros(1, 3)
    base = denoiser(x, 0, feature)
    for changed in (denoiser(x + 1, 0, feature), denoiser(x, 3, feature), denoiser(x, 0, feature + 1)):
        assert (changed - base).abs().max() > 1e-3


@pytest.mark.parametrize("hidden", [(256, 256), (256, 256, 256)])
def test_a_hidden_width_is_one_activation(hidden: tuple[int, ...]) -> None:
    """QVPO's lineage counts "2 hidden layers" and has three activations; here the tuple says what is built."""
    denoiser = Denoiser(action_dim=6, feature_dim=17, hidden=hidden, num_steps=20)
    linear = [layer for layer in denoiser.trunk if isinstance(layer, nn.Linear)]
    assert sum(isinstance(layer, nn.Mish) for layer in denoiser.trunk) == len(hidden)
    assert [(layer.in_features, layer.out_features) for layer in linear] == [
        (6 + 32 + 17, 256),
        *[(256, 256)] * (len(hidden) - 1),
        (256, 6),
    ]


def test_initial_weights_are_normal_within_two_deviations() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(action_dim=6, feature_dim=17, hidden=(256, 256), num_steps=20)
    for layer in denoiser.modules():
        if isinstance(layer, nn.Linear):
            std = 1 / (2 * math.sqrt(layer.in_features))
            assert layer.weight.abs().max() <= 2 * std
            # A normal cut at 2 deviations keeps 0.8796 of its own; 5 standard errors 0.8796 / sqrt(2 n).
            error = 5 / math.sqrt(2 * layer.weight.numel())
            assert layer.weight.std().item() == pytest.approx(0.8796 * std, rel=error)
            assert not layer.bias.any()
