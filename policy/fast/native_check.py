"""Whether the native_kernels are used on this machine: only after answers that PyTorch knows, too, were right."""

import functools
import itertools
import logging
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from policy.critic_network import conservative_value
from policy.fast import native_kernels

logger = logging.getLogger(__name__)

_ROWS, _WIDTH = 6, 37  # more than a processor computes at once, and no multiple of that


def is_native_used() -> bool:
    """Whether the kernels are to be used: they are sound, and PyTorch would not use several threads."""
    return torch.get_num_threads() == 1 and why_unused() is None


def is_product_used() -> bool:
    """Whether `product` is the one to take for many rows: with AVX2 PyTorch's is as fast."""
    return _has_avx512() and is_native_used()


@functools.cache
def _has_avx512() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


@functools.cache
def why_unused() -> str | None:
    """What is wrong with the compiled kernels, in words, or None."""
    if native_kernels.native is None:
        return "policy/fast/native.c was not compiled, which launch/setup.sh does where gcc and python3-dev are"
    if getattr(native_kernels.native, "VERSION", 0) != native_kernels.VERSION:
        return "policy/fast/native.c has changed since it was compiled: run launch/setup.sh"
    if not native_kernels.native.HAS_CLONES:
        return "policy/fast/native.c was not compiled by gcc for x86-64, for which its loops are written"
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return "this processor has no AVX2, without which PyTorch's operations are faster"
    wrong = [trial.kernel for trial in trials() if not trial.is_passed()]
    if not wrong:
        return None
    reason = f"the compiled kernels {', '.join(wrong)} give wrong answers on this machine"
    logger.error("%s. Please report its processor and compiler. PyTorch's operations are used instead.", reason)
    return reason


class Trial(NamedTuple):
    """One kernel's answers, and PyTorch's."""

    kernel: str
    answers: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]

    def is_passed(self) -> bool:
        pairs = zip(self.answers, self.expected, strict=True)
        return all(torch.allclose(answer, right, rtol=1e-4, atol=1e-4) for answer, right in pairs)


def trials() -> Iterator[Trial]:
    """Ask each kernel something small."""
    with torch.inference_mode(False):
        yield _product()
        yield _first_sums()
        yield from _mish()
        yield from _norm_sigmoid()
        yield _quantile_huber()
        yield from _conservative_value()
        yield from _forward_each()
        yield _denoise()


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _with_gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    gradients = torch.autograd.grad(value.sum(), inputs)
    return (value.detach(), *gradients)


def _product() -> Trial:
    x, weights, bias = _random(_ROWS, 300), _random(300, 80), _random(80)
    return Trial("product", (native_kernels.product(x, weights.t(), bias),), (x @ weights + bias,))


def _first_sums() -> Trial:
    states, level, x, weights = _random(3, _WIDTH), _random(_WIDTH), _random(_ROWS, 2), _random(2, _WIDTH)
    expected = states.repeat_interleave(2, dim=0) + level + x @ weights
    return Trial("first_sums", (native_kernels.first_sums(states, level, x, weights),), (expected,))


def _mish() -> Iterator[Trial]:
    with torch.enable_grad():
        x = (3 * _random(_ROWS, _WIDTH)).requires_grad_()
        values, slope = _with_gradients(F.mish(x), x)
    negated = -x.detach()
    yield Trial("mish_and_slope", native_kernels.mish_and_slope(negated.clone(), _ROWS), (values, (1 + slope) / 2))
    yield Trial("mish", (native_kernels.mish_of_negated(negated),), (values,))


def _norm_sigmoid() -> Iterator[Trial]:
    with torch.enable_grad():
        inputs = [_random(*shape).requires_grad_() for shape in ((_ROWS, _WIDTH), (_WIDTH,), (_WIDTH,))]
        leaf, weight, bias = inputs
        values, *gradients = _with_gradients(torch.sigmoid(F.layer_norm(leaf, (_WIDTH,), weight, bias)), *inputs)
    sums, gain, shift = (each.detach() for each in inputs)
    answer, inverse_stds = native_kernels.norm_sigmoid(sums, gain, shift, is_kept=True)
    back = native_kernels.norm_sigmoid_back(
        torch.ones_like(answer), answer, sums, inverse_stds, gain, has_parameters=True
    )
    yield Trial("norm_sigmoid", (answer,), (values,))
    yield Trial("norm_sigmoid_back", back, tuple(gradients))


def _quantile_huber() -> Trial:
    tau, atoms = torch.linspace(0.1, 0.9, _WIDTH), _random(_ROWS, 20)
    with torch.enable_grad():
        quantiles = _random(_ROWS, _WIDTH).requires_grad_()
        error = atoms[:, None] - quantiles[..., None]
        weight = (tau[:, None] - (error.detach() < 0).float()).abs()
        huber = F.huber_loss(quantiles[..., None].expand_as(error), atoms[:, None].expand_as(error), reduction="none")
        expected = _with_gradients((weight * huber).sum(dim=(1, 2)), quantiles)
    return Trial("quantile_huber", native_kernels.quantile_huber(quantiles.detach(), atoms, tau, 1.0), expected)


def _conservative_value() -> Iterator[Trial]:
    with torch.enable_grad():
        columns = _random(2, 5, _WIDTH).requires_grad_()
        values, weights = _with_gradients(conservative_value(columns.permute(2, 0, 1), 2), columns)
    yield Trial("conservative_value", (native_kernels.conservative_value(columns.detach(), 2),), (values,))
    yield Trial("value_weights", (native_kernels.value_weights(columns.detach(), 2),), (weights,))


def _forward_each() -> Iterator[Trial]:
    """With tiles of each kind: 4 + 2 rows, panels side by side and alone, more steps than one block has."""
    widths = (272, 80, 16)
    first, *others = (_random(2, fan_in, width) / fan_in**0.5 for fan_in, width in itertools.pairwise((3, *widths)))
    biases, norms = ([_random(2, 1, width) for width in each] for each in (widths[1:], widths[:-1]))
    x, first_bias = _random(10, 3), _random(2, widths[0])
    for is_normed in (False, True):
        parts, values = [first], first_bias[:, None] + x @ first
        for weight, bias, norm in zip(others, biases, norms, strict=True):
            normed = torch.sigmoid(norm * F.layer_norm(values, values.shape[-1:]) + norm)
            values = (normed if is_normed else F.mish(-values)) @ weight + bias
            parts += [norm, norm, weight, bias] if is_normed else [weight, bias]
        weights = native_kernels.packed(parts, widths[-1])
        yield Trial(
            "forward_each",
            (native_kernels.forward_each(first_bias, x, weights, widths, is_normed=is_normed),),
            (values,),
        )


def _denoise() -> Trial:
    first_bias, noise, levels = _random(3, 32), _random(4, _ROWS, 5), _random(3, 5)
    first, last, bias = _random(5, 32), _random(32, 5), _random(1, 5)
    x = noise[3]
    for step in (2, 1, 0):
        gain, prediction_gain, clean_coefficient, noisy_coefficient, sigma = levels[step]
        prediction = F.mish(-(first_bias[step] + x @ first)) @ last + bias
        clean = (gain * x + prediction_gain * prediction).clamp(-1, 1)
        x = sigma * noise[step] + noisy_coefficient * x + clean_coefficient * clean
    weights = native_kernels.packed([part[None] for part in (first, last, bias)], 16)[0]
    return Trial("denoise", (native_kernels.denoise(first_bias, noise, weights, levels, (32, 16)),), (x.clamp(-1, 1),))
