"""TD3's policy: one action for each state."""

import torch
from torch import Tensor, nn

from policy.config import PolicyConfig
from policy.encoder import feature_dim
from policy.gaussian_policy import refuse_candidates
from policy.layers import relu_mlp
from policy.spec import Specs


class DeterministicPolicy(nn.Module):
    """Feature (B, F) -> action (B, A) in (-1, 1): relu layers, then tanh. Layers start as PyTorch makes them (TD3)."""

    def __init__(self, specs: Specs, config: PolicyConfig) -> None:
        super().__init__()
        self.trunk = relu_mlp(feature_dim(specs, config), config.deterministic_hidden)
        self.action = nn.Linear(config.deterministic_hidden[-1], specs.action.continuous_dim)

    def forward(self, feature: Tensor) -> Tensor:
        action: Tensor = self.action(self.trunk(feature)).tanh()
        return action


def with_exploration_noise(action: Tensor, noise: Tensor, std: float) -> Tensor:
    """Return the action plus std times standard normal noise of its shape, within [-1, 1]."""
    return (action + std * noise).clamp(-1, 1)


class DeterministicActor:
    """Acts with exploration noise, as data are collected; asked for one candidate, without."""

    def __init__(self, specs: Specs, config: PolicyConfig) -> None:
        self._network = DeterministicPolicy(specs, config)
        self._noise_std = config.exploration_noise
        self.modules: dict[str, nn.Module] = {"deterministic": self._network}

    def prepare(self) -> None:
        """The network acts as it is."""

    def act(self, feature: Tensor, candidates: int | None, generator: torch.Generator) -> Tensor:
        refuse_candidates(candidates)
        action: Tensor = self._network(feature)[0]
        if candidates == 1:
            return action
        return with_exploration_noise(action, torch.randn(action.shape, generator=generator), self._noise_std)
