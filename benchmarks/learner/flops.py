"""Floating-point operations of an update's matrix products: by formula, and counted while it runs.

A multiplication and an addition are two operations. Nothing else is counted: activations, noise, the quantile loss and
the optimisers take time but no matrix products.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from learner.config import LearnerConfig
from policy.encoder import feature_dim
from policy.spec import Specs


@dataclass(frozen=True)
class Products:
    """Operations of a CGPO update by what they are for."""

    target_chain: int
    target_values: int
    critic_training: int
    chains: int
    values: int
    actor_training: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


@dataclass(frozen=True)
class _Mlp:
    """Layers of an MLP as (fan in, fan out); the first begins with the state's feature if `feature` says how wide."""

    widths: tuple[int, ...]
    feature: int = 0

    def forward(self, rows: int, states: int | None = None) -> int:
        """Of `rows`; with `states` the feature's part of the first layer is computed once for each state."""
        pairs = zip(self.widths[:-1], self.widths[1:], strict=True)
        whole = 2 * rows * sum(fan_in * fan_out for fan_in, fan_out in pairs)
        if states is None:
            return whole
        return whole - 2 * (rows - states) * self.feature * self.widths[1]

    @property
    def first(self) -> int:
        """Of one row's first layer."""
        return 2 * self.widths[0] * self.widths[1]


def written_products(config: LearnerConfig, specs: Specs) -> Products:
    """Return the operations of one CGPO update as the equations have it.

    Every row goes through whole layers, both chains of a state begin at T, and each guided step but the last (t = 1,
    where sigma = 0) takes the critic's gradient through the denoiser. The network of the time embedding, which depends
    on the level alone, is left out.
    """
    policy, cgpo, batch = config.policy, config.cgpo, config.replay.batch_size
    feature, action = feature_dim(specs, config.policy), specs.action.continuous_dim
    steps, guided = policy.denoising_steps, guided_steps(config)
    denoiser = _Mlp((action + policy.time_embedding_dim + feature, *policy.denoiser_hidden, action), feature)
    member = _Mlp((feature + action, *policy.critic_hidden, policy.num_quantiles), feature)
    value = _Mlp((feature, *cgpo.value_hidden, 1))
    num_critics, candidates = policy.num_critics, cgpo.critic.target_candidates

    selected = batch * candidates if candidates > 1 else 0
    ascent = num_critics * 2 * member.forward(batch)
    if cgpo.guidance.through_denoiser:
        ascent += denoiser.forward(batch)
    sampled = 2 * batch  # one chain without and one with guidance
    rated = 4 * batch if cgpo.human_targets else 2 * batch
    if cgpo.guidance.type == "none":
        sampled = batch * (1 + cgpo.guidance.best_of)
        rated += batch * cgpo.guidance.best_of if cgpo.guidance.best_of > 1 else 0
    if cgpo.vbase == "sampled":
        sampled += batch * cgpo.vbase_samples
        rated += batch * cgpo.vbase_samples
    trained = batch * (1 + cgpo.entropy_samples)
    learned = 4 * value.forward(batch) - batch * value.first if cgpo.vbase == "learned" else 0
    return Products(
        target_chain=cgpo.cta_ratio * steps * denoiser.forward(batch * candidates),
        target_values=cgpo.cta_ratio * num_critics * member.forward(selected + batch),
        # No gradient is taken with respect to the first layer's input.
        critic_training=cgpo.cta_ratio * num_critics * (3 * member.forward(batch) - batch * member.first),
        chains=steps * denoiser.forward(sampled) + guided * ascent,
        values=num_critics * member.forward(rated) + learned,
        actor_training=3 * denoiser.forward(trained),
    )


def guided_steps(config: LearnerConfig) -> int:
    """Reverse steps that take a gradient: G but the last one."""
    guidance = config.cgpo.guidance
    return 0 if guidance.type == "none" else max(0, min(guidance.steps, config.policy.denoising_steps) - 1)


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of the matrix products executed within it, whatever path takes them.

    The formulas are torch.utils.flop_counter's; its FlopCounterMode follows modules as well, which autograd.grad inside
    an update does not let it. oneDNN's linear operator is added.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self._formulas: dict[Any, Callable[..., int]] = dict(flop_registry)
        if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            self._formulas[torch.ops.mkldnn._linear_pointwise] = _linear_products

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = self._formulas.get(func._overloadpacket)
        if formula is None:
            with self:  # operators made of others arrive whole in inference mode
                parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def count(step: Callable[[], object]) -> int:
    """Return the operations that one call of `step` executes."""
    counter = FlopCounter()
    with counter:
        step()
    return counter.total


def _linear_products(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * x.numel() * int(weight.shape[0])
