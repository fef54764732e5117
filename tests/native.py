"""What tests of the compiled kernels share."""

import pytest
import torch
from torch import Tensor

from policy.fast import native_kernels

needs_native = pytest.mark.skipif(native_kernels.native is None, reason="policy/fast/native.c was not compiled here")


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return normal values with a standard deviation of 3."""
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
