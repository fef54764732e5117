"""What the trainer needs of an algorithm, and what every algorithm here shares."""

import copy
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from learner.replay import Batch
from policy.config import PolicyConfig

Module = TypeVar("Module", bound=nn.Module)
SampleBatch = Callable[[], Batch]
Metrics = dict[str, Tensor | float]


class Algorithm(Protocol):
    """Turns replay batches into better policy weights. Owns its networks, optimisers and noise."""

    def update_step(self, sample_batch: SampleBatch) -> Metrics:
        """Do one learner step, drawing as many batches as it needs. Returns scalars to log."""

    def policy_tensors(self) -> dict[str, Tensor]:
        """Return what DiffusionPolicy loads: tensors named denoiser.*, heads.*, and, if published, critic.*."""

    def state(self) -> dict[str, Tensor]:
        """Return everything that a bit-exact resume needs, by unique name."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state()`; raises WeightsError when a tensor is missing or has another shape."""


def published_tensors(
    config: PolicyConfig, denoiser: nn.Module, critic: nn.Module, heads: nn.Module
) -> dict[str, Tensor]:
    """Return what the robot needs: denoiser, the encoder's heads, and the critic if it chooses among candidates.

    The frozen backbone never changes: both sides load it from the same file.
    """
    tensors = _named("denoiser", denoiser.state_dict()) | _named("heads", heads.state_dict())
    if config.behavior_candidates > 1:
        tensors |= _named("critic", critic.state_dict())
    return tensors


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return detached copies of tensors with `prefix.` before each name."""
    return {f"{prefix}.{name}": tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def update_ema(target: nn.Module, online: nn.Module, rate: float) -> None:
    """Move every target parameter towards its online twin: target <- (1 - rate) target + rate online."""
    parameters = [parameter.detach() for parameter in online.parameters()]
    if parameters:  # the heads of an observation without images have none
        torch._foreach_lerp_(list(target.parameters()), parameters, rate)


def frozen_copy(module: Module) -> Module:
    """Return a copy whose parameters take no gradient: a target network."""
    return copy.deepcopy(module).requires_grad_(False)
