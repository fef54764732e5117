"""Files that survive a power loss, whole."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from policy.errors import ConfigError


def make_folder(path: Path) -> None:
    """Create a folder that a person chose, with its parents. Raises ConfigError when that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot use {path} as a folder: {error.strerror}. Choose another one.") from error


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until its content is on the disk; its name may still be lost (sync_directory)."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Make `data` the content of `path`. A crash leaves the content before or this one, never a part."""
    temporary = path.with_suffix(".tmp")
    with _no_remains(temporary):
        write_durably(temporary, data)
        os.replace(temporary, path)
    sync_directory(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Make `data` the content of `path` for whoever reads it, whole, without waiting for the disk."""
    temporary = path.with_suffix(".tmp")
    with _no_remains(temporary):
        temporary.write_bytes(data)
        os.replace(temporary, path)


@contextlib.contextmanager
def _no_remains(temporary: Path) -> Iterator[None]:
    """Give a full disk its space back, and let the error name the file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(temporary)
        temporary.unlink(missing_ok=True)
        raise


def sync_directory(directory: Path) -> None:
    """Wait until the names in `directory` are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
