"""An MLP on a CPU: forward and backward written out over policy.activations and policy.fast_linear."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policy.activations import Activation, Kept, Layer, Mish, NormTanh, Relu
from policy.fast_linear import linear


class FastMlp:
    """The layers of one MLP in the form that its activation wants. Reads the parameters once: make it, use it, drop it.

    Shapes: R rows, H the width of a hidden layer. Sums are those of the first layer, made with `first`.
    """

    def __init__(self, layers: Sequence[Layer], activation: Activation) -> None:
        last = len(layers) - 1
        self._activation = activation
        self._layers = [
            activation.arranged(layer, follows=index > 0, leads=index < last) for index, layer in enumerate(layers)
        ]

    @property
    def first(self) -> Layer:
        """What makes the sums that the methods below take."""
        return self._layers[0]

    def sums(self, inputs: Tensor, base: Tensor | None) -> Tensor:
        """What the methods below take (R, H), for inputs (R, in) and base (R, H), a part of the layer's own sums."""
        sums = linear(inputs, *self.first)
        return sums if base is None else sums.add_(base, alpha=self._activation.sign)

    def back_from_sums(
        self, gradient: Tensor, wants_inputs: bool, wants_base: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of `sums`' inputs and base from that of its result."""
        inputs = linear(gradient, self.first.weight.t()) if wants_inputs else None
        return inputs, gradient * self._activation.sign if wants_base else None

    def first_gradient(self, gradient: Tensor, inputs: Tensor) -> Layer:
        """That of the first layer."""
        return self._activation.restored(layer_gradient(gradient, inputs), follows=False, leads=True)

    @property
    def last(self) -> Layer:
        """What follows `hidden`."""
        return self._layers[-1]

    def outputs(self, sums: Tensor) -> Tensor:
        """(R, out) of sums (R, H), which are overwritten."""
        return linear(self.hidden(sums), *self.last)

    def hidden(self, sums: Tensor) -> Tensor:
        """The values (R, H) of the last hidden layer."""
        values = self._activation.values(sums, 0)
        for index, layer in enumerate(self._layers[1:-1], start=1):
            values = self._activation.values(linear(values, *layer), index)
        return values

    def hidden_and_slopes(self, sums: Tensor, rows: int) -> tuple[list[Tensor], list[Kept]]:
        """The values of each hidden layer, and what the two methods below need for the first `rows` rows."""
        values: list[Tensor] = []
        slopes: list[Kept] = []
        for index in range(len(self._layers) - 1):
            if index > 0:
                sums = linear(values[-1], *self._layers[index])
            value, kept = self._activation.values_and_slope(sums, index, rows)
            values.append(value)
            slopes.append(kept)
        return values, slopes

    def back(self, gradient: Tensor, slopes: list[Kept]) -> Tensor:
        """The gradient (R, H) with respect to the sums from that with respect to the outputs (R, out)."""
        for index in reversed(range(len(slopes))):
            gradient = linear(gradient, self._layers[index + 1].weight.t())
            gradient = self._activation.back(gradient, slopes[index], index)
        return gradient

    def back_with_parameters(
        self, gradient: Tensor, values: list[Tensor], slopes: list[Kept]
    ) -> tuple[Tensor, list[Layer], list[Kept]]:
        """As `back`, and the gradients of all layers but the first and of the activation's own parameters."""
        layers: list[Layer] = []
        own: list[Kept] = []
        last = len(self._layers) - 1
        for index in range(last, 0, -1):
            layer = layer_gradient(gradient, values[index - 1])
            layers.append(self._activation.restored(layer, follows=True, leads=index < last))
            gradient = linear(gradient, self._layers[index].weight.t())
            gradient, parameters = self._activation.back_with_parameters(gradient, slopes[index - 1], index - 1)
            own.append(parameters)
        return gradient, layers[::-1], own[::-1]


def layer_gradient(gradient: Tensor, inputs: Tensor) -> Layer:
    """The gradient of a layer's weight and bias from that of its outputs (R, out), for its inputs (R, in)."""
    return Layer(linear(gradient.t(), inputs.t()), gradient.sum(dim=0))


def make_activation(name: str, gains: Sequence[Tensor], shifts: Sequence[Tensor]) -> Activation:
    if gains:
        return NormTanh(gains, shifts)
    return Relu() if name == "relu" else Mish()


def run_mlp(
    activation: str,
    inputs: Tensor,
    base: Tensor | None,
    layers: Sequence[Layer],
    gains: Sequence[Tensor] = (),
    shifts: Sequence[Tensor] = (),
) -> Tensor:
    """Outputs (R, out) for inputs (R, in), differentiable once in all tensors.

    base (R, H), where given, is added to the first layer's sums. activation is mish or relu; gains and shifts (H,) of
    each hidden layer make it LayerNorm and tanh.
    """
    flat = [tensor for layer in layers for tensor in layer]
    tensors = (inputs, base, *flat, *gains, *shifts)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        result: Tensor = _Mlp.apply(activation, len(layers), *tensors)  # type: ignore[no-untyped-call]
        return result
    with torch.no_grad():
        mlp = FastMlp(layers, make_activation(activation, gains, shifts))
        return mlp.outputs(mlp.sums(inputs, base))


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, activation: str, num_layers: int, inputs: Tensor, base: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        ctx.save_for_backward(inputs, *parameters)  # autograd then notices if one is changed before the backward pass
        layers = [Layer(*parameters[2 * index : 2 * index + 2]) for index in range(num_layers)]
        own = parameters[2 * num_layers :]
        gains, shifts = own[: len(own) // 2], own[len(own) // 2 :]
        ctx.has_base = base is not None
        ctx.mlp = FastMlp(layers, make_activation(activation, gains, shifts))
        ctx.values, ctx.slopes = ctx.mlp.hidden_and_slopes(ctx.mlp.sums(inputs, base), len(inputs))
        return linear(ctx.values[-1], *ctx.mlp.last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, mlp = ctx.saved_tensors[0], ctx.mlp
        wants_inputs, wants_base, *wants_parameters = _wanted(ctx)
        if not any(wants_parameters):
            to_sums = mlp.back(gradient, ctx.slopes)
            return None, None, *mlp.back_from_sums(to_sums, wants_inputs, wants_base), *(None for _ in wants_parameters)
        to_sums, layers, own = mlp.back_with_parameters(gradient, ctx.values, ctx.slopes)
        layers = [mlp.first_gradient(to_sums, inputs), *layers]
        flat = [tensor for layer in layers for tensor in layer]
        own_in_order = [tensor for kind in zip(*own, strict=True) for tensor in kind]  # gains, then shifts
        return None, None, *mlp.back_from_sums(to_sums, wants_inputs, wants_base), *flat, *own_in_order


def _wanted(ctx: Any) -> list[bool]:
    """Whether the running backward pass goes on to the inputs, the base and each parameter.

    A function is only told which tensors require gradients, so without this a step of the action through a critic
    would pay for the gradients of the critic's parameters.
    """
    nodes = [node for node, _ in ctx.next_functions]  # one for each tensor
    if not ctx.has_base:
        nodes.insert(1, None)
    return [node is not None and _goes_on_to(node) for node in nodes]


def _goes_on_to(node: Any) -> bool:
    try:
        goes_on: bool = torch._C._will_engine_execute_node(node)
    except (AttributeError, RuntimeError):  # an internal of PyTorch; and it refuses parameters, which are then wanted
        return True
    return goes_on
