"""Which frames of an episode log show success, which do not, and which say nothing; split for a held-out test.

Only references are kept: a frame is read from the log again when it is needed, so that an index of 100,000 steps is a
few megabytes.
"""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from learner.config import ClassifierConfig
from policy.errors import CgpoError
from policy.log_records import LogEntry
from policy.transition import HELD_SUFFIX, EpisodeMark, MarkKind, Transition

PEERS_POSITIVES = 200  # HIL-SERL's recipe, for a hint when there are fewer


class TooFewExamplesError(CgpoError):
    """The log does not show both success and its absence often enough."""


class Frame(NamedTuple):
    """One observation in a log: that of the record at `position`, or the one its episode ended with."""

    log: int  # index of the log among those that are read
    position: int
    is_final: bool


class EpisodeKey(NamedTuple):
    """Names an episode for ever."""

    actor_id: str
    incarnation: str
    episode: int


@dataclass
class EpisodeRecord:
    """What the index keeps of one episode."""

    key: EpisodeKey
    log: int
    positions: dict[int, int] = field(default_factory=dict)  # step -> position of its record
    sources: dict[int, str] = field(default_factory=dict)  # step -> reward_source
    marks: dict[int, MarkKind] = field(default_factory=dict)  # step -> the latest SUCCESS or FAILURE
    last_step: int | None = None  # None: not over, or its actor died
    is_claimed: bool = False  # the last step ended the episode with a reward
    is_discarded: bool = False

    @property
    def is_vetoed(self) -> bool:
        """A success that was claimed and taken back."""
        return self.is_claimed and self.last_mark is MarkKind.FAILURE

    @property
    def last_mark(self) -> MarkKind | None:
        return None if self.last_step is None else self.marks.get(self.last_step)

    @property
    def is_success(self) -> bool:
        """As far as is known: marks go before what was recorded."""
        return MarkKind.SUCCESS in self.marks.values() or (self.is_claimed and not self.is_vetoed)

    def judge_of(self, step: int) -> str:
        """Return task, classifier or human."""
        return self.sources[step].removesuffix(HELD_SUFFIX)

    def frame_after(self, step: int) -> Frame | None:
        """Return the observation that a step led to; step -1 gives the first of the episode."""
        if step + 1 in self.positions:
            return Frame(self.log, self.positions[step + 1], is_final=False)
        if step == self.last_step:
            return Frame(self.log, self.positions[step], is_final=True)
        return None


class EpisodeIndex:
    """The episodes of one or more logs, in order of their first record."""

    def __init__(self) -> None:
        self.episodes: dict[EpisodeKey, EpisodeRecord] = {}
        self.num_judgements = 0  # ends of episodes and marks so far: only these change what is known

    def add(self, entry: LogEntry, log: int = 0) -> None:
        """Add the next entry of a log."""
        body = entry.body
        key = EpisodeKey(entry.record_id.actor_id, entry.record_id.incarnation, body.episode)
        record = self.episodes.setdefault(key, EpisodeRecord(key, log))
        if isinstance(body, EpisodeMark):
            _apply_mark(record, body)
            self.num_judgements += 1
        else:
            _add_step(record, body, entry.position)
            self.num_judgements += body.is_last


def _apply_mark(record: EpisodeRecord, mark: EpisodeMark) -> None:
    if mark.kind is MarkKind.DISCARD:
        record.is_discarded = True
    elif mark.kind in (MarkKind.SUCCESS, MarkKind.FAILURE):
        record.marks[mark.step] = mark.kind


def _add_step(record: EpisodeRecord, transition: Transition, position: int) -> None:
    record.positions[transition.step] = position
    record.sources[transition.step] = transition.reward_source
    if transition.is_last:
        record.last_step = transition.step
        record.is_claimed = transition.terminated and transition.reward > 0


@dataclass(frozen=True)
class Labels:
    """Frames of one episode. Those that nobody vouches for are in none of the lists."""

    positives: tuple[Frame, ...] = ()
    negatives: tuple[Frame, ...] = ()
    hard_negatives: tuple[Frame, ...] = ()  # a person said of this very frame that it is no success


def label_episode(record: EpisodeRecord, config: ClassifierConfig) -> Labels:
    """Sort an episode's frames.

    Success is what the task or a person said, never what a classifier said: a claim that nobody marked teaches nothing.
    A person presses a key later than they see, so the frames just before are left out too.
    """
    if record.last_step is None or record.is_discarded:
        return Labels()
    failures = {step for step, kind in record.marks.items() if kind is MarkKind.FAILURE}
    human = {step for step, kind in record.marks.items() if kind is MarkKind.SUCCESS}
    by_task: set[int] = set()
    unconfirmed: set[int] = set()
    if record.is_claimed and record.last_mark is None:
        judged = {"task": by_task, "human": human}.get(record.judge_of(record.last_step), unconfirmed)
        judged.add(record.last_step)
    held = {step for step, source in record.sources.items() if source.endswith(HELD_SUFFIX)}
    waited = {step - back for step in human for back in range(config.held_frames)}
    positives = (by_task | held | waited) - failures
    unsure = {step - config.held_frames - back for step in human for back in range(config.reaction_steps)}
    unsure |= {step - back for step in unconfirmed for back in range(config.reaction_steps + 1)}
    if human:
        unsure |= set(range(max(human) + 1, record.last_step + 1))  # it may have lasted
    rest = set(range(-1, record.last_step + 1)) - positives - unsure - failures
    return Labels(_frames(record, positives), _frames(record, rest), _frames(record, failures))


def _frames(record: EpisodeRecord, steps: Iterable[int]) -> tuple[Frame, ...]:
    found = (record.frame_after(step) for step in sorted(steps))
    return tuple(frame for frame in found if frame is not None)


def split_episodes(
    labels: Mapping[EpisodeKey, Labels], earlier: Mapping[EpisodeKey, bool], held_out_fraction: float
) -> dict[EpisodeKey, bool]:
    """Decide for each labelled episode whether it is held out: by episode, as neighbouring frames are all but equal.

    `earlier` decisions stand, so that no later version is tested on what an earlier one was trained on; except that an
    episode with a veto trains, which is what the veto is for. New ones are held out at the given rate, separately among
    those with and without success.
    """
    is_held_out: dict[EpisodeKey, bool] = {}
    counts = {True: [0, 0], False: [0, 0]}  # has success -> episodes, of which held out
    for key, episode in labels.items():
        if not (episode.positives or episode.negatives or episode.hard_negatives):
            continue
        if episode.hard_negatives:
            is_held_out[key] = False
            continue
        count = counts[bool(episode.positives)]
        count[0] += 1
        is_held_out[key] = earlier.get(key, count[1] + 1 <= held_out_fraction * count[0])
        count[1] += is_held_out[key]
    return is_held_out


@dataclass(frozen=True)
class Examples:
    """The frames of one side of the split."""

    positives: tuple[Frame, ...]
    negatives: tuple[Frame, ...]
    hard_negatives: tuple[Frame, ...] = ()
    episodes: int = 0
    success_episodes: int = 0

    @property
    def counts(self) -> dict[str, int]:
        return {
            "episodes": self.episodes,
            "episodes_with_success": self.success_episodes,
            "positives": len(self.positives),
            "negatives": len(self.negatives),
            "hard_negatives": len(self.hard_negatives),
        }


def gather_examples(
    labels: Mapping[EpisodeKey, Labels], is_held_out: Mapping[EpisodeKey, bool], config: ClassifierConfig
) -> tuple[Examples, Examples]:
    """Return (training, held out). Of the plain negatives a fixed multiple of the positives is kept, spread at random.

    Raises TooFewExamplesError, with counts and what to record, when either side would be too small or one-sided.
    """
    training = _side([labels[key] for key, held_out in is_held_out.items() if not held_out], config)
    held_out = _side([labels[key] for key, held_out in is_held_out.items() if held_out], config)
    _require_enough(training, held_out, config)
    return training, held_out


def _side(episodes: list[Labels], config: ClassifierConfig) -> Examples:
    positives = tuple(frame for episode in episodes for frame in episode.positives)
    negatives = [frame for episode in episodes for frame in episode.negatives]
    # A frame's checksum decides, so that a growing log changes the choice, and what must be encoded, only little.
    negatives.sort(key=lambda frame: zlib.crc32(repr(frame).encode()))
    return Examples(
        positives=positives,
        negatives=tuple(negatives[: config.negatives_per_positive * max(1, len(positives))]),
        hard_negatives=tuple(frame for episode in episodes for frame in episode.hard_negatives),
        episodes=len(episodes),
        success_episodes=sum(bool(episode.positives) for episode in episodes),
    )


def _require_enough(training: Examples, held_out: Examples, config: ClassifierConfig) -> None:
    lacks = []
    if len(training.positives) < config.min_positives:
        lacks.append(f"{len(training.positives)} training frames of success, needed {config.min_positives}")
    num_negatives = len(training.negatives) + len(training.hard_negatives)
    if num_negatives < config.min_positives:
        lacks.append(f"{num_negatives} training frames without success, needed {config.min_positives}")
    if not held_out.positives or not held_out.negatives:
        lacks.append(
            f"{len(held_out.positives)} held-out frames of success and {len(held_out.negatives)} without, needed one "
            "of each at least"
        )
    if lacks:
        raise TooFewExamplesError(
            f"cannot train a success classifier from {training.episodes + held_out.episodes} labelled episodes, "
            f"{training.success_episodes + held_out.success_episodes} of them with success: {'; '.join(lacks)}. Record "
            "demonstrations that end in success (actor.reward.source = task or human) and episodes that do not. Each "
            "success gives one frame; with actor.reward.hold_steps = 9 the task's own verdict gives ten. "
            f"About {PEERS_POSITIVES} frames of success are usual."
        )
