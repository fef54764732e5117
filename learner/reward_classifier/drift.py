"""How the classifier does in use: its verdicts against what operators said of the same episodes."""

from collections.abc import Iterable
from dataclasses import dataclass

from learner.reward_classifier.examples import EpisodeRecord
from learner.reward_classifier.metrics import Confusion


@dataclass(frozen=True)
class Usage:
    """The latest episodes that a classifier judged. Without a mark its verdict counts as right."""

    confusion: Confusion  # of episodes

    @property
    def episodes(self) -> int:
        return self.confusion.total

    @property
    def vetoes(self) -> int:
        return self.confusion.false_positives

    @property
    def misses(self) -> int:
        return self.confusion.false_negatives

    @property
    def agreement(self) -> float | None:
        return self.confusion.accuracy


def usage(records: Iterable[EpisodeRecord], latest: int) -> Usage:
    """Compare verdicts with marks over the `latest` finished episodes in which a classifier judged."""
    judged = [record for record in records if _is_judged(record)][-latest:]
    pairs = [(_claimed(record), record.is_success) for record in judged]
    return Usage(
        Confusion(
            true_positives=pairs.count((True, True)),
            false_positives=pairs.count((True, False)),
            true_negatives=pairs.count((False, False)),
            false_negatives=pairs.count((False, True)),
        )
    )


def num_corrections(records: Iterable[EpisodeRecord]) -> int:
    """Return in how many finished episodes an operator contradicted a classifier, or marked what it judged."""
    return sum(bool(record.marks) or _claimed(record) != record.is_success for record in records if _is_judged(record))


def _is_judged(record: EpisodeRecord) -> bool:
    return record.last_step is not None and not record.is_discarded and "classifier" in record.sources.values()


def _claimed(record: EpisodeRecord) -> bool:
    assert record.last_step is not None
    return record.is_claimed and record.sources[record.last_step] == "classifier"
