"""The kernels of learner.kernels.plain, computed sooner and equal to 1e-5 in fp32.

What makes them faster, each exact: first layers split into parts of the state, the level and the action; the steps
before guidance computed once for both chains; gradients written out, none where nothing can move. On a CPU also
compiled activations and matrix products (policy.fast), and rows in groups that stay in the cache, one agent after the
other; on a GPU all agents and critics at once, in kernels that one CUDA graph can hold.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from learner.agents import Agents, Population, tensors_of
from learner.guidance import make_guide
from learner.kernels.fast_batched import (
    BatchedCritic,
    BatchedDenoiser,
    CriticLayers,
    batched_predict_noise,
    batched_quantiles,
)
from learner.kernels.fast_critic import CompiledAt, CriticAt, FastCritic
from learner.kernels.fast_guidance import GuidedPair
from learner.kernels.fast_losses import quantile_huber_loss
from learner.kernels.plain import PlainKernels
from policy.critic_network import CriticEnsemble
from policy.denoiser import Denoiser
from policy.fast import chain
from policy.fast.chain import DenoiserAt, FastDenoiser, FastRegressor, Levels
from policy.fast.native_check import is_native_used, is_product_used, why_unused
from policy.fast.products import is_onednn_used
from policy.noise_schedule import make_noise_schedule


class FastKernels:
    """See learner.kernels.Kernels. Networks that it does not know the inside of go to the plain kernels."""

    def __init__(self, agents: Agents, is_batched: bool | None = None) -> None:
        """is_batched: all agents and critics at once, or one after the other; None decides by the device."""
        policy, cgpo = agents.config.policy, agents.config.cgpo
        self._plain = PlainKernels(agents)
        self._levels = Levels(make_noise_schedule(policy.schedule, policy.denoising_steps), agents.device)
        self._kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()
        self._num_dropped = policy.drop_quantiles
        self._guidance = cgpo.guidance
        # Guidance longer than the chain leaves nothing to share, not even where it begins.
        self._shares_prefix = cgpo.shared_prefix and cgpo.guidance.steps <= policy.denoising_steps
        self._is_batched = agents.device.type != "cpu" if is_batched is None else is_batched
        self._splits = agents.is_population and not self._is_batched
        if not self._is_batched:
            _keep_freed_memory()
        rates: list[Tensor | float] = [config.cgpo.guidance.rate for config in agents.configs]
        if not self._splits:
            rates = [agents.setting(lambda config: config.cgpo.guidance.rate, num_axes=2)]
        self._num_parts = len(rates)
        guides = [make_guide(cgpo.guidance, _no_value, rate) for rate in rates]
        self._guides = [guide for guide in guides if guide is not None]  # all or none

    def how(self) -> str:
        """What computes, in words."""
        if self._is_batched:
            return "all agents and critics in one batch, gradients of guidance written out"
        products = "PyTorch's matrix products (it has no oneDNN)"
        if is_product_used():
            products = "compiled matrix products"
        elif is_onednn_used():
            products = "oneDNN's matrix products"
        activations = "compiled activations"
        if not is_native_used():
            activations = f"PyTorch's activations ({why_unused() or 'several threads'})"
        order = ", agents one after the other" if self._splits else ""
        return f"{products}, {activations}, gradients of guidance written out{order}"

    def sample(self, denoiser: nn.Module, feature: Tensor, noise: Tensor) -> Tensor:
        if not _is_denoiser(denoiser):
            return self._plain.sample(denoiser, feature, noise)
        actions = torch.empty_like(noise[0])
        with torch.inference_mode():  # starts operations sooner than no_grad; what is made in it stays in it
            per_state = noise.shape[-2] // feature.shape[-2]
            each = zip(self._denoisers(denoiser, feature), self._each(noise, dim=1), strict=True)
            actions.copy_(self._joined([chain.sample(own, self._levels, chains, per_state) for own, chains in each]))
        return actions

    def sample_pair(
        self, denoiser: nn.Module, critic: nn.Module, feature: Tensor, noise: Tensor, guided_noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not (_is_denoiser(denoiser) and _is_critic(critic)):
            return self._plain.sample_pair(denoiser, critic, feature, noise, guided_noise)
        if not self._guides:
            return self.sample(denoiser, feature, noise), self.sample(denoiser, feature, guided_noise)
        actions = torch.empty_like(noise[0]), torch.empty_like(noise[0])
        with torch.inference_mode():
            networks = (self._denoisers(denoiser, feature), self._critics(critic, feature), self._guides)
            noises = (self._each(noise, dim=1), self._each(guided_noise, dim=1))
            pairs = []
            for own, own_critic, guide, *own_noises in zip(*networks, *noises, strict=True):
                pair = GuidedPair(own, own_critic, self._levels, self._guidance, guide, self._shares_prefix)
                pairs.append(pair.sample(*own_noises))
            for result, parts in zip(actions, zip(*pairs, strict=True), strict=True):
                result.copy_(self._joined(parts))
        return actions

    def value(self, critic: nn.Module, feature: Tensor, action: Tensor) -> Tensor:
        if not _is_critic(critic):
            return self._plain.value(critic, feature, action)
        values = torch.empty(action.shape[:-1], dtype=action.dtype, device=action.device)
        with torch.inference_mode():
            each = zip(self._critics(critic, feature), self._each(action), strict=True)
            values.copy_(self._joined([own.value(actions) for own, actions in each]))
        return values

    def quantiles(self, critic: nn.Module, feature: Tensor, action: Tensor, *, is_frozen: bool = False) -> Tensor:
        if not _is_critic(critic):
            return self._plain.quantiles(critic, feature, action, is_frozen=is_frozen)
        parts = self._parts(critic)
        if is_frozen:
            parts = [{name: tensor.detach() for name, tensor in part.items()} for part in parts]
        each = zip(parts, self._each(feature), self._each(action), strict=True)
        if self._is_batched:
            return self._joined([batched_quantiles(self._layers(critic, own), *inputs) for own, *inputs in each])
        ensembles = self._ensembles(critic, feature)
        return self._joined([own.quantiles(*parts) for own, parts in zip(ensembles, each, strict=True)])

    def predict_noise(self, denoiser: nn.Module, noisy_action: Tensor, step: Tensor, feature: Tensor) -> Tensor:
        if not _is_denoiser(denoiser):
            return self._plain.predict_noise(denoiser, noisy_action, step, feature)
        inputs = (self._each(noisy_action), self._each(step), self._each(feature))
        each = zip(self._parts(denoiser), *inputs, strict=True)
        if self._is_batched:
            return self._joined([batched_predict_noise(*parts) for parts in each])
        kept = self._keep(denoiser, FastDenoiser)
        return self._joined([own.predict_noise(*parts) for own, parts in zip(kept, each, strict=True)])

    def regress(self, network: nn.Module, inputs: Tensor) -> Tensor:
        if self._is_batched or not _is_mish_mlp(network):
            return self._plain.regress(network, inputs)
        each = zip(self._keep(network, FastRegressor), self._parts(network), self._each(inputs), strict=True)
        return self._joined([own(*parts) for own, *parts in each])

    def quantile_huber_loss(self, quantiles: Tensor, targets: Tensor, kappa: float = 1.0) -> Tensor:
        return quantile_huber_loss(quantiles, targets, kappa)

    # --- the agents one after the other, or all as one part -------------------------------------------------------

    def _each(self, tensor: Tensor, dim: int = 0) -> Sequence[Tensor]:
        return tensor.unbind(dim) if self._splits else [tensor]

    def _joined(self, results: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(results)) if self._splits else results[0]

    def _parts(self, network: nn.Module) -> list[dict[str, Tensor]]:
        """Each part's tensors by name."""
        each = {name: self._each(tensor) for name, tensor in tensors_of(network).items()}
        return [{name: tensors[index] for name, tensors in each.items()} for index in range(self._num_parts)]

    def _denoisers(self, denoiser: nn.Module, feature: Tensor) -> Sequence[DenoiserAt | BatchedDenoiser]:
        features = self._each(feature)
        if self._is_batched:
            return [BatchedDenoiser(*own) for own in zip(self._parts(denoiser), features, strict=True)]
        kept = self._keep(denoiser, FastDenoiser)
        return [own.at(part) for own, part in zip(kept, features, strict=True)]

    def _critics(self, critic: nn.Module, feature: Tensor) -> Sequence[CriticAt | CompiledAt | BatchedCritic]:
        features = self._each(feature)
        if self._is_batched:
            each = zip(self._parts(critic), features, strict=True)
            return [BatchedCritic(self._layers(critic, own), part, self._num_dropped) for own, part in each]
        return [own.at(part) for own, part in zip(self._ensembles(critic, feature), features, strict=True)]

    def _layers(self, critic: nn.Module, tensors: dict[str, Tensor]) -> CriticLayers:
        return CriticLayers(tensors, _activation_of(critic))

    def _ensembles(self, critic: nn.Module, feature: Tensor) -> Sequence[FastCritic]:
        activation, width = _activation_of(critic), feature.shape[-1]
        return self._keep(critic, lambda tensors: FastCritic(tensors, activation, width, self._num_dropped))

    def _keep(self, network: nn.Module, make: Callable[[dict[str, Tensor]], Any]) -> Sequence[Any]:
        """What `make` returns for each part, kept for as long as its tensors lie where they are."""
        tensors = tensors_of(network)
        places = [tensor.data_ptr() for tensor in tensors.values()]
        kept = self._kept.get(network)
        if kept is None or kept.places != places:
            with torch.inference_mode(False), torch.no_grad():  # it outlives the mode that it is first asked for in
                kept = self._kept[network] = _Kept(places, [make(own) for own in self._parts(network)])
        return kept.parts


class _Kept(NamedTuple):
    """What is kept of one network, with the addresses of its tensors."""

    places: list[int]
    parts: list[Any]


def _keep_freed_memory() -> None:
    """Let the process use freed blocks again, where it would return them to the system and take them back.

    glibc returns what is larger than the largest block that it ever mapped and freed, or twice that at the heap's end,
    and learns from one of nearly 32 MB, its limit, which is never touched. Measured on paper_mujoco at Ant's size:
    6,000 page faults and 9 % of an update's time. Other allocators take no notice.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _template(network: nn.Module) -> nn.Module:
    return network.stacked if isinstance(network, Population) else network


def _is_denoiser(network: nn.Module) -> bool:
    return type(_template(network)) is Denoiser


def _is_critic(network: nn.Module) -> bool:
    return type(_template(network)) is CriticEnsemble


def _activation_of(critic: nn.Module) -> str:
    template = _template(critic)
    assert isinstance(template, CriticEnsemble)
    return template.activation


def _is_mish_mlp(network: nn.Module) -> bool:
    """Whether it is linear layers with mish between them."""
    template = _template(network)
    if type(template) is not nn.Sequential or len(template) % 2 == 0:
        return False
    return all(type(layer) is (nn.Linear, nn.Mish)[index % 2] for index, layer in enumerate(template))


def _no_value(feature: Tensor, action: Tensor) -> Tensor:
    raise NotImplementedError("the fast kernels write the value's gradient out themselves")
