"""MLPs on a CPU: forward and backward written out over policy.activations and policy.fast_linear."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policy.activations import Activation, Kept, Layer, Mish, NormTanh, Relu
from policy.fast_linear import linear


class FastMlp:
    """One MLP in the form that its activation wants. Reads the parameters once: make it, use it, drop it.

    Shapes: R rows, H the width of a hidden layer. Sums are those of the first layer, made with `first`.
    """

    def __init__(self, layers: Sequence[Layer], activation: Activation) -> None:
        """layers as `arranged` returns them."""
        self._activation = activation
        self._layers = layers
        self._last = len(layers) - 1
        self.first = layers[0]  # what makes the sums that the methods below take
        self.last = layers[-1]  # what follows `hidden`

    def sums(self, inputs: Tensor, base: Tensor | None) -> Tensor:
        """What the methods below take (R, H), for inputs (R, in) and base (R, H), a part of the layer's own sums."""
        sums = linear(inputs, *self.first)
        return sums if base is None else sums.add_(base, alpha=self._activation.sign)

    def outputs(self, sums: Tensor) -> Tensor:
        """(R, out) of sums (R, H), which are overwritten."""
        return linear(self.hidden(sums), *self.last)

    def hidden(self, sums: Tensor) -> Tensor:
        """The values (R, H) of the last hidden layer."""
        values = self._activation.values(sums, 0)
        for index in range(1, self._last):
            values = self._activation.values(linear(values, *self._layers[index]), index)
        return values

    def hidden_and_slopes(self, sums: Tensor, rows: int) -> tuple[list[Tensor], list[Kept]]:
        """The values of each hidden layer, and what the two methods below need for the first `rows` rows."""
        values: list[Tensor] = []
        slopes: list[Kept] = []
        for index in range(self._last):
            if index > 0:
                sums = linear(values[-1], *self._layers[index])
            value, kept = self._activation.values_and_slope(sums, index, rows)
            values.append(value)
            slopes.append(kept)
        return values, slopes

    def back(self, gradient: Tensor, slopes: list[Kept]) -> Tensor:
        """The gradient (R, H) with respect to the sums from that with respect to the outputs (R, out)."""
        for index in range(self._last, 0, -1):
            gradient = linear(gradient, self._layers[index].weight.t())
            gradient = self._activation.back(gradient, slopes[index - 1], index - 1)
        return gradient

    def back_with_parameters(
        self, gradient: Tensor, values: list[Tensor], slopes: list[Kept]
    ) -> tuple[Tensor, list[Layer], list[Kept]]:
        """As `back`, and the gradients of all arranged layers but the first and of the activation's own parameters."""
        layers: list[Layer] = []
        own: list[Kept] = []
        for index in range(self._last, 0, -1):
            layers.append(layer_gradient(gradient, values[index - 1]))
            gradient = linear(gradient, self._layers[index].weight.t())
            gradient, parameters = self._activation.back_with_parameters(gradient, slopes[index - 1], index - 1)
            own.append(parameters)
        return gradient, layers[::-1], own[::-1]

    def back_from_sums(
        self, gradient: Tensor, wants_inputs: bool, wants_base: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of `sums`' inputs and base from that of its result."""
        inputs = linear(gradient, self.first.weight.t()) if wants_inputs else None
        return inputs, gradient * self._activation.sign if wants_base else None


def make_mlps(
    activation: str, layers: Sequence[Layer], gains: Sequence[Tensor] = (), shifts: Sequence[Tensor] = ()
) -> list[FastMlp]:
    """N MLPs from layers of weight (N, out, in) and bias (N, out).

    activation is mish or relu; gains and shifts (N, H) of each hidden layer make it LayerNorm and tanh.
    """
    kind, last = _kind(activation, gains), len(layers) - 1
    arranged = [kind.arranged(layer, follows=i > 0, leads=i < last) for i, layer in enumerate(layers)]
    members = [[Layer(*parts) for parts in zip(*(part.unbind(0) for part in layer), strict=True)] for layer in arranged]
    activations: Sequence[Activation] = [Relu() if kind is Relu else Mish()] * len(layers[0].bias)
    if gains:
        activations = NormTanh.members(gains, shifts)
    return [FastMlp(own, activation) for own, activation in zip(zip(*members, strict=True), activations, strict=True)]


def run_mlps(
    activation: str,
    inputs: Tensor,
    base: Tensor | None,
    layers: Sequence[Layer],
    gains: Sequence[Tensor] = (),
    shifts: Sequence[Tensor] = (),
) -> Tensor:
    """Outputs (R, N, out) of N MLPs for inputs (R, in), differentiable once in all tensors.

    base (R, H), where given, is added to the first layers' sums. The other arguments are make_mlps'.
    """
    tensors = (inputs, base, *(part for layer in layers for part in layer), *gains, *shifts)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        result: Tensor = _Mlps.apply(activation, len(layers), *tensors)  # type: ignore[no-untyped-call]
        return result
    with torch.no_grad():
        mlps = make_mlps(activation, layers, gains, shifts)
        return _stack([mlp.outputs(mlp.sums(inputs, base)) for mlp in mlps], dim=1)


class _Mlps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, activation: str, num_layers: int, inputs: Tensor, base: Tensor | None, *parameters: Tensor
    ) -> Tensor:
        # Autograd then notices changes in place before the backward pass, but not those of the fused Adam.
        ctx.save_for_backward(inputs, *parameters)
        layers = [Layer(*parameters[2 * index : 2 * index + 2]) for index in range(num_layers)]
        own = parameters[2 * num_layers :]
        gains, shifts = own[: len(own) // 2], own[len(own) // 2 :]
        ctx.kind, ctx.has_base, ctx.num_layers = _kind(activation, gains), base is not None, num_layers
        ctx.mlps = make_mlps(activation, layers, gains, shifts)
        ctx.passes = [mlp.hidden_and_slopes(mlp.sums(inputs, base), len(inputs)) for mlp in ctx.mlps]
        outputs = [linear(values[-1], *mlp.last) for mlp, (values, _) in zip(ctx.mlps, ctx.passes, strict=True)]
        return _stack(outputs, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, *parameters = ctx.saved_tensors
        wants_inputs, wants_base, *wants_parameters = _wanted(ctx)
        through: list[tuple[Tensor | None, Tensor | None]] = []
        layers: list[list[Layer]] = []
        own: list[list[Kept]] = []
        for mlp, (values, slopes), outward in zip(ctx.mlps, ctx.passes, gradient.unbind(1), strict=True):
            if any(wants_parameters):
                to_sums, own_layers, own_parameters = mlp.back_with_parameters(outward, values, slopes)
                layers.append([layer_gradient(to_sums, inputs), *own_layers])
                own.append(own_parameters)
            else:
                to_sums = mlp.back(outward, slopes)
            through.append(mlp.back_from_sums(to_sums, wants_inputs, wants_base))
        to_inputs, to_base = (_total(parts) for parts in zip(*through, strict=True))
        if not layers:
            return None, None, to_inputs, to_base, *(None for _ in parameters)
        return None, None, to_inputs, to_base, *_parameter_gradients(ctx, parameters, layers, own)


def _parameter_gradients(
    ctx: Any, parameters: list[Tensor], layers: list[list[Layer]], own: list[list[Kept]]
) -> list[Tensor]:
    """The gradients of all parameters in their order, from each MLP's."""
    gradients: list[Tensor] = []
    last = ctx.num_layers - 1
    for index, members in enumerate(zip(*layers, strict=True)):
        weights, biases = zip(*members, strict=True)
        if parameters[2 * index].is_contiguous():
            weight = _stack(weights, dim=0).contiguous()
        else:  # given as the transpose of what is optimised
            weight = _stack([each.t() for each in weights], dim=0).contiguous().mT
        layer = Layer(weight, _stack(biases, dim=0))
        gradients += ctx.kind.restored(layer, follows=index > 0, leads=index < last)
    kinds = zip(*(zip(*member, strict=True) for member in own), strict=True)  # gains, then shifts; of each member
    return gradients + [_stack(parts, dim=0) for kind in kinds for parts in zip(*kind, strict=True)]


def _total(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Their sum, or None if there are none."""
    total = parts[0]
    for part in parts[1:]:
        total = total.add_(part) if total is not None and part is not None else None
    return total


def _stack(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return tensors[0].unsqueeze(dim) if len(tensors) == 1 else torch.stack(list(tensors), dim=dim)


def layer_gradient(gradient: Tensor, inputs: Tensor) -> Layer:
    """The gradient of a layer's weight and bias from that of its outputs (R, out), for its inputs (R, in)."""
    bias = gradient.sum(dim=0)
    if gradient.shape[1] <= inputs.shape[1]:
        return Layer(linear(gradient.t(), inputs.t()), bias)
    return Layer(linear(inputs.t(), gradient.t()).t(), bias)  # the narrow one first: up to four times as fast


def _kind(activation: str, gains: Sequence[Tensor]) -> type[Mish] | type[Relu] | type[NormTanh]:
    if gains:
        return NormTanh
    return Relu if activation == "relu" else Mish


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
