"""SQLite set up for what must survive a power loss: the actor's spool and the learner's episode log."""

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path

from policy.errors import CgpoError, ConfigError, CorruptFileError

LOG_FORMAT = 2

_WAL_BYTES = 64 << 20  # to which the WAL shrinks again when a reader that kept it growing is gone

Migration = Callable[[sqlite3.Connection], None]
"""Brings the tables of an older format to the present one, within a transaction that is not its own."""


def open_database(
    path: Path,
    schema: str,
    *,
    format_version: int = LOG_FORMAT,
    migrations: Mapping[int, Migration] | None = None,
    is_exclusive: bool = False,
    read_only: bool = False,
    busy_timeout_s: float = 30.0,
) -> sqlite3.Connection:
    """Open or create a database in which a commit is on the disk when it returns (WAL, synchronous=FULL).

    Any thread may use the connection, one at a time. is_exclusive keeps every other process out until it is closed.
    busy_timeout_s: how long to wait, each time, for another process that has it locked.
    `migrations` holds, for each older format that is understood, what brings it to format_version: in one transaction,
    so that a crash leaves the old file or the new one. Raises ConfigError when the file cannot be opened or another
    process has it exclusively, CorruptFileError when it is not a database of a format that is understood.
    """
    try:
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            # A read-only connection still maintains the WAL's index file, so it must not be opened with mode=ro.
            f"{path.absolute().as_uri()}?mode={'rw' if read_only else 'rwc'}",
            uri=True,
            check_same_thread=False,
            timeout=busy_timeout_s,
        )
    except (OSError, sqlite3.OperationalError) as error:
        raise ConfigError(f"cannot open {path}: {error}. Check the path and its permissions.") from error
    try:
        if is_exclusive:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0 and not read_only:
            connection.executescript(f"BEGIN; {schema}; PRAGMA user_version = {format_version}; COMMIT;")
        elif migrations is not None and version in migrations and not read_only:
            connection.execute("BEGIN IMMEDIATE")
            migrations[version](connection)
            connection.execute(f"PRAGMA user_version = {format_version}")
            connection.commit()
        elif version != format_version:
            raise CorruptFileError(f"{path} has format {version}, this program uses {format_version}. Move it away.")
        connection.execute(f"PRAGMA query_only = {read_only}")
    except CgpoError:
        connection.close()
        raise
    except sqlite3.OperationalError as error:
        connection.close()
        raise ConfigError(f"cannot use {path}: {error}. {_remedy(error)}") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter: its own words for what it read
        connection.close()
        raise CorruptFileError(f"{path} is not a usable database: {error}. Move it away to start a new one.") from error
    return connection


def _remedy(error: sqlite3.OperationalError) -> str:
    primary_code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # none in the module's own errors
    if primary_code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "Does another process use it?"
    if primary_code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return "Its disk is full, or fails: `df -h` and `sudo dmesg` tell which. Make room, then start again."
    return "Check the path and its permissions."
