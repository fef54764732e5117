"""The layers that several networks are made of."""

import itertools
from collections.abc import Sequence

from torch import nn


def bounded_mlp(width_in: int, widths: Sequence[int]) -> nn.Sequential:
    """Return HIL-SERL's MLP: LayerNorm and tanh after every layer, the last one too, so outputs lie within [-1, 1]."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise((width_in, *widths)):
        layers += [nn.Linear(fan_in, fan_out), nn.LayerNorm(fan_out), nn.Tanh()]
    return nn.Sequential(*layers)


def relu_mlp(width_in: int, widths: Sequence[int]) -> nn.Sequential:
    """Return an MLP with relu after every layer, the last one too."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise((width_in, *widths)):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers)
