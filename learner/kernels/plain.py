"""The readable kernels: the equations as policy/ and learner/guidance.py state them."""

import torch
from torch import Tensor, nn

from learner.agents import Agents
from learner.guidance import make_guide
from learner.losses import quantile_huber_loss
from policy.critic_network import conservative_value
from policy.noise_schedule import make_noise_schedule
from policy.sampler import sample


class PlainKernels:
    """See learner.kernels.Kernels."""

    def __init__(self, agents: Agents) -> None:
        policy = agents.config.policy
        self._schedule = make_noise_schedule(policy.schedule, policy.denoising_steps).to(agents.device)
        self._num_dropped = policy.drop_quantiles
        self._guidance = agents.config.cgpo.guidance
        self._rate = agents.setting(lambda config: config.cgpo.guidance.rate, num_axes=2)

    def sample(self, denoiser: nn.Module, feature: Tensor, noise: Tensor) -> Tensor:
        return sample(denoiser, self._schedule, _each_row(feature, noise.shape[-2]), noise)

    def sample_pair(
        self, denoiser: nn.Module, critic: nn.Module, feature: Tensor, noise: Tensor, guided_noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        def value(feature: Tensor, action: Tensor) -> Tensor:
            return conservative_value(critic(feature, action), self._num_dropped)

        guide = make_guide(self._guidance, value, self._rate)
        unguided = sample(denoiser, self._schedule, feature, noise)
        return unguided, sample(denoiser, self._schedule, feature, guided_noise, guide)

    @torch.no_grad()
    def value(self, critic: nn.Module, feature: Tensor, action: Tensor) -> Tensor:
        return conservative_value(critic(_each_row(feature, action.shape[-2]), action), self._num_dropped)

    def quantiles(self, critic: nn.Module, feature: Tensor, action: Tensor, *, is_frozen: bool = False) -> Tensor:
        quantiles: Tensor = critic(feature, action)
        return quantiles

    def predict_noise(self, denoiser: nn.Module, noisy_action: Tensor, step: Tensor, feature: Tensor) -> Tensor:
        predicted: Tensor = denoiser(noisy_action, step, _each_row(feature, noisy_action.shape[-2]))
        return predicted

    def regress(self, network: nn.Module, inputs: Tensor) -> Tensor:
        outputs: Tensor = network(inputs)
        return outputs

    def quantile_huber_loss(self, quantiles: Tensor, targets: Tensor, kappa: float = 1.0) -> Tensor:
        return quantile_huber_loss(quantiles, targets, kappa)


def _each_row(feature: Tensor, rows: int) -> Tensor:
    """Repeat each state's feature (..., B, F) for its neighbouring rows: (..., rows, F)."""
    per_state = rows // feature.shape[-2]
    return feature if per_state == 1 else feature.repeat_interleave(per_state, dim=-2)
