"""SQLite set up for what must survive a power loss: the actor's spool and the learner's episode log."""

import sqlite3
from pathlib import Path

from policy.errors import ConfigError, CorruptFileError

_FORMAT_VERSION = 2


def open_database(
    path: Path, schema: str, *, is_exclusive: bool = False, read_only: bool = False
) -> sqlite3.Connection:
    """Open or create a database in which a commit is on the disk when it returns (WAL, synchronous=FULL).

    Any thread may use the connection, one at a time. is_exclusive keeps every other process out until it is closed.
    Raises ConfigError when the file cannot be opened or another process has it exclusively, CorruptFileError when it is
    not a database of this format.
    """
    try:
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            # A read-only connection still maintains the WAL's index file, so it must not be opened with mode=ro.
            f"{path.absolute().as_uri()}?mode={'rw' if read_only else 'rwc'}",
            uri=True,
            check_same_thread=False,
            timeout=2.0 if is_exclusive else 30.0,
        )
    except (OSError, sqlite3.OperationalError) as error:
        raise ConfigError(f"cannot open {path}: {error}. Check the path and its permissions.") from error
    try:
        if is_exclusive:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0 and not read_only:
            connection.executescript(f"BEGIN; {schema}; PRAGMA user_version = {_FORMAT_VERSION}; COMMIT;")
        elif version != _FORMAT_VERSION:
            raise CorruptFileError(f"{path} has format {version}, this program uses {_FORMAT_VERSION}. Move it away.")
        connection.execute(f"PRAGMA query_only = {read_only}")
    except sqlite3.OperationalError as error:
        connection.close()
        raise ConfigError(f"cannot use {path}: {error}. Does another process use it?") from error
    except sqlite3.DatabaseError as error:
        connection.close()
        raise CorruptFileError(f"{path} is not a usable database: {error}. Move it away to start a new one.") from error
    return connection
