"""Whom an algorithm trains: one agent, or P independent ones side by side along a leading axis of every tensor.

Algorithms are written for shapes (..., B, A), in which `...` is nothing for one agent and (P,) for a population: they
reduce over named axes from the end, and draw all their networks, optimisers, noise and varied settings from `Agents`.
Nothing is shared between the agents of a population, so each learns what it would learn alone.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from learner.algorithms.guarded_adam import GuardedAdam
from learner.config import LearnerConfig
from learner.noise import Noise
from policy.errors import ConfigError

_COMMON = ("actor_learning_rate", "critic_learning_rate", "discount")
# What each algorithm reads by `Agents.setting` and `Agents.optimiser`. Of all else it reads the first agent's.
_VARIABLE = {
    "cgpo": (
        *("actor_learning_rate", "value_learning_rate", "critic.learning_rate"),
        *("discount", "guidance.rate", "entropy_weight"),
    ),
    "sac": (*_COMMON, "temperature_learning_rate"),
    "tqc": (*_COMMON, "temperature_learning_rate"),
    "td3": _COMMON,
    "qvpo": (*_COMMON, "entropy_weight"),
    "dipo": (*_COMMON, "action_learning_rate"),
}


class Agents:
    """One agent (`Agents.single`) or a population, whose members may differ in `variable_settings`."""

    def __init__(self, configs: Sequence[LearnerConfig], *, is_population: bool) -> None:
        if len(configs) != 1 and not (configs and is_population):
            raise ConfigError(f"{len(configs)} configurations cannot be one agent")
        _check_alike(configs)
        self.configs = tuple(configs)
        self.is_population = is_population
        self.device = torch.device(configs[0].device)
        self._initialisation = [_seeded_state(config.seed) for config in configs]

    @staticmethod
    def single(config: LearnerConfig) -> "Agents":
        return Agents([config], is_population=False)

    @property
    def config(self) -> LearnerConfig:
        """What all agents have in common; what they differ in is read by `setting` and `optimiser`."""
        return self.configs[0]

    @property
    def leading(self) -> tuple[int, ...]:
        """The leading axes of every tensor: () or (P,)."""
        return (len(self.configs),) if self.is_population else ()

    def network(self, make: Callable[[], nn.Module]) -> Any:
        """Make each agent's network from its own seed; a population's is one Population of them. On the device.

        Called in the same order, it gives each agent the networks that it would have alone.
        """
        members = []
        for index, state in enumerate(self._initialisation):
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                members.append(make())
                self._initialisation[index] = torch.get_rng_state()
        network = Population(members) if self.is_population else members[0]
        return network.to(self.device)

    def noise(self, purpose: int) -> Noise:
        """Random numbers for one purpose: switching one source off does not shift the others."""
        seeds = [config.seed * 1000 + purpose for config in self.configs]
        return Noise(seeds, self.device, is_population=self.is_population)

    def optimiser(
        self, parameters: Iterable[nn.Parameter], learning_rate: Callable[[LearnerConfig], float], eps: float = 1e-8
    ) -> "GuardedAdam | PopulationAdam":
        rates, is_compiled = [learning_rate(config) for config in self.configs], self.config.kernels != "plain"
        if self.is_population:
            return PopulationAdam(parameters, rates, eps, is_compiled=is_compiled)
        return GuardedAdam(parameters, rates[0], eps, is_compiled=is_compiled)

    def setting(self, read: Callable[[LearnerConfig], float], num_axes: int) -> "float | Tensor":
        """Return a setting that agents may differ in: a number if they agree, else (P, 1, ...) with `num_axes` ones."""
        values = [read(config) for config in self.configs]
        if len(set(values)) == 1:
            return values[0]
        return torch.tensor(values, device=self.device).view(-1, *(1,) * num_axes)


class Population(nn.Module):
    """P networks of one shape, run as one: every tensor in and out has a leading axis P.

    `stacked` holds the parameters under the members' own names, each with that axis in front.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stacked = copy.deepcopy(members[0])
        parameters, buffers = torch.func.stack_module_state(list(members))
        for name, tensor in {**parameters, **buffers}.items():
            owner_name, _, leaf = name.rpartition(".")
            owner = self.stacked.get_submodule(owner_name)
            if name in buffers:
                owner._buffers[leaf] = tensor
            else:
                owner._parameters[leaf] = nn.Parameter(tensor.detach())
        self._template = [copy.deepcopy(members[0]).to("meta")]  # in a list: no part of this module's parameters

    def forward(self, *inputs: Any) -> Tensor:
        """Call each member with its slice of every tensor among `inputs`; other inputs are the same for all."""
        state = {**dict(self.stacked.named_parameters()), **dict(self.stacked.named_buffers())}
        axes = tuple(None if isinstance(value, int) else 0 for value in inputs)

        def call(own: dict[str, Tensor], *own_inputs: Any) -> Any:
            return torch.func.functional_call(self._template[0], own, own_inputs)

        result: Tensor = torch.vmap(call, in_dims=(0, *axes))(state, *inputs)
        return result


class PopulationAdam:
    """GuardedAdam for each agent of a population: one whose step is not finite does not hold up the others."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rates: Sequence[float],
        eps: float,
        *,
        is_compiled: bool = False,
    ) -> None:
        self._parameters = list(parameters)
        # A member's parameters share the stacked ones' memory.
        self.members = [
            GuardedAdam(
                [nn.Parameter(stacked.detach()[index]) for stacked in self._parameters],
                rate,
                eps,
                is_compiled=is_compiled,
            )
            for index, rate in enumerate(learning_rates)
        ]

    def descend(self, loss: Tensor, max_norm: float = 0.0, is_due: Tensor | None = None) -> None:
        """Take one step of every agent down its element of `loss` (P,), as GuardedAdam.descend does."""
        gradients = torch.autograd.grad(loss.sum(), self._parameters, allow_unused=True)
        for index, member in enumerate(self.members):
            own = [None if gradient is None else gradient[index] for gradient in gradients]
            member.step_along(own, loss[index], max_norm, is_due)


def variable_settings(algorithm: str) -> tuple[str, ...]:
    """Return what the agents of a population may differ in, as names in learner.config.LearnerConfig."""
    return ("seed", *(f"{algorithm}.{name}" for name in _VARIABLE.get(algorithm, ())))


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Return a network's parameters and buffers by name; a population's have the leading axis P.

    named_parameters and named_buffers take ten times as long and this is asked for twenty times per update, so where a
    network keeps its tensors is looked up once: its modules and the names in them must not change afterwards.
    """
    module = network.stacked if isinstance(network, Population) else network
    places = _places.get(module)
    if places is None:
        places = _places[module] = list(_walk(module, ""))
    return {name: owner[key] for name, owner, key in places}


def parameters_of(network: nn.Module) -> list[Tensor]:
    """Return those of `tensors_of` that are learnt."""
    return [tensor for tensor in tensors_of(network).values() if isinstance(tensor, nn.Parameter)]


_Place = tuple[str, dict[str, Any], str]
_places: WeakKeyDictionary[nn.Module, list[_Place]] = WeakKeyDictionary()


def _walk(module: nn.Module, prefix: str) -> Iterator[_Place]:
    """Each tensor's name, and the dictionary and key under which it is kept."""
    for owner in (module._parameters, module._buffers):
        yield from ((prefix + key, owner, key) for key, tensor in owner.items() if tensor is not None)
    for name, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{prefix}{name}.")


def _check_alike(configs: Sequence[LearnerConfig]) -> None:
    """Raise ConfigError where the members of a population differ in what shapes them all."""
    first, variable = _flat(dataclasses.asdict(configs[0])), variable_settings(configs[0].algorithm)
    for index, config in enumerate(configs[1:], start=1):
        for name, value in _flat(dataclasses.asdict(config)).items():
            if value != first[name] and name not in variable:
                raise ConfigError(
                    f"agents 0 and {index} of a population differ in learner.{name}: {first[name]!r} and {value!r}. "
                    f"They may differ in {', '.join(variable)}; train others in runs of their own."
                )


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _seeded_state(seed: int) -> Tensor:
    return torch.Generator().manual_seed(seed).get_state()
