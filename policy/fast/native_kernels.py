"""The compiled kernels of native.c on tensors; policy.fast.native_check says whether they are to be used.

Matrix products, and what takes PyTorch three to eight operations in one pass over memory: half the time for mish and
its slope, a tenth for the quantile loss. And whole networks, a block of rows after the other: that saves starting their
operations one by one, and what is between them stays in the cache. One thread, float32, on a CPU, without autograd.
Anything else raises ValueError, for the kernels themselves would read memory that is not theirs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from policy.fast import native as native
except ImportError:  # set-up found no C compiler
    native = None  # type: ignore[assignment]

MAX_DROPPED, MAX_WIDTH, MAX_LAYERS, MAX_TENSORS = 16, 8192, 8, 64  # as in native.c and what it includes
BLOCK = 96  # rows that go through a network together; a multiple of the six that a product's tile has
VERSION = 5  # of native.c that this file calls; what was compiled before an update may be older


def multiplies(x: Tensor, weight: Tensor) -> bool:
    """Whether `product` takes these: float32, and a weight (out, in) whose coefficients of one input are neighbours, of
    a multiple of 16 outputs."""
    width, steps = weight.shape
    is_float = x.dtype == weight.dtype == torch.float32
    return is_float and width % 16 == 0 and steps == x.shape[1] > 0 and weight.stride() == (1, width)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int = 0) -> Tensor:
    """x @ weight.T + bias for x (R, in) of any strides, weight (out, in) and bias (out,); see `multiplies`.

    Of the outputs the last `padding` are left out.
    """
    (rows, steps), width = x.shape, weight.shape[0]
    if not multiplies(x, weight):
        raise ValueError(f"no product of {_form(x)} with a weight {_form(weight)}")
    out = x.new_empty((rows, width))
    bias_at = 0 if bias is None else _at(bias, (width,))
    row_stride, step_stride = x.stride()
    factors = (x.data_ptr(), row_stride, step_stride, weight.data_ptr())
    native.product(*factors, bias_at, out.data_ptr(), rows, steps, width)
    return out[:, :-padding] if padding else out


def first_sums(states: Tensor, level: Tensor | None, x: Tensor, weights: Tensor) -> Tensor:
    """states (B, H), each for its K neighbouring rows, + level (H,) + x @ weights (B K, H), for x (B K, in) of few
    inputs and weights (in, H)."""
    (rows, inputs), (num_states, width) = x.shape, states.shape
    per_state = _rows_per_state(rows, num_states)
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


class Learned(NamedTuple):
    """A parameter and what torch.optim.Adam keeps of it, all of its shape but the step ()."""

    parameter: Tensor
    gradient: Tensor
    mean: Tensor
    square: Tensor
    step: Tensor


def adam_step(
    each: Sequence[Learned],
    loss: Tensor,
    counters: Tensor,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    max_norm: float,
) -> None:
    """torch.optim.Adam's step along the gradients of `loss` (), their common norm clipped to max_norm unless that is 0.

    If loss or norm is not finite, nothing changes but counters (4,): steps left out in all and in a row, loss, norm.
    """
    places: list[int] = []
    for parameter, *others, step in each:
        shape = parameter.shape
        places += (_at(parameter), *(_at(other, shape) for other in others), _at(step, ()), parameter.numel())
    native.adam_step(_at(loss, ()), _at(counters, (4,)), learning_rate, *betas, eps, max_norm, *places)


class Network(NamedTuple):
    """N networks of one shape as `forward_each`, `ascent` and `denoise` take them. Its tensors may change in place."""

    inputs: int
    widths: tuple[int, ...]
    outputs: int  # of the last layer's; the others pad it
    num_networks: int
    is_packed: bool
    layers: tuple[int, ...]  # numbers of each, as native.c has them
    tensors: tuple[Tensor, ...]  # whose addresses are among them

    def __deepcopy__(self, memo: object) -> "Network":
        raise TypeError("a copy would have the addresses of tensors that are not its own; make another one")


def padded(width: int) -> int:
    """The least multiple of 16 that has room for as many."""
    return -(-width // 16) * 16


def runs(widths: Sequence[int]) -> bool:
    """Whether networks with layers of these widths can be had."""
    return 2 <= len(widths) <= MAX_LAYERS and all(width > 0 and width % 16 == 0 for width in widths)


def network_of(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    norms: Sequence[tuple[Tensor, Tensor]] = (),
    backs: Sequence[Tensor] = (),
    outputs: int = 0,
) -> Network:
    """Networks with weights (N, in, out), neighbours in memory but for gaps between networks, and biases (N, 1, out) of
    all layers but the first.

    norms: gain and shift (N, 1, out) of each hidden layer, without which it has mish. outputs: how many of the last
    layer's are wanted; 0 for all. backs: for `ascent` the weights (N, out, in) of all layers but the first.
    """
    return _network_of(weights, biases, norms, backs, outputs or weights[-1].shape[2], is_packed=False)


def packed_network(
    weights: Sequence[Tensor], biases: Sequence[Tensor], norms: Sequence[tuple[Tensor, Tensor]] = ()
) -> Network:
    """As `network_of`, of copies in the order that few rows are computed from soonest, and of any number of outputs."""
    outputs = biases[-1].shape[2]
    padding = (0, padded(outputs) - outputs)
    weights, biases = (
        [part.contiguous() for part in (*parts[:-1], F.pad(parts[-1], padding))] for parts in (weights, biases)
    )
    return _network_of(weights, biases, norms, (), outputs, is_packed=True)


def _network_of(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    norms: Sequence[tuple[Tensor, Tensor]],
    backs: Sequence[Tensor],
    outputs: int,
    *,
    is_packed: bool,
) -> Network:
    count, inputs, _ = weights[0].shape
    widths = tuple(weight.shape[2] for weight in weights)
    if not runs(widths):
        raise ValueError(f"no network of {len(widths)} layers of widths {widths}: 2 to {MAX_LAYERS}, multiples of 16")
    tensors: list[Tensor] = []
    numbers: list[int] = []

    def at(tensor: Tensor, *shape: int) -> int:
        tensors.append(tensor.detach())
        return _at(tensors[-1], (count, *shape))

    for index, (weight, fan_in, width) in enumerate(zip(weights, (inputs, *widths), widths, strict=False)):
        if weight.shape != (count, fan_in, width) or weight.stride()[1:] != (width, 1):
            raise ValueError(f"a layer from {fan_in} to {width} cannot have weights {_form(weight)}")
        if is_packed:
            weight = weight.view(count, fan_in, -1, 16).transpose(1, 2).contiguous()
        is_last = index == len(widths) - 1
        bias_at = at(biases[index - 1], 1, width) if index else 0
        norm_at = (0, 0) if is_last or not norms else tuple(at(part, 1, width) for part in norms[index])
        back_at = at(backs[index - 1], outputs if is_last else width, fan_in) if index and backs else 0
        numbers += [_at(weight[0]), bias_at, *norm_at, back_at, weight.stride(0), width]
        tensors.append(weight)
    return Network(inputs, widths, outputs, count, is_packed, tuple(numbers), tuple(tensors))


def forward_each(network: Network, states: Tensor, x: Tensor) -> Tensor:
    """The outputs (N, R, out) of N networks for x (R, in), R = B K, the first layers' sums without x being states
    (N, B, H)."""
    given, rows, per_state = _states_and_rows(network, states, x)
    out = x.new_empty((network.num_networks, rows, network.widths[-1]))
    spare, block = _spare(network, rows, per_state)
    native.forward_each(*given, _at(out), network.num_networks, rows, _at(spare), block, *_numbers(network))
    return out[..., : network.outputs]


def ascent(network: Network, states: Tensor, x: Tensor, num_dropped: int) -> Tensor:
    """The gradient (R, in) in x (R, in) of the conservative value, of which the outputs are the quantiles (N, R, out).

    states as in `forward_each`; 0 to MAX_DROPPED quantiles of each network dropped.
    """
    given, rows, per_state = _states_and_rows(network, states, x)
    gradient = torch.empty_like(x)
    block = _block(rows, per_state)
    kept = sum(2 * width + 1 for width in network.widths) + 2 * max(
        network.widths
    )  # of every layer, and on the way back
    spare = x.new_empty(block * kept)
    how = (network.num_networks, rows, num_dropped, _at(spare), block)
    native.ascent(*given, _at(gradient), *how, *_numbers(network))
    return gradient


def _states_and_rows(network: Network, states: Tensor, x: Tensor) -> tuple[tuple[int, int, int], int, int]:
    """What both take, and the numbers of all rows and of one state's."""
    rows, num_states = len(x), states.shape[1]
    per_state = _rows_per_state(rows, num_states)
    states_at = _at(states, (network.num_networks, num_states, network.widths[0]))
    return (states_at, per_state, _at(x, (rows, network.inputs))), rows, per_state


def denoise(
    network: Network, states: Tensor | None, level_sums: Tensor, levels: Tensor, noise: Tensor, stop: int = 0
) -> Tensor:
    """Steps T - 1 to `stop` of reverse chains from noise (T + 1, R, A), R = B K: x (R, A).

    The denoiser's first sums without x are states (B, H), if any, + level_sums (T, H); levels (T, 5) as chain.Level.
    """
    num_steps, (_, rows, action_dim) = len(level_sums), noise.shape
    if network.widths[-1] < action_dim or network.num_networks != 1:
        raise ValueError(
            f"{network.num_networks} networks of {network.widths[-1]} outputs for an action of {action_dim}"
        )
    if not 0 <= stop <= num_steps:
        raise ValueError(f"a chain of {num_steps} steps cannot stop at {stop}")
    per_state, width, states_at = 1, network.widths[0], 0
    if states is not None:
        per_state, states_at = _rows_per_state(rows, len(states)), _at(states, (len(states), width))
    x = noise.new_empty((rows, network.inputs))
    spare, block = _spare(network, rows, per_state)
    given = (_at(level_sums, (num_steps, width)), _at(levels, (num_steps, 5)), _at(noise, (num_steps + 1, *x.shape)))
    native.denoise(states_at, per_state, *given, _at(x), rows, num_steps, stop, _at(spare), block, *_numbers(network))
    return x


def _numbers(network: Network) -> tuple[int, ...]:
    return (network.inputs, network.outputs, network.is_packed, *network.layers)


def _spare(network: Network, rows: int, per_state: int) -> tuple[Tensor, int]:
    """Memory to compute in, and how many rows a block has."""
    block = _block(rows, per_state)
    return network.tensors[0].new_empty(block * (3 * max(network.widths) + 1)), block


def _block(rows: int, per_state: int) -> int:
    return min(max(1, BLOCK // per_state) * per_state, rows)


def _rows_per_state(rows: int, num_states: int) -> int:
    per_state = rows // num_states if num_states else 0
    if per_state * num_states != rows or rows == 0:
        raise ValueError(f"{rows} rows of {num_states} states")
    return per_state


def _at(tensor: Tensor, shape: tuple[int, ...] | None = None) -> int:
    """The address of a tensor, of this shape if one is given."""
    is_right = tensor.is_contiguous() and tensor.dtype == torch.float32 and tensor.is_cpu
    if not is_right or (shape is not None and tensor.shape != shape):
        wanted = "" if shape is None else f" {shape}"
        raise ValueError(f"a compiled kernel got {_form(tensor)}, not contiguous float32{wanted} on the CPU")
    return tensor.data_ptr()


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} with strides {tensor.stride()} on {tensor.device}"
