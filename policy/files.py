"""Small files that are replaced whole and survive a power loss."""

import os
from pathlib import Path


def replace_durably(path: Path, data: bytes) -> None:
    """Make `data` the content of `path`. A crash leaves the content before or this one, never a part."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
