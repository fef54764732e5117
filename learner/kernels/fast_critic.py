"""One agent's critic ensemble on a CPU: conservative values, and their gradient in the action, written out."""

from collections.abc import Mapping

import torch
from torch import Tensor

from policy.activations import Kept, Layer
from policy.fast_linear import linear
from policy.fast_mlp import FastMlp, make_activation, run_mlp

_GROUP_FLOATS = 1 << 17  # of one hidden layer, as in policy.fast_chain


class CriticLayers:
    """The parameters of each critic of one ensemble. Shapes as in policy.critic_network."""

    def __init__(self, tensors: Mapping[str, Tensor], activation: str) -> None:
        """tensors of one CriticEnsemble by name; activation mish or relu where it has no LayerNorm."""
        self.activation = activation
        self.num_layers = sum(name.startswith("weights.") for name in tensors)
        weights = [_members(tensors[f"weights.{index}"]) for index in range(self.num_layers)]
        biases = [_members(tensors[f"biases.{index}"]) for index in range(self.num_layers)]
        has_norm = "norm_gains.0" in tensors
        hidden = range(self.num_layers - 1 if has_norm else 0)
        gains = [_members(tensors[f"norm_gains.{index}"]) for index in hidden]
        shifts = [_members(tensors[f"norm_biases.{index}"]) for index in hidden]
        members = range(len(weights[0]))
        self.layers = [
            [Layer(weight[n].t(), bias[n][0]) for weight, bias in zip(weights, biases, strict=True)] for n in members
        ]
        self.gains = [[gain[n][0] for gain in gains] for n in members]
        self.shifts = [[shift[n][0] for shift in shifts] for n in members]

    def quantiles(self, feature: Tensor, action: Tensor) -> Tensor:
        """Quantiles (B, N, M) of feature (B, F) and action (B, A), differentiable in all tensors."""
        inputs = torch.cat([feature, action], dim=-1)
        each = zip(self.layers, self.gains, self.shifts, strict=True)
        outputs = [run_mlp(self.activation, inputs, None, layers, gains, shifts) for layers, gains, shifts in each]
        return torch.stack(outputs, dim=1)


def _members(stacked: Tensor) -> tuple[Tensor, ...]:
    """Unbound at once: the gradients are then stacked at once, and not added up in as many full-size tensors."""
    return stacked.unbind(0)


class FastCritic:
    """One ensemble and the states it is asked about. Reads parameters once: make it, use it, drop it. No autograd.

    Shapes: B states, R = B K rows, the K of one state next to each other, A action, N critics, M quantiles.
    """

    def __init__(self, critic: CriticLayers, feature: Tensor, num_dropped: int) -> None:
        self._num_dropped = num_dropped
        self._members = [
            _Member(layers, feature, critic.activation, gains, shifts)
            for layers, gains, shifts in zip(critic.layers, critic.gains, critic.shifts, strict=True)
        ]

    def value(self, action: Tensor, group: slice) -> Tensor:
        """Conservative value (R,) of action (R, A) for the states of a group."""
        return take_conservative_value(self._quantiles(action, group), self._num_dropped)

    def ascent(self, action: Tensor, group: slice) -> Tensor:
        """Gradient (R, A) of the conservative value in the action, one row for each state of a group."""
        passes = [member.quantiles_and_slopes(action, group) for member in self._members]
        weights = take_value_weights(torch.stack([quantiles for quantiles, _ in passes]), self._num_dropped)
        ascent = torch.zeros_like(action)
        for member, weight, (_, slopes) in zip(self._members, weights, passes, strict=True):
            ascent += member.back(weight, slopes)
        return ascent

    def _quantiles(self, action: Tensor, group: slice) -> Tensor:
        return torch.stack([member.quantiles(action, group) for member in self._members])


class _Member:
    """One critic; its quantiles are columns (M, R), over which a maximum is quickly found."""

    def __init__(
        self, layers: list[Layer], feature: Tensor, activation: str, gains: list[Tensor], shifts: list[Tensor]
    ) -> None:
        self._mlp = FastMlp(layers, make_activation(activation, gains, shifts))
        first = self._mlp.first
        to_state, self._to_action = first.weight.tensor_split([feature.shape[1]], dim=1)
        self._state_part = linear(feature, to_state, first.bias)

    def quantiles(self, action: Tensor, group: slice) -> Tensor:
        return self._columns(self._mlp.hidden(self._sums(action, group)))

    def quantiles_and_slopes(self, action: Tensor, group: slice) -> tuple[Tensor, list[Kept]]:
        values, slopes = self._mlp.hidden_and_slopes(self._sums(action, group), len(action))
        return self._columns(values[-1]), slopes

    def back(self, weight: Tensor, slopes: list[Kept]) -> Tensor:
        """Gradient (R, A) from the quantiles' weights (M, R)."""
        return linear(self._mlp.back(weight.t(), slopes), self._to_action.t())

    def _sums(self, action: Tensor, group: slice) -> Tensor:
        states = self._state_part[group]
        per_state = len(action) // len(states)
        rows = states if per_state == 1 else states.repeat_interleave(per_state, dim=0)
        return torch.addmm(rows, action, self._to_action.t())

    def _columns(self, hidden: Tensor) -> Tensor:
        last = self._mlp.last
        return linear(last.weight, hidden).add_(last.bias[:, None])


def value_groups(num_states: int, rows_per_state: int, width: int) -> list[slice]:
    """Split the states into groups that are best run one after the other."""
    size = max(1, _GROUP_FLOATS // (width * rows_per_state))
    return [slice(start, min(start + size, num_states)) for start in range(0, num_states, size)]


def take_conservative_value(quantiles: Tensor, num_dropped: int) -> Tensor:
    """policy.critic_network.conservative_value (R,) of columns (N, M, R), which are overwritten."""
    num_critics, num_quantiles, _ = quantiles.shape
    if num_quantiles == 1:
        return quantiles.amin(dim=(0, 1))
    total = quantiles.sum(dim=(0, 1))
    for _ in range(num_dropped):
        highest, index = quantiles.max(dim=1, keepdim=True)
        total -= highest.sum(dim=(0, 1))
        quantiles.scatter_(1, index, -torch.inf)
    return total / (num_critics * (num_quantiles - num_dropped))


def take_value_weights(quantiles: Tensor, num_dropped: int) -> Tensor:
    """Derivative (N, M, R) of the conservative value in columns (N, M, R), which are overwritten."""
    num_critics, num_quantiles, _ = quantiles.shape
    if num_quantiles == 1:
        return torch.zeros_like(quantiles).scatter_(0, quantiles.argmin(dim=0, keepdim=True), 1)
    weights = torch.full_like(quantiles, 1 / (num_critics * (num_quantiles - num_dropped)))
    for count in range(num_dropped):
        index = quantiles.max(dim=1, keepdim=True).indices  # three times as fast as argmax
        weights.scatter_(1, index, 0)
        if count < num_dropped - 1:
            quantiles.scatter_(1, index, -torch.inf)
    return weights
