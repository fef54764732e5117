"""The recorder's memory of the episode it is in, so that the next one can close what a crash left open."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

from actor.spool import Spool
from policy.errors import ConfigError
from policy.files import replace_durably
from policy.transition import EpisodeMark, MarkKind

_FLUSH_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class RecordingState:
    """Where the recorder of a folder is. Written before an episode begins and after it is decided."""

    is_open: bool = False  # an episode has begun and nothing is decided
    incarnation: str = ""
    written_before: int = 0  # what Spool.written was when this incarnation began
    episode: int = 0  # within the incarnation
    first_sequence: int = 0  # of the episode
    reports_before: int = 0  # lines of episodes.jsonl when it began; a kept episode has one more
    starts: int = 0  # starts drawn so far; a redone episode has the start of the one before

    def save(self, path: Path) -> None:
        replace_durably(path, json.dumps(dataclasses.asdict(self), indent=2).encode())

    @staticmethod
    def load(path: Path) -> "RecordingState":
        """Return what is saved there; the state of a new folder where nothing is. Raises ConfigError."""
        if not path.exists():
            return RecordingState()
        try:
            return RecordingState(**json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is not what a recorder wrote: {error}. Choose another --run-dir.") from error


def close_open_episode(state: RecordingState, num_reports: int, spool_path: Path, actor_id: str) -> int:
    """Discard the episode in which an earlier recorder ended, whatever ended it; return how many steps it had.

    A mark belongs to its episode's incarnation, so this goes on with that incarnation, after the last record that it
    committed, and only for the mark. Doing so twice is harmless.
    """
    if not state.is_open or num_reports > state.reports_before:
        return 0
    spool = Spool(spool_path, actor_id, state.incarnation, state.written_before)
    try:
        records = spool.next_sequence - state.first_sequence
        if records > 0:
            spool.offer(discard_mark(state.episode, records - 1, "the recorder ended during this episode"))
            flush(spool)
    finally:
        spool.close()
    return max(0, records)


def discard_mark(episode: int, last_step: int, note: str) -> EpisodeMark:
    return EpisodeMark(episode=episode, step=last_step, kind=MarkKind.DISCARD, wall_time_s=time.time(), note=note)


def flush(spool: Spool) -> None:
    """Wait until everything is on the disk. Raises ConfigError for a disk that takes nothing."""
    if not spool.flush(_FLUSH_TIMEOUT_S):
        raise ConfigError(f"{spool.error or 'the disk is too slow'}. Free some space, then start the recorder again.")
