"""Convolutions of a frozen network: on a CPU with weights in the memory order that oneDNN computes in.

PyTorch brings a convolution's weights into that order at every call. Measured on one core for the backbone and two
images of 128 x 128: 21 ms with weights that were ordered once, 29 ms without.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenConvolution(nn.Module):
    """A copy of a convolution without bias, whose weights are loaded no more. Its state_dict is the convolution's."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        is_plain = layer.bias is None and layer.groups == 1 and layer.dilation == (1, 1)
        if not is_plain or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise ValueError(f"only for convolutions without bias, groups and dilation, padded with zeros, not {layer}")
        self.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
        self._stride, self._padding = list(layer.stride), list(layer.padding)
        self._ordered: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ordered": None}  # what oneDNN ordered cannot be copied

    def forward(self, x: Tensor) -> Tensor:
        is_plain = not x.is_cpu or x.dtype != torch.float32 or torch.is_grad_enabled() or not is_ordering_used()
        if is_plain:
            return F.conv2d(x, self.weight, None, self._stride, self._padding)
        if self._ordered is None:
            self._ordered = _order(self.weight, self._stride, self._padding)
        return _convolve(x, self._ordered, self._stride, self._padding)


def freeze_convolutions(network: nn.Module) -> None:
    """Replace each convolution within a network that has been loaded and is trained no more, in place."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, FrozenConvolution(layer))


@functools.cache
def is_ordering_used() -> bool:
    """Whether this PyTorch has oneDNN's convolution, an internal operator, and it gives the right answer here."""
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise") or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((2, 20, 9, 9), (24, 20, 3, 3)))
    x = x.contiguous(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            answer = _convolve(x, _order(weight, [2, 2], [1, 1]), [2, 2], [1, 1])
            return torch.allclose(answer, F.conv2d(x, weight, None, 2, 1), rtol=1e-4, atol=1e-4)
    except (RuntimeError, TypeError, AttributeError):  # PyTorch may change an internal operator's arguments or drop it
        return False


def _order(weight: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    return torch.ops.aten.mkldnn_reorder_conv2d_weight(weight.detach().to_mkldnn(), padding, stride, [1, 1], 1)  # type: ignore[no-any-return]


def _convolve(x: Tensor, ordered: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
        x, ordered, None, padding, stride, [1, 1], 1, "none", [], ""
    )
