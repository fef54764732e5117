"""Losses and targets. Pure functions; shapes: B batch, N critics, M quantiles, L target atoms, A action."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from policy.noise_schedule import NoiseSchedule
from policy.sampler import NoisePredictor


def quantile_huber_loss(quantiles: Tensor, targets: Tensor, kappa: float = 1.0) -> Tensor:
    """Quantile Huber loss, averaged over batch, critics, quantiles and target atoms.

    Shapes: quantiles (B, N, M) at levels (m - 1/2) / M, targets (B, L) without gradient; returns ().
    Source: QR-DQN, arXiv:1710.10044, Eq 10; mean over all four axes as in TQC's code, arXiv:2005.04269.
    """
    num_quantiles = quantiles.shape[-1]
    tau = (torch.arange(num_quantiles, device=quantiles.device) + 0.5) / num_quantiles  # (M,)
    error = targets[:, None, None, :] - quantiles[:, :, :, None]  # (B, N, M, L)
    magnitude = error.abs()
    huber = torch.where(magnitude <= kappa, 0.5 * error.square(), kappa * (magnitude - 0.5 * kappa))
    weight = (tau[:, None] - (error.detach() < 0).float()).abs()
    return (weight * huber).mean() / kappa


def target_atoms(quantiles: Tensor, num_dropped: int, truncation: Literal["pooled", "per_net", "none"]) -> Tensor:
    """Return the next state's target atoms (B, L) from target-critic quantiles (B, N, M), highest ones dropped.

    pooled (TQC): of all N M atoms the N k highest; per_net: each critic's own k highest.
    """
    num_critics, num_quantiles = quantiles.shape[1:]
    if truncation == "none" or num_dropped == 0:
        return quantiles.flatten(1)
    if truncation == "per_net":
        return quantiles.sort(dim=-1).values[..., : num_quantiles - num_dropped].flatten(1)
    return quantiles.flatten(1).sort(dim=-1).values[:, : num_critics * (num_quantiles - num_dropped)]


def denoising_error(
    denoiser: NoisePredictor, schedule: NoiseSchedule, clean_action: Tensor, feature: Tensor, generator: torch.Generator
) -> Tensor:
    """Squared error of the predicted noise, mean over action dimensions, at an independent random level per row.

    Shapes: clean_action (R, A), feature (R, F); returns (R,). Source: CGPO Eq 5 and 18.
    """
    device = clean_action.device
    step = torch.randint(schedule.num_steps, (len(clean_action),), generator=generator, device=device)
    noise = torch.randn(clean_action.shape, generator=generator, device=device)
    noisy_action = schedule.add_noise(clean_action, step, noise)
    predicted: Tensor = denoiser(noisy_action, step, feature)  # type: ignore[arg-type]
    return (predicted - noise).square().mean(dim=-1)


def combine_denoising_errors(
    target_error: Tensor,
    uniform_error: Tensor,
    weight: Tensor,
    entropy_weight: float,
    reduction: Literal["concat", "mean"],
) -> Tensor:
    """Weighted regression onto the target plus the entropy term. Source: CGPO Eq 18 and 19.

    Shapes: target_error (B,), uniform_error (B, N_e), weight (B,) detached; returns ().
    concat: mean over all B (1 + N_e) rows (QVPO's code); mean: L_diff + L_ent, each a mean of its own rows.
    """
    weighted_target = weight * target_error
    weighted_uniform = entropy_weight * weight[:, None] * uniform_error
    if reduction == "mean":
        return weighted_target.mean() + weighted_uniform.mean()
    return torch.cat([weighted_target, weighted_uniform.flatten()]).mean()


def mean_over_human_rows(error: Tensor, is_human: Tensor) -> Tensor:
    """Mean of error (B,) over rows where a person acted, 0 if there are none: the cloning loss."""
    return (error * is_human).sum() / is_human.sum().clamp(min=1)


def annealed_entropy_weight(initial: float, step: int, anneal_steps: int) -> float:
    """lambda after `step` actor updates: linear to a tenth of its start (QVPO's code); constant for anneal_steps 0."""
    if anneal_steps == 0:
        return initial
    return min(initial, max(0.1 * initial, initial * (1 - step / anneal_steps)))


def advantage_weight(target_value: Tensor, base_value: Tensor) -> Tensor:
    """w(s) = max(Q(s, a^g) - V(s), 0), detached. All (B,). Source: CGPO Eq 15."""
    return (target_value - base_value).clamp(min=0).detach()


def scalar_critic_loss(values: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of scalar critics (B, N, 1) to a target (B, 1), for the twin_scalar ablation."""
    return F.mse_loss(values.squeeze(-1), targets.expand(-1, values.shape[1]))
