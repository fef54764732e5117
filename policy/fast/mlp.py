"""MLPs on a CPU: forward and backward written out over policy.fast.activations and policy.fast.products."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from policy.fast.activations import Kept, Layer
from policy.fast.arranged_layers import ArrangedLayers, Member, MlpParameters, arrange
from policy.fast.native_check import is_product_used
from policy.fast.native_kernels import Network
from policy.fast.products import linear


class Base(NamedTuple):
    """What is added to the first layers' sums of R = B K rows: a row of `states` (B, H) to the K of each state, and
    the row of `levels` (T, H) that `step` (R,) picks."""

    states: Tensor
    levels: Tensor
    step: Tensor


class FastMlp:
    """One MLP in the form that its activation wants.

    Shapes: R rows, H the width of a hidden layer. Sums are those of the first layer, made with `first`.
    """

    def __init__(self, layers: Sequence[Layer], member: Member, arranged: ArrangedLayers, *, is_stacked: bool) -> None:
        """layers: the member's, the first one perhaps narrowed. is_stacked: parameters have weights (in, out)."""
        self._is_stacked = is_stacked
        self._activation = member.activation
        self._layers, self._backs, self._follow_back = layers, member.backs, arranged.follow_back
        self._last = len(layers) - 1
        self.first = layers[0]  # what makes the sums that the methods below take
        self.last = layers[-1]  # what follows `hidden`
        self._padded_last, self._padding = member.last, len(member.last.bias) - len(self.last.bias)

    def sums(self, inputs: Tensor, base: Base | None) -> Tensor:
        """What the methods below take (R, H), for inputs (R, in) and a part of the layer's own sums."""
        sums = linear(inputs, *self.first)
        if base is not None:
            sums.add_(base.levels.index_select(0, base.step), alpha=self._activation.sign)
            _by_state(sums, base).add_(base.states[:, None], alpha=self._activation.sign)
        return sums

    def outputs(self, sums: Tensor) -> Tensor:
        """(R, out) of sums (R, H), which are overwritten."""
        return self.outputs_of(self.hidden(sums))

    def outputs_of(self, values: Tensor) -> Tensor:
        """(R, out) of the values (R, H) of the last hidden layer."""
        return linear(values, *self._padded_last, self._padding)

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
        self._follow_back()
        for index in range(self._last, 0, -1):
            gradient = linear(gradient, self._backs[index - 1])
            gradient = self._activation.back(gradient, slopes[index - 1], index - 1)
        return gradient

    def back_with_parameters(
        self, gradient: Tensor, values: list[Tensor], slopes: list[Kept]
    ) -> tuple[Tensor, list[Layer], list[Kept]]:
        """As `back`, and the gradients of all layers but the first and of the activation's own parameters."""
        layers: list[Layer] = []
        own: list[Kept] = []
        self._follow_back()
        for index in range(self._last, 0, -1):
            layers.append(layer_gradient(gradient, values[index - 1], is_stacked=self._is_stacked))
            gradient = linear(gradient, self._backs[index - 1])
            gradient, parameters = self._activation.back_with_parameters(gradient, slopes[index - 1], index - 1)
            own.append(parameters)
        return gradient, layers[::-1], own[::-1]

    def back_from_sums(
        self, gradient: Tensor, wants_inputs: bool, base: Base | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of `sums`' inputs and the base's states and levels from that of its result."""
        inputs = linear(gradient, self.first.weight.t()) if wants_inputs else None
        if base is None:
            return inputs, None, None
        states, levels = _by_state(gradient, base).sum(dim=1), torch.zeros_like(base.levels)
        levels.index_add_(0, base.step, gradient)
        return inputs, states.mul_(self._activation.sign), levels.mul_(self._activation.sign)


def _by_state(rows: Tensor, base: Base) -> Tensor:
    return rows.view(len(base.states), -1, rows.shape[1])


class FastMlps:
    """N MLPs of one input, kept with their arranged layers: `follow` before each use, for the parameters change.

    That they did is seen as autograd sees it, from the versions of their tensors: operations in place count them up.
    """

    def __init__(self, parameters: MlpParameters, activation: str, first_columns: int | None = None) -> None:
        """activation as policy.fast.arranged_layers.arrange takes it. first_columns: the inputs that the first layers
        are given, where others are added to their sums; so narrowed are then the parameters given to `run`, too."""
        self._arranged = arrange(parameters, activation)
        self.follow_back = self._arranged.follow_back
        self.is_stacked = parameters.weights[0].dim() == 3  # weights (N, in, out)
        self.num_outputs = parameters.biases[-1].shape[-1]
        self._tensors = parameters.flat()
        self._versions: list[int] = []
        self.whole_firsts = [member.layers[0] for member in self._arranged.members]
        self.members = []
        for member in self._arranged.members:
            first, *others = member.layers
            own = Layer(first.weight[:, :first_columns], first.bias)
            self.members.append(FastMlp([own, *others], member, self._arranged, is_stacked=self.is_stacked))

    def follow(self) -> None:
        """Take over the parameters as they are now."""
        versions = [tensor._version for tensor in self._tensors]
        if versions != self._versions:
            self._arranged.follow()
            self._arranged.follow_last()
            self._versions = versions

    def network(self, columns: slice) -> Network | None:
        """All MLPs for policy.fast.native_kernels, the first layers narrowed to some inputs: see ArrangedLayers."""
        return self._arranged.network(columns)

    def run(self, inputs: Tensor, base: Base | None, parameters: MlpParameters) -> Tensor:
        """Outputs (R, N, out) for inputs (R, in), differentiable once in all tensors but base.step.

        parameters are those that it was made of, which take the gradients.
        """
        flat, parts = parameters.flat(), base or (None, None, None)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (inputs, *parts, *flat)):
            result: Tensor = _Run.apply(self, inputs, *parts, *flat)  # type: ignore[no-untyped-call]
            return result
        with torch.no_grad():
            self.follow()
            return _stack([mlp.outputs(mlp.sums(inputs, base)) for mlp in self.members], dim=1)

    def parameter_gradients(self, layers: Sequence[Sequence[Layer]], own: Sequence[Sequence[Kept]]) -> list[Tensor]:
        """The gradients of all parameters, in their order and shapes, from each MLP's."""
        columns = [zip(*members, strict=True) for members in zip(*layers, strict=True)]
        if self.is_stacked:
            pairs = [
                (_stack([own.t() for own in weights], 0), _stack(biases, 0)[:, None]) for weights, biases in columns
            ]
        else:
            pairs = [(weights[0], biases[0]) for weights, biases in columns]
        kinds = zip(*(zip(*member, strict=True) for member in own), strict=True)  # gains, then shifts; of each member
        norms = [[_stack(parts, 0)[:, None] for parts in zip(*kind, strict=True)] for kind in kinds]
        gradients = MlpParameters(*map(list, zip(*pairs, strict=True)), *norms)
        self._arranged.restore(gradients)
        return gradients.flat()


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mlps: FastMlps, inputs: Tensor, *others: Any) -> Tensor:
        """others: the three of the base, or None for each; the parameters."""
        ctx.save_for_backward(inputs, *others)
        base = None if others[0] is None else Base(*others[:3])
        ctx.mlps = mlps
        mlps.follow()
        ctx.passes = [mlp.hidden_and_slopes(mlp.sums(inputs, base), len(inputs)) for mlp in mlps.members]
        outputs = [mlp.outputs_of(values[-1]) for mlp, (values, _) in zip(mlps.members, ctx.passes, strict=True)]
        return _stack(outputs, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, states, levels, step, *parameters = ctx.saved_tensors
        base = None if states is None else Base(states, levels, step)
        _, wants_inputs, *needed = ctx.needs_input_grad
        wants_base, wants_parameters = base is not None and any(needed[:3]), any(needed[3:])
        through: list[tuple[Tensor | None, ...]] = []
        layers: list[list[Layer]] = []
        own: list[list[Kept]] = []
        for mlp, (values, slopes), outward in zip(ctx.mlps.members, ctx.passes, gradient.unbind(1), strict=True):
            if wants_parameters:
                to_sums, own_layers, own_parameters = mlp.back_with_parameters(outward, values, slopes)
                layers.append([layer_gradient(to_sums, inputs, is_stacked=ctx.mlps.is_stacked), *own_layers])
                own.append(own_parameters)
            else:
                to_sums = mlp.back(outward, slopes)
            through.append(mlp.back_from_sums(to_sums, wants_inputs, base if wants_base else None))
        to_inputs = (_total(parts) for parts in zip(*through, strict=True))
        if not layers:
            return None, *to_inputs, None, *(None for _ in parameters)
        return None, *to_inputs, None, *ctx.mlps.parameter_gradients(layers, own)


def _total(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Their sum, or None if there are none."""
    total = parts[0]
    for part in parts[1:]:
        total = total.add_(part) if total is not None and part is not None else None
    return total


def _stack(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return tensors[0].unsqueeze(dim) if len(tensors) == 1 else torch.stack(list(tensors), dim=dim)


def layer_gradient(gradient: Tensor, inputs: Tensor, *, is_stacked: bool) -> Layer:
    """The gradient of a layer's weight and bias from that of its outputs (R, out), for its inputs (R, in).

    is_stacked: the weight is kept as (in, out).
    """
    bias, (fan_out, fan_in) = gradient.sum(dim=0), (gradient.shape[1], inputs.shape[1])
    by_input = is_stacked
    if not is_product_used() or (fan_out if is_stacked else fan_in) % 16:
        by_input = fan_out > fan_in  # the narrow one first: up to four times as fast
    if by_input:
        return Layer(linear(inputs.t(), gradient.t()).t(), bias)
    return Layer(linear(gradient.t(), inputs.t()), bias)
