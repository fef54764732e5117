"""Averages of what learner steps report, kept on the device: to read a number is to wait, so many are read at once."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

Average = float | list[float]  # of one agent, or of each of a population's


class MetricSums:
    """Sums by name. Their tensors stay the same, so a captured graph can go on adding to them."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    @torch.no_grad()
    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add one step's metrics, () or (P,), where they are. In a graph this happens at each replay."""
        values = [value.detach().float() for value in metrics.values()]
        for name, value in zip(metrics, values, strict=True):
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(value)
        torch._foreach_add_([self._sums[name] for name in metrics], values)

    def count(self, names: list[str]) -> None:
        """Say that metrics of these names were added once more."""
        self._counts.update(names)

    def take(self) -> dict[str, Average]:
        """Return the averages since the last call, by name, and begin anew. Waits for the device, once."""
        counts, self._counts = self._counts, Counter()
        sums = {name: total for name, total in self._sums.items() if counts[name]}
        if not sums:
            return {}
        numbers = torch.cat([total.flatten() for total in sums.values()]).cpu()
        torch._foreach_zero_(list(self._sums.values()))
        parts = numbers.split_with_sizes([total.numel() for total in sums.values()])
        return {
            name: (part.view(total.shape).double() / counts[name]).tolist()
            for (name, total), part in zip(sums.items(), parts, strict=True)
        }
