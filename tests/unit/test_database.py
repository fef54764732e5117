"""A database that cannot be opened: what is said fits the cause."""

import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from policy.database import open_database
from policy.errors import ConfigError

SCHEMA = "CREATE TABLE a (b INTEGER)"


def test_another_process_is_blamed_only_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    holder = sqlite3.connect(path)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ConfigError, match=r"locked\. Does another process use it"):
        open_database(path, SCHEMA, is_exclusive=True)
    holder.close()


def test_a_disk_that_takes_nothing_is_blamed_itself(tmp_path: Path) -> None:
    """RLIMIT_FSIZE is the full disk of who may not mount one."""
    program = (
        "import resource, sys; from pathlib import Path; from policy.database import open_database; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (1024, {resource.RLIM_INFINITY})); "
        f"open_database(Path(sys.argv[1]), {SCHEMA!r})"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "log.sqlite")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Its disk is full, or fails" in ended.stderr
    assert "another process" not in ended.stderr
