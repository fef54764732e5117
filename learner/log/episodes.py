"""The episodes of a log, each with what became of it by its marks, as the replay applies them (learner/replay.py)."""

import itertools
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from policy.database import open_database
from policy.episode_log import EpisodeLog
from policy.errors import CorruptFileError, WireError
from policy.log_records import Episode, LogEntry
from policy.transition import ActionSource, EpisodeMark, MarkKind, Transition

_READ_LIMIT = 256

Kind = Literal["demonstration", "interventions", "policy"]
Result = Literal["success", "failure", "discarded", "aborted", "open"]


@dataclass(slots=True)
class Step:
    """One step, with the marks applied."""

    position: int  # in the log
    reward: float
    terminated: bool
    truncated: bool

    @property
    def is_last(self) -> bool:
        return self.terminated or self.truncated


@dataclass
class EpisodeRecord:
    """One episode. Feed it the log's entries in their order; actions and observations stay in the log."""

    number: int  # 1, 2, ... by first record: as a log only grows, it names the episode for ever
    key: Episode
    positions: list[int]  # of all its records
    may_go_on: bool  # it is its actor's newest
    recorded: dict[int, Step] = field(default_factory=dict)  # step -> as it was recorded
    steps: dict[int, Step] = field(default_factory=dict)  # step -> after the marks; later ones may be cut off
    marks: list[EpisodeMark] = field(default_factory=list)
    sources: set[ActionSource] = field(default_factory=set)
    human_steps: int = 0
    weights_versions: tuple[int, int] = (0, 0)  # oldest, newest
    wall_times_s: tuple[float, float] = (0.0, 0.0)  # of the first and the last step
    is_discarded: bool = False
    is_aborted: bool = False
    _cut: int | None = None  # the step that a mark made the last one

    def add(self, entry: LogEntry) -> None:
        body = entry.body
        if isinstance(body, EpisodeMark):
            self.marks.append(body)
            self._apply(body)
        else:
            self._add_step(body, entry.position)

    def _add_step(self, body: Transition, position: int) -> None:
        oldest, newest = self.weights_versions if self.recorded else (body.weights_version,) * 2
        self.weights_versions = min(oldest, body.weights_version), max(newest, body.weights_version)
        self.wall_times_s = (self.wall_times_s[0] if self.recorded else body.wall_time_s), body.wall_time_s
        self.sources.add(body.source)
        self.human_steps += body.is_human
        self.recorded[body.step] = Step(position, body.reward, body.terminated, body.truncated)
        if self._cut is None or body.step <= self._cut:
            self.steps[body.step] = Step(position, body.reward, body.terminated, body.truncated)

    def _apply(self, mark: EpisodeMark) -> None:
        step = self.steps.get(mark.step)
        if mark.kind is MarkKind.DISCARD:
            self.is_discarded = True
        elif mark.kind is MarkKind.ABORTED:
            self.is_aborted = True
        elif mark.kind is MarkKind.SUCCESS and step:
            step.reward, step.terminated, step.truncated = 1.0, True, False
            self._cut = mark.step
            self.steps = {number: kept for number, kept in self.steps.items() if number <= mark.step}
        elif mark.kind is MarkKind.FAILURE and step:
            step.reward = 0.0
            if step.terminated:
                step.terminated, step.truncated = False, True
            if self._cut == mark.step:
                self._cut = None

    @property
    def kind(self) -> Kind:
        """A demonstration has a step that is one: where its input device failed, steps count as the policy's."""
        if ActionSource.HUMAN_DEMONSTRATION in self.sources:
            return "demonstration"
        return "interventions" if ActionSource.HUMAN_INTERVENTION in self.sources else "policy"

    @property
    def result(self) -> Result:
        if self.is_discarded:
            return "discarded"
        last = self.steps[max(self.steps)] if self.steps else None
        if last is None or not last.is_last:
            return "open" if self.may_go_on and not self.is_aborted else "aborted"
        return "success" if last.terminated and last.reward > 0 else "failure"

    @property
    def total_reward(self) -> float:
        return sum(step.reward for step in self.steps.values())


def list_episodes(path: Path) -> list[EpisodeRecord]:
    """Return the log's episodes in the order of their first records, without looking into any record."""
    connection = open_database(path, "", read_only=True)
    try:
        rows = connection.execute("SELECT position, actor_id, incarnation, episode FROM records ORDER BY position")
        positions: dict[Episode, list[int]] = {}
        newest: dict[str, tuple[str, int]] = {}  # actor -> incarnation, which sorts by start time, and episode
        for position, actor_id, incarnation, episode in rows:
            positions.setdefault((actor_id, incarnation, episode), []).append(position)
            newest[actor_id] = max(newest.get(actor_id, ("", -1)), (incarnation, episode))
    except sqlite3.DatabaseError as error:
        raise cannot_be_read(path, error) from error
    finally:
        connection.close()
    return [
        EpisodeRecord(number, key, found, may_go_on=newest[key[0]] == key[1:])
        for number, (key, found) in enumerate(positions.items(), start=1)
    ]


def read_episodes(path: Path, log: EpisodeLog, numbers: Collection[int] | None = None) -> list[EpisodeRecord]:
    """Return the episodes with those numbers (None: all), their records read, which checks each of them.

    `log` is the open log at `path`. Raises CorruptFileError when a row is not what was written.
    """
    episodes = [episode for episode in list_episodes(path) if numbers is None or episode.number in numbers]
    owners = {position: episode for episode in episodes for position in episode.positions}
    try:
        for first, stop in _runs(sorted(owners)):
            for entry in _entries(log, first, stop):
                owners[entry.position].add(entry)
    except (sqlite3.DatabaseError, WireError) as error:
        raise cannot_be_read(path, error) from error
    return episodes


def _entries(log: EpisodeLog, first: int, stop: int) -> Iterable[LogEntry]:
    while first < stop:
        entries = log.read_after(first - 1, min(stop - first, _READ_LIMIT))
        yield from entries
        first = entries[-1].position + 1


def _runs(positions: list[int]) -> Iterable[tuple[int, int]]:
    """Yield (first, stop) of each run of consecutive positions."""
    for _, run in itertools.groupby(enumerate(positions), key=lambda pair: pair[1] - pair[0]):
        found = [position for _, position in run]
        yield found[0], found[-1] + 1


def cannot_be_read(path: Path, error: Exception) -> CorruptFileError:
    """Return the error for a log that cannot be used at all."""
    return CorruptFileError(
        f"{path} is not an episode log that can be read: {error}. `python -m learner.log verify` says what is wrong "
        "with it."
    )
