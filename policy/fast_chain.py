"""Unguided chains of one denoiser on a CPU: the numbers of policy.sampler.sample up to rounding, sooner.

The first layer is split: the state's part of it is computed once per state and the time's once per level, not once per
row and step. Rows go through the whole chain in groups small enough that what they need stays near the processor.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import mish

from policy.activations import Kept, Layer
from policy.fast_linear import affine, dense, linear
from policy.fast_mlp import make_mlps, run_mlps
from policy.noise_schedule import NoiseSchedule

_GROUP_FLOATS = 1 << 18  # of one hidden layer; measured: half as many take 4 % longer, a quarter 15 %


class Level(NamedTuple):
    """One step's coefficients as Python numbers: to read one from a tensor takes longer than to compute with it.

    clean = clean_gain x - error_gain eps; x_{t-1} = clean_weight clip(clean) + noisy_weight x + sigma noise.
    """

    error_gain: float
    clean_gain: float
    clean_weight: float
    noisy_weight: float
    sigma: float


def levels_of(schedule: NoiseSchedule) -> list[Level]:
    clean_gain = 1 / schedule.sqrt_alpha_bar.double()
    columns = (
        schedule.sqrt_one_minus_alpha_bar * clean_gain,
        clean_gain,
        schedule.clean_coefficient,
        schedule.noisy_coefficient,
        schedule.sigma,
    )
    return [Level(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def layers_of(tensors: Mapping[str, Tensor], prefix: str) -> list[Layer]:
    """The linear layers of the nn.Sequential whose names begin with `prefix`, in order."""
    weights = [name for name in tensors if name.startswith(prefix) and name.endswith(".weight")]
    return [Layer(tensors[name], tensors[f"{name[:-6]}bias"]) for name in weights]


def time_embedding(tensors: Mapping[str, Tensor]) -> Tensor:
    """The denoiser's embedding of each level, (..., T, E)."""
    hidden, last = layers_of(tensors, "time_mlp.")
    return affine(mish(affine(tensors["time_table"], *hidden)), *last)


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


class FastDenoiser:
    """See ChainDenoiser; one agent's. Reads parameters once: make it, use it, drop it."""

    def __init__(self, tensors: Mapping[str, Tensor], feature: Tensor) -> None:
        """tensors of one Denoiser by name; feature (B, F)."""
        layers = layers_of(tensors, "trunk.")
        # Weights in the memory order of their transpose: oneDNN is 3 % faster, which pays over a chain.
        stacked = [Layer(weight.t().contiguous().t()[None], bias[None]) for weight, bias in layers]
        (self._mlp,) = make_mlps("mish", stacked)
        self.action_dim = layers[-1].bias.shape[0]
        first, embedding = self._mlp.first, time_embedding(tensors)
        ends = [self.action_dim, self.action_dim + embedding.shape[1]]
        to_action, to_time, to_state = first.weight.tensor_split(ends, dim=1)
        self._action_to_sums, self._sums_to_action = to_action.t(), dense(to_action.t())
        self._time_part = torch.addmm(first.bias, embedding, to_time.t())  # (T, H)
        self._state_part = linear(feature, to_state)  # (B, H)

    def groups(self, rows_per_state: int) -> Iterator[slice]:
        num_states, width = self._state_part.shape
        size = max(1, _GROUP_FLOATS // (width * rows_per_state))
        for start in range(0, num_states, size):
            yield slice(start, min(start + size, num_states))

    def states(self, group: slice, rows_per_state: int) -> Tensor:
        part = self._state_part[group]
        return part if rows_per_state == 1 else part.repeat_interleave(rows_per_state, dim=0)

    def error(self, x: Tensor, states: Tensor, step: int) -> Tensor:
        return self._mlp.outputs(self._sums(x, states, step))

    def error_and_slopes(self, x: Tensor, states: Tensor, step: int, rows: int) -> tuple[Tensor, list[Kept]]:
        values, slopes = self._mlp.hidden_and_slopes(self._sums(x, states, step), rows)
        return linear(values[-1], *self._mlp.last), slopes

    def back(self, gradient: Tensor, slopes: list[Kept]) -> Tensor:
        return linear(self._mlp.back(gradient, slopes), self._sums_to_action)

    def _sums(self, x: Tensor, states: Tensor, step: int) -> Tensor:
        sums = states + self._time_part[step]
        return sums.addmm_(x, self._action_to_sums)


def denoise(x: Tensor, error: Tensor, level: Level, noise: Tensor) -> Tensor:
    """One unguided step: x_{t-1} (..., R, A) of x, predicted noise, which is overwritten, and noise. CGPO Eq 4."""
    clean = error.mul_(-level.error_gain).add_(x, alpha=level.clean_gain).clamp_(-1, 1)
    return clean.mul_(level.clean_weight).add_(x, alpha=level.noisy_weight).add_(noise, alpha=level.sigma)


def sample(denoiser: ChainDenoiser, levels: list[Level], noise: Tensor, rows_per_state: int) -> Tensor:
    """Without autograd: actions (..., B K, A) in [-1, 1] for the denoiser's states and noise (T + 1, ..., B K, A)."""
    actions = torch.empty_like(noise[0])
    for group in denoiser.groups(rows_per_state):
        states = denoiser.states(group, rows_per_state)
        rows = slice(group.start * rows_per_state, group.stop * rows_per_state)
        x = run(denoiser, levels, noise[..., rows, :], states)
        actions[..., rows, :] = x.clamp_(-1, 1)
    return actions


def run(denoiser: ChainDenoiser, levels: list[Level], noise: Tensor, states: Tensor, stop: int = 0) -> Tensor:
    """Steps T - 1 to `stop` of unguided chains: x (..., R, A) for noise (T + 1, ..., R, A), states (..., R, H)."""
    x = noise[-1]
    for step in range(len(levels) - 1, stop - 1, -1):
        x = denoise(x, denoiser.error(x, states, step), levels[step], noise[step])
    return x


def predict_noise(tensors: Mapping[str, Tensor], noisy_action: Tensor, step: Tensor, feature: Tensor) -> Tensor:
    """eps (B K, A) of one denoiser, given its tensors, for noisy_action (B K, A), step (B K,), feature (B, F).

    Differentiable in the denoiser's tensors, noisy_action and feature.
    """
    first, *others = layers_of(tensors, "trunk.")
    embedding, action_dim = time_embedding(tensors), noisy_action.shape[1]
    to_action, to_time, to_state = first.weight.tensor_split([action_dim, action_dim + embedding.shape[1]], dim=1)
    per_level, per_state = embedding @ to_time.t(), feature @ to_state.t()
    states = per_state.repeat_interleave(noisy_action.shape[0] // feature.shape[0], dim=0)
    base = states + per_level.index_select(0, step)
    return run_layers([Layer(to_action, first.bias), *others], noisy_action, base)


def run_layers(layers: list[Layer], inputs: Tensor, base: Tensor | None = None) -> Tensor:
    """Outputs (R, out) of layers with mish between them for inputs (R, in), differentiable; base as in run_mlps."""
    stacked = [Layer(weight[None], bias[None]) for weight, bias in layers]
    return run_mlps("mish", inputs, base, stacked).squeeze(1)
