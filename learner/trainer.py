"""Trainer process: read the log, update, publish weights, checkpoint. Owns the algorithm and the replay buffers.

It waits on nothing but its own disk: the ingest process next to it takes data and serves weights whatever happens here.
"""

import json
import logging
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learner.algorithms import make_algorithm
from learner.checkpoint import Checkpoint, load_newest, save_checkpoint
from learner.config import LearnerConfig
from learner.metrics import MetricsWriter
from learner.replay import Replay
from learner.reward_classifier.feed import ClassifierFeed
from policy.config import from_dict
from policy.encoder import ObservationEncoder
from policy.episode_log import EpisodeLog
from policy.errors import ConfigError, WeightsError
from policy.files import replace_durably
from policy.spec import Specs
from policy.weights import serialise
from policy.weights_store import WeightsStore

logger = logging.getLogger(__name__)

_POLL_PERIOD_S = 0.05  # of the log; a transition waits at most this long before it can be sampled
_READ_LIMIT = 512


class Trainer:
    """fill -> sample -> update -> publish -> checkpoint."""

    def __init__(self, config: LearnerConfig, specs: Specs) -> None:
        self._config = config
        self._specs = specs
        run_dir = config.run_dir
        self._log = EpisodeLog(run_dir / "log.sqlite", specs, read_only=True)
        self._store = WeightsStore(run_dir / "weights")
        self._checkpoints = run_dir / "checkpoints"
        self._metrics = MetricsWriter(run_dir / "metrics.jsonl", config.metrics_every)
        self._summary_path = run_dir / "learner_summary.json"
        self.algorithm = make_algorithm(config, specs)
        self._classifier = ClassifierFeed(config, specs)
        self._replay = make_replay(config, specs)
        self._log_position = 0
        self._weights_version = 0
        self.learner_step = 0
        self._steps_here = 0
        self._busy_s = 0.0
        self._next_poll_s = 0.0
        self._resume()

    @property
    def num_transitions(self) -> int:
        """Transitions read from the log so far."""
        return self._replay.num_transitions

    def run(self, stop: threading.Event) -> None:
        """Train until `stop`; then publish, checkpoint and summarise."""
        self.publish()
        next_checkpoint_s = time.monotonic() + self._config.checkpoint_period_s
        saved_step = self.learner_step
        try:
            while not stop.is_set():
                self.read_log()
                if self.may_update():
                    self.update()
                    if self.learner_step % self._config.steps_per_update == 0:
                        self.publish()
                else:
                    stop.wait(_POLL_PERIOD_S / 2)
                if time.monotonic() >= next_checkpoint_s and self.learner_step != saved_step:
                    self.save()
                    saved_step = self.learner_step
                    next_checkpoint_s = time.monotonic() + self._config.checkpoint_period_s
        finally:
            self.publish()
            self.save()
            self._write_summary()

    def read_log(self) -> None:
        """Add new log entries to the replay, at most once per poll period."""
        now_s = time.monotonic()
        if now_s < self._next_poll_s:
            return
        self._next_poll_s = now_s + _POLL_PERIOD_S
        self._read_until(None)

    def may_update(self) -> bool:
        """Whether there is data to learn from and the ratio of updates to data allows another step."""
        ratio = self._config.learner_steps_per_transition
        limit = self._config.max_learner_steps
        if not self._replay.is_ready() or (limit and self.learner_step >= limit):
            return False
        return not ratio or self.learner_step < ratio * self.num_transitions

    def update(self) -> None:
        """Do one learner step."""
        start_s = time.monotonic()
        metrics = self.algorithm.update_step(self._replay.sample)
        self.learner_step += 1
        self._steps_here += 1
        self._busy_s += time.monotonic() - start_s
        position = {"learner_step": self.learner_step, "updates": self.learner_step}
        line = self._metrics.add(metrics, **position, env_steps=self.num_transitions)
        if line is not None:
            self._write_summary()

    def publish(self) -> None:
        """Make the current policy the newest weights; refuses non-finite ones and keeps the last good version."""
        tensors = {**self._finite_policy(), **self._classifier.tensors()}
        self._weights_version += 1
        self._store.publish(serialise(tensors), self._weights_version, self.learner_step)

    def save(self) -> None:
        """Write a checkpoint. A full disk is reported and keeps the one before; training goes on.

        Refuses non-finite weights: resumed from them, training could only end in the same way again.
        """
        self._finite_policy()
        checkpoint = Checkpoint(
            tensors=self.algorithm.state(),
            learner_step=self.learner_step,
            log_position=self._log_position,
            weights_version=self._weights_version,
            replay_rng=dict(self._replay.rng.bit_generator.state),
        )
        try:
            save_checkpoint(self._checkpoints, checkpoint)
        except OSError as error:
            logger.error("no checkpoint at learner step %d: %s. The one before stays.", self.learner_step, error)

    def _finite_policy(self) -> dict[str, Tensor]:
        tensors = self.algorithm.policy_tensors()
        broken = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
        if broken:
            raise WeightsError(
                f"learner step {self.learner_step}: {', '.join(broken[:5])} hold non-finite values. Neither published "
                f"nor saved; version {self._weights_version} stays in use, earlier checkpoints are in "
                f"{self._checkpoints}."
            )
        return tensors

    def _resume(self) -> None:
        """Take up the newest verified checkpoint, if any, with the replay as it was then."""
        published = self._store.latest()
        if published is not None:
            self._weights_version = published.version
        checkpoint = load_newest(self._checkpoints)
        if checkpoint is None:
            return
        self.algorithm.load_state(checkpoint.tensors)
        self.learner_step = checkpoint.learner_step
        # A version that the actor may hold is never used again for other weights.
        self._weights_version = max(self._weights_version, checkpoint.weights_version)
        self._read_until(checkpoint.log_position)
        self._replay.rng.bit_generator.state = checkpoint.replay_rng
        logger.info("resumed at learner step %d with %d transitions", self.learner_step, self.num_transitions)

    def _read_until(self, end: int | None) -> None:
        while True:
            limit = _READ_LIMIT if end is None else min(_READ_LIMIT, end - self._log_position)
            entries = self._log.read_after(self._log_position, limit) if limit else []
            if not entries:
                return
            for entry in entries:
                self._replay.add(entry.record_id, entry.body)
            self._log_position = entries[-1].position

    def _write_summary(self) -> None:
        summary: dict[str, Any] = {
            "algorithm": self._config.algorithm,
            "updates": self.learner_step,
            "updates_per_s": round(self._steps_here / self._busy_s, 2) if self._busy_s else 0.0,
            "transitions": self.num_transitions,
            "weights_version": self._weights_version,
            "device": self._config.device,
        }
        replace_durably(self._summary_path, json.dumps(summary, indent=1).encode())


def make_replay(config: LearnerConfig, specs: Specs) -> Replay:
    """Return the empty replay. Raises ConfigError or WeightsError for images without a usable encoder."""
    encoder = ObservationEncoder(specs, config.policy).to(config.device)
    if specs.observation.images and config.replay.image_storage == "pixels" and config.device == "cpu":
        logger.warning(
            "replay.image_storage = 'pixels' encodes %d images for each batch, seconds on a CPU; set it to 'maps'",
            2 * len(specs.observation.images) * config.replay.batch_size,
        )
    return Replay(config.replay, specs.observation, specs.action.dim, config.seed, encoder, config.device)


def run_trainer(config: LearnerConfig) -> int:
    """Run until SIGTERM or SIGINT. Waits for the run's specs, which the first actor brings."""
    stop = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stop.set())
    torch.set_num_threads(config.torch_threads)
    specs_path = config.run_dir / "specs.json"
    while not specs_path.exists():
        if stop.wait(_POLL_PERIOD_S):
            return 0
    trainer = Trainer(config, Specs.from_json(specs_path.read_text()))
    logger.info("training with %s on %s", config.algorithm, config.device)
    trainer.run(stop)
    return 0


def load_config(path: Path) -> LearnerConfig:
    """Read the resolved configuration that the learner command wrote, choosing the device where it says auto.

    Raises ConfigError for a device that this machine does not have.
    """
    config = from_dict(LearnerConfig, json.loads(path.read_text()))
    if config.device == "auto":
        config = replace(config, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device = {config.device!r} cannot be used: {reason}. Choose auto or cpu, or cuda on a machine with an "
            "NVIDIA GPU, its driver and a PyTorch built for it."
        ) from error
    return config


if __name__ == "__main__":
    import sys

    from policy.cli import run_main

    sys.exit(run_main(lambda: run_trainer(load_config(Path(sys.argv[1])))))
