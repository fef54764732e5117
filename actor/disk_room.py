"""Whether the disk has room for an episode. Asked by the spool's thread, because a disk may take long to answer."""

import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

_PERIOD_S = 1.0  # between two looks
_GB = 1e9


class DiskRoom:
    """Watches the disk of one file. One thread looks, any may read."""

    def __init__(self, path: Path, min_free_gb: float) -> None:
        """min_free_gb: 0 never looks."""
        self._path = path
        self._min_free_gb = min_free_gb
        self._next_look_s = 0.0
        self.shortage: str | None = None
        """Why no episode should begin; None when there is room."""

    def look(self, unused_bytes: Callable[[], int]) -> None:
        """See how much room there is, not more often than need be.

        unused_bytes: room within the file: what was sent and deleted leaves it there, and not to the disk.
        """
        if not self._min_free_gb or time.monotonic() < self._next_look_s:
            return
        self._next_look_s = time.monotonic() + _PERIOD_S
        try:
            free_gb = (shutil.disk_usage(self._path.parent).free + unused_bytes()) / _GB
        except (OSError, sqlite3.Error) as error:
            self.shortage = f"cannot see how much room the disk of {self._path} has: {error}"
            return
        self.shortage = None
        if free_gb < self._min_free_gb:
            self.shortage = (
                f"the disk of {self._path} has room for {free_gb:.2f} GB more, below actor.min_free_gb = "
                f"{self._min_free_gb:g}: free some space there, or let the learner take what waits in the spool"
            )
