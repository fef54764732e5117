"""What every algorithm with a diffusion policy does with it: sample, choose by value, and regress its noise."""

import torch
from torch import Tensor, nn

from learner.agents import Agents
from learner.kernels import make_kernels
from learner.noise import Noise
from policy.noise_schedule import make_noise_schedule
from policy.sampler import best_of


class Diffusion:
    """Shapes: `...` as in learner.agents, B states, K candidates, A action, R = B K rows of neighbouring candidates."""

    def __init__(self, agents: Agents, action_dim: int) -> None:
        policy = agents.config.policy
        self.kernels = make_kernels(agents)
        self.schedule = make_noise_schedule(policy.schedule, policy.denoising_steps).to(agents.device)
        self._action_dim = action_dim

    def chain_noise(self, rows: int, source: Noise) -> Tensor:
        """All noise of `rows` chains, (T + 1, ..., rows, A)."""
        return source.chains(self.schedule.num_steps, rows, self._action_dim)

    def candidates(self, denoiser: nn.Module, feature: Tensor, count: int, source: Noise) -> Tensor:
        """Unguided samples (..., B, K, A) of each state's policy, K = count, for feature (..., B, F)."""
        noise = self.chain_noise(feature.shape[-2] * count, source)
        return self.kernels.sample(denoiser, feature, noise).view(*feature.shape[:-1], count, self._action_dim)

    def best_of(self, critic: nn.Module, feature: Tensor, candidates: Tensor) -> Tensor:
        """Each state's candidate (..., B, A) of highest conservative value."""
        count = candidates.shape[-2]
        if count == 1:
            return candidates.squeeze(-2)
        values = self.kernels.value(critic, feature, candidates.flatten(-3, -2))
        return best_of(candidates, values.view(candidates.shape[:-1]))

    def denoising_error(self, denoiser: nn.Module, clean_action: Tensor, feature: Tensor, source: Noise) -> Tensor:
        """Squared error (..., R) of the predicted noise, mean over action elements, at a random level for each row.

        clean_action (..., R, A), feature (..., B, F). Source: CGPO Eq 5 and 18.
        """
        rows = clean_action.shape[-2]
        step = source.integers(self.schedule.num_steps, rows)
        noise = source.normal(rows, self._action_dim)
        noisy_action = self.schedule.add_noise(clean_action, step, noise)
        predicted = self.kernels.predict_noise(denoiser, noisy_action, step, feature)
        return (predicted - noise).square().mean(dim=-1)

    @torch.no_grad()
    def act(self, denoiser: nn.Module, critic: nn.Module, feature: Tensor, candidates: int, source: Noise) -> Tensor:
        """The best (..., B, A) of `candidates` unguided samples by the critic."""
        return self.best_of(critic, feature, self.candidates(denoiser, feature, candidates, source))
