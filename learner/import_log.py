"""Reuse of earlier runs: copies their demonstrations, or everything, into a new run's episode log.

The supervisor calls it before ingest and trainer start, so nothing else writes the log. What is copied keeps its id and
is copied once, however often and under however many names the same log is given. Training then finds it as if it had
just arrived: it counts towards the learner's first transitions and the ratio of updates to data.
"""

import contextlib
import logging
import sqlite3
from collections.abc import Sequence, Set
from pathlib import Path

from learner.config import LearnerConfig
from learner.log.episodes import EpisodeRecord, read_episodes
from learner.log.folder import find_log, read_specs
from policy.episode_log import EpisodeLog
from policy.errors import ConfigError, SpecMismatchError
from policy.files import make_folder, replace_durably
from policy.log_records import Episode
from policy.spec_differences import spec_differences

logger = logging.getLogger("learner.import_log")


def import_logs(config: LearnerConfig) -> None:
    """Copy what config.from_log names into the run's log; nothing at all when any of it cannot be used.

    Raises ConfigError for a missing file, CorruptFileError for one that is no intact log, SpecMismatchError for a log
    of other observations or actions than the run's (or the first log's, which then fixes the run's).
    """
    if not config.from_log:
        return
    paths = [find_log(path) for path in config.from_log]
    specs_path = config.run_dir / "specs.json"
    is_new = not specs_path.exists()
    run = (str(paths[0]), read_specs(paths[0].parent)) if is_new else ("this run", read_specs(config.run_dir))
    for path in paths:
        differences = spec_differences((str(path), read_specs(path.parent)), run)
        if differences:
            raise SpecMismatchError(
                f"--from-log cannot use {path}: {differences[0]}. Nothing was imported. Record with the task and "
                "settings of this run, or leave that log out."
            )
    with contextlib.ExitStack() as closing:
        sources = []
        for path in paths:
            log = closing.enter_context(contextlib.closing(EpisodeLog(path, run[1], read_only=True)))
            sources.append((path, log, read_demonstrations(path, log)))
        make_folder(config.run_dir)
        into = closing.enter_context(contextlib.closing(EpisodeLog(config.run_dir / "log.sqlite")))
        takes_all = config.from_log_take == "all"
        chosen: list[tuple[EpisodeLog, Set[Episode] | None]] = [
            (log, None if takes_all else {episode.key for episode in demonstrations})
            for _, log, demonstrations in sources
        ]
        # Before the records: a log whose specs are missing could not be read.
        replace_durably(specs_path, run[1].to_json().encode())
        try:
            counts = into.copy_from(chosen)
        except sqlite3.Error as error:
            raise ConfigError(
                f"cannot write {config.run_dir / 'log.sqlite'}: {error}. Nothing was imported: free some space or "
                "check the disk."
            ) from error
        for (path, _, demonstrations), count in zip(sources, counts, strict=True):
            logger.info(
                "%s: %d records are new here; it holds %d demonstrations, %d of them not discarded",
                path, count, len(demonstrations), sum(not episode.is_discarded for episode in demonstrations),
            )  # fmt: skip


def count_demonstrations(paths: Sequence[Path]) -> int:
    """Return how many demonstrations, discarded ones left out, the logs hold together; each is counted once."""
    kept: set[Episode] = set()
    for path in map(find_log, paths):
        with contextlib.closing(EpisodeLog(path, read_specs(path.parent), read_only=True)) as log:
            kept |= {episode.key for episode in read_demonstrations(path, log) if not episode.is_discarded}
    return len(kept)


def read_demonstrations(path: Path, log: EpisodeLog) -> list[EpisodeRecord]:
    """Read a log through, which checks every row, and return its demonstrations. Raises CorruptFileError."""
    return [episode for episode in read_episodes(path, log) if episode.kind == "demonstration"]
