"""The recorder's memory of the episode it is in, so that whoever runs next in the folder closes what a crash left open.

An episode is decided when episodes.jsonl has its line. The spool discards one that is not when it is opened again.
"""

import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from actor.spool import Spool
from policy.errors import ConfigError
from policy.files import replace_durably
from policy.transition import EpisodeMark, MarkKind

_FLUSH_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class RecordingState:
    """Where the recorder of a folder is. Written before each episode."""

    incarnation: str = ""  # of the episode; empty: none is under way
    episode: int = 0  # within the incarnation
    reports_before: int = 0  # lines of episodes.jsonl when it began
    starts: int = 0  # starts drawn so far; a redone episode has the start of the one before

    def save(self, run_dir: Path) -> None:
        replace_durably(_path(run_dir), json.dumps(asdict(self), indent=2).encode())

    @staticmethod
    def load(run_dir: Path) -> "RecordingState":
        """Return what the last recorder saved; the state of a new folder where there was none. Raises ConfigError."""
        if not _path(run_dir).exists():
            return RecordingState()
        try:
            saved = json.loads(_path(run_dir).read_bytes())
            names = {field.name for field in fields(RecordingState)}  # a release before kept more
            return RecordingState(**{name: value for name, value in saved.items() if name in names})
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{_path(run_dir)} is not what a recorder wrote: {error}. Choose another --run-dir."
            ) from error

    def undecided(self, num_reports: int) -> tuple[str, int] | None:
        """Return the (incarnation, episode) in which a recorder ended, None for none.

        num_reports: lines of episodes.jsonl.
        """
        is_decided = not self.incarnation or num_reports > self.reports_before
        return None if is_decided else (self.incarnation, self.episode)


def discard_mark(episode: int, last_step: int, note: str) -> EpisodeMark:
    return EpisodeMark(episode=episode, step=last_step, kind=MarkKind.DISCARD, wall_time_s=time.time(), note=note)


def flush(spool: Spool) -> None:
    """Wait until everything is on the disk. Raises ConfigError for a disk that takes nothing."""
    if not spool.flush(_FLUSH_TIMEOUT_S):
        raise ConfigError(
            f"{spool.obstacle or 'the disk is too slow'}. Free some space, then start the recorder again."
        )


def _path(run_dir: Path) -> Path:
    return run_dir / "recording.json"
