"""The tanh-Gaussian policy of HIL-SERL's SAC."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policy.config import PolicyConfig
from policy.encoder import feature_dim
from policy.errors import ConfigError
from policy.layers import bounded_mlp
from policy.spec import Specs

_MIN_STD, _MAX_STD = 1e-5, 5.0  # before the tanh; HIL-SERL


class GaussianPolicy(nn.Module):
    """Feature (B, F) -> mean and standard deviation (B, A) each, of a normal that tanh maps into (-1, 1)."""

    def __init__(self, specs: Specs, config: PolicyConfig) -> None:
        super().__init__()
        width, action_dim = config.gaussian_hidden[-1], specs.action.continuous_dim
        self.trunk = bounded_mlp(feature_dim(specs, config), config.gaussian_hidden)
        self.mean = nn.Linear(width, action_dim)
        self.log_std = nn.Linear(width, action_dim)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(feature)
        log_std = self.log_std(hidden).clamp(math.log(_MIN_STD), math.log(_MAX_STD))
        return self.mean(hidden), log_std.exp()

    def sample(self, feature: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return actions (B, A) in [-1, 1], differentiable in the weights, and their log-densities (B,)."""
        mean, std = self(feature)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        raw = mean + std * noise
        # log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2 x)), which keeps its digits where tanh has lost them
        log_slope = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        log_normal = -0.5 * noise.square() - std.log() - 0.5 * math.log(2 * math.pi)
        return raw.tanh(), (log_normal - log_slope).sum(dim=-1)


class GaussianActor:
    """Acts by one sample, in evaluations too, as HIL-SERL does."""

    def __init__(self, specs: Specs, config: PolicyConfig) -> None:
        self._network = GaussianPolicy(specs, config)
        self.modules: dict[str, nn.Module] = {"gaussian": self._network}

    def act(self, feature: Tensor, candidates: int | None, generator: torch.Generator) -> Tensor:
        if candidates is not None and candidates > 1:
            raise ConfigError(
                f"{candidates} candidates asked for, but a Gaussian policy is published without a critic to choose "
                "with. Ask for 1."
            )
        return self._network.sample(feature, generator)[0][0]
