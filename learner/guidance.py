"""Guides that turn the reverse process towards actions the critic values: DSG and naive guidance.

Guided chains only make training targets. The robot samples without a guide.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from learner.algorithm_config import GuidanceConfig
from policy.noise_schedule import NoiseSchedule
from policy.sampler import NoisePredictor, ReverseMean, reverse_mean

ValueFunction = Callable[[Tensor, Tensor], Tensor]  # (feature (B, F), action (B, A)) -> (B,)
_NORM_FLOOR = 1e-8  # DSG's code; keeps a zero gradient from dividing by zero


def make_guide(config: GuidanceConfig, value: ValueFunction, rate: Tensor | float | None = None) -> "ValueGuide | None":
    """Return the guide that `config` names, or None for unguided targets; rate (P, 1, 1) where agents differ in it."""
    if config.type == "none" or config.steps == 0:
        return None
    guide = DsgGuide if config.type == "dsg" else NaiveGuide
    return guide(config, value, config.rate if rate is None else rate)


class ValueGuide:
    """Replaces the last G reverse steps by ones that follow the critic.

    The very last step has sigma = 0, so nothing could move: it is left to the unguided sampler.
    """

    def __init__(self, config: GuidanceConfig, value: ValueFunction, rate: Tensor | float) -> None:
        self._config = config
        self._value = value
        self._rate = rate

    def is_active(self, step: int) -> bool:
        return 1 <= step < self._config.steps

    def reverse_step(
        self, denoiser: NoisePredictor, schedule: NoiseSchedule, x: Tensor, step: int, feature: Tensor, noise: Tensor
    ) -> Tensor:
        prediction, ascent = value_ascent(self._config, self._value, denoiser, schedule, x, step, feature)
        return self.move(prediction.mean, ascent, schedule.sigma[step], noise)

    def move(self, mean: Tensor, ascent: Tensor, sigma: Tensor | float, noise: Tensor) -> Tensor:
        """Return x_{t-1} (B, A) from the unguided step's mean and the value's ascent."""
        raise NotImplementedError


class DsgGuide(ValueGuide):
    """Diffusion with spherical Gaussian constraint: keep a step's expected length, turn it to the critic's ascent.

    Source: CGPO Eq 10-13; DSG, Yang et al. 2024, arXiv:2402.03201. Its loss is -Q: ascent in Q. Norms are per row.
    """

    def move(self, mean: Tensor, ascent: Tensor, sigma: Tensor | float, noise: Tensor) -> Tensor:
        return dsg_step(mean, ascent, sigma, noise, self._rate)


class NaiveGuide(ValueGuide):
    """Add the critic's gradient to an ordinary reverse step, scaled by eta sigma^2 (classifier guidance; CGPO Eq 7)."""

    def move(self, mean: Tensor, ascent: Tensor, sigma: Tensor | float, noise: Tensor) -> Tensor:
        shift = sigma**2 * ascent
        if self._config.naive_normalised:
            shift = sigma * math.sqrt(mean.shape[-1]) * _unit(ascent)
        return mean + self._config.naive_scale * shift + sigma * noise


def dsg_step(mean: Tensor, ascent: Tensor, sigma: Tensor | float, noise: Tensor, rate: Tensor | float) -> Tensor:
    """Take one step of length sqrt(A) sigma from `mean`, between the sampled and the ascent direction.

    Shapes: mean, ascent (any length), noise (standard normal) (..., A), sigma (); returns (..., A).
    A row without gradient keeps its sampled direction. Source: CGPO Eq 11-13.
    """
    radius = sigma * math.sqrt(mean.shape[-1])
    direction = torch.lerp(sigma * noise, radius * _unit(ascent), rate)
    return mean + radius * _unit(direction)


def _unit(vectors: Tensor) -> Tensor:
    """Scale each row (..., A) to length 1; a zero row stays zero."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / (length + _NORM_FLOOR)


def value_ascent(
    config: GuidanceConfig,
    value: ValueFunction,
    denoiser: NoisePredictor,
    schedule: NoiseSchedule,
    x: Tensor,
    step: int,
    feature: Tensor,
) -> tuple[ReverseMean, Tensor]:
    """Return the detached reverse step's prediction and the gradient (B, A) of the value with respect to x_t.

    Uses autograd.grad on x and the action only, so no parameter's .grad is touched. The sum over the batch has per-row
    gradients because no layer mixes rows. The critic has only ever seen |a| <= 1, hence the clipping rules.
    """
    clips = config.clip_grad != "none"
    with torch.enable_grad():
        x = x.detach().requires_grad_(config.through_denoiser)
        prediction = reverse_mean(denoiser, schedule, x, step, feature, clip=clips)
        clean = prediction.clean_action.detach()
        action = (clean.clamp(-1, 1) if clips else clean).requires_grad_(True)
        (ascent,) = torch.autograd.grad(value(feature, action).sum(), action)
        ascent = clip_ascent(config, clean, ascent)
        if config.through_denoiser:
            (ascent,) = torch.autograd.grad(prediction.clean_action, x, grad_outputs=ascent)
    return ReverseMean(prediction.mean.detach(), prediction.clean_action.detach()), ascent


def clip_ascent(config: GuidanceConfig, clean: Tensor, ascent: Tensor) -> Tensor:
    """Drop the ascent (..., A) in actions where clip_grad says so for the predicted clean action (..., A)."""
    if config.clip_grad == "hard":
        return ascent.masked_fill(clean.abs() > 1, 0)
    if config.clip_grad == "projected":
        return ascent.masked_fill((clean.abs() > 1) & (ascent * clean > 0), 0)
    return ascent
