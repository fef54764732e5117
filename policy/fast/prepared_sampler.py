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
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policy.critic_network import CriticEnsemble, conservative_value
from policy.denoiser import Denoiser
from policy.fast import native_kernels
from policy.fast.activations import Mish
from policy.fast.native_check import is_native_used
from policy.fast.products import linear
from policy.noise_schedule import NoiseSchedule

Activation = Callable[[Tensor], Tensor]


class _Level(NamedTuple):
    """One reverse step with its coefficients multiplied out; `prediction` is what the denoiser gives.

    clean = noisy_gain x + prediction_gain prediction, cut off at -1 and 1; the next x is clean_coefficient clean +
    noisy_coefficient x + sigma noise (CGPO Eq 4, policy.sampler.reverse_mean).
    """

    noisy_gain: float
    prediction_gain: float
    clean_coefficient: float
    noisy_coefficient: float
    sigma: float


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
        self._middle = [(-layer.weight.t().contiguous().t(), -layer.bias) for layer in middle]
        self._last, self._last_bias = last.weight.t().clone(), last.bias.clone()
        signal, noise = schedule.sqrt_alpha_bar, schedule.sqrt_one_minus_alpha_bar
        gains = (1 / signal, -noise / signal, schedule.clean_coefficient, schedule.noisy_coefficient, schedule.sigma)
        levels = torch.stack(gains, dim=1)
        self._levels = [_Level(*level) for level in levels.tolist()]
        self._compiled: tuple[Tensor, Tensor, tuple[int, ...]] | None = None
        widths = (*(layer.out_features for layer in (first, *middle)), native_kernels.padded(action_dim))
        if is_native_used() and native_kernels.runs(widths):
            hidden = (part for weight, bias in self._middle for part in (weight.t(), bias[None]))
            parts = (self._to_action, *hidden, self._last, self._last_bias[None])
            weights = native_kernels.packed([part[None] for part in parts], widths[-1])
            self._compiled = (weights[0], levels, widths)

    @torch.no_grad()
    def sample(self, feature: Tensor, noise: Tensor) -> Tensor:
        """Return K actions (K, A) in [-1, 1] for the state feature (1, F) and noise (T + 1, K, A) of draw_noise."""
        first_bias = self._time_part + feature @ self._to_state
        if self._compiled is not None:
            weights, levels, widths = self._compiled
            return native_kernels.denoise(first_bias, noise.contiguous(), weights, levels, widths)
        x = noise[-1]
        for step, level in reversed(list(enumerate(self._levels))):
            hidden = self._mish_of_negated(torch.addmm(first_bias[step], x, self._to_action))
            for weight, bias in self._middle:
                hidden = self._mish_of_negated(linear(hidden, weight, bias))
            gain = level.prediction_gain
            clean = torch.addmm(self._last_bias, hidden, self._last, beta=gain, alpha=gain)
            clean.add_(x, alpha=level.noisy_gain).clamp_(-1, 1)
            x = torch.mul(x, level.noisy_coefficient).add_(clean, alpha=level.clean_coefficient)
            x.add_(noise[step], alpha=level.sigma)
        return x.clamp(-1, 1)


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
        self._num_quantiles = critic.num_quantiles
        self._compiled: tuple[Tensor, tuple[int, ...], bool] | None = None
        widths = (*(weight.shape[2] for weight in weights[:-1]), native_kernels.padded(critic.num_quantiles))
        is_normed = len(critic.norm_gains) > 0
        if is_native_used() and native_kernels.runs(widths) and (is_normed or critic.activation == "mish"):
            parts = [self._first[:, -critic.action_dim :]]
            for index, (_, weight, bias) in enumerate(self._layers):
                if is_normed:  # its kernel's values v stand for 2 v - 1
                    parts += [2 * critic.norm_gains[index], 2 * critic.norm_biases[index]]
                    weight, bias = 2 * weight, bias - weight.sum(dim=1, keepdim=True)
                parts += [weight, bias]
            self._compiled = (native_kernels.packed(parts, widths[-1]), widths, is_normed)

    @torch.no_grad()
    def value(self, feature: Tensor, action: Tensor) -> Tensor:
        """Return the conservative values (K,) of actions (K, A) in the state feature (1, F)."""
        num_critics, feature_dim = len(self._first), feature.shape[1]
        to_state, to_action = self._first.tensor_split((feature_dim,), dim=1)
        state_part = torch.baddbmm(self._first_bias, feature.expand(num_critics, -1, -1), to_state)
        if self._compiled is not None:
            weights, widths, is_normed = self._compiled
            every = native_kernels.forward_each(
                state_part[:, 0], action.contiguous(), weights, widths, is_normed=is_normed
            )
            return conservative_value(every[..., : self._num_quantiles].transpose(0, 1), self._num_dropped)
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
