"""The kernels of learner.kernels.plain, computed sooner and equal to 1e-5 in fp32; for a CPU.

What makes them faster, each exact: first layers split into parts of the state, the level and the action; the steps
before guidance computed once for both chains; gradients written out; cheap activations; oneDNN's matrix products;
rows in groups that stay in the cache. The agents of a population run one after the other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from learner.agents import Agents, Population, tensors_of
from learner.guidance import make_guide
from learner.kernels.fast_critic import CriticLayers, FastCritic, value_groups
from learner.kernels.fast_guidance import sample_pair
from learner.kernels.fast_losses import quantile_huber_loss
from learner.kernels.plain import PlainKernels
from policy import fast_chain
from policy.activations import Layer
from policy.critic_network import CriticEnsemble
from policy.denoiser import Denoiser
from policy.fast_chain import layers_of, levels_of, time_embedding
from policy.fast_linear import is_onednn_used
from policy.fast_mlp import run_mlps
from policy.noise_schedule import make_noise_schedule


class FastKernels:
    """See learner.kernels.Kernels. Networks that it does not know the inside of go to the plain kernels."""

    def __init__(self, agents: Agents) -> None:
        policy, cgpo = agents.config.policy, agents.config.cgpo
        self._plain = PlainKernels(agents)
        self._levels = levels_of(make_noise_schedule(policy.schedule, policy.denoising_steps))
        self._num_dropped = policy.drop_quantiles
        self._guidance = cgpo.guidance
        # Guidance longer than the chain leaves nothing to share, not even where it begins.
        self._shares_prefix = cgpo.shared_prefix and cgpo.guidance.steps <= policy.denoising_steps
        self._is_population = agents.is_population
        rates = [config.cgpo.guidance.rate for config in agents.configs]
        self._num_agents = len(rates)
        guides = [make_guide(cgpo.guidance, _no_value, rate) for rate in rates]
        self._guides = [guide for guide in guides if guide is not None]  # all or none

    def how(self) -> str:
        """What computes, in words."""
        products = "oneDNN's matrix products" if is_onednn_used() else "PyTorch's matrix products (it has no oneDNN)"
        order = ", agents one after the other" if self._is_population else ""
        return f"{products}, gradients of guidance written out{order}"

    def sample(self, denoiser: nn.Module, feature: Tensor, noise: Tensor) -> Tensor:
        if not _is_denoiser(denoiser):
            return self._plain.sample(denoiser, feature, noise)
        features, noises = self._each(feature), self._each(noise, dim=1)
        each = zip(self._members(denoiser), features, noises, strict=True)
        return self._joined([fast_chain.sample(tensors, self._levels, *inputs) for tensors, *inputs in each])

    def sample_pair(
        self, denoiser: nn.Module, critic: nn.Module, feature: Tensor, noise: Tensor, guided_noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not (_is_denoiser(denoiser) and _is_critic(critic)):
            return self._plain.sample_pair(denoiser, critic, feature, noise, guided_noise)
        if not self._guides:
            return self.sample(denoiser, feature, noise), self.sample(denoiser, feature, guided_noise)
        pairs = []
        critics, features = self._critics(critic), self._each(feature)
        noises, guided_noises = self._each(noise, dim=1), self._each(guided_noise, dim=1)
        for index, tensors in enumerate(self._members(denoiser)):
            fast_critic = FastCritic(critics[index], features[index], self._num_dropped)
            pairs.append(
                sample_pair(
                    tensors,
                    fast_critic,
                    self._levels,
                    self._guidance,
                    self._guides[index],
                    features[index],
                    noises[index],
                    guided_noises[index],
                    self._shares_prefix,
                )
            )
        unguided, guided = zip(*pairs, strict=True)
        return self._joined(unguided), self._joined(guided)

    @torch.no_grad()
    def value(self, critic: nn.Module, feature: Tensor, action: Tensor) -> Tensor:
        if not _is_critic(critic):
            return self._plain.value(critic, feature, action)
        each = zip(self._critics(critic), self._each(feature), self._each(action), strict=True)
        return self._joined([_value(self._num_dropped, *inputs) for inputs in each])

    def quantiles(self, critic: nn.Module, feature: Tensor, action: Tensor) -> Tensor:
        if not _is_critic(critic):
            return self._plain.quantiles(critic, feature, action)
        each = zip(self._critics(critic), self._each(feature), self._each(action), strict=True)
        return self._joined([layers.quantiles(*inputs) for layers, *inputs in each])

    def predict_noise(self, denoiser: nn.Module, noisy_action: Tensor, step: Tensor, feature: Tensor) -> Tensor:
        if not _is_denoiser(denoiser):
            return self._plain.predict_noise(denoiser, noisy_action, step, feature)
        inputs = (self._each(noisy_action), self._each(step), self._each(feature))
        each = zip(self._members(denoiser), *inputs, strict=True)
        return self._joined([_predict_noise(tensors, *inputs) for tensors, *inputs in each])

    def quantile_huber_loss(self, quantiles: Tensor, targets: Tensor, kappa: float = 1.0) -> Tensor:
        return quantile_huber_loss(quantiles, targets, kappa)

    def _each(self, tensor: Tensor, dim: int = 0) -> Sequence[Tensor]:
        return tensor.unbind(dim) if self._is_population else [tensor]

    def _joined(self, results: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(results)) if self._is_population else results[0]

    def _members(self, network: nn.Module) -> list[dict[str, Tensor]]:
        """Each agent's tensors by name."""
        each = {name: self._each(tensor) for name, tensor in tensors_of(network).items()}
        return [{name: tensors[index] for name, tensors in each.items()} for index in range(self._num_agents)]

    def _critics(self, critic: nn.Module) -> list[CriticLayers]:
        template = _template(critic)
        assert isinstance(template, CriticEnsemble)
        return [CriticLayers(tensors, template.activation) for tensors in self._members(critic)]


def _value(num_dropped: int, critic: CriticLayers, feature: Tensor, action: Tensor) -> Tensor:
    fast_critic = FastCritic(critic, feature, num_dropped)
    per_state = len(action) // len(feature)
    groups = value_groups(len(feature), per_state, critic.width)
    return torch.cat(
        [fast_critic.value(action[group.start * per_state : group.stop * per_state], group) for group in groups]
    )


def _predict_noise(tensors: dict[str, Tensor], noisy_action: Tensor, step: Tensor, feature: Tensor) -> Tensor:
    first, *others = layers_of(tensors, "trunk")
    embedding = time_embedding(tensors)
    action_dim = noisy_action.shape[1]
    to_action, to_time, to_state = first.weight.tensor_split([action_dim, action_dim + embedding.shape[1]], dim=1)
    per_level, per_state = embedding @ to_time.t(), feature @ to_state.t()
    states = per_state.repeat_interleave(len(noisy_action) // len(feature), dim=0)
    base = states + per_level.index_select(0, step)
    layers = [Layer(weight[None], bias[None]) for weight, bias in (Layer(to_action, first.bias), *others)]
    return run_mlps("mish", noisy_action, base, layers).squeeze(1)


def _template(network: nn.Module) -> nn.Module:
    return network.stacked if isinstance(network, Population) else network


def _is_denoiser(network: nn.Module) -> bool:
    return type(_template(network)) is Denoiser


def _is_critic(network: nn.Module) -> bool:
    return type(_template(network)) is CriticEnsemble


def _no_value(feature: Tensor, action: Tensor) -> Tensor:
    raise NotImplementedError("the fast kernels write the value's gradient out themselves")
