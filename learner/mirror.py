"""Arrays that the host writes row by row, and a device reads."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Mirror:
    """Tensors on a device with the rows of arrays on the host.

    On a CPU they are the arrays' own memory. On a GPU they are copies that `update` brings up to date: it sends the
    rows that were named since, and does not wait for the device.
    """

    def __init__(self, arrays: Sequence[NDArray[np.generic]], device: torch.device) -> None:
        self._arrays = arrays
        self._device = device
        self._is_copy = _needs_copies(device)
        shared = [torch.from_numpy(array) for array in arrays]
        self.tensors: list[Tensor] = [tensor.to(device, copy=True) for tensor in shared] if self._is_copy else shared
        self._changed: set[int] = set()

    def note(self, rows: Iterable[int]) -> None:
        """Name rows that have changed."""
        if self._is_copy:
            self._changed.update(rows)

    def update(self) -> None:
        """Bring the tensors up to date, before anything reads them."""
        if not self._changed:
            return
        rows = np.sort(np.fromiter(self._changed, np.int64, len(self._changed)))
        self._changed.clear()
        places = torch.from_numpy(rows).to(self._device, non_blocking=True)
        for array, tensor in zip(self._arrays, self.tensors, strict=True):
            tensor.index_copy_(0, places, torch.from_numpy(array[rows]).to(self._device, non_blocking=True))


def _needs_copies(device: torch.device) -> bool:
    return device.type != "cpu"
