"""The diffusion policy and its critic prepared for acting: a decision in a sixth of the time, the same up to rounding.

A decision is hundreds of operations on a few rows, which cost more to start than to compute. So what depends on the
weights alone is computed once per version of them (the first layer's part of each denoising step, the gains of each
level as plain numbers), what depends on the state alone once per decision, and all that remains in one call of native.c
for the chain and one for the critic. Where native_check says no, and for networks that those do not take (a critic with
relu, widths that are no multiple of 16), single operations do the same. Everything here is a copy: weights that change
later need a new preparation.

Measured on one core, AMD Zen 4, with 4 rows of paper_mujoco at Ant size, caches cold: 1.1 ms, by single operations
2.3 ms, unprepared 6 ms. ONNX Runtime took longer than single operations on a Zen 5 (0.95 against 0.8 ms), and 4 s to
export each version of the weights.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policy.critic_network import CriticEnsemble, conservative_value
from policy.denoiser import Denoiser
from policy.fast import native_kernels
from policy.fast.activations import Layer, Mish
from policy.fast.chain import Levels, denoise
from policy.fast.native_check import is_native_used
from policy.fast.native_kernels import Network, packed_network, padded, runs
from policy.fast.products import linear
from policy.noise_schedule import NoiseSchedule

Activation = Callable[[Tensor], Tensor]


class PreparedChain:
    """policy.sampler.sample of one denoiser for one state and any number of chains."""

    @torch.no_grad()
    def __init__(self, denoiser: Denoiser, schedule: NoiseSchedule) -> None:
        first, *middle, last = (layer for layer in denoiser.trunk if isinstance(layer, nn.Linear))
        action_dim, time_dim = denoiser.action_dim, denoiser.time_table.shape[1]
        to_action, to_time, to_state = first.weight.tensor_split((action_dim, action_dim + time_dim), dim=1)
        time_part = torch.addmm(first.bias, denoiser.time_mlp(denoiser.time_table), to_time.t())
        self._mish_of_negated = _make_mish_of_negated()
        # Layers before a mish are negated, which is how it wants its input.
        self._time_part, self._to_state, self._to_action = -time_part, -to_state.t(), -to_action.t().contiguous()
        self._middle = [Layer(-layer.weight.t().contiguous().t(), -layer.bias) for layer in middle]
        self._last = Layer(last.weight.clone(), last.bias.clone())
        self._levels = Levels(schedule, first.weight.device)
        self._network: Network | None = None
        widths = (*(layer.out_features for layer in (first, *middle)), padded(action_dim))
        if is_native_used() and runs(widths):
            weights, biases = zip(*self._middle, self._last, strict=True)
            each = [self._to_action, *(weight.t() for weight in weights)]
            self._network = packed_network([weight[None] for weight in each], [bias[None, None] for bias in biases])

    @torch.no_grad()
    def sample(self, feature: Tensor, noise: Tensor) -> Tensor:
        """Return K actions (K, A) in [-1, 1] for the state feature (1, F) and noise (T + 1, K, A) of draw_noise."""
        level_sums, levels = self._time_part + feature @ self._to_state, self._levels
        if self._network is not None:
            x = native_kernels.denoise(self._network, None, level_sums, levels.table, noise.contiguous())
            return x.clamp_(-1, 1)
        *fresh, x = levels.scaled(noise)
        for step in reversed(range(len(levels))):
            hidden = self._mish_of_negated(torch.addmm(level_sums[step], x, self._to_action))
            for layer in self._middle:
                hidden = self._mish_of_negated(linear(hidden, *layer))
            x = denoise(x, F.linear(hidden, *self._last), levels.steps[step], fresh[step])
        return x.clamp_(-1, 1)


class PreparedCritic:
    """conservative_value of one critic ensemble for one state and any number of actions."""

    @torch.no_grad()
    def __init__(self, critic: CriticEnsemble, num_dropped: int) -> None:
        self._num_dropped = num_dropped
        activations, sign = _activations(critic)
        signs = [*(sign for _ in activations), 1]  # the last layer's output is the quantiles themselves
        weights = [sign * weight for sign, weight in zip(signs, critic.weights, strict=True)]
        biases = [sign * bias for sign, bias in zip(signs, critic.biases, strict=True)]
        self._first, self._first_bias = weights[0], biases[0]  # (N, F + A, H), (N, 1, H)
        self._layers = list(zip(activations, weights[1:], biases[1:], strict=True))
        self._network: Network | None = None
        widths = (*(weight.shape[2] for weight in weights[:-1]), padded(critic.num_quantiles))
        is_normed = len(critic.norm_gains) > 0
        if is_native_used() and runs(widths) and (is_normed or critic.activation == "mish"):
            norms = []
            if is_normed:  # its kernel's values v stand for 2 v - 1
                norms = [
                    (2 * gain, 2 * shift) for gain, shift in zip(critic.norm_gains, critic.norm_biases, strict=True)
                ]
                biases = [bias - weight.sum(dim=1, keepdim=True) for weight, bias in zip(weights, biases, strict=True)]
                weights = [2 * weight for weight in weights]
            to_action = self._first[:, -critic.action_dim :]
            self._network = packed_network([to_action, *weights[1:]], biases[1:], norms)

    @torch.no_grad()
    def value(self, feature: Tensor, action: Tensor) -> Tensor:
        """Return the conservative values (K,) of actions (K, A) in the state feature (1, F)."""
        num_critics, feature_dim = len(self._first), feature.shape[1]
        to_state, to_action = self._first.tensor_split((feature_dim,), dim=1)
        state_part = torch.baddbmm(self._first_bias, feature.expand(num_critics, -1, -1), to_state)
        if self._network is not None:
            every = native_kernels.forward_each(self._network, state_part, action.contiguous())
            return conservative_value(every.transpose(0, 1), self._num_dropped)
        x = torch.baddbmm(state_part, action.expand(num_critics, -1, -1), to_action)
        for activation, weight, bias in self._layers:
            x = torch.baddbmm(bias, activation(x), weight)
        return conservative_value(x.transpose(0, 1), self._num_dropped)


def _activations(critic: CriticEnsemble) -> tuple[list[Activation], int]:
    """Return what follows each hidden layer, and the sign that the layer's output must have for it."""
    if len(critic.norm_gains):
        pairs = zip(critic.norm_gains, critic.norm_biases, strict=True)
        return [partial(_bounded, gain=gain.clone(), bias=bias.clone()) for gain, bias in pairs], 1
    num_hidden = len(critic.weights) - 1
    if critic.activation == "relu":
        return [F.relu] * num_hidden, 1
    return [_make_mish_of_negated()] * num_hidden, -1


def _make_mish_of_negated() -> Activation:
    """Return what gives mish(x) for -x, which it overwrites."""
    return partial(Mish().values, index=0)


def _bounded(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm and tanh, as CriticEnsemble has them."""
    return torch.addcmul(bias, F.layer_norm(x, x.shape[-1:]), gain).tanh_()
