"""The recorder's memory of the episode it is in, so that whoever runs next in the folder closes what a crash left open.

An episode is decided when episodes.jsonl has its line. A mark belongs to the incarnation of its episode, so closing one
goes on with the dead process's incarnation, after the last record that it committed, and only for the mark.
"""

import json
import time
from dataclasses import asdict, dataclass
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
    written_before: int = 0  # what Spool.written was when this incarnation began
    episode: int = 0  # within the incarnation
    first_sequence: int = 0  # of the episode
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
            return RecordingState(**json.loads(_path(run_dir).read_bytes()))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{_path(run_dir)} is not what a recorder wrote: {error}. Choose another --run-dir."
            ) from error


def discard_open_episode(run_dir: Path, actor_id: str, num_reports: int) -> int:
    """Discard the episode in which a recorder ended, whatever ended it; return how many steps it has.

    num_reports: lines of episodes.jsonl. Call before opening the spool. A crash in here leaves it to be done again,
    which is harmless. Raises ConfigError as Spool does, and for a disk that takes nothing.
    """
    state = RecordingState.load(run_dir)
    if not state.incarnation or num_reports > state.reports_before:
        return 0
    spool = Spool(run_dir / "spool.sqlite", actor_id, state.incarnation, state.written_before)
    try:
        steps = max(0, spool.next_sequence - state.first_sequence)
        if steps:
            spool.offer(discard_mark(state.episode, steps - 1, "the recorder ended during this episode"))
            flush(spool)
    finally:
        spool.close()
    RecordingState(starts=state.starts).save(run_dir)
    return steps


def discard_mark(episode: int, last_step: int, note: str) -> EpisodeMark:
    return EpisodeMark(episode=episode, step=last_step, kind=MarkKind.DISCARD, wall_time_s=time.time(), note=note)


def flush(spool: Spool) -> None:
    """Wait until everything is on the disk. Raises ConfigError for a disk that takes nothing."""
    if not spool.flush(_FLUSH_TIMEOUT_S):
        raise ConfigError(f"{spool.error or 'the disk is too slow'}. Free some space, then start the recorder again.")


def _path(run_dir: Path) -> Path:
    return run_dir / "recording.json"
