"""Quantile critic ensemble and its conservative value; the actor needs both to choose among its own samples."""

import itertools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CriticEnsemble(nn.Module):
    """N independent MLPs on concat[feature, action] with M quantile outputs each, run as one batched matmul.

    Shapes: feature (B, F), action (B, A); returns quantiles (B, N, M), unsorted.
    activation: mish, with layers that start like the denoiser's (QVPO), or relu, with PyTorch's own start, as in the
    codes of SAC, TD3 and TQC.
    layer_norm: LayerNorm and tanh after each hidden layer instead of mish. Ours, not the paper's: without it the values
    of actions that no demonstration contains run away and a sparse-reward task is not learned (RLPD, arXiv:2302.02948).
    """

    def __init__(
        self,
        action_dim: int,
        feature_dim: int,
        hidden: tuple[int, ...],
        num_critics: int,
        num_quantiles: int,
        layer_norm: bool,
        activation: Literal["mish", "relu"] = "mish",
    ) -> None:
        super().__init__()
        self.action_dim, self.num_critics, self.num_quantiles = action_dim, num_critics, num_quantiles
        self.activation = activation
        widths = (feature_dim + action_dim, *hidden, num_quantiles)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(widths):
            weight, bias = torch.empty(num_critics, fan_in, fan_out), torch.zeros(num_critics, 1, fan_out)
            if activation == "relu":
                limit = 1 / math.sqrt(fan_in)  # torch.nn.Linear's own, of both
                nn.init.uniform_(weight, -limit, limit)
                nn.init.uniform_(bias, -limit, limit)
            else:
                std = 1 / (2 * math.sqrt(fan_in))  # as in the denoiser, see initialise_linear
                nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
            self.weights.append(weight)
            self.biases.append(bias)
        self.norm_gains = nn.ParameterList()
        self.norm_biases = nn.ParameterList()
        if layer_norm:
            for width in hidden:
                self.norm_gains.append(torch.ones(num_critics, 1, width))
                self.norm_biases.append(torch.zeros(num_critics, 1, width))

    def forward(self, feature: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([feature, action], dim=-1).expand(self.num_critics, -1, -1)  # (N, B, F + A)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if layer == last:
                break
            if len(self.norm_gains):
                normalised = F.layer_norm(x, x.shape[-1:])
                x = torch.tanh(normalised * self.norm_gains[layer] + self.norm_biases[layer])
            else:
                x = F.relu(x) if self.activation == "relu" else F.mish(x)
        return x.transpose(0, 1)


def conservative_value(quantiles: Tensor, num_dropped: int) -> Tensor:
    """Drop each critic's `num_dropped` highest quantiles and average the rest over quantiles and critics.

    Shapes: quantiles (..., N, M), any order; returns (...). Source: CGPO, arXiv:2605.30056, Eq 14. A single quantile
    per critic means scalar critics, whose conservative value is their minimum (the twin_scalar ablation).
    """
    num_quantiles = quantiles.shape[-1]
    if num_quantiles == 1:
        return quantiles.squeeze(-1).amin(dim=-1)
    total = quantiles.sum(dim=-1)
    if num_dropped:
        total = total - quantiles.topk(num_dropped, dim=-1).values.sum(dim=-1)  # cheaper than sorting all of them
    return (total / (num_quantiles - num_dropped)).mean(dim=-1)
