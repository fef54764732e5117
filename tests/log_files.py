"""Episode logs for tests of what reads them, and a way to call `python -m learner.log` in this process."""

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from learner.log.__main__ import main
from policy.cli import run_main
from policy.episode_log import EpisodeLog
from policy.log_records import EncodedRecord
from policy.spec import Specs
from policy.transition import ActionSource, EpisodeMark, MarkKind, Recordable, RecordId
from tests.transitions import SPECS, make_transition

HUMAN, INTERVENTION = ActionSource.HUMAN_DEMONSTRATION, ActionSource.HUMAN_INTERVENTION


def steps(episode: int, length: int, *, ends: bool = True, **changes: Any) -> list[Recordable]:
    """Return an episode that ends in success, or is cut off after `length` steps."""
    return [
        make_transition(step, episode=episode, is_last=ends and step == length - 1, **changes) for step in range(length)
    ]


def mark(episode: int, step: int, kind: MarkKind, note: str = "") -> EpisodeMark:
    return EpisodeMark(episode=episode, step=step, kind=kind, wall_time_s=1.7e9, note=note)


def records(bodies: Sequence[Recordable], incarnation: str = "inc-b", actor: str = "left") -> list[EncodedRecord]:
    return [EncodedRecord.of(RecordId(actor, incarnation, number), body) for number, body in enumerate(bodies)]


def write_log(folder: Path, *groups: list[EncodedRecord], specs: Specs = SPECS, allows_gaps: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "specs.json").write_text(specs.to_json())
    with closing(EpisodeLog(folder / "log.sqlite", specs, allows_gaps=allows_gaps)) as log:
        for group in groups:
            assert not log.append_encoded(group).gaps
    return folder / "log.sqlite"


LEFT = [
    *steps(0, 4, source=HUMAN),
    *steps(1, 3),
    mark(1, 2, MarkKind.FAILURE, "it had slipped"),
    *steps(2, 2, source=INTERVENTION),
    mark(2, 1, MarkKind.DISCARD),
    *steps(3, 5, ends=False),
    mark(3, 2, MarkKind.SUCCESS),
    *steps(4, 2, ends=False),
]
RIGHT_BEFORE = [*steps(0, 3, ends=False, weights_version=7)]  # its actor died, and said so later
RIGHT = [*steps(0, 1, weights_version=8)]


def write_run(folder: Path) -> Path:
    """Make the folder of a run with two actors, of which one was started twice, as under launch/sim.sh."""
    write_log(
        folder / "learner",
        records(LEFT),
        records([*RIGHT_BEFORE, mark(0, 2, MarkKind.ABORTED)], "inc-a", "right"),
        records(RIGHT, "inc-b", "right"),
    )
    return folder


Call = Callable[..., tuple[int, str, str]]


def caller(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return what runs a command line; it returns exit code, standard output and error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["log", *map(str, words)])
        code = run_main(main)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
