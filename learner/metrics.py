"""Learner metrics: averages of a few learner steps, one JSON object per line."""

import errno
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy.files import replace_durably


class MetricsWriter:
    """Writes a line of metrics.jsonl every `every` learner steps."""

    def __init__(self, path: Path, every: int) -> None:
        self._path = path
        self._every = every
        self._steps = 0
        self._start_s = self._line_start_s = time.monotonic()

    def count_step(self) -> bool:
        """Count one learner step; returns whether a line is due."""
        self._steps += 1
        return self._steps >= self._every

    def line(self, averages: Mapping[str, Any], **position: Any) -> dict[str, Any]:
        """Return the line for `write` of the steps since the last one: their averages after `position` (counters)."""
        now_s = time.monotonic()
        line = {
            **position,
            "wall_s": round(now_s - self._start_s, 3),
            "updates_per_s": round(self._steps / (now_s - self._line_start_s), 2),
            **averages,
        }
        self._begin(now_s)
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
        self._begin(time.monotonic())
        if not self._path.exists():
            return
        lines = self._path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _learner_step(line) <= learner_step]
        if len(kept) < len(lines):
            replace_durably(self._path, b"".join(kept))

    def _begin(self, now_s: float) -> None:
        self._steps, self._line_start_s = 0, now_s


def _learner_step(line: bytes) -> float:
    """Return the step of a line of metrics.jsonl, infinity for one that a crash has cut off."""
    try:
        return float(json.loads(line)["learner_step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
