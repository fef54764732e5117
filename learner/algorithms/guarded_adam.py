"""The only way in which a network is changed here: gradient, check, clip, step. Nothing that is not finite gets in."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam

from learner.data_parallel import average_over_ranks
from policy.fast.native_check import is_native_used
from policy.fast.native_kernels import MAX_TENSORS, Learned, adam_step


class SkippedSteps(NamedTuple):
    """Steps that an optimiser did not take, with the last loss and gradient norm it saw, whatever they were."""

    total: int  # since the optimiser was made
    in_a_row: int
    loss: float
    gradient_norm: float


class GuardedAdam(Adam):
    """Adam that changes neither parameters nor moments when the loss or the norm of its gradient is not finite.

    That is decided where the tensors are, by the compiled step or the fused kernel's own switch (the one that torch.amp
    uses): training on a GPU never waits for the answer. skipped_steps() reads it.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], learning_rate: float, eps: float = 1e-8, *, is_compiled: bool = False
    ) -> None:
        """is_compiled: where policy.fast has it, the step is its one, for PyTorch's operations take longer to start."""
        super().__init__(parameters, learning_rate, eps=eps, fused=True, capturable=True)
        self._parameters: list[nn.Parameter] = self.param_groups[0]["params"]
        # total, in a row, loss, gradient norm; always the same tensor, as a captured graph needs it
        self._counters = torch.zeros(4, device=self._parameters[0].device)
        is_simple = all(p.is_cpu and p.is_contiguous() and p.dtype == torch.float32 for p in self._parameters)
        self._is_compiled = is_compiled and is_simple and len(self._parameters) <= MAX_TENSORS

    def descend(self, loss: Tensor, max_norm: float = 0.0, is_due: Tensor | None = None) -> None:
        """Take one step down `loss`, with the gradient's norm clipped to max_norm unless that is 0.

        is_due: 0 or 1 () on the device; where it is 0 nothing changes and nothing is counted (delayed updates).
        """
        self.step_along(torch.autograd.grad(loss, self._parameters, allow_unused=True), loss, max_norm, is_due)

    def step_along(
        self,
        gradients: Sequence[Tensor | None],
        loss: Tensor,
        max_norm: float = 0.0,
        is_due: Tensor | None = None,
    ) -> None:
        """Take the step of `descend` from gradients that are known already, one for each parameter."""
        gradients, loss = average_over_ranks(gradients, loss)
        # Both steps read gradients in the parameter's memory order, whatever their strides say.
        gradients = [None if gradient is None else gradient.contiguous() for gradient in gradients]
        learned = self._learned(gradients) if self._is_compiled and is_due is None and is_native_used() else []
        if learned:
            group, loss = self.param_groups[0], loss.detach().to(torch.float32)
            how = {name: group[name] for name in ("betas", "eps")}
            adam_step(learned, loss, self._counters, learning_rate=group["lr"], max_norm=max_norm, **how)
        else:
            self._fused_step(gradients, loss, max_norm, is_due)
        torch.autograd.graph.increment_version(self._parameters)  # both leave that out

    def _learned(self, gradients: Sequence[Tensor | None]) -> list[Learned]:
        """Each parameter that has a gradient, with its moments."""
        learned = []
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is None:
                continue
            state = self.state[parameter]
            if not state:  # as Adam makes it
                zeros = (torch.zeros_like(parameter, requires_grad=False) for _ in range(2))
                step = torch.zeros((), dtype=torch.float32)
                state.update(zip(("step", "exp_avg", "exp_avg_sq"), (step, *zeros), strict=True))
            learned.append(Learned(parameter, gradient, state["exp_avg"], state["exp_avg_sq"], state["step"]))
        return learned

    def _fused_step(
        self, gradients: Sequence[Tensor | None], loss: Tensor, max_norm: float, is_due: Tensor | None
    ) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        if max_norm:
            nn.utils.clip_grads_with_norm_(self._parameters, max_norm, norm)
        is_bad = 1.0 - (loss.detach() + norm).isfinite().float()
        self.found_inf = is_bad if is_due is None else torch.maximum(is_bad, 1.0 - is_due)
        self.step()
        total, in_a_row, _, _ = self._counters
        latest = torch.stack([total + is_bad, (in_a_row + 1) * is_bad, loss.detach(), norm])
        self._counters.copy_(latest if is_due is None else torch.where(is_due > 0, latest, self._counters))

    def counters(self) -> Tensor:
        """Return the fields of SkippedSteps as a tensor (4,), still on the device."""
        return self._counters

    def skipped(self) -> Tensor:
        """Return the steps left out, in all and in a row, as a tensor (2,): always finite, unlike loss and norm."""
        return self._counters[:2]

    def set_skipped(self, skipped: Tensor) -> None:
        """Count on from `skipped()` of another time; the loss and norm of then are not known any more."""
        self._counters[:2].copy_(skipped)
        self._counters[2:].fill_(torch.nan)


def read_counters(counters: Mapping[str, Tensor]) -> dict[str, SkippedSteps]:
    """Return what each optimiser skipped from `GuardedAdam.counters` by name; waits once for the device they are on."""
    rows = torch.stack(list(counters.values())).tolist()
    return {
        name: SkippedSteps(int(total), int(in_a_row), loss, gradient_norm)
        for name, (total, in_a_row, loss, gradient_norm) in zip(counters, rows, strict=True)
    }
