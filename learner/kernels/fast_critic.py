"""One agent's critic ensemble on a CPU: conservative values, and their gradient in the action, written out."""

from collections.abc import Mapping

import torch
from torch import Tensor

from policy.activations import Kept, Layer
from policy.fast_linear import dense, linear
from policy.fast_mlp import FastMlp, make_mlps, run_mlps

_GROUP_FLOATS = 1 << 18  # of one hidden layer, as in policy.fast_chain
_FAR = 1e30  # below every quantile


class CriticLayers:
    """The parameters of one ensemble, or of a population's: weights (..., N, out, in), the rest (..., N, out)."""

    def __init__(self, tensors: Mapping[str, Tensor], activation: str) -> None:
        """tensors of a CriticEnsemble by name; activation mish or relu where it has no LayerNorm."""
        self.activation = activation
        weights, biases = _listed(tensors, "weights"), _listed(tensors, "biases")
        self.layers = [Layer(weight.mT, bias.squeeze(-2)) for weight, bias in zip(weights, biases, strict=True)]
        self.gains = [gain.squeeze(-2) for gain in _listed(tensors, "norm_gains")]
        self.shifts = [shift.squeeze(-2) for shift in _listed(tensors, "norm_biases")]


def _listed(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """The elements of a ParameterList, in order."""
    count = sum(key.startswith(f"{name}.") for key in tensors)
    return [tensors[f"{name}.{index}"] for index in range(count)]


def quantiles(critic: CriticLayers, feature: Tensor, action: Tensor) -> Tensor:
    """Quantiles (B, N, M) of feature (B, F) and action (B, A), differentiable in all tensors."""
    inputs = torch.cat([feature, action], dim=-1)
    return run_mlps(critic.activation, inputs, None, critic.layers, critic.gains, critic.shifts)


class FastCritic:
    """One ensemble and the states it is asked about. Reads parameters once: make it, use it, drop it. No autograd.

    Shapes: B states, R = B K rows, the K of one state next to each other, A action, N critics, M quantiles.
    """

    def __init__(self, critic: CriticLayers, feature: Tensor, num_dropped: int) -> None:
        self._num_dropped = num_dropped
        self._num_states, self._width = feature.shape[0], critic.layers[0].weight.shape[-2]
        mlps = make_mlps(critic.activation, critic.layers, critic.gains, critic.shifts)
        self._members = [_Member(mlp, feature) for mlp in mlps]

    def value(self, action: Tensor) -> Tensor:
        """Conservative value (B K,) of action (B K, A)."""
        per_state = action.shape[0] // self._num_states
        size = max(1, _GROUP_FLOATS // (self._width * per_state))
        values = []
        for start in range(0, self._num_states, size):
            group = slice(start, min(start + size, self._num_states))
            own = action[group.start * per_state : group.stop * per_state]
            columns = torch.stack([member.quantiles(own, group) for member in self._members])
            values.append(conservative_value_of(columns, self._num_dropped))
        return torch.cat(values)

    def ascent(self, action: Tensor, group: slice) -> Tensor:
        """Gradient (R, A) of the conservative value in the action, one row for each state of a group."""
        passes = [member.quantiles_and_slopes(action, group) for member in self._members]
        weights = value_weights(torch.stack([quantiles for quantiles, _ in passes]), self._num_dropped)
        ascent = torch.zeros_like(action.t())
        for member, weight, (_, slopes) in zip(self._members, weights, passes, strict=True):
            ascent += member.back(weight, slopes)
        return ascent.t().contiguous()


class _Member:
    """One critic; its quantiles are columns (M, R), over which a maximum is quickly found."""

    def __init__(self, mlp: FastMlp, feature: Tensor) -> None:
        self._mlp = mlp
        first = self._mlp.first
        to_state, to_action = first.weight.tensor_split([feature.shape[1]], dim=1)
        self._action_to_sums, self._sums_to_action = to_action.t(), dense(to_action.t())
        self._state_part = linear(feature, to_state, first.bias)

    def quantiles(self, action: Tensor, group: slice) -> Tensor:
        return self._columns(self._mlp.hidden(self._sums(action, group)))

    def quantiles_and_slopes(self, action: Tensor, group: slice) -> tuple[Tensor, list[Kept]]:
        values, slopes = self._mlp.hidden_and_slopes(self._sums(action, group), action.shape[0])
        return self._columns(values[-1]), slopes

    def back(self, weight: Tensor, slopes: list[Kept]) -> Tensor:
        """Gradient (A, R) from the quantiles' weights (M, R)."""
        return torch.mm(self._sums_to_action, self._mlp.back(weight.t(), slopes).t())  # few rows: MKL's is faster

    def _sums(self, action: Tensor, group: slice) -> Tensor:
        states = self._state_part[group]
        per_state = action.shape[0] // states.shape[0]
        rows = states if per_state == 1 else states.repeat_interleave(per_state, dim=0)
        return torch.addmm(rows, action, self._action_to_sums)

    def _columns(self, hidden: Tensor) -> Tensor:
        last = self._mlp.last
        return linear(last.weight, hidden).add_(last.bias[:, None])


def conservative_value_of(quantiles: Tensor, num_dropped: int) -> Tensor:
    """policy.critic_network.conservative_value (R,) of columns (N, M, R)."""
    num_critics, num_quantiles, _ = quantiles.shape
    if num_quantiles == 1:
        return quantiles.amin(dim=(0, 1))
    kept = _kept(quantiles, num_dropped).mul_(quantiles) if num_dropped else quantiles
    return kept.sum(dim=(0, 1)) / (num_critics * (num_quantiles - num_dropped))


def value_weights(quantiles: Tensor, num_dropped: int) -> Tensor:
    """Derivative (N, M, R) of the conservative value in columns (N, M, R)."""
    num_critics, num_quantiles, _ = quantiles.shape
    if num_quantiles == 1:
        return torch.zeros_like(quantiles).scatter_(0, quantiles.argmin(dim=0, keepdim=True), 1)
    weight = 1 / (num_critics * (num_quantiles - num_dropped))
    return _kept(quantiles, num_dropped).mul_(weight) if num_dropped else torch.full_like(quantiles, weight)


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
