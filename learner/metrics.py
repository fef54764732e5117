"""Learner metrics: averages of a few learner steps, one JSON object per line."""

import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from learner.algorithms.base import Metrics


class MetricsWriter:
    """Averages what each learner step reports and appends a line to metrics.jsonl every `every` steps."""

    def __init__(self, path: Path, every: int) -> None:
        self._path = path
        self._every = every
        self._sums: dict[str, Tensor | float] = {}  # tensors stay where they are: reading one waits for the device
        self._counts: dict[str, int] = {}
        self._steps = 0
        self._start_s = self._line_start_s = time.monotonic()

    def add(self, metrics: Metrics, **position: Any) -> dict[str, Any] | None:
        """Add one learner step; returns the line just written, if any. `position` (counters) is written as it is."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        self._steps += 1
        if self._steps < self._every:
            return None
        now_s = time.monotonic()
        line = {
            **position,
            "wall_s": round(now_s - self._start_s, 3),
            "updates_per_s": round(self._steps / (now_s - self._line_start_s), 2),
            **{name: float(total) / self._counts[name] for name, total in self._sums.items()},
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._sums, self._counts, self._steps, self._line_start_s = {}, {}, 0, now_s
        return line
