"""The compiled kernels of policy/native.c on tensors, where they were compiled; see `is_native_used`.

They take one pass over memory where PyTorch's operations take three to eight: half the time for mish and its slope, a
fifth for the quantile loss. One thread, float32, contiguous; without autograd.
"""

import functools

import torch
from torch import Tensor

try:
    from policy import native as native
except ImportError:  # set-up found no C compiler
    native = None  # type: ignore[assignment]

MAX_DROPPED = 16  # as in native.c
_VERSION = 1  # of native.c that this file calls; what was compiled before an update may be older


def is_native_used() -> bool:
    """Whether the kernels were compiled, give the right answers here, and PyTorch would not use several threads."""
    return torch.get_num_threads() == 1 and is_right()


@functools.cache
def is_right() -> bool:
    """Whether the kernels were compiled and give the right answers here."""
    if native is None or native.VERSION != _VERSION:
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = 3 * torch.randn(5, 37, generator=generator), torch.rand(37, generator=generator)
    with torch.no_grad():
        normed = torch.nn.functional.layer_norm(x, (37,), weight, weight)
        answers = (mish_of_negated(-x), norm_sigmoid(x.clone(), weight, weight, is_kept=False)[0])
        factor = torch.randn(37, 80, generator=generator)
        multiplied = product(x, factor.t(), factor[0])
    expected = (torch.nn.functional.mish(x), normed.sigmoid(), x @ factor + factor[0])
    return all(map(_is_close, (*answers, multiplied), expected))


def is_product_used() -> bool:
    """Whether `product` is the one to take: its tiles fill the registers of AVX-512, and spill others."""
    return is_native_used() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def multiplies(x: Tensor, weight: Tensor) -> bool:
    """Whether `product` takes these: float32, and a weight (out, in) whose coefficients of one input are neighbours, of
    a multiple of 16 outputs."""
    width, steps = weight.shape
    return width % 16 == 0 and weight.stride() == (1, width) and x.dtype == torch.float32 and steps > 0


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias for x (R, in) of any strides and what `multiplies` says."""
    (rows, steps), width = x.shape, weight.shape[0]
    out = x.new_empty((rows, width))
    bias_at = 0 if bias is None else _at(bias)
    row_stride, step_stride = x.stride()
    given = (x.data_ptr(), row_stride, step_stride, weight.data_ptr())
    native.product(*given, bias_at, _at(out), rows, steps, width)
    return out


def _is_close(answer: Tensor, expected: Tensor) -> bool:
    return torch.allclose(answer, expected, rtol=1e-5, atol=1e-5)


def first_sums(states: Tensor, level: Tensor | None, x: Tensor, weights: Tensor) -> Tensor:
    """states (B, H), each for its K neighbouring rows, + level (H,) + x @ weights (B K, H), for x (B K, in) of few
    inputs and weights (in, H)."""
    (rows, inputs), (num_states, width) = x.shape, states.shape
    sums = states.new_empty((rows, width))
    level_at = 0 if level is None else _at(level)
    places = (_at(states), level_at, _at(x), _at(weights), _at(sums))
    native.first_sums(*places, rows // num_states, rows, width, inputs)
    return sums


def mish_of_negated(negated: Tensor) -> Tensor:
    """mish(-negated), in place: memory that was just written is near."""
    native.mish(_at(negated), _at(negated), negated.numel())
    return negated


def mish_and_slope(negated: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """mish(z) for z = -negated (R, H), and in its place, for the first `rows` rows, (1 + mish'(z)) / 2."""
    values, slopes = torch.empty_like(negated), negated[:rows]
    native.mish_and_slope(_at(negated), _at(values), _at(slopes), negated.numel(), slopes.numel())
    return values, slopes


def norm_sigmoid(sums: Tensor, gain: Tensor, shift: Tensor, *, is_kept: bool) -> tuple[Tensor, Tensor]:
    """sigmoid(gain n + shift) (R, H) and each row's 1 / std (R,), n the LayerNorm of sums (R, H).

    The sums are replaced, by n if is_kept, else by the result.
    """
    values, inverse_stds = torch.empty_like(sums) if is_kept else sums, sums.new_empty(sums.shape[0])
    native.norm_sigmoid(_at(sums), _at(gain), _at(shift), _at(values), _at(inverse_stds), *sums.shape)
    return values, inverse_stds


def norm_sigmoid_back(
    gradient: Tensor, values: Tensor, normed: Tensor, inverse_stds: Tensor, gain: Tensor, *, has_parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """norm_sigmoid's gradients in sums, gain and shift from that in its values (R, H), which is overwritten.

    Those in gain and shift (H,) are only filled in if has_parameters.
    """
    to_gain, to_shift = torch.empty_like(gain), torch.empty_like(gain)
    filled = (_at(to_gain), _at(to_shift)) if has_parameters else (0, 0)
    given = (_at(gradient), _at(values), _at(normed), _at(inverse_stds), _at(gain))
    native.norm_sigmoid_back(*given, *filled, *gradient.shape)
    return gradient, to_gain, to_shift


def quantile_huber(quantiles: Tensor, targets: Tensor, tau: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
    """Sums of the pairs' losses for each row (R,) and their derivatives (R, K) in the quantiles (R, K).

    targets (R, L), tau (K,); see learner.kernels.fast_losses, which divides by the number of pairs.
    """
    losses, derivatives = quantiles.new_empty(quantiles.shape[0]), torch.empty_like(quantiles)
    places = (_at(quantiles), _at(targets), _at(tau), _at(losses), _at(derivatives))
    (rows, count), num_atoms = quantiles.shape, targets.shape[1]
    native.quantile_huber(*places, rows, count, num_atoms, kappa)
    return losses, derivatives


def conservative_value(columns: Tensor, num_dropped: int) -> Tensor:
    """policy.critic_network.conservative_value (R,) of quantiles (N, M, R), 1 to MAX_DROPPED dropped."""
    values = columns.new_empty(columns.shape[2])
    num_critics, num_quantiles, rows = columns.shape
    native.conservative_value(_at(columns), _at(values), num_critics, num_quantiles, rows, num_dropped)
    return values


def value_weights(columns: Tensor, num_dropped: int) -> Tensor:
    """Its derivative (N, M, R) in the quantiles."""
    weights = torch.empty_like(columns)
    num_critics, num_quantiles, rows = columns.shape
    native.value_weights(_at(columns), _at(weights), num_critics, num_quantiles, rows, num_dropped)
    return weights


def _at(tensor: Tensor) -> int:
    """The address of its memory, which the kernels take for contiguous float32."""
    if not tensor.is_contiguous() or tensor.dtype != torch.float32:
        raise ValueError(f"a kernel got {tensor.dtype} with strides {tensor.stride()}, not contiguous float32")
    return tensor.data_ptr()
