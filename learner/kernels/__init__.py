"""The inner loops that an update spends its time in, twice: `plain` is the reference, `fast` computes the same sooner.

Algorithms call them through the Kernels protocol, so they read the same whichever runs.
"""

import logging
from typing import Protocol

from torch import Tensor, nn

from learner.agents import Agents
from learner.kernels.fast import FastKernels
from learner.kernels.plain import PlainKernels

logger = logging.getLogger(__name__)


class Kernels(Protocol):
    """Shapes: `...` as in learner.agents, B states, K rows of each, which are neighbours; F feature, A action.

    Networks are a Denoiser and a CriticEnsemble, or a Population of them.
    """

    def sample(self, denoiser: nn.Module, feature: Tensor, noise: Tensor) -> Tensor:
        """Unguided actions (..., B K, A) for feature (..., B, F) and noise (T + 1, ..., B K, A), without gradient."""

    def sample_pair(
        self, denoiser: nn.Module, critic: nn.Module, feature: Tensor, noise: Tensor, guided_noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One unguided and one guided action (..., B, A) of each state, without gradient.

        noise and guided_noise (T + 1, ..., B, A); with cgpo.shared_prefix they agree before guidance begins.
        """

    def value(self, critic: nn.Module, feature: Tensor, action: Tensor) -> Tensor:
        """Conservative value (..., B K) of action (..., B K, A) in the states feature (..., B, F), without gradient."""

    def quantiles(self, critic: nn.Module, feature: Tensor, action: Tensor, *, is_frozen: bool = False) -> Tensor:
        """Quantiles (..., B, N, M) of feature (..., B, F) and action (..., B, A), differentiable in all three.

        is_frozen: of the critic's parameters nobody wants the gradient, which then costs nothing.
        """

    def predict_noise(self, denoiser: nn.Module, noisy_action: Tensor, step: Tensor, feature: Tensor) -> Tensor:
        """eps (..., B K, A) for noisy_action (..., B K, A), step (..., B K), feature (..., B, F).

        Differentiable in the denoiser's parameters and the feature.
        """

    def regress(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Outputs (..., B, out) of a network for inputs (..., B, in), differentiable in its parameters."""

    def quantile_huber_loss(self, quantiles: Tensor, targets: Tensor, kappa: float = 1.0) -> Tensor:
        """Loss (...) of quantiles (..., B, N, M) to targets (..., B, L): see learner.losses.quantile_huber_loss."""


def make_kernels(agents: Agents) -> Kernels:
    """Return what `learner.kernels` names, and log it; auto is the fast ones."""
    if agents.config.kernels == "plain":
        logger.info("plain kernels on %s, as learner.kernels asks", agents.device.type)
        return PlainKernels(agents)
    fast = FastKernels(agents)
    logger.info("fast kernels on %s: %s", agents.device.type, fast.how())
    return fast
