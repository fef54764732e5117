"""Losses and targets. Pure functions; shapes: B batch, N critics, M quantiles, L target atoms, A action.

`...` is nothing or (P,), the leading axis of a population (learner.agents): losses are means of each agent's own rows.
"""

from typing import Literal

import torch
from torch import Tensor


def quantile_huber_loss(quantiles: Tensor, targets: Tensor, kappa: float = 1.0) -> Tensor:
    """Quantile Huber loss, averaged over batch, critics, quantiles and target atoms.

    Shapes: quantiles (..., B, N, M) at levels (m - 1/2) / M, targets (..., B, L) without gradient; returns (...).
    Source: QR-DQN, arXiv:1710.10044, Eq 10; mean over all four axes as in TQC's code, arXiv:2005.04269.
    """
    num_quantiles = quantiles.shape[-1]
    tau = (torch.arange(num_quantiles, device=quantiles.device) + 0.5) / num_quantiles  # (M,)
    error = targets[..., None, None, :] - quantiles[..., None]  # (..., B, N, M, L)
    magnitude = error.abs()
    huber = torch.where(magnitude <= kappa, 0.5 * error.square(), kappa * (magnitude - 0.5 * kappa))
    weight = (tau[:, None] - (error.detach() < 0).float()).abs()
    return (weight * huber).mean(dim=(-4, -3, -2, -1)) / kappa


def target_atoms(quantiles: Tensor, num_dropped: int, truncation: Literal["pooled", "per_net", "none"]) -> Tensor:
    """Return the next state's target atoms (..., B, L) in any order, from target quantiles (..., B, N, M).

    Highest ones are dropped. pooled (TQC): of all N M atoms the N k highest; per_net: each critic's own k highest.
    """
    num_critics, num_quantiles = quantiles.shape[-2:]
    if truncation == "none" or num_dropped == 0:
        return quantiles.flatten(-2)
    if truncation == "per_net":
        return _lowest(quantiles, num_quantiles - num_dropped).flatten(-2)
    return _lowest(quantiles.flatten(-2), num_critics * (num_quantiles - num_dropped))


def _lowest(values: Tensor, count: int) -> Tensor:
    """The `count` lowest of each row (..., count), in any order: a third of the time of sorting them."""
    return values.topk(count, dim=-1, largest=False, sorted=False).values


def combine_denoising_errors(
    target_error: Tensor,
    uniform_error: Tensor,
    weight: Tensor,
    entropy_weight: Tensor | float,
    reduction: Literal["concat", "mean"],
) -> Tensor:
    """Weighted regression onto the target plus the entropy term. Source: CGPO Eq 18 and 19.

    Shapes: target_error (..., B), uniform_error (..., B, N_e), weight (..., B) detached, entropy_weight a number or
    (P, 1, 1); returns (...).
    concat: mean over all B (1 + N_e) rows (QVPO's code); mean: L_diff + L_ent, each a mean of its own rows.
    """
    weighted_target = weight * target_error
    weighted_uniform = entropy_weight * weight[..., None] * uniform_error
    if reduction == "mean":
        return weighted_target.mean(dim=-1) + weighted_uniform.mean(dim=(-2, -1))
    return torch.cat([weighted_target[..., None], weighted_uniform], dim=-1).mean(dim=(-2, -1))


def mean_over_human_rows(error: Tensor, is_human: Tensor) -> Tensor:
    """Mean of error (..., B) over rows where a person acted, 0 if there are none: the cloning loss. Returns (...)."""
    return (error * is_human).sum(dim=-1) / is_human.sum(dim=-1).clamp(min=1)


def annealed_entropy_weight(initial: Tensor | float, step: Tensor, anneal_steps: int) -> Tensor | float:
    """lambda after `step` () actor updates: linear to a tenth of its start (QVPO's code); anneal_steps 0: constant."""
    if anneal_steps == 0:
        return initial
    return initial * (1 - step / anneal_steps).clamp(0.1, 1)


def advantage_weight(target_value: Tensor, base_value: Tensor) -> Tensor:
    """w(s) = max(Q(s, a^g) - V(s), 0), detached. All (..., B). Source: CGPO Eq 15."""
    return (target_value - base_value).clamp(min=0).detach()


def scalar_critic_loss(values: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of scalar critics (..., B, N, 1) to a target (..., B, 1). Returns (...)."""
    return (values.squeeze(-1) - targets).square().mean(dim=(-2, -1))
