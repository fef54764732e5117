"""Learner metrics: averages of a few learner steps, one JSON object per line."""

import errno
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from learner.algorithms.base import Metrics
from policy.files import replace_durably


class MetricsWriter:
    """Averages what `every` learner steps report to a line of metrics.jsonl."""

    def __init__(self, path: Path, every: int) -> None:
        self._path = path
        self._every = every
        self._sums: dict[str, Tensor | float] = {}  # tensors stay where they are: reading one waits for the device
        self._counts: dict[str, int] = {}
        self._steps = 0
        self._start_s = self._line_start_s = time.monotonic()

    def add(self, metrics: Metrics, **position: Any) -> dict[str, Any] | None:
        """Add one learner step; returns the line that is due for `write`, if any, with `position` (counters) in it."""
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
        self._clear(now_s)
        return line

    def write(self, line: dict[str, Any]) -> None:
        """Append a line. Raises OSError, as on a full disk, with no part of it written."""
        data = json.dumps(line).encode() + b"\n"
        with self._path.open("ab", buffering=0) as file:
            size = file.tell()
            written = file.write(data)
            if written < len(data):
                os.truncate(self._path, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def rewind(self, learner_step: int) -> None:
        """Drop what was reported after `learner_step`: training goes on from there, and steps appear once and in order.

        The file is replaced, so whoever follows it can tell.
        """
        self._clear(time.monotonic())
        if not self._path.exists():
            return
        lines = self._path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _learner_step(line) <= learner_step]
        if len(kept) < len(lines):
            replace_durably(self._path, b"".join(kept))

    def _clear(self, now_s: float) -> None:
        self._sums, self._counts, self._steps, self._line_start_s = {}, {}, 0, now_s


def _learner_step(line: bytes) -> float:
    """Return the step of a line of metrics.jsonl, infinity for one that a crash has cut off."""
    try:
        return float(json.loads(line)["learner_step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
