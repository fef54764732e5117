"""One agent's critic ensemble on a CPU: conservative values, and their gradient in the action, written out."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from policy.fast import native_kernels
from policy.fast.activations import Kept
from policy.fast.arranged_layers import MlpParameters
from policy.fast.mlp import FastMlp, FastMlps
from policy.fast.native_check import is_native_used
from policy.fast.products import first_sums, linear

_GROUP_FLOATS = 1 << 18  # of one hidden layer, as in policy.fast.chain
_FAR = 1e30  # below every quantile


def listed(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """The elements of a ParameterList, in order."""
    count = sum(key.startswith(f"{name}.") for key in tensors)
    return [tensors[f"{name}.{index}"] for index in range(count)]


class FastCritic:
    """One ensemble, kept in the form that a CPU wants. Parameters are read at every call.

    Shapes: B states, R = B K rows, the K of one state next to each other, F feature, A action, N critics, M quantiles.
    """

    def __init__(self, tensors: Mapping[str, Tensor], activation: str, feature_dim: int, num_dropped: int) -> None:
        """tensors of a CriticEnsemble by name; activation mish or relu where it has no LayerNorm."""
        self._mlps = FastMlps(_parameters_of(tensors), activation)
        self._num_dropped = num_dropped
        self._members = [_Member(mlp, feature_dim) for mlp in self._mlps.members]
        is_native = num_dropped <= native_kernels.MAX_DROPPED and self._mlps.num_outputs > 1
        self._network = self._mlps.network(slice(feature_dim, None)) if is_native else None

    def at(self, feature: Tensor) -> "CriticAt | CompiledAt":
        """The ensemble as it is now and the states feature (B, F). Without autograd; drop it when weights change."""
        return self._members_at(feature) if self._network is None else self._compiled_at(feature, self._network)

    def _compiled_at(self, feature: Tensor, network: native_kernels.Network) -> "CompiledAt":
        self._mlps.follow()
        states = torch.stack([member.state_part(feature) for member in self._members])
        return CompiledAt(network, states, self._mlps.follow_back, self._num_dropped)

    def _members_at(self, feature: Tensor) -> "CriticAt":
        self._mlps.follow()
        return CriticAt([(member, member.state_part(feature)) for member in self._members], self._num_dropped)

    def quantiles(self, tensors: Mapping[str, Tensor], feature: Tensor, action: Tensor) -> Tensor:
        """Quantiles (B, N, M) of feature (B, F) and action (B, A).

        Differentiable in the ensemble's tensors, given once more because gradients go to them, and the inputs.
        """
        if self._network is not None and not torch.is_grad_enabled():
            return self._compiled_at(feature, self._network).quantiles(action).transpose(0, 1)
        return self._mlps.run(torch.cat([feature, action], dim=-1), None, _parameters_of(tensors))


def _parameters_of(tensors: Mapping[str, Tensor]) -> MlpParameters:
    return MlpParameters(*(listed(tensors, name) for name in ("weights", "biases", "norm_gains", "norm_biases")))


class CriticAt:
    """An ensemble and the states it is asked about."""

    def __init__(self, members: list[tuple["_Member", Tensor]], num_dropped: int) -> None:
        """Each member with the states' part of its first sums (B, H)."""
        self._members, self._num_dropped = members, num_dropped
        _, state_part = members[0]
        self._num_states, self._width = state_part.shape

    def value(self, action: Tensor) -> Tensor:
        """Conservative value (B K,) of action (B K, A)."""
        per_state = action.shape[0] // self._num_states
        size = max(1, _GROUP_FLOATS // (self._width * per_state))
        values = []
        for start in range(0, self._num_states, size):
            group = slice(start, min(start + size, self._num_states))
            own = action[group.start * per_state : group.stop * per_state]
            columns = torch.stack([member.quantiles(own, states[group]) for member, states in self._members])
            values.append(conservative_value_of(columns, self._num_dropped))
        return values[0] if len(values) == 1 else torch.cat(values)

    def ascent(self, action: Tensor, group: slice) -> Tensor:
        """Gradient (R, A) of the conservative value in the action, one row for each state of a group."""
        passes = [member.quantiles_and_slopes(action, states[group]) for member, states in self._members]
        weights = value_weights(torch.stack([quantiles for quantiles, _ in passes]), self._num_dropped).unbind()
        parts = zip(self._members, weights, passes, strict=True)
        ascents = [member.back(weight, slopes) for (member, _), weight, (_, slopes) in parts]
        return torch.stack(ascents).sum(dim=0).t().contiguous()


class CompiledAt(NamedTuple):
    """The same where compiled kernels run whole critics."""

    network: native_kernels.Network
    states: Tensor  # the states' parts of the first sums (N, B, H)
    follow_back: Callable[[], None]  # makes the network ready for the way back
    num_dropped: int

    def quantiles(self, action: Tensor) -> Tensor:
        """(N, B K, M) of action (B K, A)."""
        return native_kernels.forward_each(self.network, self.states, action.contiguous())

    def value(self, action: Tensor) -> Tensor:
        return conservative_value_of(self.quantiles(action).mT.contiguous(), self.num_dropped)

    def ascent(self, action: Tensor, group: slice) -> Tensor:
        self.follow_back()
        states = self.states[:, group].contiguous()
        return native_kernels.ascent(self.network, states, action.contiguous(), self.num_dropped)


class _Member:
    """One critic; its quantiles are columns (M, R), over which a maximum is quickly found."""

    def __init__(self, mlp: FastMlp, feature_dim: int) -> None:
        self._mlp = mlp
        first, last = mlp.first, mlp.last
        self._to_state, to_action = first.weight.tensor_split([feature_dim], dim=1)
        self._to_action = to_action.t()  # (A, H)
        self._first_bias, self._last_bias = first.bias, last.bias[:, None]

    def state_part(self, feature: Tensor) -> Tensor:
        """The states' part of the first layer's sums (B, H)."""
        return linear(feature, self._to_state, self._first_bias)

    def quantiles(self, action: Tensor, states: Tensor) -> Tensor:
        return self._columns(self._mlp.hidden(self._sums(action, states)))

    def quantiles_and_slopes(self, action: Tensor, states: Tensor) -> tuple[Tensor, list[Kept]]:
        values, slopes = self._mlp.hidden_and_slopes(self._sums(action, states), action.shape[0])
        return self._columns(values[-1]), slopes

    def back(self, weight: Tensor, slopes: list[Kept]) -> Tensor:
        """Gradient (A, R) from the quantiles' weights (M, R)."""
        return torch.mm(self._to_action, self._mlp.back(weight.t(), slopes).t())  # few rows: MKL's is faster

    def _sums(self, action: Tensor, states: Tensor) -> Tensor:
        return first_sums(states, None, action, self._to_action)

    def _columns(self, hidden: Tensor) -> Tensor:
        return linear(self._mlp.last.weight, hidden).add_(self._last_bias)


def conservative_value_of(quantiles: Tensor, num_dropped: int) -> Tensor:
    """policy.critic_network.conservative_value (R,) of columns (N, M, R)."""
    num_critics, num_quantiles, _ = quantiles.shape
    if num_quantiles == 1:
        return quantiles.amin(dim=(0, 1))
    if _is_native_for(num_dropped):
        return native_kernels.conservative_value(quantiles, num_dropped)
    kept = _kept(quantiles, num_dropped).mul_(quantiles) if num_dropped else quantiles
    return kept.sum(dim=(0, 1)) / (num_critics * (num_quantiles - num_dropped))


def value_weights(quantiles: Tensor, num_dropped: int) -> Tensor:
    """Derivative (N, M, R) of the conservative value in columns (N, M, R)."""
    num_critics, num_quantiles, _ = quantiles.shape
    if num_quantiles == 1:
        return torch.zeros_like(quantiles).scatter_(0, quantiles.argmin(dim=0, keepdim=True), 1)
    if _is_native_for(num_dropped):
        return native_kernels.value_weights(quantiles, num_dropped)
    weight = 1 / (num_critics * (num_quantiles - num_dropped))
    return _kept(quantiles, num_dropped).mul_(weight) if num_dropped else torch.full_like(quantiles, weight)


def _is_native_for(num_dropped: int) -> bool:
    return 1 <= num_dropped <= native_kernels.MAX_DROPPED and is_native_used()


def _kept(quantiles: Tensor, num_dropped: int) -> Tensor:
    """1 for each of the columns' quantiles (N, M, R) but the num_dropped highest of each critic, for which 0.

    Maxima without their places, and comparisons with a float for an answer, take an eighth of topk's time; they
    cannot tell equal quantiles apart, which is seen from the count and left to topk.
    """
    rest, kept = quantiles, torch.empty_like(quantiles)
    for dropped in range(num_dropped):
        highest = rest.amax(dim=1, keepdim=True)
        if dropped < num_dropped - 1:
            rest = torch.sub(rest, torch.ge(rest, highest, out=kept), alpha=_FAR)
    torch.lt(quantiles, highest, out=kept)
    num_critics, num_quantiles, rows = quantiles.shape
    if int(kept.sum()) == num_critics * (num_quantiles - num_dropped) * rows:
        return kept
    return torch.ones_like(quantiles).scatter_(1, quantiles.topk(num_dropped, dim=1).indices, 0)
