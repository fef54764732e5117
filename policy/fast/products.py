"""Matrix products for a CPU: ours where they were compiled, else oneDNN's where they pay, else MKL's.

Measured on an AMD Zen 5 with AVX-512, fp32, one thread: MKL, which PyTorch's own operators call, reaches 100 GFLOP/s,
oneDNN 240, but a call of it costs 10 us before it begins, and it wants its factors in one memory order. Ours reach 240
to 260 from 128 x 128 x 128 on, whatever the order of x. Which one runs depends on shapes and processor alone, never on
a clock, so that a run can be repeated.
"""

import functools

import torch
from torch import Tensor

from policy.fast import native_check, native_kernels

_MIN_WORK = 1 << 20  # multiply-adds; measured: at 64 x 128 x 128 and at 16 x 256 x 256 both take the same time
_NARROW = 32  # MKL takes as long for fewer columns as for this many


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0) -> Tensor:
    """x @ weight.T + bias for x (R, in), weight (out, in) of any strides, bias (out,). Without autograd.

    The last `padding` outputs are left out; more than 0 only where `multiplies`, as arranged_layers sees to.
    """
    if padding:
        return native_kernels.product(x, weight, bias, padding)
    if native_check.is_product_used() and native_kernels.multiplies(x, weight):
        return native_kernels.product(x, weight, bias)
    if pays(x.shape[0], weight) and x.dtype == torch.float32 and is_onednn_used():
        result: Tensor = torch.ops.mkldnn._linear_pointwise(dense(x), dense(weight), bias, "none", [], "")
        return result
    return torch.nn.functional.linear(x, weight, bias)


def first_sums(states: Tensor, level: Tensor | None, x: Tensor, weights: Tensor) -> Tensor:
    """A first layer of which the states' and the level's part are known: see policy.fast.native_kernels.first_sums."""
    if native_check.is_native_used() and x.dtype == torch.float32:
        return native_kernels.first_sums(states, level, x.contiguous(), weights)
    per_state = x.shape[0] // states.shape[0]
    rows = states if per_state == 1 else states.repeat_interleave(per_state, dim=0)
    return torch.addmm(rows if level is None else rows + level, x, weights)


def pays(rows: int, weight: Tensor) -> bool:
    """Whether oneDNN is the faster one for this product."""
    return rows * weight.shape[1] * max(weight.shape[0], _NARROW) > _MIN_WORK


def dense(matrix: Tensor) -> Tensor:
    """Without gaps between rows or columns: with gaps oneDNN falls back to a reference, a thousand times slower."""
    is_dense = matrix.is_contiguous() or matrix.stride() == (1, matrix.shape[0])
    return matrix if is_dense else matrix.contiguous()


@functools.cache
def is_onednn_used() -> bool:
    """Whether this PyTorch has oneDNN's linear layer, an internal operator, and it gives the right answer here.

    Tried on the layouts that are used: the weight as it is and transposed, the input transposed.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((48, 40), (56, 40), (56,)))
    expected = torch.addmm(bias, x, weight.t())
    layouts = ((x, weight), (x, weight.t().contiguous().t()), (x.t().contiguous().t(), weight))
    try:
        with torch.no_grad():
            answers = [torch.ops.mkldnn._linear_pointwise(*pair, bias, "none", [], "") for pair in layouts]
    except (RuntimeError, TypeError):  # PyTorch may change an internal operator's arguments or drop it
        return False
    return all(torch.allclose(answer, expected, rtol=1e-4, atol=1e-4) for answer in answers)
