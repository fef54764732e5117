"""What actors really did, as their environments wrote it down, against what the learner has logged of it."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.episode_log import EpisodeLog
from policy.image_codec import CodedImage
from policy.log_records import LogEntry
from policy.spec import Specs
from policy.transition import EpisodeMark

_READ_GROUP = 256


@dataclass(frozen=True)
class ExecutedStep:
    """One line of an oracle file."""

    incarnation: str
    episode: int
    step: int
    digest: str
    monotonic_s: float

    @property
    def key(self) -> tuple[int, int]:
        return self.episode, self.step


@dataclass
class Comparison:
    """How the log differs from what was done. All but `committed` and `tails` are to be zero."""

    committed: int = 0  # steps that are in both, equal and in place
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    altered: int = 0
    unexpected: int = 0  # in the log, and never done
    tails: dict[str, list[ExecutedStep]] = field(default_factory=dict)  # what died with a killed actor, by incarnation

    @property
    def faults(self) -> dict[str, int]:
        """What must not be, where it is."""
        names = ("lost", "duplicated", "reordered", "altered", "unexpected")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


def digest(observation: Mapping[str, Any], executed_action: NDArray[np.float32]) -> str:
    """Return a hash of every value of an observation, images decoded, and of the action."""
    whole = hashlib.blake2b(digest_size=16)
    for name in sorted(observation):
        value = observation[name]
        value = value.pixels if isinstance(value, CodedImage) else value
        whole.update(name.encode() + np.ascontiguousarray(value).tobytes())
    whole.update(np.ascontiguousarray(executed_action, np.float32).tobytes())
    return whole.hexdigest()


def read_oracle(path: Path) -> list[ExecutedStep]:
    """Return every executed step in the order of execution; none while there is no file."""
    if not path.exists():
        return []
    return [ExecutedStep(**json.loads(line)) for line in path.read_text().splitlines()]


def read_log(learner_dir: Path) -> Iterator[LogEntry]:
    """Yield every record of the log of a learner's run folder; none before the first actor came."""
    specs_path = learner_dir / "specs.json"
    if not specs_path.exists():
        return
    specs = Specs.from_json(specs_path.read_text())
    with closing(EpisodeLog(learner_dir / "log.sqlite", specs, read_only=True)) as log:
        position = 0
        while entries := log.read_after(position, _READ_GROUP):
            yield from entries
            position = entries[-1].position


@dataclass(frozen=True)
class _LoggedRecord:
    """What counts of a record, without its images."""

    incarnation: str
    sequence: int
    key: tuple[int, int] | None  # episode and step; None: a mark
    digest: str

    @staticmethod
    def of(entry: LogEntry) -> "_LoggedRecord":
        step, name = entry.body, entry.record_id
        if isinstance(step, EpisodeMark):
            return _LoggedRecord(name.incarnation, name.sequence, None, "")
        content = digest(step.observation, step.executed_action)
        return _LoggedRecord(name.incarnation, name.sequence, (step.episode, step.step), content)


def compare(done: list[ExecutedStep], logged: Iterable[LogEntry], killed: set[str]) -> Comparison:
    """Compare one actor's steps, incarnation by incarnation.

    killed: the incarnations that ended by kill -9. The end of those alone may be missing from the log.
    """
    result = Comparison()
    by_incarnation: dict[str, tuple[list[ExecutedStep], list[_LoggedRecord]]] = {}
    for step in done:
        by_incarnation.setdefault(step.incarnation, ([], []))[0].append(step)
    for record in map(_LoggedRecord.of, logged):
        by_incarnation.setdefault(record.incarnation, ([], []))[1].append(record)
    for incarnation, (steps, records) in by_incarnation.items():
        _compare_incarnation(result, steps, records, may_lack_its_end=incarnation in killed)
    return result


def _compare_incarnation(
    result: Comparison, done: list[ExecutedStep], logged: list[_LoggedRecord], may_lack_its_end: bool
) -> None:
    place = {step.key: index for index, step in enumerate(done)}
    steps = [record for record in logged if record.key is not None]
    sequences = [record.sequence for record in logged]
    result.duplicated += len(steps) - len({step.key for step in steps}) + len(sequences) - len(set(sequences))
    result.unexpected += len({step.key for step in steps} - place.keys())
    known = [(place[step.key], step) for step in steps if step.key in place]
    places = [index for index, _ in known]
    result.reordered += sum(after < before for before, after in itertools.pairwise(places))
    result.reordered += sum(after < before for before, after in itertools.pairwise(sequences))
    altered = {index for index, step in known if step.digest != done[index].digest}
    result.altered += len(altered)
    result.committed += len(set(places) - altered)
    end = max(places, default=-1) + 1 if may_lack_its_end else len(done)
    result.lost += len(set(range(end)) - set(places))
    if done[end:]:
        result.tails[done[0].incarnation] = done[end:]
