"""All agents and critics at once, as a GPU wants it: few kernels, static shapes, nothing that waits for the device.

The same interface as policy.fast.chain.DenoiserAt and learner.kernels.fast_critic.CriticAt, with the leading axes
`...` of learner.agents; it runs on a CPU too, where those are faster.
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.kernels.fast_critic import listed
from policy.critic_network import conservative_value
from policy.fast.activations import Kept, Layer
from policy.fast.chain import Levels, layers_of


class CriticLayers:
    """The parameters of one ensemble, or of a population's: weights (..., N, out, in), the rest (..., N, out)."""

    def __init__(self, tensors: Mapping[str, Tensor], activation: str) -> None:
        """tensors of a CriticEnsemble by name; activation mish or relu where it has no LayerNorm."""
        self.activation = activation
        weights, biases = listed(tensors, "weights"), listed(tensors, "biases")
        self.layers = [Layer(weight.mT, bias.squeeze(-2)) for weight, bias in zip(weights, biases, strict=True)]
        self.gains = [gain.squeeze(-2) for gain in listed(tensors, "norm_gains")]
        self.shifts = [shift.squeeze(-2) for shift in listed(tensors, "norm_biases")]


class BatchedDenoiser:
    """See policy.fast.chain.ChainDenoiser. Shapes (..., R, A) and so on."""

    def __init__(self, tensors: Mapping[str, Tensor], feature: Tensor) -> None:
        """tensors of the agents' denoisers by name; feature (..., B, F)."""
        first, *self._others = layers_of(tensors, "trunk.")
        self._base, self._to_action = split_first_layer(tensors, first, feature)

    def groups(self, rows_per_state: int) -> Iterator[slice]:
        part, _ = self._base
        yield slice(0, part.shape[-2])

    def states(self, group: slice, rows_per_state: int) -> Tensor:
        part, _ = self._base
        return part if rows_per_state == 1 else part.repeat_interleave(rows_per_state, dim=-2)

    def error(self, x: Tensor, states: Tensor, step: int) -> Tensor:
        return self._run(x, states, step)[-1]

    def error_and_slopes(self, x: Tensor, states: Tensor, step: int, rows: int) -> tuple[Tensor, list[Kept]]:
        *sums, error = self._run(x, states, step)
        return error, [(each[..., :rows, :],) for each in sums]

    def back(self, gradient: Tensor, slopes: list[Kept]) -> Tensor:
        for layer, (sums,) in zip(reversed(self._others), reversed(slopes), strict=True):
            gradient = torch.ops.aten.mish_backward(gradient @ layer.weight, sums)
        return gradient @ self._to_action

    def run(self, levels: Levels, noise: Tensor, group: slice, stop: int) -> Tensor | None:
        return None

    def _run(self, x: Tensor, states: Tensor, step: int) -> list[Tensor]:
        """The sums of each layer, the last of which is the predicted noise."""
        _, per_level = self._base
        base = states + per_level[..., step : step + 1, :]
        product = torch.addmm if x.dim() == 2 else torch.baddbmm
        sums = [product(base, x, self._to_action.mT)]
        for layer in self._others:
            sums.append(affine(F.mish(sums[-1]), *layer))
        return sums


def split_first_layer(
    tensors: Mapping[str, Tensor], first: Layer, feature: Tensor
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """The denoiser's first layer as the states' part (..., B, H) and the levels' (..., T, H) of its sums, with the
    bias, and the weight (..., H, A) of the action."""
    embedding = time_embedding(tensors)
    action_dim = first.weight.shape[-1] - embedding.shape[-1] - feature.shape[-1]
    ends = [action_dim, action_dim + embedding.shape[-1]]
    to_action, to_time, to_state = first.weight.tensor_split(ends, dim=-1)
    return (feature @ to_state.mT, affine(embedding, to_time, first.bias)), to_action


def batched_predict_noise(tensors: Mapping[str, Tensor], noisy_action: Tensor, step: Tensor, feature: Tensor) -> Tensor:
    """eps (..., R, A); see learner.kernels.Kernels."""
    first, *others = layers_of(tensors, "trunk.")
    (per_state, per_level), to_action = split_first_layer(tensors, first, feature)
    # Picking levels by a product has a backward pass without atomic additions: it is the same each time.
    is_level = step[..., None] == torch.arange(per_level.shape[-2], device=step.device)
    levels = is_level.to(per_level.dtype) @ per_level
    rows = noisy_action.shape[-2] // feature.shape[-2]
    sums = levels + per_state.repeat_interleave(rows, dim=-2) + noisy_action @ to_action.mT
    for layer in others:
        sums = affine(F.mish(sums), *layer)
    return sums


class BatchedCritic:
    """See learner.kernels.fast_critic.CriticAt; P N critics are one batch of matrix products."""

    def __init__(self, critic: CriticLayers, feature: Tensor, num_dropped: int) -> None:
        """critic of the agents' ensembles, weights (..., N, out, in); feature (..., B, F)."""
        self._lead, self._num_dropped = critic.layers[0].bias.shape[:-1], num_dropped
        first, *others = critic.layers
        to_state, to_action = first.weight.flatten(0, -3).tensor_split([feature.shape[-1]], dim=-1)
        self._to_action = to_action
        self._states = affine(self._of_each(feature), to_state, first.bias.flatten(0, -2))
        self._others = [Layer(weight.flatten(0, -3), bias.flatten(0, -2)) for weight, bias in others]
        self._activation = BatchedActivation(critic)

    def value(self, action: Tensor) -> Tensor:
        """Conservative value (..., B K) of action (..., B K, A)."""
        quantiles, _ = self._run(action)
        return conservative_value(quantiles.view(*self._lead, *quantiles.shape[1:]).movedim(-3, -2), self._num_dropped)

    def ascent(self, action: Tensor, group: slice) -> Tensor:
        """Gradient (..., B, A) of the conservative value in the action; all states are one group."""
        quantiles, kept = self._run(action)
        gradient = self._value_weights(quantiles)
        for index in reversed(range(len(self._others))):
            gradient = self._activation.back(gradient @ self._others[index].weight, kept[index], index)
        to_action = gradient @ self._to_action
        return to_action.view(*self._lead, *to_action.shape[1:]).sum(dim=-3)

    def _run(self, action: Tensor) -> tuple[Tensor, list[Kept]]:
        """Quantiles (P N, R, M), and what `back` needs of each hidden layer."""
        actions = self._of_each(action)
        rows_per_state = actions.shape[1] // self._states.shape[1]
        states = self._states if rows_per_state == 1 else self._states.repeat_interleave(rows_per_state, dim=1)
        sums, kept = torch.baddbmm(states, actions, self._to_action.mT), []
        for index, layer in enumerate(self._others):
            values, own = self._activation.values(sums, index)
            kept.append(own)
            sums = affine(values, *layer)
        return sums, kept

    def _of_each(self, rows: Tensor) -> Tensor:
        """The rows (..., R, C) once for each critic, (P N, R, C)."""
        return rows.unsqueeze(-3).expand(*self._lead, *rows.shape[-2:]).reshape(-1, *rows.shape[-2:])

    def _value_weights(self, quantiles: Tensor) -> Tensor:
        """Derivative (P N, R, M) of the conservative value in the quantiles."""
        num_critics, num_quantiles = self._lead[-1], quantiles.shape[-1]
        if num_quantiles == 1:
            own = quantiles.view(*self._lead, *quantiles.shape[1:])
            lowest = own.argmin(dim=-3, keepdim=True)
            return torch.zeros_like(own).scatter_(-3, lowest, 1).flatten(0, -3)
        weights = torch.full_like(quantiles, 1 / (num_critics * (num_quantiles - self._num_dropped)))
        if self._num_dropped:
            weights.scatter_(-1, quantiles.topk(self._num_dropped, dim=-1).indices, 0)
        return weights


class BatchedActivation:
    """Of all critics at once; sums, values and gradients (P N, R, H)."""

    def __init__(self, critic: CriticLayers) -> None:
        self._is_relu = critic.activation == "relu"
        self._gains = [gain.reshape(-1, 1, gain.shape[-1]) for gain in critic.gains]
        self._shifts = [shift.reshape(-1, 1, shift.shape[-1]) for shift in critic.shifts]

    def values(self, sums: Tensor, index: int) -> tuple[Tensor, Kept]:
        """The values of hidden layer `index`, and what `back` needs."""
        if self._gains:
            normed, mean, inverse_std = torch.native_layer_norm(sums, sums.shape[-1:], None, None, 1e-5)
            values = torch.addcmul(self._shifts[index], normed, self._gains[index]).tanh_()
            return values, (sums, mean, inverse_std, values)
        return (F.relu(sums) if self._is_relu else F.mish(sums)), (sums,)

    def back(self, gradient: Tensor, kept: Kept, index: int) -> Tensor:
        """The gradient with respect to the sums from that with respect to the values."""
        if self._gains:
            sums, mean, inverse_std, values = kept
            to_normed = torch.ops.aten.tanh_backward(gradient, values).mul_(self._gains[index])
            back: Tensor = torch.ops.aten.native_layer_norm_backward(
                to_normed, sums, sums.shape[-1:], mean, inverse_std, None, None, [True, False, False]
            )[0]
            return back
        back = (
            torch.ops.aten.threshold_backward(gradient, *kept, 0)
            if self._is_relu
            else torch.ops.aten.mish_backward(gradient, *kept)
        )
        return back


def batched_quantiles(critic: CriticLayers, feature: Tensor, action: Tensor) -> Tensor:
    """Quantiles (..., B, N, M); see learner.kernels.Kernels."""
    lead, activation = critic.layers[0].bias.shape[:-1], BatchedActivation(critic)
    inputs = torch.cat([feature, action], dim=-1)
    values = inputs.unsqueeze(-3).expand(*lead, *inputs.shape[-2:]).flatten(0, -3)
    for index, (weight, bias) in enumerate(critic.layers):
        sums = affine(values, weight.flatten(0, -3), bias.flatten(0, -2))
        if index < len(critic.layers) - 1:
            values, _ = activation.values(sums, index)
    return sums.view(*lead, *sums.shape[1:]).movedim(-3, -2)


def time_embedding(tensors: Mapping[str, Tensor]) -> Tensor:
    """The denoiser's embedding of each level, (..., T, E)."""
    hidden, last = layers_of(tensors, "time_mlp.")
    return affine(F.mish(affine(tensors["time_table"], *hidden)), *last)


def affine(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """inputs @ weight.mT + bias for inputs (..., R, in), weight (..., out, in), bias (..., out), with `...` () or (P,).

    One kernel of PyTorch's own; differentiable.
    """
    if inputs.dim() == 2:
        return torch.addmm(bias, inputs, weight.t())
    return torch.baddbmm(bias[:, None], inputs, weight.mT)
