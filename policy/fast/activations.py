"""Activations of hidden layers on a CPU in few passes over memory, with their derivatives written out.

PyTorch's own mish evaluates an exponential, a logarithm and a tanh and takes five times as long as the one here, its
tanh six times as long as a sigmoid; where policy.fast.native_kernels were compiled, those take half of that again. Each
activation may want its layers in another form (policy.fast.arranged_layers): then it takes such a layer's sums and its
values go into the next. All of it is without autograd; sums are overwritten.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from policy.fast import native_kernels
from policy.fast.native_check import is_native_used

_ONE = torch.ones(())
_NORM_EPS = 1e-5  # of torch.nn.functional.layer_norm


class Layer(NamedTuple):
    """weight (..., out, in), any strides; bias (..., out)."""

    weight: Tensor
    bias: Tensor


Kept = tuple[Tensor, ...]  # what the derivative needs of one layer


class Activation(Protocol):
    """Of one MLP. Shapes: sums, values, gradients (R, H); the layers may be stacked."""

    sign: int
    """The sums that it takes are these times a layer's own."""

    def values(self, sums: Tensor, index: int) -> Tensor:
        """The values of hidden layer `index`."""

    def values_and_slope(self, sums: Tensor, index: int, rows: int) -> tuple[Tensor, Kept]:
        """The values, and what `back` needs for the first `rows` rows."""

    def back(self, gradient: Tensor, kept: Kept, index: int) -> Tensor:
        """The gradient with respect to the sums from that with respect to the values, which is overwritten."""

    def back_with_parameters(self, gradient: Tensor, kept: Kept, index: int) -> tuple[Tensor, Kept]:
        """Also the gradients of what the activation was given for this layer."""


class Mish:
    """mish(z) = z tanh(softplus(z)) = z (2 / t - 1) with t = 1 + q^2, q = sigmoid(-z): one sigmoid, two more passes.

    It takes h = -z, which the layers before it give at no cost with the signs of their weights turned.
    mish'(z) = 2 e - 1 with e = r + 2 z (1 - q) r (1 - r), r = 1 / t.
    """

    sign = -1

    def __init__(self) -> None:
        self._is_native = is_native_used()

    def values(self, sums: Tensor, index: int) -> Tensor:
        if self._is_native:
            return native_kernels.mish_of_negated(sums)
        q = torch.sigmoid(sums)
        t = torch.addcmul(_ONE, q, q, out=q)
        return torch.addcdiv(sums, sums, t, value=-2, out=t)

    def values_and_slope(self, sums: Tensor, index: int, rows: int) -> tuple[Tensor, Kept]:
        if self._is_native:
            values, slope = native_kernels.mish_and_slope(sums, rows)
            return values, (slope,)
        q = torch.sigmoid(sums)
        r = torch.addcmul(_ONE, q, q).reciprocal_()
        values = torch.addcmul(sums, sums, r, value=-2)
        h = sums
        if rows < h.shape[0]:
            h, q, r = h[:rows], q[:rows], r[:rows]
        torch.addcmul(h, h, q, value=-1, out=h)  # -z (1 - q)
        torch.addcmul(r, r, r, value=-1, out=q)  # r (1 - r)
        return values, (torch.addcmul(r, h, q, value=-2, out=r),)

    def back(self, gradient: Tensor, kept: Kept, index: int) -> Tensor:
        return torch.addcmul(gradient, gradient, kept[0], value=-2, out=gradient)

    def back_with_parameters(self, gradient: Tensor, kept: Kept, index: int) -> tuple[Tensor, Kept]:
        return self.back(gradient, kept, index), ()


class Relu:
    """max(z, 0)."""

    sign = 1

    def values(self, sums: Tensor, index: int) -> Tensor:
        return sums.clamp_(min=0)

    def values_and_slope(self, sums: Tensor, index: int, rows: int) -> tuple[Tensor, Kept]:
        values = sums.clamp_(min=0)
        return values, (values if rows == values.shape[0] else values[:rows],)

    def back(self, gradient: Tensor, kept: Kept, index: int) -> Tensor:
        return torch.ops.aten.threshold_backward(gradient, kept[0], 0)  # type: ignore[no-any-return]

    def back_with_parameters(self, gradient: Tensor, kept: Kept, index: int) -> tuple[Tensor, Kept]:
        return self.back(gradient, kept, index), ()


class NormTanh:
    """tanh(gain n + shift), n the LayerNorm of z, as 2 s - 1 with s = sigmoid(2 gain n + 2 shift).

    Its values are s: the layers behind it hold what that takes.
    """

    sign = 1

    def __init__(self, gains: Sequence[Tensor], shifts: Sequence[Tensor]) -> None:
        """Twice the gains and shifts (H,) of each hidden layer."""
        self._gains, self._shifts = gains, shifts
        is_narrow = all(len(gain) <= native_kernels.MAX_WIDTH for gain in gains)
        self._is_native = is_narrow and is_native_used()

    def values(self, sums: Tensor, index: int) -> Tensor:
        gain, shift = self._gains[index], self._shifts[index]
        if self._is_native:
            return native_kernels.norm_sigmoid(sums, gain, shift, is_kept=False)[0]
        return torch.layer_norm(sums, gain.shape, gain, shift, _NORM_EPS).sigmoid_()

    def values_and_slope(self, sums: Tensor, index: int, rows: int) -> tuple[Tensor, Kept]:
        gain, shift = self._gains[index], self._shifts[index]
        if self._is_native:
            values, inverse_std = native_kernels.norm_sigmoid(sums, gain, shift, is_kept=True)
            kept: Kept = (values, sums, inverse_std)
        else:
            normed, mean, inverse_std = torch.native_layer_norm(sums, gain.shape, gain, shift, _NORM_EPS)
            values = normed.sigmoid_()
            kept = (values, sums, inverse_std, mean)
        return values, kept if rows == sums.shape[0] else tuple(part[:rows] for part in kept)

    def back(self, gradient: Tensor, kept: Kept, index: int) -> Tensor:
        return self._back(gradient, kept, index, has_parameters=False)[0]

    def back_with_parameters(self, gradient: Tensor, kept: Kept, index: int) -> tuple[Tensor, Kept]:
        to_sums, gain, shift = self._back(gradient, kept, index, has_parameters=True)
        return to_sums, (gain, shift)

    def _back(self, gradient: Tensor, kept: Kept, index: int, *, has_parameters: bool) -> tuple[Tensor, Tensor, Tensor]:
        gain, shift = self._gains[index], self._shifts[index]
        if self._is_native:
            values, normed, inverse_std = kept
            return native_kernels.norm_sigmoid_back(
                gradient, values, normed, inverse_std, gain, has_parameters=has_parameters
            )
        s, sums, inverse_std, mean = kept
        to_normed = torch.addcmul(s, s, s, value=-1).mul_(gradient)
        wanted = [True, has_parameters, has_parameters]
        back: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_layer_norm_backward(
            to_normed, sums, gain.shape, mean, inverse_std, gain, shift, wanted
        )
        return back
