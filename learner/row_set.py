"""A set of rows from which one is drawn by its rank."""

import numpy as np
import torch
from torch import Tensor

from learner.mirror import Mirror


class RowSet:
    """A subset of the rows 0 to capacity - 1, addressed by rank in ascending order.

    Adding and removing are O(1), and what a rank stands for follows from the members alone, not from their history.
    The host keeps the set; the ranks are looked up on the device, in shapes that do not depend on the set.
    """

    _BLOCK = 32

    def __init__(self, capacity: int, device: torch.device) -> None:
        blocks = -(-capacity // self._BLOCK)
        self._is_member = np.zeros((blocks, self._BLOCK), np.bool_)
        self._flat = self._is_member.reshape(-1)  # a view
        self._counts = np.zeros(blocks, np.int64)
        self._blocks = Mirror([self._is_member, self._counts], device)
        self._size = np.zeros(1, np.int64)
        self._sizes = Mirror([self._size], device)

    def __len__(self) -> int:
        return int(self._size[0])

    @property
    def size(self) -> Tensor:
        """The number of rows (1,) on the device, as of the last `update`."""
        return self._sizes.tensors[0]

    def add(self, row: int) -> None:
        if not self._flat[row]:
            self._set(row, True)

    def discard(self, row: int) -> None:
        if self._flat[row]:
            self._set(row, False)

    def _set(self, row: int, is_member: bool) -> None:
        change = 1 if is_member else -1
        block = row // self._BLOCK
        self._flat[row] = is_member
        self._counts[block] += change
        self._size += change
        self._blocks.note((block,))
        self._sizes.note((0,))

    def update(self) -> None:
        """Bring what the device knows of the set up to date."""
        self._blocks.update()
        self._sizes.update()

    def at(self, ranks: Tensor) -> Tensor:
        """Return the rows (n,) with these ranks (n,), each in [0, len), as of the last `update`."""
        is_member, counts = self._blocks.tensors
        ends = counts.cumsum(0)
        blocks = torch.searchsorted(ends, ranks, right=True)
        rank_in_block = ranks - ends[blocks] + counts[blocks]
        seen = is_member[blocks].cumsum(1)  # (n, _BLOCK)
        return blocks * self._BLOCK + (seen > rank_in_block[:, None]).int().argmax(1)
