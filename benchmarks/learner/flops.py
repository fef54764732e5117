"""Floating-point operations of an update's matrix products: by formula, and counted while it runs.

A multiplication and an addition are two operations. Nothing else is counted: activations, noise, the quantile loss and
the optimisers take time but no matrix products.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from learner.config import LearnerConfig
from policy.encoder import feature_dim
from policy.fast import native_kernels
from policy.fast.native_kernels import Network
from policy.spec import Specs

_FIRST_SUMS, _PRODUCT = native_kernels.first_sums, native_kernels.product
_FORWARD_EACH, _DENOISE, _ASCENT = native_kernels.forward_each, native_kernels.denoise, native_kernels.ascent


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


class Cgpo:
    """The numbers that both formulas are made of. Operations are of one row (or one state) and of one critic."""

    def __init__(self, config: LearnerConfig, specs: Specs) -> None:
        policy, cgpo = config.policy, config.cgpo
        feature, action = feature_dim(specs, policy), specs.action.continuous_dim
        denoiser, critic = policy.denoiser_hidden, policy.critic_hidden
        self.config, self.batch, self.steps = cgpo, config.replay.batch_size, policy.denoising_steps
        self.num_critics = policy.num_critics
        # The parts of a first layer that belong to the action, the level and the state; and the layers after it.
        self.denoiser_action, self.denoiser_rest = 2 * action * denoiser[0], _operations(*denoiser, action)
        self.denoiser_level = 2 * policy.time_embedding_dim * denoiser[0]
        self.denoiser_state = 2 * feature * denoiser[0]
        self.critic_action, self.critic_rest = 2 * action * critic[0], _operations(*critic, policy.num_quantiles)
        self.critic_state = 2 * feature * critic[0]
        self.value_first, self.value = 2 * feature * cgpo.value_hidden[0], _operations(feature, *cgpo.value_hidden, 1)

    @property
    def denoiser(self) -> int:
        return self.denoiser_action + self.denoiser_level + self.denoiser_state + self.denoiser_rest

    @property
    def critic(self) -> int:
        return self.critic_state + self.critic_action + self.critic_rest

    @property
    def guided(self) -> int:
        """Reverse steps from the beginning of guidance on."""
        return 0 if self.config.guidance.type == "none" else min(self.config.guidance.steps, self.steps)

    @property
    def gradients(self) -> int:
        """Those that take a gradient: all but the last one, t = 1, where sigma = 0."""
        return max(0, self.guided - 1)

    @property
    def chain_rows(self) -> list[int]:
        """Rows of each group of online chains."""
        guidance = self.config.guidance
        pair = [guidance.best_of, 1] if guidance.type == "none" else [1, 1]
        return [self.batch * count for count in (*pair, *self._baseline)]

    @property
    def rated_rows(self) -> list[int]:
        """Rows of each call for values in the actor's update."""
        guidance = self.config.guidance
        candidates = [guidance.best_of] if guidance.type == "none" and guidance.best_of > 1 else []
        actor = [2 + self.config.human_targets]  # each state's sample, its synthesised action and perhaps a human one
        target = [1] if self.config.vbase == "learned" and self.config.vbase_critic == "target" else []
        return [self.batch * count for count in (*candidates, *actor, *self._baseline, *target)]

    @property
    def _baseline(self) -> list[int]:
        return [self.config.vbase_samples] if self.config.vbase == "sampled" else []

    @property
    def selected_rows(self) -> int:
        candidates = self.config.critic.target_candidates
        return self.batch * candidates if candidates > 1 else 0

    @property
    def critic_training(self) -> int:
        # Forward, and the gradients of weights and inputs, but not of the first layer's input.
        each = 3 * self.critic - self.critic_state - self.critic_action
        return self.config.cta_ratio * self.num_critics * self.batch * each

    @property
    def value_training(self) -> int:
        is_learned = self.config.vbase == "learned"
        return self.batch * (4 * self.value - self.value_first) if is_learned else 0  # and its value afterwards


def written_products(config: LearnerConfig, specs: Specs) -> Products:
    """Return the operations of one CGPO update as the equations have it, which the plain path executes.

    Every row goes through whole layers, both chains of a state begin at T, and each guided step but the last takes the
    critic's gradient through the denoiser. The network of the time embedding, which depends on the level alone, is left
    out: less than a hundredth, which the plain path computes at each call of the denoiser.
    """
    own = Cgpo(config, specs)
    ascent = 2 * own.num_critics * own.critic + own.config.guidance.through_denoiser * own.denoiser
    candidates = own.batch * own.config.critic.target_candidates
    return Products(
        target_chain=own.config.cta_ratio * own.steps * candidates * own.denoiser,
        target_values=own.config.cta_ratio * own.num_critics * (own.selected_rows + own.batch) * own.critic,
        critic_training=own.critic_training,
        chains=own.steps * sum(own.chain_rows) * own.denoiser + own.gradients * own.batch * ascent,
        values=own.num_critics * sum(own.rated_rows) * own.critic + own.value_training,
        actor_training=3 * own.batch * (1 + own.config.entropy_samples) * own.denoiser,
    )


def split_products(config: LearnerConfig, specs: Specs) -> Products:
    """Return the operations of one CGPO update as the fast path on a CPU executes it.

    The state's part of a first layer is computed once per state, the level's once per level (with its embedding, twice
    a level's part again), and steps before guidance begins once for both chains if they share their noise.
    """
    own = Cgpo(config, specs)
    row, rated = own.denoiser_action + own.denoiser_rest, own.critic_action + own.critic_rest
    states, levels = own.batch * own.denoiser_state, 3 * own.steps * own.denoiser_level
    once = states + levels  # for each set of chains
    candidates = own.batch * own.config.critic.target_candidates

    def values_of(rows: int) -> int:
        return own.num_critics * (own.batch * own.critic_state + rows * rated) if rows else 0

    chains = sum(once + own.steps * rows * row for rows in own.chain_rows)
    if own.guided:
        ascent = 2 * own.num_critics * rated + own.config.guidance.through_denoiser * row
        shared = own.config.shared_prefix * (own.steps - own.guided) * own.batch * row
        chains += own.num_critics * own.batch * own.critic_state + own.gradients * own.batch * ascent - shared - once
    trained = own.batch * (1 + own.config.entropy_samples)
    # Of the level's part and the state's forward and backward; of the embedding's two layers all but the input's.
    trained_levels = (3 + 5) * own.steps * own.denoiser_level
    return Products(
        target_chain=levels + own.config.cta_ratio * (states + own.steps * candidates * row),
        target_values=own.config.cta_ratio * (values_of(own.selected_rows) + values_of(own.batch)),
        critic_training=own.critic_training,
        chains=chains,
        values=sum(values_of(rows) for rows in own.rated_rows) + own.value_training,
        actor_training=trained_levels + 2 * states + trained * (2 * own.denoiser_action + 3 * own.denoiser_rest),
    )


def _operations(*widths: int) -> int:
    """Of one row through layers of these widths."""
    return 2 * sum(fan_in * fan_out for fan_in, fan_out in itertools.pairwise(widths))


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of the matrix products executed within it, whatever path takes them.

    The formulas are torch.utils.flop_counter's; its FlopCounterMode follows modules as well, which autograd.grad inside
    an update does not let it. Operators that add in place, oneDNN's linear one and our compiled ones are added; of
    these what is padding is not counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self._depth = 0
        self._ours = mock.patch.multiple(
            native_kernels,
            first_sums=self._first_sums,
            product=self._product,
            forward_each=self._forward_each,
            denoise=self._denoise,
            ascent=self._ascent,
        )
        aten = torch.ops.aten
        self._formulas: dict[Any, Callable[..., int]] = dict(flop_registry)
        for in_place, other in ((aten.addmm_, aten.addmm), (aten.baddbmm_, aten.baddbmm)):
            self._formulas[in_place] = flop_registry[other]
        if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            self._formulas[torch.ops.mkldnn._linear_pointwise] = _linear_products

    def __enter__(self) -> Self:
        if self._depth == 0:
            self._ours.start()
        self._depth += 1
        return super().__enter__()  # type: ignore[no-untyped-call,no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._depth -= 1
        if self._depth == 0:
            self._ours.stop()

    def _first_sums(self, states: Tensor, level: Tensor | None, x: Tensor, weights: Tensor) -> Tensor:
        self.total += 2 * x.numel() * weights.shape[1]
        return _FIRST_SUMS(states, level, x, weights)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int = 0) -> Tensor:
        self.total += _linear_products(x, weight[padding:])
        return _PRODUCT(x, weight, bias, padding)

    def _forward_each(self, network: Network, states: Tensor, x: Tensor) -> Tensor:
        self.total += network.num_networks * len(x) * _network_operations(network)
        return _FORWARD_EACH(network, states, x)

    def _ascent(self, network: Network, states: Tensor, x: Tensor, num_dropped: int) -> Tensor:
        self.total += 2 * network.num_networks * len(x) * _network_operations(network)  # there and back
        return _ASCENT(network, states, x, num_dropped)

    def _denoise(
        self, network: Network, states: Tensor | None, level_sums: Tensor, levels: Tensor, noise: Tensor, stop: int = 0
    ) -> Tensor:
        self.total += (len(level_sums) - stop) * noise.shape[1] * _network_operations(network)
        return _DENOISE(network, states, level_sums, levels, noise, stop)

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


def _network_operations(network: Network) -> int:
    """Of one row, without the outputs that are padding."""
    return _operations(network.inputs, *network.widths[:-1], network.outputs)


def _linear_products(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * x.numel() * int(weight.shape[0])
