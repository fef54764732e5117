"""Fit the success classifier to frames of logs and test it on episodes that it never saw."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from learner.config import ClassifierConfig
from learner.reward_classifier.examples import (
    EpisodeIndex,
    EpisodeKey,
    Examples,
    Frame,
    gather_examples,
    label_episode,
    split_episodes,
)
from learner.reward_classifier.frames import EncodedFrames, FrameStore
from learner.reward_classifier.metrics import Confusion, RocCurve, confusion, roc_curve
from policy.config import PolicyConfig
from policy.encoder import EncoderInput
from policy.spec import Specs
from policy.success_classifier import ClassifierManifest, SuccessClassifier

_TEST_BATCH = 256
_MORE_BATCHES = 10  # at a time, and times as many in all, while vetoed frames are still taken for success
_FULL_HARD_SHARE = 16  # this many vetoed frames fill half of the negatives in a batch; fewer take a share in proportion


@dataclass(frozen=True)
class Judged:
    """Held-out frames and what the classifier makes of them."""

    frames: tuple[Frame, ...]
    is_success: NDArray[np.bool_]  # (n,)
    probability: NDArray[np.float64]  # (n,)
    confusion: Confusion
    roc: RocCurve


@dataclass(frozen=True)
class Trained:
    """A classifier, what it learned from and how good it is."""

    classifier: SuccessClassifier
    is_held_out: dict[EpisodeKey, bool]
    training: Examples
    held_out: Examples
    judged: Judged
    losses: list[float]  # of each batch

    @property
    def counts(self) -> dict[str, Any]:
        return {"training": self.training.counts, "held_out": self.held_out.counts}

    @property
    def metrics(self) -> dict[str, Any]:
        """Figures on held-out frames; the rates are at the classifier's threshold."""
        return {**self.judged.confusion.to_dict(), "auc": self.judged.roc.auc, "training_loss": self.losses[-1]}

    @property
    def episodes(self) -> list[list[Any]]:
        """The split as a manifest keeps it."""
        return [[*key, held_out] for key, held_out in self.is_held_out.items()]


def train(
    index: EpisodeIndex,
    store: FrameStore,
    classifier: SuccessClassifier,
    config: ClassifierConfig,
    *,
    batches: int,
    seed: int,
    earlier_split: Mapping[EpisodeKey, bool] | None = None,
    device: torch.device | str = "cpu",
) -> Trained:
    """Train `classifier` in place on the labelled episodes that are not held out, and test it on the others.

    Raises TooFewExamplesError before anything is trained.
    """
    labels = {key: label_episode(record, config) for key, record in index.episodes.items()}
    is_held_out = split_episodes(labels, earlier_split or {}, config.held_out_fraction)
    training, held_out = gather_examples(labels, is_held_out, config)
    groups = (training.positives, training.negatives, training.hard_negatives)
    positives, negatives, hard = (store.get(frames, config.shifted_copies) for frames in groups)
    losses = fit(classifier, positives, negatives, hard, config, batches=batches, seed=seed, device=device)
    judged = judge_frames(classifier, store, held_out, device)
    store.keep_only({*held_out.positives, *held_out.negatives, *(frame for frames in groups for frame in frames)})
    return Trained(classifier, is_held_out, training, held_out, judged, losses)


def split_of(manifest: ClassifierManifest | None) -> dict[EpisodeKey, bool]:
    """Return which episodes a version was trained on (False) and tested on (True)."""
    return {EpisodeKey(*names): held_out for *names, held_out in manifest.episodes} if manifest else {}


def make_classifier(specs: Specs, policy: PolicyConfig, threshold: float, seed: int) -> SuccessClassifier:
    """Return an untrained classifier that depends on nothing but its arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SuccessClassifier(specs, policy, threshold)


def fit(
    classifier: SuccessClassifier,
    positives: EncodedFrames,
    negatives: EncodedFrames,
    hard_negatives: EncodedFrames,
    config: ClassifierConfig,
    *,
    batches: int,
    seed: int,
    device: torch.device | str,
) -> list[float]:
    """Minimise the cross-entropy of class-balanced batches with Adam; returns the loss of each batch.

    Goes on beyond `batches`, up to ten times as many, until no vetoed frame is taken for success any more: an operator
    should not have to veto the same thing twice.
    """
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(classifier.to(device).parameters(), lr=config.learning_rate)
    half = config.frames_per_batch // 2
    num_hard = round(half / 2 * min(1.0, len(hard_negatives) / _FULL_HARD_SHARE))
    if not len(negatives):
        num_hard = half
    target = torch.cat([torch.ones(half), torch.zeros(half)]).to(device)
    losses: list[Tensor] = []
    while len(losses) < batches or (
        len(losses) < _MORE_BATCHES * batches
        and (len(losses) % _MORE_BATCHES or _is_fooled(classifier, hard_negatives, device))
    ):
        parts = [positives.sample(half, rng, device)]
        for group, count in ((negatives, half - num_hard), (hard_negatives, num_hard)):
            if count:
                parts.append(group.sample(count, rng, device))
        loss = F.binary_cross_entropy_with_logits(classifier(_joined(parts)), target)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.detach())
    classifier.cpu()
    return [float(loss) for loss in losses]


def _is_fooled(classifier: SuccessClassifier, hard_negatives: EncodedFrames, device: torch.device | str) -> bool:
    """Whether a vetoed frame would still count as success."""
    if not len(hard_negatives):
        return False
    probability = classifier.probability(hard_negatives.originals(slice(None), device))
    return bool((probability >= classifier.threshold).any())


def judge_frames(
    classifier: SuccessClassifier, store: FrameStore, held_out: Examples, device: torch.device | str
) -> Judged:
    """Test on held-out frames, unshifted."""
    frames = (*held_out.positives, *held_out.negatives)
    is_success = np.arange(len(frames)) < len(held_out.positives)
    encoded = store.get(frames, copies=0)
    classifier.to(device)
    starts = range(0, len(frames), _TEST_BATCH)
    parts = [classifier.probability(encoded.originals(slice(start, start + _TEST_BATCH), device)) for start in starts]
    probability = torch.cat(parts).cpu().double().numpy()
    threshold = float(classifier.cpu().threshold)
    return Judged(
        frames,
        is_success,
        probability,
        confusion(probability, is_success, threshold),
        roc_curve(probability, is_success),
    )


def _joined(parts: list[EncoderInput]) -> EncoderInput:
    maps = zip(*(part.maps for part in parts), strict=True)
    return EncoderInput(torch.cat([part.vector for part in parts]), tuple(torch.cat(camera) for camera in maps))
