"""The denoising network eps_theta(noisy_action, step, feature)."""

import itertools
import math

import torch
from torch import Tensor, nn


class Denoiser(nn.Module):
    """Predict the noise in a noisy action.

    Shapes: noisy_action (B, A), step int or (B,) code indices, feature (B, F); returns (B, A).
    Layout of QVPO's network: concat[noisy_action, time embedding, feature] through mish layers.
    """

    def __init__(
        self, action_dim: int, feature_dim: int, hidden: tuple[int, ...], num_steps: int, time_embedding_dim: int = 32
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.register_buffer("time_table", sinusoidal_table(num_steps, time_embedding_dim), persistent=False)
        self.time_table: Tensor
        self.time_mlp = nn.Sequential(
            nn.Linear(time_embedding_dim, hidden[0]), nn.Mish(), nn.Linear(hidden[0], time_embedding_dim)
        )
        widths = (action_dim + time_embedding_dim + feature_dim, *hidden)
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.Mish()]
        self.trunk = nn.Sequential(*layers, nn.Linear(widths[-1], action_dim))
        self.apply(initialise_linear)

    def forward(self, noisy_action: Tensor, step: int | Tensor, feature: Tensor) -> Tensor:
        # The time MLP runs once per level, not once per row; most rows share few levels.
        time_embedding = self.time_mlp(self.time_table)[step]
        if isinstance(step, int):
            time_embedding = time_embedding.expand(noisy_action.shape[0], -1)
        predicted: Tensor = self.trunk(torch.cat([noisy_action, time_embedding, feature], dim=-1))
        return predicted


def sinusoidal_table(num_steps: int, dim: int) -> Tensor:
    """Return (num_steps, dim): row i is [sin(i w_j), cos(i w_j)], w_j = exp(-j ln(1e4) / (dim/2 - 1))."""
    half = dim // 2
    frequency = torch.exp(-math.log(1e4) / (half - 1) * torch.arange(half, dtype=torch.float64))
    angle = torch.arange(num_steps, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


def initialise_linear(module: nn.Module) -> None:
    """Truncated normal (2 std) with std = 1 / (2 sqrt(fan_in)) and zero bias, as in QVPO's code."""
    if isinstance(module, nn.Linear):
        std = 1 / (2 * math.sqrt(module.in_features))
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(module.bias)
