"""The layers of MLPs in the form that their activation wants, kept as copies that follow the parameters.

Every view that a pass needs is made once, and following costs a few operations on all layers together. Parameters are
given as networks have them: weight (out, in) and bias (out,) of nn.Linear, or weight (N, in, out) and bias, gain, shift
(N, 1, out) of N networks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from policy.fast.activations import Activation, Layer, Mish, NormTanh, Relu
from policy.fast.native_check import is_product_used
from policy.fast.native_kernels import Network, network_of, padded, runs


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


class Member(NamedTuple):
    """One MLP's layers and activation; views that stay valid. `backs`: the transposed weights (in, out) of all layers
    but the first, in the memory order that a product with them wants. `last`: the last layer with as many outputs more
    as make it one for our products."""

    layers: list[Layer]
    last: Layer
    backs: list[Tensor]
    activation: Activation


class ArrangedLayers:
    """What `arrange` returns."""

    members: list[Member]
    has_network = True

    def follow(self) -> None:
        """Copy the parameters as they are now."""
        self._is_back_current = False

    def follow_last(self) -> None:
        """Then copy the last layers."""
        if self._lasts:
            torch._foreach_copy_(self._lasts, self._last_sources)

    def network(self, columns: slice) -> Network | None:
        """The layers for the kernels that run whole networks, the first one narrowed to some of its inputs; None where
        they do not."""
        first, *others = (_stacked(weight) for weight in self._arranged.weights)
        last, last_bias = self._padded
        weights = [first[:, columns], *others[:-1], last]
        if not (self.has_network and self._lasts and runs([weight.shape[2] for weight in weights])):
            return None
        biases = [*(bias if bias.dim() == 3 else bias[None, None] for bias in self._arranged.biases[1:-1]), last_bias]
        norms = list(zip(self._arranged.gains, self._arranged.shifts, strict=True))
        return network_of(weights, biases, norms, self._each_back, others[-1].shape[2])

    def follow_back(self) -> None:
        """Make `backs` current, if they are not."""
        if self._backs and not self._is_back_current:
            torch._foreach_copy_(self._backs, self._back_sources)
            self._is_back_current = True

    def restore(self, gradients: MlpParameters) -> None:
        """Turn the gradients of the arranged layers, in the parameters' shapes, into the parameters' own, in place."""
        raise NotImplementedError

    def _make_members(self, arranged: MlpParameters, activations: Sequence[Activation]) -> None:
        """arranged: weights and biases as copies or as they are."""
        self._arranged = arranged
        self._pad_last(_stacked(arranged.weights[-1]), arranged.biases[-1])
        pairs = zip(_weights_of_each(arranged.weights), _vectors_of_each(arranged.biases), strict=True)
        layers = [[Layer(*own) for own in zip(*pair, strict=True)] for pair in pairs]
        by_output = [weight if weight.dim() == 2 else weight.mT for weight in arranged.weights[1:]]
        backs, self._backs, self._back_sources = [], [], []
        for weight in by_output:
            if weight.is_contiguous() or not is_product_used():
                backs.append(weight)
            else:
                backs.append(torch.empty_like(weight, memory_format=torch.contiguous_format))
                self._backs.append(backs[-1])
                self._back_sources.append(weight)
        self._each_back = [back if back.dim() == 3 else back[None] for back in backs]  # (N, out, in)
        lasts = [Layer(weight.t(), bias.squeeze(0)) for weight, bias in zip(*self._padded, strict=True)]
        parts = zip(layers, lasts, _of_each(self._each_back), activations, strict=True)
        self.members = [
            Member(own, last, [weight.t() for weight in own_backs], activation)
            for own, last, own_backs, activation in parts
        ]

    def _pad_last(self, weight: Tensor, bias: Tensor) -> None:
        """weight (N, in, out)."""
        sources = [weight, bias if bias.dim() == 3 else bias[None, None]]
        self._padded, self._lasts, self._last_sources = sources, list[Tensor](), list[Tensor]()
        if weight.dtype == torch.float32 and is_product_used():
            outputs = weight.shape[2]
            self._padded = [part.new_zeros((*part.shape[:2], padded(outputs))) for part in sources]
            self._lasts, self._last_sources = [part[..., :outputs] for part in self._padded], sources


def arrange(parameters: MlpParameters, activation: str) -> ArrangedLayers:
    """activation is mish or relu; gains and shifts make it LayerNorm and tanh. Follow before the first use."""
    parameters = parameters.with_those([tensor.detach() for tensor in parameters.flat()])
    if parameters.gains:
        return _NormedLayers(parameters)
    return _PlainLayers(parameters) if activation == "relu" else _NegatedLayers(parameters)


class _PlainLayers(ArrangedLayers):
    """For Relu: the parameters themselves."""

    has_network = False

    def __init__(self, parameters: MlpParameters) -> None:
        self._make_members(parameters, [Relu()] * _count(parameters))

    def restore(self, gradients: MlpParameters) -> None:
        pass


class _NegatedLayers(ArrangedLayers):
    """For Mish: minus the parameters of all layers that it follows."""

    def __init__(self, parameters: MlpParameters) -> None:
        self._sources = [*parameters.weights[:-1], *parameters.biases[:-1]]
        weights = [_input_major(weight) for weight in parameters.weights[:-1]]
        biases = [torch.empty_like(bias) for bias in parameters.biases[:-1]]
        self._copies = [*weights, *biases]
        arranged = MlpParameters([*weights, parameters.weights[-1]], [*biases, parameters.biases[-1]])
        self._make_members(arranged, [Mish()] * _count(parameters))

    def follow(self) -> None:
        super().follow()
        torch._foreach_copy_(self._copies, self._sources)
        torch._foreach_neg_(self._copies)

    def restore(self, gradients: MlpParameters) -> None:
        torch._foreach_neg_([*gradients.weights[:-1], *gradients.biases[:-1]])


class _NormedLayers(ArrangedLayers):
    """For NormTanh: its values v stand for 2 v - 1, so W (2 v - 1) + b is 2 W v + (b - W 1). Of N networks only."""

    def __init__(self, parameters: MlpParameters) -> None:
        self._weights, self._biases = parameters.weights[1:], parameters.biases[1:]
        self._sources = [*self._weights, *parameters.gains, *parameters.shifts]
        self._copies = [torch.empty_like(source) for source in self._sources]
        count, num_hidden = len(self._weights), len(parameters.gains)
        weights, gains = self._copies[:count], self._copies[count : count + num_hidden]
        shifts = self._copies[count + num_hidden :]
        self._arranged_biases = [torch.empty_like(bias) for bias in self._biases]
        biases = [parameters.biases[0], *self._arranged_biases]
        arranged = MlpParameters([parameters.weights[0], *weights], biases, gains, shifts)
        norms = zip(_vectors_of_each(gains), _vectors_of_each(shifts), strict=True)
        self._make_members(arranged, [NormTanh(*norm) for norm in norms])

    def follow(self) -> None:
        super().follow()
        torch._foreach_copy_(self._copies, self._sources)
        torch._foreach_mul_(self._copies, 2)
        for bias, weight, arranged in zip(self._biases, self._weights, self._arranged_biases, strict=True):
            torch.sub(bias, weight.sum(dim=-2, keepdim=True), out=arranged)

    def restore(self, gradients: MlpParameters) -> None:
        weights = gradients.weights[1:]
        torch._foreach_mul_([*weights, *gradients.gains, *gradients.shifts], 2)
        for weight, bias in zip(weights, gradients.biases[1:], strict=True):
            weight.sub_(bias)


def _stacked(weight: Tensor) -> Tensor:
    """(N, in, out)."""
    return weight if weight.dim() == 3 else weight.t()[None]


def _count(parameters: MlpParameters) -> int:
    first = parameters.weights[0]
    return len(first) if first.dim() == 3 else 1


def _weights_of_each(weights: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Each MLP's, (out, in)."""
    return _of_each([_stacked(weight).mT for weight in weights])


def _vectors_of_each(tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    return _of_each([tensor.squeeze(-2) if tensor.dim() == 3 else tensor[None] for tensor in tensors])


def _of_each(tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.unbind() for tensor in tensors), strict=True))


def _input_major(weight: Tensor) -> Tensor:
    """Memory for a weight, in which the coefficients of one input are neighbours: so products want it."""
    return torch.empty_like(weight) if weight.dim() == 3 else weight.new_empty(weight.shape[::-1]).t()
