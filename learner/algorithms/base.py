"""What the trainer needs of an algorithm, and what every algorithm here shares."""

import copy
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from learner.agents import Population, parameters_of
from learner.algorithms.guarded_adam import SkippedSteps
from learner.noise import Noise
from learner.replay import Batch
from policy.encoder import EncoderInput

Module = TypeVar("Module", bound=nn.Module)
SampleBatch = Callable[[], Batch]
Metrics = dict[str, Tensor]


class NextFeature(NamedTuple):
    """Features (..., B, F) of a batch's next observations by the online and the target heads, without gradient."""

    online: Tensor
    target: Tensor


class Algorithm(Protocol):
    """Turns replay batches into better policy weights. Owns its networks, optimisers and noise."""

    def update_step(self, sample_batch: SampleBatch) -> Metrics:
        """Do one learner step, drawing as many batches as it needs. Returns scalars to log."""

    def counters(self) -> dict[str, Tensor]:
        """Return each optimiser's SkippedSteps as a tensor (4,) on the device, always the same ones."""

    def skipped_steps(self) -> dict[str, SkippedSteps]:
        """Return what each optimiser did not do, because loss or gradient was not finite. Waits for the device."""

    def is_warming_up(self) -> bool:
        """Whether the next step is one of another kind than all later ones, such as cloning. Waits for the device."""

    def explore(self, observation: EncoderInput, noise: Noise) -> Tensor:
        """Return actions (..., B, A) in [-1, 1] as they are chosen while data are collected. Without gradient."""

    def exploit(self, observation: EncoderInput, noise: Noise, candidates: int) -> Tensor:
        """Return actions (..., B, A) as they are evaluated: the best of `candidates` samples by the critic.

        A policy without samples to choose from returns its one action for any number.
        """

    def policy_tensors(self) -> dict[str, Tensor]:
        """Return what policy.acting.ActingPolicy loads: tensors named heads.*, denoiser.* and so on."""

    def state(self) -> dict[str, Tensor]:
        """Return everything that a bit-exact resume needs, by unique name."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state()`; raises WeightsError when a tensor is missing or has another shape."""


@torch.no_grad()
def next_feature_of(batch: Batch, heads: nn.Module, target_heads: nn.Module) -> NextFeature:
    return NextFeature(heads(batch.next_observation), target_heads(batch.next_observation))


def published_tensors(modules: Mapping[str, nn.Module | None]) -> dict[str, Tensor]:
    """Return copies of all tensors, each named "key.name"; None stands for a part that is not published.

    A population's have the leading axis P. The frozen backbone never is: both sides load it from the same file.
    """
    return {
        f"{key}.{name}": tensor.detach().cpu().clone()
        for key, module in modules.items()
        if module is not None
        for name, tensor in (module.stacked if isinstance(module, Population) else module).state_dict().items()
    }


def update_ema(target: nn.Module, online: nn.Module, rate: float | Tensor) -> None:
    """Move every target parameter towards its online twin: target <- (1 - rate) target + rate online.

    rate: a number, or () on the device where it depends on the step.
    """
    targets, parameters = parameters_of(target), [parameter.detach() for parameter in parameters_of(online)]
    if not parameters:  # the heads of an observation without images have none
        return
    if isinstance(rate, Tensor):
        torch._foreach_lerp_(targets, parameters, [rate] * len(parameters))
    else:
        torch._foreach_lerp_(targets, parameters, rate)


def frozen_copy(module: Module) -> Module:
    """Return a copy whose parameters take no gradient: a target network."""
    return copy.deepcopy(module).requires_grad_(False)
