"""alpha, what an algorithm of the SAC family pays for entropy."""

import math
from typing import Literal

import torch
from torch import Tensor, nn


class Temperature(nn.Module):
    """One positive number, moved by Adam. Called without arguments it returns alpha ().

    exp: as the codes of SAC and TQC have it; softplus: as HIL-SERL's.
    """

    def __init__(self, initial: float, positive: Literal["exp", "softplus"] = "exp") -> None:
        super().__init__()
        self._positive = positive
        raw = math.log(initial if positive == "exp" else math.expm1(initial))
        self.raw = nn.Parameter(torch.tensor(raw))

    def forward(self) -> Tensor:
        return self.raw.exp() if self._positive == "exp" else nn.functional.softplus(self.raw)
