"""The machine's matrix speed, measured beside what is compared with it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.learner.race import Clock
from policy.fast.native_check import is_product_used
from policy.fast.native_kernels import product

# (rows, fan in, fan out): large square ones, where any library is at its best, and the layers of these networks.
SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (1024, 256, 256), (2816, 256, 256), (256, 256, 256))
_LARGE_ON_CUDA = (8192, 8192, 8192)
_CALL_S = 0.01  # what a timing takes at least

Operator = Callable[
    [Tensor, Tensor, Tensor, Tensor], Tensor
]  # x (R, I), weight (O, I), its transpose (I, O), bias (O,)


@dataclass(frozen=True)
class Product:
    """One way to multiply at one shape."""

    operator: str
    shape: tuple[int, int, int]
    call: Callable[[], object]

    @property
    def operations(self) -> int:
        return 2 * math.prod(self.shape)


def operators() -> dict[str, Operator]:
    """Return the ways to multiply float32 matrices that there are here: PyTorch's, oneDNN's and ours."""
    found: dict[str, Operator] = {
        "torch.mm": lambda x, weight, transposed, bias: torch.mm(x, transposed),
        "torch.addmm": lambda x, weight, transposed, bias: torch.addmm(bias, x, transposed),
    }
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        found["oneDNN linear"] = lambda x, weight, transposed, bias: torch.ops.mkldnn._linear_pointwise(
            x, weight, bias, "none", [], ""
        )
    if is_product_used():
        found["ours"] = lambda x, weight, transposed, bias: product(x, transposed.t(), bias)
    return found


def products(device: str) -> list[Product]:
    """Return every operator at every shape on the device, leaving out operators that the device does not have."""
    is_cuda = torch.device(device).type == "cuda"
    shapes = (_LARGE_ON_CUDA, *SHAPES) if is_cuda else SHAPES
    usable = {name: operator for name, operator in operators().items() if not is_cuda or name.startswith("torch.")}
    return [_product(name, operator, shape, device) for name, operator in usable.items() for shape in shapes]


def speed(product: Product, clock: Clock, repeats: int) -> float:
    """Return operations a second over `repeats` calls."""
    with torch.inference_mode():
        return repeats * product.operations / clock.time(product.call, repeats)


def repeats_for(product: Product, clock: Clock) -> int:
    with torch.inference_mode():
        clock.time(product.call, 2)  # what is prepared at the first call
        return max(1, math.ceil(_CALL_S / clock.time(product.call, 1)))


def _product(name: str, operator: Operator, shape: tuple[int, int, int], device: str) -> Product:
    rows, fan_in, fan_out = shape
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, generator=generator).to(device) for size in ((rows, fan_in), (fan_out, fan_in), (fan_out,))
    )
    transposed = weight.t().contiguous()
    return Product(name, shape, lambda: operator(x, weight, transposed, bias))
