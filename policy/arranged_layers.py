"""The layers of MLPs in the form that their activation wants, kept as copies that follow the parameters.

Every view that a pass needs is made once, and following costs a few operations on all layers together. Parameters are
given as networks have them: weight (out, in) and bias (out,) of nn.Linear, or weight (N, in, out) and bias, gain, shift
(N, 1, out) of N networks.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from policy.activations import Activation, Layer, Mish, NormTanh, Relu

_LARGE = 1 << 16  # numbers in a weight


class MlpParameters(NamedTuple):
    """Of one MLP or of N; see the module. gains and shifts of each hidden layer if it has LayerNorm and tanh."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    gains: Sequence[Tensor] = ()
    shifts: Sequence[Tensor] = ()

    def flat(self) -> list[Tensor]:
        return [*self.weights, *self.biases, *self.gains, *self.shifts]

    def with_those(self, tensors: Sequence[Tensor]) -> "MlpParameters":
        """Others in the order of `flat`."""
        parts, rest = [], list(tensors)
        for part in self:
            parts.append(rest[: len(part)])
            rest = rest[len(part) :]
        return MlpParameters(*parts)


class ArrangedLayers(Protocol):
    """members: each MLP's layers and activation, views that stay valid."""

    members: list[tuple[list[Layer], Activation]]

    def follow(self) -> None:
        """Copy the parameters as they are now."""

    def restore(self, gradients: MlpParameters) -> None:
        """Turn the gradients of the arranged layers, in the parameters' shapes, into the parameters' own, in place."""


def arrange(parameters: MlpParameters, activation: str) -> ArrangedLayers:
    """activation is mish or relu; gains and shifts make it LayerNorm and tanh. Follow before the first use."""
    parameters = parameters.with_those([tensor.detach() for tensor in parameters.flat()])
    if parameters.gains:
        return _NormedLayers(parameters)
    return _PlainLayers(parameters) if activation == "relu" else _NegatedLayers(parameters)


class _PlainLayers:
    """For Relu: the parameters themselves."""

    def __init__(self, parameters: MlpParameters) -> None:
        layers = _members(parameters.weights, parameters.biases)
        self.members: list[tuple[list[Layer], Activation]] = [(own, Relu()) for own in layers]

    def follow(self) -> None:
        pass

    def restore(self, gradients: MlpParameters) -> None:
        pass


class _NegatedLayers:
    """For Mish: minus the parameters of all layers that it follows."""

    def __init__(self, parameters: MlpParameters) -> None:
        self._sources = [*parameters.weights[:-1], *parameters.biases[:-1]]
        weights = [_memory_for(weight, is_first=i == 0) for i, weight in enumerate(parameters.weights[:-1])]
        biases = [torch.empty_like(bias) for bias in parameters.biases[:-1]]
        self._copies = [*weights, *biases]
        layers = _members([*weights, parameters.weights[-1]], [*biases, parameters.biases[-1]])
        self.members: list[tuple[list[Layer], Activation]] = [(own, Mish()) for own in layers]

    def follow(self) -> None:
        torch._foreach_copy_(self._copies, self._sources)
        torch._foreach_neg_(self._copies)

    def restore(self, gradients: MlpParameters) -> None:
        torch._foreach_neg_([*gradients.weights[:-1], *gradients.biases[:-1]])


class _NormedLayers:
    """For NormTanh: its values v stand for 2 v - 1, so W (2 v - 1) + b is 2 W v + (b - W 1). Of N networks only."""

    def __init__(self, parameters: MlpParameters) -> None:
        self._weights, self._biases = parameters.weights[1:], parameters.biases[1:]
        self._sources = [*self._weights, *parameters.gains, *parameters.shifts]
        copies = [_memory_for(weight, is_first=False) for weight in self._weights]
        self._copies = [*copies, *(torch.empty_like(source) for source in self._sources[len(copies) :])]
        count, num_hidden = len(self._weights), len(parameters.gains)
        weights, gains = self._copies[:count], self._copies[count : count + num_hidden]
        shifts = self._copies[count + num_hidden :]
        self._arranged_biases = [torch.empty_like(bias) for bias in self._biases]
        layers = _members([parameters.weights[0], *weights], [parameters.biases[0], *self._arranged_biases])
        norms = zip(_vectors_of_each(gains), _vectors_of_each(shifts), strict=True)
        self.members: list[tuple[list[Layer], Activation]] = [
            (own, NormTanh(*norm)) for own, norm in zip(layers, norms, strict=True)
        ]

    def follow(self) -> None:
        torch._foreach_copy_(self._copies, self._sources)
        torch._foreach_mul_(self._copies, 2)
        for bias, weight, arranged in zip(self._biases, self._weights, self._arranged_biases, strict=True):
            torch.sub(bias, weight.sum(dim=-2, keepdim=True), out=arranged)

    def restore(self, gradients: MlpParameters) -> None:
        weights = gradients.weights[1:]
        torch._foreach_mul_([*weights, *gradients.gains, *gradients.shifts], 2)
        for weight, bias in zip(weights, gradients.biases[1:], strict=True):
            weight.sub_(bias)


def _members(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[list[Layer]]:
    """The layers of each MLP from parameters."""
    if weights[0].dim() == 2:
        return [[Layer(*own) for own in zip(weights, biases, strict=True)]]
    pairs = zip(_of_each([weight.mT for weight in weights]), _vectors_of_each(biases), strict=True)
    return [[Layer(*own) for own in zip(*pair, strict=True)] for pair in pairs]


def _vectors_of_each(tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    return _of_each([tensor.squeeze(-2) for tensor in tensors])


def _of_each(tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.unbind() for tensor in tensors), strict=True))


def _memory_for(weight: Tensor, *, is_first: bool) -> Tensor:
    """Memory for the copy of a layer's weight, in the order that suits what is done with it.

    First layers are taken apart by their inputs, whose coefficients are therefore neighbours. Measured on others with
    oneDNN, whatever the rows: with an output's coefficients as neighbours a product takes 10 us less at 128 x 128, at
    256 x 256 3 % more.
    """
    is_stacked, by_input = weight.dim() == 3, is_first or weight.shape[-1] * weight.shape[-2] >= _LARGE
    wanted = weight if is_stacked == by_input else weight.mT  # as it is: by input if stacked, else by output
    memory = torch.empty_like(wanted, memory_format=torch.contiguous_format)
    return memory if wanted is weight else memory.mT
