"""How long the machine stood still, for tests of what happens in real time: a starved one says nothing of the code."""

import os
import threading
import time
from dataclasses import dataclass, field

TICK_S = 0.01
LIMIT_S = 0.03  # two learning runs on two processors hold a thread up by 4 to 11 ms


@dataclass
class StallMeter:
    """One thread on each processor that sleeps for 10 ms and notes by how much it woke too late."""

    longest_s: float = 0.0
    """The longest stall since `forget`, in seconds."""
    _is_over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        for cpu in sorted(os.sched_getaffinity(0)):
            threading.Thread(target=self._watch, args=(cpu,), name=f"stalls_{cpu}", daemon=True).start()

    def stop(self) -> None:
        self._is_over.set()

    def forget(self) -> None:
        self.longest_s = 0.0

    def excuses(self) -> bool:
        """Whether a failure since `forget` can be the machine's."""
        return self.longest_s > LIMIT_S

    def _watch(self, cpu: int) -> None:
        os.sched_setaffinity(0, {cpu})  # of this thread alone: one processor can stand still while another runs
        slept_at_s = time.monotonic()
        while not self._is_over.wait(TICK_S):
            self.longest_s = max(self.longest_s, time.monotonic() - slept_at_s - TICK_S)
            slept_at_s = time.monotonic()
