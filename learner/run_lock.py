"""A run folder belongs to one learner at a time."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from policy.errors import ConfigError
from policy.files import make_folder


@contextlib.contextmanager
def sole_use_of(run_dir: Path, name: str) -> Iterator[None]:
    """Hold RUN_DIR/`name` against every other process; the system lets go of it when this one dies.

    Raises ConfigError when another process holds it or the folder cannot be made.
    """
    make_folder(run_dir)
    with (run_dir / name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"another learner works on {run_dir.absolute()}. Stop it, or choose another --run-dir."
            ) from error
        yield
