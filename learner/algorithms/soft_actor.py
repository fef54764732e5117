"""The policy side that SAC and TQC have in common: a tanh-Gaussian, and the temperature that keeps its entropy."""

from collections.abc import Callable

import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithm_config import SacConfig
from learner.algorithms.base import Metrics
from learner.algorithms.state import Stateful
from learner.algorithms.temperature import Temperature
from learner.config import LearnerConfig
from learner.noise import Noise
from policy.gaussian_policy import GaussianPolicy, sample_tanh_gaussian
from policy.spec import Specs


class SoftActor:
    """Letters: B batch, F feature, A action; `...` as in learner.agents."""

    def __init__(self, agents: Agents, specs: Specs, settings: Callable[[LearnerConfig], SacConfig]) -> None:
        policy, own = agents.config.policy, settings(agents.config)
        self.network = agents.network(lambda: GaussianPolicy(specs, policy))
        self._action_dim = specs.action.continuous_dim
        self._temperature = agents.network(lambda: Temperature(own.initial_temperature))
        self._is_tuned = own.tune_temperature
        self._target_entropy = own.target_entropy_per_element * self._action_dim
        self._optimiser = agents.optimiser(
            self.network.parameters(), lambda config: settings(config).actor_learning_rate
        )
        self._temperature_optimiser = agents.optimiser(
            self._temperature.parameters(), lambda config: settings(config).temperature_learning_rate
        )
        # One source per purpose, as in CGPO.
        self._target_noise, self._actor_noise = (agents.noise(purpose) for purpose in range(2))

    @torch.no_grad()
    def next_action(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Return an action (..., B, A) of each next state, and what its entropy is worth (..., B): -alpha log pi."""
        action, log_density = self._sample(feature, self._target_noise)
        return action, -self._temperature()[..., None] * log_density

    def ascend(self, feature: Tensor, value: Callable[[Tensor], Tensor]) -> Metrics:
        """Ascend E[value(a) - alpha log pi(a|s)] by one step; then move alpha towards the target entropy.

        feature (..., B, F) without gradient; value maps actions (..., B, A) to (..., B). Sources: SAC,
        arXiv:1812.05905, Eq 7 and 18; with log alpha for alpha in Eq 18, as in Stable-Baselines3 and TQC's code.
        """
        action, log_density = self._sample(feature, self._actor_noise)
        state_value = value(action)
        temperature: Tensor = self._temperature()
        loss = (temperature.detach()[..., None] * log_density - state_value).mean(dim=-1)
        self._optimiser.descend(loss)
        entropy = -log_density.detach().mean(dim=-1)
        if self._is_tuned:
            self._temperature_optimiser.descend(temperature.log() * (entropy - self._target_entropy))
        return {
            "actor_loss": loss.detach(),
            "q_mean": state_value.detach().mean(dim=-1),
            "entropy": entropy,
            "temperature": temperature.detach(),
            "policy_action_std": action.detach().std(dim=-2, correction=0).mean(dim=-1),
        }

    @torch.no_grad()
    def explore(self, feature: Tensor, noise: Noise) -> Tensor:
        """Return a sampled action (..., B, A) of each state."""
        return self._sample(feature, noise)[0]

    @torch.no_grad()
    def exploit(self, feature: Tensor) -> Tensor:
        """Return the tanh of each state's mean, (..., B, A), by which SAC and TQC are evaluated."""
        mean, _ = self.network(feature)
        action: Tensor = mean.tanh()
        return action

    def parts(self) -> dict[str, Stateful]:
        """Return what changes while it learns, as learner.algorithms.state.Resumable wants it."""
        return {
            "actor": self.network,
            "temperature": self._temperature,
            "actor_optimiser": self._optimiser,
            "temperature_optimiser": self._temperature_optimiser,
            "target_noise": self._target_noise,
            "actor_noise": self._actor_noise,
        }

    def _sample(self, feature: Tensor, source: Noise) -> tuple[Tensor, Tensor]:
        mean, std = self.network(feature)
        return sample_tanh_gaussian(mean, std, source.normal(feature.shape[-2], self._action_dim))
