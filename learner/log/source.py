"""One log opened for reading, whatever folder it was named by."""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from learner.log.episodes import EpisodeRecord, cannot_be_read, read_episodes
from learner.log.folder import ARCHIVE_NAME, find_log, read_specs
from policy.database import open_database
from policy.episode_log import EpisodeLog
from policy.errors import ConfigError, WireError
from policy.spec import Specs


@dataclass(frozen=True)
class Source:
    """An open log. It may grow meanwhile: ingest goes on writing."""

    path: Path
    specs: Specs
    log: EpisodeLog

    @property
    def is_archive(self) -> bool:
        """Whether it holds chosen episodes only, by its place in an actor's folder."""
        return is_archive(self.path)

    def episodes(self, numbers: Collection[int] | None = None) -> list[EpisodeRecord]:
        """Return the episodes with those numbers (None: all). Raises ConfigError for a number that there is not."""
        found = read_episodes(self.path, self.log, numbers)
        missing = set(numbers or ()) - {episode.number for episode in found}
        if missing:
            raise ConfigError(
                f"{self.path} has no episode {', '.join(map(str, sorted(missing)))}. The first column of "
                "`python -m learner.log ls` numbers them from 1."
            )
        return found


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open the log that a path names. Raises ConfigError, or CorruptFileError also for what is read from it later."""
    log_path = find_log(path)
    specs = read_specs(log_path.parent)
    try:
        with contextlib.closing(EpisodeLog(log_path, specs, read_only=True)) as log:
            yield Source(log_path, specs, log)
    except (sqlite3.DatabaseError, WireError) as error:
        raise cannot_be_read(log_path, error) from error


def is_archive(log_path: Path) -> bool:
    """Whether a log is an actor's archive of demonstrations, by its place."""
    return log_path.absolute().parent.name == ARCHIVE_NAME


def count_by_actor(log_path: Path, table: str) -> Counter[str]:
    """Return how many rows each actor has in `records` or `quarantine`; none where the table was never needed."""
    with contextlib.closing(open_database(log_path, "", read_only=True)) as connection:
        if not has_table(connection, table):
            return Counter()
        return Counter(dict(connection.execute(f"SELECT actor_id, COUNT(*) FROM {table} GROUP BY actor_id")))


def has_table(connection: sqlite3.Connection, name: str) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (name,))
    return found.fetchone() is not None
