"""The tanh-Gaussian policy of SAC and TQC, and of HIL-SERL's SAC."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policy.config import PolicyConfig
from policy.encoder import feature_dim
from policy.errors import ConfigError
from policy.layers import bounded_mlp, relu_mlp
from policy.spec import Specs

_BOUNDED_LOG_STD = (math.log(1e-5), math.log(5.0))  # HIL-SERL
_PLAIN_LOG_STD = (-20.0, 2.0)  # Stable-Baselines3 and TQC's code


class GaussianPolicy(nn.Module):
    """Feature (B, F) -> mean and standard deviation (B, A) each, of a normal that tanh maps into (-1, 1).

    policy.gaussian_layer_norm: HIL-SERL's layers and limits of the deviation, or relu layers and those of SAC's and
    TQC's codes, which also start as PyTorch makes them.
    """

    def __init__(self, specs: Specs, config: PolicyConfig) -> None:
        super().__init__()
        width, action_dim = config.gaussian_hidden[-1], specs.action.continuous_dim
        make_trunk = bounded_mlp if config.gaussian_layer_norm else relu_mlp
        self.trunk = make_trunk(feature_dim(specs, config), config.gaussian_hidden)
        self.mean = nn.Linear(width, action_dim)
        self.log_std = nn.Linear(width, action_dim)
        self._limits = _BOUNDED_LOG_STD if config.gaussian_layer_norm else _PLAIN_LOG_STD

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(feature)
        return self.mean(hidden), self.log_std(hidden).clamp(*self._limits).exp()


def sample_tanh_gaussian(mean: Tensor, std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return actions (..., B, A) in [-1, 1] and their log-densities (..., B), both differentiable in mean and std.

    mean, std and standard normal noise (..., B, A).
    """
    raw = mean + std * noise
    # log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2 x)), which keeps its digits where tanh has lost them
    log_slope = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
    log_normal = -0.5 * noise.square() - std.log() - 0.5 * math.log(2 * math.pi)
    return raw.tanh(), (log_normal - log_slope).sum(dim=-1)


class GaussianActor:
    """Acts by a sample, as HIL-SERL does in evaluations too; asked for one candidate, by the tanh of the mean."""

    def __init__(self, specs: Specs, config: PolicyConfig) -> None:
        self._network = GaussianPolicy(specs, config)
        self.modules: dict[str, nn.Module] = {"gaussian": self._network}

    def prepare(self) -> None:
        """The network acts as it is."""

    def act(self, feature: Tensor, candidates: int | None, generator: torch.Generator) -> Tensor:
        refuse_candidates(candidates)
        mean, std = self._network(feature)
        if candidates == 1:
            chosen: Tensor = mean.tanh()[0]
            return chosen
        noise = torch.randn(mean.shape, generator=generator)
        return sample_tanh_gaussian(mean, std, noise)[0][0]


def refuse_candidates(candidates: int | None) -> None:
    """Raise ConfigError when a policy without a critic is to choose among samples."""
    if candidates is not None and candidates > 1:
        raise ConfigError(
            f"{candidates} candidates asked for, but this policy is published without a critic to choose with. Ask "
            "for 1."
        )
