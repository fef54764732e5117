"""How good a classifier is on frames that it was not trained on: counts at the threshold, and over all thresholds."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Frames by what they show and what was said. A rate without any frame behind it is None."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int

    @property
    def total(self) -> int:
        return self.true_positives + self.false_positives + self.true_negatives + self.false_negatives

    @property
    def accuracy(self) -> float | None:
        return _share(self.true_positives + self.true_negatives, self.total)

    @property
    def precision(self) -> float | None:
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        return _share(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def false_positive_rate(self) -> float | None:
        return _share(self.false_positives, self.false_positives + self.true_negatives)

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the accuracies on either kind of frame; a classifier that always says no has one half."""
        if self.recall is None or self.false_positive_rate is None:
            return None
        return (self.recall + 1 - self.false_positive_rate) / 2

    def to_dict(self) -> dict[str, Any]:
        names = ("accuracy", "balanced_accuracy", "precision", "recall", "false_positive_rate")
        return asdict(self) | {name: getattr(self, name) for name in names}


def confusion(probability: NDArray[np.float64], is_success: NDArray[np.bool_], threshold: float) -> Confusion:
    """Count frames; shapes (n,). A probability of exactly the threshold counts as success, as on the actor."""
    claimed = probability >= threshold
    return Confusion(
        true_positives=int((claimed & is_success).sum()),
        false_positives=int((claimed & ~is_success).sum()),
        true_negatives=int((~claimed & ~is_success).sum()),
        false_negatives=int((~claimed & is_success).sum()),
    )


@dataclass(frozen=True)
class RocCurve:
    """Rates for every threshold at which they change, from the strictest (0, 0) to the laxest (1, 1)."""

    thresholds: NDArray[np.float64]  # (k,) falling; the first is infinite
    false_positive_rates: NDArray[np.float64]  # (k,)
    true_positive_rates: NDArray[np.float64]  # (k,)

    @property
    def auc(self) -> float:
        """Area under the curve: the probability that a frame of success ranks above one without (ties count half)."""
        widths = np.diff(self.false_positive_rates)
        heights = (self.true_positive_rates[1:] + self.true_positive_rates[:-1]) / 2
        return float((widths * heights).sum())


def roc_curve(probability: NDArray[np.float64], is_success: NDArray[np.bool_]) -> RocCurve:
    """Return the curve; needs frames of both kinds."""
    order = np.argsort(-probability, kind="stable")
    sorted_probability = probability[order]
    is_last_of_ties = np.append(np.diff(sorted_probability) != 0, True)
    true_positives = np.cumsum(is_success[order])[is_last_of_ties]
    false_positives = np.cumsum(~is_success[order])[is_last_of_ties]
    return RocCurve(
        np.concatenate([[np.inf], sorted_probability[is_last_of_ties]]),
        np.concatenate([[0.0], false_positives / false_positives[-1]]),
        np.concatenate([[0.0], true_positives / true_positives[-1]]),
    )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
