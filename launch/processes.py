"""Child processes that never outlive this one, with their output in a log file."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from policy.process import die_with_parent


class Child:
    """One program in a session of its own, so that Ctrl-C reaches only us and we decide who stops first.

    stderr goes to the log; each stdout line goes to the log and to `on_line`, which a reader thread calls.
    The kernel sends the child SIGTERM when this process dies, however it dies.
    """

    def __init__(self, name: str, arguments: Sequence[str], log_path: Path, on_line: Callable[[str], None]) -> None:
        self.name = name
        self.log_path = log_path
        self._on_line = on_line
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._reader = threading.Thread(target=self._read_lines, name=f"{name}-output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return None while the program runs; negative is the signal that ended it."""
        return self._process.poll()

    def interrupt(self) -> None:
        """Ask the program to finish, as Ctrl-C in its own terminal would; no effect on one that has ended."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End the program and everything it started, at once."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all of them are gone already
        self._process.wait()
        self._reader.join()

    def last_lines(self, count: int = 15) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-count:])

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        with self.log_path.open("ab", buffering=0) as log:
            for line in self._process.stdout:
                log.write(line)
                self._on_line(line.decode(errors="replace").rstrip("\n"))


def wait_for(condition: Callable[[], bool], timeout_s: float = math.inf, poll_s: float = 0.2) -> bool:
    """Wait until `condition()` holds; return whether it did within `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(poll_s)
    return True


def describe_exit(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
