"""The guard's events on disk, one JSON line each, written by a thread: the control loop waits for no disk."""

import json
import logging
import queue
import threading
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from robot.guard import GuardEvent, Mode

_log = logging.getLogger(__name__)


class SafetyLog:
    """Writes safety.jsonl: every change of mode and every command that the gate changed, with the reason."""

    def __init__(self, path: Path) -> None:
        self.clips: Counter[str] = Counter()  # by the limit's name, the word before the colon
        self.faults = 0
        self._path = path
        self._queue: queue.SimpleQueue[tuple[float, GuardEvent] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="safety-log", daemon=True)
        self._thread.start()

    def observe(self, event: GuardEvent) -> None:
        """Take an event. Never blocks."""
        if event.kind == "clip":
            self.clips[event.reason.partition(":")[0]] += 1
        self.faults += event.kind == "mode" and event.mode is Mode.FAULT
        self._queue.put((time.time(), event))

    def close(self) -> None:
        """Write what is left. Safe to call twice."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        item: tuple[float, GuardEvent] | None = (0.0, GuardEvent("mode", Mode.HOLD, "", 0.0))
        try:
            with self._path.open("a") as lines:
                while (item := self._queue.get()) is not None:
                    wall_s, event = item
                    lines.write(json.dumps({"wall_time_s": wall_s, **asdict(event)}) + "\n")
                    if self._queue.empty():
                        lines.flush()
        except OSError as error:
            _log.error("cannot write %s: %s. The robot goes on; what its guard does is not kept.", self._path, error)
            while item is not None:  # the closing flush may be what failed
                item = self._queue.get()
