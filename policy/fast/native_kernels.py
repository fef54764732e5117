"""The compiled kernels of native.c on tensors; policy.fast.native_check says whether they are to be used.

Matrix products, and what takes PyTorch three to eight operations in one pass over memory: half the time for mish and
its slope, a tenth for the quantile loss. One thread, float32, on a CPU, without autograd. Anything else raises
ValueError, for the kernels themselves would read memory that is not theirs.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from policy.fast import native as native
except ImportError:  # set-up found no C compiler
    native = None  # type: ignore[assignment]

MAX_DROPPED, MAX_WIDTH, MAX_LAYERS = 16, 8192, 8  # as in native.c and what it includes
VERSION = 3  # of native.c that this file calls; what was compiled before an update may be older


def multiplies(x: Tensor, weight: Tensor) -> bool:
    """Whether `product` takes these: float32, and a weight (out, in) whose coefficients of one input are neighbours, of
    a multiple of 16 outputs."""
    width, steps = weight.shape
    is_float = x.dtype == weight.dtype == torch.float32
    return is_float and width % 16 == 0 and steps == x.shape[1] > 0 and weight.stride() == (1, width)


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias for x (R, in) of any strides, weight (out, in) and bias (out,); see `multiplies`."""
    (rows, steps), width = x.shape, weight.shape[0]
    if not multiplies(x, weight):
        raise ValueError(f"no product of {_form(x)} with a weight {_form(weight)}")
    out = x.new_empty((rows, width))
    bias_at = 0 if bias is None else _at(bias, (width,))
    row_stride, step_stride = x.stride()
    factors = (x.data_ptr(), row_stride, step_stride, weight.data_ptr())
    native.product(*factors, bias_at, out.data_ptr(), rows, steps, width)
    return out


def first_sums(states: Tensor, level: Tensor | None, x: Tensor, weights: Tensor) -> Tensor:
    """states (B, H), each for its K neighbouring rows, + level (H,) + x @ weights (B K, H), for x (B K, in) of few
    inputs and weights (in, H)."""
    (rows, inputs), (num_states, width) = x.shape, states.shape
    per_state = rows // num_states if num_states else 0
    if per_state * num_states != rows or rows == 0:
        raise ValueError(f"{rows} rows of {num_states} states")
    sums = states.new_empty((rows, width))
    level_at = 0 if level is None else _at(level, (width,))
    places = (_at(states), level_at, _at(x), _at(weights, (inputs, width)), _at(sums))
    native.first_sums(*places, per_state, rows, width, inputs)
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
    rows, width = sums.shape
    values, inverse_stds = torch.empty_like(sums) if is_kept else sums, sums.new_empty(rows)
    places = (_at(sums), _at(gain, (width,)), _at(shift, (width,)), _at(values), _at(inverse_stds))
    native.norm_sigmoid(*places, rows, width)
    return values, inverse_stds


def norm_sigmoid_back(
    gradient: Tensor, values: Tensor, normed: Tensor, inverse_stds: Tensor, gain: Tensor, *, has_parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """norm_sigmoid's gradients in sums, gain and shift from that in its values (R, H), which is overwritten.

    Those in gain and shift (H,) are only filled in if has_parameters.
    """
    (rows, width), shape = gradient.shape, tuple(gradient.shape)
    to_gain, to_shift = torch.empty_like(gain), torch.empty_like(gain)
    given = (_at(gradient), _at(values, shape), _at(normed, shape), _at(inverse_stds, (rows,)), _at(gain, (width,)))
    filled = (_at(to_gain), _at(to_shift)) if has_parameters else (0, 0)
    native.norm_sigmoid_back(*given, *filled, rows, width)
    return gradient, to_gain, to_shift


def quantile_huber(quantiles: Tensor, targets: Tensor, tau: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
    """Sums of the pairs' losses for each row (R,) and their derivatives (R, K) in the quantiles (R, K).

    targets (R, L), tau (K,); see learner.kernels.fast_losses, which divides by the number of pairs.
    """
    (rows, count), num_atoms = quantiles.shape, targets.shape[1]
    losses, derivatives = quantiles.new_empty(rows), torch.empty_like(quantiles)
    given = (_at(quantiles), _at(targets, (rows, num_atoms)), _at(tau, (count,)))
    native.quantile_huber(*given, _at(losses), _at(derivatives), rows, count, num_atoms, kappa)
    return losses, derivatives


def conservative_value(columns: Tensor, num_dropped: int) -> Tensor:
    """policy.critic_network.conservative_value (R,) of quantiles (N, M, R), 1 to MAX_DROPPED dropped."""
    num_critics, num_quantiles, rows = columns.shape
    values = columns.new_empty(rows)
    native.conservative_value(_at(columns), _at(values), num_critics, num_quantiles, rows, num_dropped)
    return values


def value_weights(columns: Tensor, num_dropped: int) -> Tensor:
    """Its derivative (N, M, R) in the quantiles."""
    num_critics, num_quantiles, rows = columns.shape
    weights = torch.empty_like(columns)
    native.value_weights(_at(columns), _at(weights), num_critics, num_quantiles, rows, num_dropped)
    return weights


def padded(width: int) -> int:
    """The least multiple of 16 that has room for as many."""
    return -(-width // 16) * 16


def packed(parts: Sequence[Tensor], width: int) -> Tensor:
    """The weights (N, size) of N networks as native_acting.h wants them, the last layer made `width` wide.

    parts, in its order: weights (N, in, out), biases, gains and shifts (N, 1, out).
    """
    padding = (0, width - parts[-1].shape[2])
    every = [*parts[:-2], *(F.pad(part, padding) for part in parts[-2:])]
    return torch.cat([part.reshape(*part.shape[:2], -1, 16).transpose(1, 2).flatten(1) for part in every], dim=1)


def runs(widths: Sequence[int]) -> bool:
    """Whether `forward_each` and `denoise` take networks with layers of these widths."""
    return 2 <= len(widths) <= MAX_LAYERS and all(width > 0 and width % 16 == 0 for width in widths)


def forward_each(first_bias: Tensor, x: Tensor, weights: Tensor, widths: Sequence[int], *, is_normed: bool) -> Tensor:
    """The outputs (N, K, P) of N networks for x (K, in): see native_acting.h.

    first_bias (N, H), weights (N, size) of `packed`, widths (H, ..., P).
    """
    (count, _), (rows, inputs) = first_bias.shape, x.shape
    out = x.new_empty((count, rows, widths[-1]))
    size = _size(inputs, widths, is_normed)
    given = (_at(weights, (count, size)), _at(first_bias, (count, widths[0])), _at(x), _at(out))
    spare = x.new_empty(rows * (2 * max(widths) + 1))
    native.forward_each(*given, count, size, _at(spare), rows, inputs, is_normed, *widths)
    return out


def denoise(first_bias: Tensor, noise: Tensor, weights: Tensor, levels: Tensor, widths: Sequence[int]) -> Tensor:
    """The end (K, A) of a reverse chain from noise (T + 1, K, A): see native_acting.h.

    first_bias (T, H), weights (size,) of `packed`, levels (T, 5), widths (H, ..., P) with P >= A.
    """
    num_steps, (_, rows, action_dim) = len(first_bias), noise.shape
    if widths[-1] < action_dim:
        raise ValueError(f"a last layer of {widths[-1]} for an action of {action_dim}")
    x, predicted = noise.new_empty((rows, action_dim)), noise.new_empty((rows, widths[-1]))
    prepared = (_at(weights, (_size(action_dim, widths, False),)), _at(first_bias, (num_steps, widths[0])))
    given = (_at(levels, (num_steps, 5)), _at(noise, (num_steps + 1, rows, action_dim)), _at(x), _at(predicted))
    spare = x.new_empty(rows * (2 * max(widths) + 1))
    native.denoise(*prepared, *given, num_steps, _at(spare), rows, action_dim, False, *widths)
    return x


def _size(inputs: int, widths: Sequence[int], is_normed: bool) -> int:
    """How many numbers the weights of a network are."""
    layers = itertools.pairwise((inputs, *widths))
    norms = 2 * sum(widths[:-1]) if is_normed else 0
    return sum(fan_in * width for fan_in, width in layers) + sum(widths[1:]) + norms


def _at(tensor: Tensor, shape: tuple[int, ...] | None = None) -> int:
    """The address of a tensor, of this shape if one is given."""
    is_right = tensor.is_contiguous() and tensor.dtype == torch.float32 and tensor.is_cpu
    if not is_right or (shape is not None and tensor.shape != shape):
        wanted = "" if shape is None else f" {shape}"
        raise ValueError(f"a compiled kernel got {_form(tensor)}, not contiguous float32{wanted} on the CPU")
    return tensor.data_ptr()


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} with strides {tensor.stride()} on {tensor.device}"
