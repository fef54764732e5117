"""Reuse of earlier runs: copies their demonstrations, or everything, into a new run's episode log.

The supervisor calls it before ingest and trainer start, so nothing else writes the log. What is copied keeps its id and
is copied once, however often and under however many names the same log is given. Training then finds it as if it had
just arrived: it counts towards the learner's first transitions and the ratio of updates to data.
"""

import contextlib
import logging
import sqlite3
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from learner.config import LearnerConfig
from policy.episode_log import EpisodeLog
from policy.errors import ConfigError, CorruptFileError, SpecMismatchError, WireError
from policy.files import make_folder, replace_durably
from policy.log_records import Episode
from policy.spec import Specs
from policy.spec_differences import spec_differences
from policy.transition import ActionSource, EpisodeMark, MarkKind

logger = logging.getLogger("learner.import_log")

_READ_LIMIT = 256


@dataclass(frozen=True)
class Contents:
    """The demonstrations in a log, and the episodes that an operator discarded."""

    demonstrations: frozenset[Episode]
    discarded: frozenset[Episode]

    @property
    def kept_demonstrations(self) -> int:
        return len(self.demonstrations - self.discarded)


def import_logs(config: LearnerConfig) -> None:
    """Copy what config.from_log names into the run's log; nothing at all when any of it cannot be used.

    Raises ConfigError for a missing file, CorruptFileError for one that is no intact log, SpecMismatchError for a log
    of other observations or actions than the run's (or the first log's, which then fixes the run's).
    """
    if not config.from_log:
        return
    paths = [find_log(path) for path in config.from_log]
    specs_path = config.run_dir / "specs.json"
    run = ("this run", read_specs(specs_path)) if specs_path.exists() else (str(paths[0]), _specs_of(paths[0]))
    for path in paths:
        differences = spec_differences((str(path), _specs_of(path)), run)
        if differences:
            raise SpecMismatchError(
                f"--from-log cannot use {path}: {differences[0]}. Nothing was imported. Record with the task and "
                "settings of this run, or leave that log out."
            )
    with contextlib.ExitStack() as closing:
        sources = []
        for path in paths:
            log = closing.enter_context(contextlib.closing(EpisodeLog(path, run[1], read_only=True)))
            sources.append((path, log, read_contents(path, log)))
        make_folder(config.run_dir)
        into = closing.enter_context(contextlib.closing(EpisodeLog(config.run_dir / "log.sqlite")))
        takes_all = config.from_log_take == "all"
        chosen: list[tuple[EpisodeLog, Set[Episode] | None]] = [
            (log, None if takes_all else contents.demonstrations) for _, log, contents in sources
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
        for (path, _, contents), count in zip(sources, counts, strict=True):
            logger.info(
                "%s: %d records are new here; it holds %d demonstrations, %d of them not discarded",
                path, count, len(contents.demonstrations), contents.kept_demonstrations,
            )  # fmt: skip


def count_demonstrations(paths: Sequence[Path]) -> int:
    """Return how many demonstrations, discarded ones left out, the logs hold together; each is counted once."""
    kept: set[Episode] = set()
    for path in map(find_log, paths):
        with contextlib.closing(EpisodeLog(path, _specs_of(path), read_only=True)) as log:
            contents = read_contents(path, log)
            kept |= contents.demonstrations - contents.discarded
    return len(kept)


def find_log(path: Path) -> Path:
    """Return the log file that a path names: itself, or the log of a run's or learner's folder. Raises ConfigError."""
    candidates = (path / "learner" / "log.sqlite", path / "log.sqlite") if path.is_dir() else (path,)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ConfigError(
        f"--from-log {path}: there is no episode log. Give the folder of an earlier run, of its learner, or the file "
        "log.sqlite in that."
    )


def read_contents(path: Path, log: EpisodeLog) -> Contents:
    """Read a log through, which checks every row. Raises CorruptFileError.

    A demonstration is an episode with a step that is one: where its input device failed, steps count as the policy's.
    """
    demonstrations: set[Episode] = set()
    discarded: set[Episode] = set()
    position = 0
    try:
        while entries := log.read_after(position, _READ_LIMIT):
            for entry in entries:
                body = entry.body
                episode = (entry.record_id.actor_id, entry.record_id.incarnation, body.episode)
                if isinstance(body, EpisodeMark):
                    if body.kind is MarkKind.DISCARD:
                        discarded.add(episode)
                elif body.source is ActionSource.HUMAN_DEMONSTRATION:
                    demonstrations.add(episode)
            position = entries[-1].position
    except (sqlite3.Error, WireError) as error:
        raise CorruptFileError(
            f"{path} is not an episode log that can be read: {error}. Nothing was imported."
        ) from error
    return Contents(frozenset(demonstrations), frozenset(discarded))


def read_specs(path: Path) -> Specs:
    """Read saved specs. Raises CorruptFileError."""
    try:
        return Specs.from_json(path.read_text())
    except (OSError, UnicodeDecodeError, WireError) as error:
        raise CorruptFileError(f"{path}: {error}. The episode log beside it cannot be read without it.") from error


def _specs_of(log_path: Path) -> Specs:
    return read_specs(log_path.with_name("specs.json"))
