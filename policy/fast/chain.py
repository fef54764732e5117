"""Unguided chains of one denoiser on a CPU: the numbers of policy.sampler.sample up to rounding, sooner.

The first layer is split: the state's part of it is computed once per state and the time's once per level, not once per
row and step. Rows go through the whole chain in groups small enough that what they need stays near the processor.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from policy.fast import native_kernels
from policy.fast.activations import Kept, Layer
from policy.fast.arranged_layers import MlpParameters
from policy.fast.mlp import Base, FastMlps
from policy.fast.products import first_sums, linear
from policy.noise_schedule import NoiseSchedule

_GROUP_FLOATS = 1 << 18  # of one hidden layer; measured: half as many take 4 % longer, a quarter 15 %


class Level(NamedTuple):
    """One step's coefficients as Python numbers: to read one from a tensor takes longer than to compute with it.

    Of the clean action times sqrt(alpha_bar), which is what the step clips: x_{t-1} = clipped_weight clip(x -
    error_gain eps, -bound, bound) + noisy_weight x + sigma noise. Source: CGPO Eq 4.
    """

    error_gain: float
    bound: float
    clipped_weight: float
    noisy_weight: float
    sigma: float


class Levels:
    """All steps of a chain, in the order of their codes."""

    def __init__(self, schedule: NoiseSchedule, device: torch.device) -> None:
        """schedule on the CPU, where its numbers are read; device: where the chains are."""
        bound, weight = schedule.sqrt_alpha_bar.double(), schedule.clean_coefficient.double()
        columns = (
            schedule.sqrt_one_minus_alpha_bar,
            bound,
            weight / bound,
            schedule.noisy_coefficient,
            schedule.sigma,
        )
        self.steps = [Level(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        self.table = torch.tensor(self.steps, dtype=torch.float32)  # (T, 5), for the compiled chain
        self._sigma = schedule.sigma.to(device)

    def __len__(self) -> int:
        return len(self.steps)

    def scaled(self, noise: Tensor) -> list[Tensor]:
        """sigma times the noise (T + 1, ..., R, A) of each step, and last the noise that a chain begins with."""
        sigma = self._sigma.view(-1, *(1,) * (noise.dim() - 1))
        return [*(noise[:-1] * sigma).unbind(), noise[-1]]


def layers_of(tensors: Mapping[str, Tensor], prefix: str) -> list[Layer]:
    """The linear layers of the nn.Sequential whose names begin with `prefix`, in order."""
    weights = [name for name in tensors if name.startswith(prefix) and name.endswith(".weight")]
    return [Layer(tensors[name], tensors[f"{name[:-6]}bias"]) for name in weights]


class ChainDenoiser(Protocol):
    """Denoisers and the states they are asked about. Without autograd.

    Shapes: B states, R = B K rows, the K of one state next to each other, A action, T levels, H first hidden layer;
    `...` is nothing or (P,), a population's.
    """

    def groups(self, rows_per_state: int) -> Iterable[slice]:
        """Split the states into groups that are best run one after the other, with so many rows of each."""

    def states(self, group: slice, rows_per_state: int) -> Tensor:
        """The states' part of the first layer's sums for all rows of a group (..., R, H)."""

    def error(self, x: Tensor, states: Tensor, step: int) -> Tensor:
        """Predicted noise (..., R, A) of x (..., R, A) at a level, for `states` (..., R, H)."""

    def error_and_slopes(self, x: Tensor, states: Tensor, step: int, rows: int) -> tuple[Tensor, list[Kept]]:
        """As `error`, and what `back` needs for the first `rows` rows."""

    def back(self, gradient: Tensor, slopes: list[Kept]) -> Tensor:
        """Gradient with respect to x (..., rows, A) from that with respect to the predicted noise (..., rows, A)."""

    def run(self, levels: Levels, noise: Tensor, group: slice, stop: int) -> Tensor | None:
        """As `run` below in one go, or None where there is no such way."""


class FastDenoiser:
    """One denoiser, kept in the form that a CPU wants. Parameters are read at every call."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """tensors of one Denoiser by name."""
        layers, self._tensors = layers_of(tensors, "trunk."), tensors
        self._action_dim = layers[-1].bias.shape[0]
        self._mlps = FastMlps(_parameters_of(layers), "mish", self._action_dim)
        (self.mlp,), (first,) = self._mlps.members, self._mlps.whole_firsts
        self._time_mlps = FastMlps(_parameters_of(layers_of(tensors, "time_mlp.")), "mish")
        ends = [self._action_dim, self._action_dim + tensors["time_table"].shape[1]]
        to_action, to_time, to_state = first.weight.tensor_split(ends, dim=1)
        self.to_action = to_action.t()  # (A, H)
        self._bias, self._to_time, self._to_state = first.bias, to_time.t(), to_state
        self.network = self._mlps.network(slice(self._action_dim))

    def at(self, feature: Tensor) -> "DenoiserAt":
        """The denoiser as it is now and the states feature (B, F). Without autograd; drop it when weights change."""
        self._mlps.follow()
        time_part = torch.addmm(self._bias, self._embedding(self._tensors), self._to_time)  # (T, H)
        return DenoiserAt(self, time_part, time_part.unbind(), linear(feature, self._to_state))

    def predict_noise(
        self, tensors: Mapping[str, Tensor], noisy_action: Tensor, step: Tensor, feature: Tensor
    ) -> Tensor:
        """eps (B K, A) for noisy_action (B K, A), step (B K,), feature (B, F).

        Differentiable in the denoiser's tensors, given once more because gradients go to them, and the inputs.
        """
        first, *others = layers_of(tensors, "trunk.")
        embedding = self._embedding(tensors)
        ends = [self._action_dim, self._action_dim + embedding.shape[1]]
        to_action, to_time, to_state = first.weight.tensor_split(ends, dim=1)
        base = Base(feature @ to_state.t(), embedding @ to_time.t(), step)
        parameters = _parameters_of([Layer(to_action, first.bias), *others])
        return self._mlps.run(noisy_action, base, parameters).squeeze(1)

    def _embedding(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Of each level, (T, E)."""
        parameters = _parameters_of(layers_of(tensors, "time_mlp."))
        return self._time_mlps.run(tensors["time_table"], None, parameters).squeeze(1)


class DenoiserAt(NamedTuple):
    """See ChainDenoiser; one agent's."""

    denoiser: FastDenoiser
    time_part: Tensor  # (T, H)
    levels: tuple[Tensor, ...]  # its rows
    state_part: Tensor  # (B, H)

    def groups(self, rows_per_state: int) -> Iterator[slice]:
        num_states, width = self.state_part.shape
        size = max(1, _GROUP_FLOATS // (width * rows_per_state))
        for start in range(0, num_states, size):
            yield slice(start, min(start + size, num_states))

    def states(self, group: slice, rows_per_state: int) -> Tensor:
        part = self.state_part[group]
        return part if rows_per_state == 1 else part.repeat_interleave(rows_per_state, dim=0)

    def error(self, x: Tensor, states: Tensor, step: int) -> Tensor:
        return self.denoiser.mlp.outputs(self._sums(x, states, step))

    def error_and_slopes(self, x: Tensor, states: Tensor, step: int, rows: int) -> tuple[Tensor, list[Kept]]:
        mlp = self.denoiser.mlp
        values, slopes = mlp.hidden_and_slopes(self._sums(x, states, step), rows)
        return mlp.outputs_of(values[-1]), slopes

    def back(self, gradient: Tensor, slopes: list[Kept]) -> Tensor:
        return linear(self.denoiser.mlp.back(gradient, slopes), self.denoiser.to_action)

    def _sums(self, x: Tensor, states: Tensor, step: int) -> Tensor:
        return first_sums(states, self.levels[step], x, self.denoiser.to_action)

    def run(self, levels: Levels, noise: Tensor, group: slice, stop: int) -> Tensor | None:
        if self.denoiser.network is None or noise.dtype != torch.float32:
            return None
        states = self.state_part[group]
        return native_kernels.denoise(
            self.denoiser.network, states, self.time_part, levels.table, noise.contiguous(), stop
        )


def denoise(x: Tensor, error: Tensor, level: Level, fresh: Tensor) -> Tensor:
    """One unguided step: x_{t-1} (..., R, A) of x, the predicted noise, and fresh noise times sigma."""
    clipped = torch.sub(x, error, alpha=level.error_gain).clamp_(-level.bound, level.bound)
    return torch.add(fresh, x, alpha=level.noisy_weight).add_(clipped, alpha=level.clipped_weight)


def sample(denoiser: ChainDenoiser, levels: Levels, noise: Tensor, rows_per_state: int) -> Tensor:
    """Without autograd: actions (..., B K, A) in [-1, 1] for the denoiser's states and noise (T + 1, ..., B K, A)."""
    actions = torch.empty_like(noise[0])
    for group in denoiser.groups(rows_per_state):
        rows = slice(group.start * rows_per_state, group.stop * rows_per_state)
        x = run(denoiser, levels, noise[..., rows, :], group, rows_per_state)
        actions[..., rows, :] = x.clamp_(-1, 1)
    return actions


def run(
    denoiser: ChainDenoiser, levels: Levels, noise: Tensor, group: slice, rows_per_state: int, stop: int = 0
) -> Tensor:
    """Steps T - 1 to `stop` of unguided chains: x (..., R, A) for a group of states and noise (T + 1, ..., R, A)."""
    x = denoiser.run(levels, noise, group, stop)
    return x if x is not None else walk(denoiser, levels, noise, denoiser.states(group, rows_per_state), stop)


def walk(denoiser: ChainDenoiser, levels: Levels, noise: Tensor, states: Tensor, stop: int) -> Tensor:
    """The same step by step, for `states` (..., R, H)."""
    *fresh, x = levels.scaled(noise)
    for step in range(len(levels) - 1, stop - 1, -1):
        x = denoise(x, denoiser.error(x, states, step), levels.steps[step], fresh[step])
    return x


def _parameters_of(layers: list[Layer]) -> MlpParameters:
    return MlpParameters(*zip(*layers, strict=True))


class FastRegressor:
    """One network of linear layers with mish between them, kept in the form that a CPU wants."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._mlps = FastMlps(_parameters_of(layers_of(tensors, "")), "mish")

    def __call__(self, tensors: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Outputs (R, out) for inputs (R, in), differentiable in the network's tensors and the inputs."""
        return self._mlps.run(inputs, None, _parameters_of(layers_of(tensors, ""))).squeeze(1)
