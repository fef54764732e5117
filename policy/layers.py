"""The layers that HIL-SERL's networks are made of."""

import itertools
from collections.abc import Sequence

from torch import nn


def bounded_mlp(width_in: int, widths: Sequence[int]) -> nn.Sequential:
    """Return an MLP with LayerNorm and tanh after every layer, the last one too: outputs stay within [-1, 1]."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise((width_in, *widths)):
        layers += [nn.Linear(fan_in, fan_out), nn.LayerNorm(fan_out), nn.Tanh()]
    return nn.Sequential(*layers)
