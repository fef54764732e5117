"""A run folder belongs to one learner at a time."""

import contextlib
import fcntl
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from policy.errors import ConfigError
from policy.files import make_folder

logger = logging.getLogger(__name__)

_POLL_PERIOD_S = 0.05


@contextlib.contextmanager
def sole_use_of(
    run_dir: Path, name: str, *, timeout_s: float = 0.0, stop: threading.Event | None = None
) -> Iterator[None]:
    """Hold RUN_DIR/`name` against every other process; the system lets go of it when this one dies.

    Raises ConfigError when another process holds it, still after timeout_s or when `stop` is set, or the folder cannot
    be made.
    """
    make_folder(run_dir)
    with (run_dir / name).open("w") as lock:
        if not _is_ours(lock):
            _wait_for(lock, timeout_s, stop or threading.Event())
        yield


def _wait_for(lock: IO[str], timeout_s: float, stop: threading.Event) -> None:
    folder = Path(lock.name).parent.absolute()
    if timeout_s:
        logger.warning("another learner still works on %s: waiting up to %.0f s for its end", folder, timeout_s)
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s and not stop.wait(_POLL_PERIOD_S):
        if _is_ours(lock):
            return
    raise ConfigError(f"another learner works on {folder}. Stop it, or choose another --run-dir.")


def _is_ours(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
