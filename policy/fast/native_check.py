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
        yield from _ascent()
        yield from _denoise()
        yield _adam_step()


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
    first, *others = weights = [_random(2, *pair) / pair[0] ** 0.5 for pair in itertools.pairwise((3, *widths))]
    biases, norms = ([_random(2, 1, width) for width in each] for each in (widths[1:], widths[:-1]))
    x, states = _random(10, 3), _random(2, 5, widths[0])
    sums = states.repeat_interleave(2, dim=1) + x @ first
    for is_normed, make in itertools.product((False, True), (native_kernels.network_of, native_kernels.packed_network)):
        values = sums
        for weight, bias, norm in zip(others, biases, norms, strict=True):
            normed = torch.sigmoid(norm * F.layer_norm(values, values.shape[-1:]) + norm)
            values = (normed if is_normed else F.mish(-values)) @ weight + bias
        network = make(weights, biases, [(norm, norm) for norm in norms] if is_normed else ())
        yield Trial("forward_each", (native_kernels.forward_each(network, states, x),), (values,))


def _ascent() -> Iterator[Trial]:
    first, last, bias, states = _random(2, 3, 48), _random(2, 48, 16), _random(2, 1, 16), _random(2, 5, 48)
    norm = _random(2, 1, 48)
    for is_normed in (False, True):
        with torch.enable_grad():
            x = _random(10, 3).requires_grad_()
            sums = states.repeat_interleave(2, dim=1) + x @ first
            normed = torch.sigmoid(norm * F.layer_norm(sums, (48,)) + norm)
            quantiles = (normed if is_normed else F.mish(-sums)) @ last + bias
            (expected,) = torch.autograd.grad(conservative_value(quantiles.transpose(0, 1), 2).sum(), x)
        norms = [(norm, norm)] if is_normed else ()
        network = native_kernels.network_of([first, last], [bias], norms, [last.mT.contiguous()])
        yield Trial("ascent", (native_kernels.ascent(network, states, x.detach(), 2),), (expected,))


def _denoise() -> Iterator[Trial]:
    """In two blocks."""
    rows = native_kernels.BLOCK + 2
    states, level_sums, noise, levels = _random(rows // 2, 32), _random(3, 32), _random(4, rows, 5), _random(3, 5).abs()
    first, last, bias = _random(1, 5, 32), _random(1, 32, 16), _random(1, 1, 16)
    *fresh, x = noise
    for step in (2, 1, 0):
        error_gain, bound, clipped_weight, noisy_weight, sigma = levels[step].tolist()
        error = F.mish(-(states.repeat_interleave(2, dim=0) + level_sums[step] + x @ first[0])) @ last[0] + bias[0]
        clipped = (x - error_gain * error[:, :5]).clamp(-bound, bound)
        x = sigma * fresh[step] + noisy_weight * x + clipped_weight * clipped
    for make in (native_kernels.network_of, native_kernels.packed_network):
        network = make([first, last], [bias])
        yield Trial("denoise", (native_kernels.denoise(network, states, level_sums, levels, noise),), (x,))


def _adam_step() -> Trial:
    """Of tensors longer and shorter than a processor computes at once, clipped, along a gradient that changes.

    Written out: torch.optim would load a compiler into a process that only acts.
    """
    rate, beta_1, beta_2, eps, max_norm = 0.1, 0.8, 0.9, 1e-5, 1.0
    starts = [_random(_ROWS, _WIDTH), _random(1)]
    gradients, counters = [10 * start for start in starts], torch.zeros(4)
    kept, expected = ([(x.clone(), *torch.zeros(2, *x.shape), torch.zeros(())) for x in starts] for _ in range(2))
    for step in (1, 2, 3):
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        for (parameter, mean, square, steps), gradient in zip(expected, gradients, strict=True):
            mean.lerp_(max_norm * gradient / norm, 1 - beta_1)
            square.lerp_((max_norm * gradient / norm).square(), 1 - beta_2)
            root = (square / (1 - beta_2**step)).sqrt()
            parameter.sub_(rate / (1 - beta_1**step) * mean / (root + eps))
            steps.add_(1)
        learned = [native_kernels.Learned(own[0], g, *own[1:]) for own, g in zip(kept, gradients, strict=True)]
        native_kernels.adam_step(
            learned,
            torch.tensor(2.0),
            counters,
            learning_rate=rate,
            betas=(beta_1, beta_2),
            eps=eps,
            max_norm=max_norm,
        )
        for gradient in gradients:
            gradient.add_(1.0)
    answers, right = ([part for own in each for part in own] for each in (kept, expected))
    return Trial("adam_step", (*answers, counters), (*right, torch.tensor([0.0, 0.0, 2.0, norm])))
