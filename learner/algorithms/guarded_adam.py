"""The only way in which a network is changed here: backward, check, clip, step. Nothing that is not finite gets in."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam


class SkippedSteps(NamedTuple):
    """Steps that an optimiser did not take, with the last loss and gradient norm it saw, whatever they were."""

    total: int  # since the optimiser was made
    in_a_row: int
    loss: float
    gradient_norm: float


class GuardedAdam(Adam):
    """Adam that changes neither parameters nor moments when the loss or the norm of its gradient is not finite.

    That is decided where the tensors are, by the fused kernel's own switch (the one that torch.amp uses): training on a
    GPU never waits for the answer. skipped_steps() reads it.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float, eps: float = 1e-8) -> None:
        super().__init__(parameters, learning_rate, eps=eps, fused=True)
        self._parameters: list[nn.Parameter] = self.param_groups[0]["params"]
        zero = torch.zeros((), device=self._parameters[0].device)
        self._total, self._in_a_row, self._loss, self._gradient_norm = zero, zero, zero, zero

    def descend(self, loss: Tensor, max_norm: float = 0.0) -> None:
        """Take one step down `loss`, with the gradient's norm clipped to max_norm unless that is 0."""
        self.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._loss = loss.detach()
        self._gradient_norm = nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        if max_norm:
            nn.utils.clip_grads_with_norm_(self._parameters, max_norm, self._gradient_norm)
        self.found_inf = 1.0 - (self._loss + self._gradient_norm).isfinite().float()
        self.step()
        self._total = self._total + self.found_inf
        self._in_a_row = (self._in_a_row + 1) * self.found_inf

    def counters(self) -> Tensor:
        """Return the fields of SkippedSteps as a tensor (4,), still on the device."""
        return torch.stack([self._total, self._in_a_row, self._loss, self._gradient_norm])


def read_counters(optimisers: dict[str, GuardedAdam]) -> dict[str, SkippedSteps]:
    """Return what each optimiser skipped, by its name; waits for the device once."""
    rows = torch.stack([optimiser.counters() for optimiser in optimisers.values()]).tolist()
    return {
        name: SkippedSteps(int(total), int(in_a_row), loss, gradient_norm)
        for name, (total, in_a_row, loss, gradient_norm) in zip(optimisers, rows, strict=True)
    }
