"""A sweep's run as a process of this machine, that one sweep at a time may start, and the end of its log."""

import contextlib
import fcntl
import logging
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from policy.process import die_with_parent

logger = logging.getLogger(__name__)

STOP_GRACE_S = 60.0
_LOG_LINES_SHOWN = 10
_LOG_BYTES_READ = 8192


class ThisMachine:
    """Runs are children of this process. A place of learner.cluster."""

    seen_after_s = 0.0

    def start(self, command: Sequence[str], log_path: Path) -> subprocess.Popen[bytes] | None:
        return start_process(command, log_path)

    def exit_code(self, handle: subprocess.Popen[bytes]) -> int | None:
        return handle.poll()

    def end(self, handles: Sequence[subprocess.Popen[bytes]]) -> None:
        for process in handles:
            process.terminate()
        deadline_s = time.monotonic() + STOP_GRACE_S
        for process in handles:
            try:
                process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.error("killing process %d, which has not ended within %.0f s", process.pid, STOP_GRACE_S)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def start_process(command: Sequence[str], log_path: Path) -> subprocess.Popen[bytes] | None:
    """Start a run in a process group of its own: Ctrl-C reaches the sweep alone, which then ends its runs.

    Return None while something else works on the run.
    """
    with lock_path(log_path).open("w") as lock, log_path.open("ab") as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        log.write(f"== {shlex.join(command)}\n".encode())
        log.flush()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=die_with_parent,
            pass_fds=(lock.fileno(),),  # the run holds the lock for as long as it lives
        )


def lock_path(log_path: Path) -> Path:
    """Return the file that a run has locked for as long as one of its processes lives."""
    return log_path.with_suffix(".lock")


def last_lines(path: Path) -> list[str]:
    """Return the last few lines of a log."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG_BYTES_READ))
        return file.read().decode(errors="replace").splitlines()[-_LOG_LINES_SHOWN:]
    return ["(no log)"]
