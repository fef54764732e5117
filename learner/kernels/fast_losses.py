"""The quantile Huber loss with its gradient written out, in few passes over the pairs of quantile and target atom."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policy.fast.native_check import is_native_used
from policy.fast.native_kernels import quantile_huber

_GROUP_PAIRS = 1 << 16  # on a CPU: few enough that three buffers of them stay in a core's second-level cache


def quantile_huber_loss(quantiles: Tensor, targets: Tensor, kappa: float = 1.0) -> Tensor:
    """learner.losses.quantile_huber_loss: (...) of quantiles (..., B, N, M) and targets (..., B, L).

    targets take no gradient.
    """
    rows: Tensor = _RowLoss.apply(quantiles, targets, kappa)  # type: ignore[no-untyped-call]
    return rows.mean(dim=-1)


class _RowLoss(torch.autograd.Function):
    """The loss (..., B) of each row.

    With error u = target - quantile, c = clip(u, -kappa, kappa) and w = tau or 1 - tau by the sign of u: the loss of a
    pair is w c (u - c / 2), its derivative in the quantile -w c. w c / tau is a leaky ReLU of c.
    """

    @staticmethod
    def forward(ctx: Any, quantiles: Tensor, targets: Tensor, kappa: float) -> Tensor:
        num_critics, num_quantiles = quantiles.shape[-2:]
        level = (torch.arange(num_quantiles, device=quantiles.device, dtype=quantiles.dtype) + 0.5) / num_quantiles
        tau = level.repeat(num_critics)  # (N M,)
        rows = quantiles.reshape(-1, len(tau)).contiguous()
        atoms = targets.reshape(-1, targets.shape[-1]).contiguous()
        is_native = rows.device.type == "cpu" and rows.dtype == torch.float32 and is_native_used()
        losses, derivatives = (quantile_huber if is_native else _sums)(
            rows.contiguous(), atoms.contiguous(), tau, kappa
        )
        scale = 1 / (kappa * len(tau) * targets.shape[-1])
        ctx.save_for_backward(derivatives.mul_(scale).view_as(quantiles))
        return losses.mul_(scale).view(targets.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (derivative,) = ctx.saved_tensors
        return derivative * gradient[..., None, None], None, None


def _sums(quantiles: Tensor, targets: Tensor, tau: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
    """policy.fast.native_kernels.quantile_huber by PyTorch's operations."""
    group = len(targets)
    if targets.device.type == "cpu":
        group = max(1, _GROUP_PAIRS // (len(tau) * targets.shape[-1]))
    slope = (1 - tau) / tau
    pulls, losses = [], []
    for own, atoms in zip(torch.split(quantiles, group), torch.split(targets, group), strict=True):
        error = atoms[:, None, :] - own[:, :, None]  # (rows, N M, L)
        clipped = error.clamp(-kappa, kappa)
        weighted = torch.prelu(clipped, slope)
        pulls.append(weighted.sum(dim=-1))
        losses.append(error.sub_(clipped, alpha=0.5).mul_(weighted).sum(dim=-1) @ tau)
    return torch.cat(losses), torch.cat(pulls).mul_(-tau)
