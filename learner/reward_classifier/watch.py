"""Retrains the classifier beside the trainer, from what operators say of its verdicts, and shows how it drifts.

A process of its own with low priority: it reads the log, writes RUN/classifier, and waits on nothing else. The trainer
publishes the newest version with the next policy.
"""

import json
import logging
import threading
from pathlib import Path
from typing import Any

from learner.config import LearnerConfig
from learner.reward_classifier.drift import Usage, num_corrections, usage
from learner.reward_classifier.examples import TooFewExamplesError, label_episode
from learner.reward_classifier.logs import RunLogs
from learner.reward_classifier.report import write_report
from learner.reward_classifier.training import make_classifier, split_of, train
from policy.spec import Specs
from policy.success_classifier import (
    ClassifierManifest,
    SuccessClassifier,
    load_classifier,
    read_manifest,
    save_classifier,
)

_POLL_PERIOD_S = 0.5
_WATCHED = "watched"  # in a manifest's counts: how far this run's log had come, see ClassifierWatch._progress
_MIN_DRIFT_EPISODES = 5  # before a share of them means anything

logger = logging.getLogger(__name__)


class ClassifierWatch:
    """Follows one run's log. `step` does what there is to do and returns."""

    def __init__(self, config: LearnerConfig, specs: Specs) -> None:
        """Take up the run's newest version, or begin with the configured one, or with none."""
        self._config = config
        self._specs = specs
        self._folder = config.run_dir / "classifier"
        self._metrics_path = config.run_dir / "classifier_metrics.jsonl"
        self._classifier: SuccessClassifier | None = None
        self._manifest: ClassifierManifest | None = None
        self._begin()
        self._logs = RunLogs(
            [config.run_dir, *self._earlier_run_dirs()], specs, config.policy, config.classifier, config.device
        )
        self._num_judgements = 0
        self._tried: tuple[int, int] | None = None
        self._usage: Usage | None = None
        self._has_warned = False
        self._has_too_few = False

    @property
    def version(self) -> int:
        return self._manifest.version if self._manifest else 0

    def run(self, stop: threading.Event) -> None:
        """Watch until `stop`, at a pause after each look at the log."""
        while not stop.is_set():
            self.step()
            stop.wait(_POLL_PERIOD_S)

    def step(self) -> bool:
        """Read the log, report usage, retrain when that is due; returns whether there is a new version."""
        self._logs.read()
        if self._logs.index.num_judgements == self._num_judgements:
            return False
        self._num_judgements = self._logs.index.num_judgements
        self._report_usage()
        return self._is_due() and self._retrain()

    def _begin(self) -> None:
        policy, initial = self._config.policy, self._config.classifier.initial
        if read_manifest(self._folder) is not None:
            self._classifier, self._manifest = load_classifier(self._folder, self._specs, policy)
        elif initial is not None:
            self._classifier, manifest = load_classifier(initial, self._specs, policy)
            details = {name: getattr(manifest, name) for name in ("metrics", "episodes", "logs")}
            counts = {name: count for name, count in manifest.counts.items() if name != _WATCHED}  # of another log
            self._manifest = save_classifier(
                self._folder, self._classifier, self._specs, policy, 1, counts=counts, **details
            )

    def _earlier_run_dirs(self) -> list[Path]:
        """Return the other folders that the classifier was trained on, so that it does not forget what they show."""
        known = [Path(path) for path in self._manifest.logs] if self._manifest else []
        others = [path for path in known if path != self._config.run_dir.resolve()]
        for path in others:
            if not (path / "log.sqlite").exists():
                logger.warning("%s, on which the classifier was trained, is gone: it may forget what it shows", path)
        return [path for path in others if (path / "log.sqlite").exists()]

    def _progress(self) -> tuple[int, int]:
        """Return how much there is to learn from in this run's log: corrected episodes, labelled episodes."""
        records = [record for record in self._logs.index.episodes.values() if record.log == 0]
        labels = (label_episode(record, self._config.classifier) for record in records)
        labelled = sum(bool(label.positives or label.hard_negatives) for label in labels)
        return num_corrections(records), labelled

    def _is_due(self) -> bool:
        """Whether enough came since the newest version, and anything since the last attempt that failed."""
        progress = self._progress()
        if progress == self._tried:
            return False
        used = tuple(self._manifest.counts.get(_WATCHED, (0, 0))) if self._manifest else (0, 0)
        config = self._config.classifier
        corrections, labelled = progress[0] - used[0], progress[1] - used[1]
        is_due = corrections >= config.corrections_per_version or labelled >= config.episodes_per_version
        return is_due or self._classifier is None

    def _retrain(self) -> bool:
        config, policy = self._config.classifier, self._config.policy
        progress = self._tried = self._progress()
        is_first = self._classifier is None
        classifier = self._classifier or make_classifier(self._specs, policy, config.threshold, self._config.seed)
        try:
            trained = train(
                self._logs.index,
                self._logs.store,
                classifier,
                config,
                batches=config.batches if is_first else config.retrain_batches,
                seed=self._config.seed + self.version,
                earlier_split=split_of(self._manifest),
                device=self._config.device,
            )
        except TooFewExamplesError as error:
            logger.log(logging.DEBUG if self._has_too_few else logging.INFO, "no classifier yet: %s", error)
            self._has_too_few = True
            return False
        self._classifier = classifier
        self._manifest = save_classifier(
            self._folder,
            classifier,
            self._specs,
            policy,
            self.version + 1,
            counts={**trained.counts, _WATCHED: list(progress)},
            metrics=trained.metrics,
            episodes=trained.episodes,
            logs=[str(path.resolve()) for path in self._logs.run_dirs],
        )
        write_report(self._folder, self._manifest, trained, self._logs.store, config)
        self._write({"event": "version", "version": self.version, **trained.metrics})
        accuracy = trained.metrics["accuracy"]
        is_low = accuracy < config.min_agreement
        logger.log(
            logging.WARNING if is_low else logging.INFO,
            "success classifier version %d is right on %.1f %% of the held-out frames%s",
            self.version,
            100 * accuracy,
            f", limit {config.min_agreement:.0%}: look at {self._folder / 'report.md'}" if is_low else "",
        )
        return True

    def _report_usage(self) -> None:
        """Write a line whenever the comparison with operators changes; warn once when it falls below the limit."""
        config = self._config.classifier
        records = [record for record in self._logs.index.episodes.values() if record.log == 0]
        present = usage(records, config.drift_episodes)
        if present == self._usage or present.agreement is None:
            return
        self._usage = present
        figures = {"agreement": present.agreement, "vetoes": present.vetoes, "misses": present.misses}
        rate = {"false_positive_rate": present.confusion.false_positive_rate}
        self._write({"event": "usage", "version": self.version, "episodes": present.episodes, **figures, **rate})
        is_low = present.episodes >= _MIN_DRIFT_EPISODES and present.agreement < config.min_agreement
        if is_low and not self._has_warned:
            logger.warning(
                "success classifier version %d agreed with the operator on %.0f %% of the last %d episodes, "
                "limit %.0f %%: %d vetoes, %d misses. Did light, cameras or objects change? Mark more episodes, or set "
                "actor.reward.source = human until it is retrained.",
                self.version,
                100 * present.agreement,
                present.episodes,
                100 * config.min_agreement,
                present.vetoes,
                present.misses,
            )
        self._has_warned = is_low

    def _write(self, values: dict[str, Any]) -> None:
        with self._metrics_path.open("a") as file:
            file.write(json.dumps(values) + "\n")
