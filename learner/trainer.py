"""Trainer process: read the log, update, publish weights, checkpoint. Owns the algorithm and the replay buffers.

It waits on nothing but its own disk: the ingest process next to it takes data and serves weights whatever happens here.
A value that is not finite, a full disk and a first lack of memory are dealt with here; anything else ends the process
without a further word on disk, and the supervisor starts it again from the newest verified checkpoint.
"""

import contextlib
import json
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learner.algorithms import make_algorithm
from learner.checkpoint import Checkpoint, CheckpointWriter, load_newest
from learner.config import LearnerConfig
from learner.divergence import RollBacks, check_finite, count_on, total_skipped
from learner.graphed_update import GraphedUpdate
from learner.leader import Leader, config_of, leading
from learner.metrics import MetricsWriter
from learner.replay_feed import ReplayFeed, make_replay, refuse_write_back
from learner.resolved_config import load_config
from learner.reward_classifier.feed import ClassifierFeed
from learner.run_lock import sole_use_of
from learner.trainer_status import StatusReporter
from policy.episode_log import EpisodeLog
from policy.errors import MemoryExhaustedError, NonFiniteError
from policy.failpoints import failpoint
from policy.files import replace_durably
from policy.spec import Specs
from policy.weights import serialise
from policy.weights_store import WeightsStore

logger = logging.getLogger(__name__)

_POLL_PERIOD_S = 0.05  # of the log; a transition waits at most this long before it can be sampled
_PREDECESSOR_S = 30.0


class Trainer:
    """fill -> sample -> update -> publish -> checkpoint."""

    def __init__(self, config: LearnerConfig, specs: Specs, leader: Leader | None = None) -> None:
        """`leader` where other trainers share the batches; `config` is this one's own share then."""
        self._config = config
        self._specs = specs
        self._leader = leader or Leader()
        run_dir = config.run_dir
        self._store = WeightsStore(run_dir / "weights")
        self._checkpoints = run_dir / "checkpoints"
        self._writer = CheckpointWriter(self._checkpoints, config.min_free_gb * 1e9)
        self._status = StatusReporter(run_dir)
        self._metrics = MetricsWriter(run_dir / "metrics.jsonl", config.metrics_every)
        self._summary_path = run_dir / "learner_summary.json"
        self._classifier = ClassifierFeed(config, specs)
        self._replay = make_replay(config, specs)
        self._feed = ReplayFeed(EpisodeLog(run_dir / "log.sqlite", specs, read_only=True), self._replay)
        self._weights_version = 0
        self.learner_step = 0
        self._saved_step = self._begun_step = -1
        self._next_checkpoint_s = time.monotonic() + config.checkpoint_period_s
        self._steps_here = 0
        self._busy_s = 0.0
        self._next_poll_s = 0.0
        self._roll_backs = RollBacks()
        self._was_out_of_memory = False
        self._resume()

    @property
    def num_transitions(self) -> int:
        """Transitions read from the log so far."""
        return self._replay.num_transitions

    def run(self, stop: threading.Event) -> None:
        """Train until `stop`; then publish, checkpoint and summarise.

        Raises DivergedError when roll-backs do not help, MemoryExhaustedError when a second attempt does not.
        """
        try:
            self.publish()
            while not stop.is_set():
                try:
                    self._turn(stop)
                except NonFiniteError as error:
                    self.roll_back(error)
            self._leave()
        except torch.OutOfMemoryError as error:
            times = "for the second time " if self._leader.is_alone else ""
            text = f"{self._config.device} is out of memory {times}at learner step {self.learner_step}: "
            self._status.set_alarm("memory", text + str(error).splitlines()[0])
            if self._leader.is_alone:  # others wait in the middle of the step
                self._leave()
            raise MemoryExhaustedError(
                f"{text}{error} Started again, it goes on from its checkpoint. If this comes back: end other programs "
                "on the device, or lower replay.batch_size or replay.capacity."
            ) from error
        finally:
            self._writer.close()
            self._status.close(self.learner_step)

    def _turn(self, stop: threading.Event) -> None:
        self.read_log()
        waiting_for = self.missing()
        self._status.report(self.learner_step, waiting_for)
        if waiting_for:
            self._leader.read(self._feed.position)
            stop.wait(_POLL_PERIOD_S / 2)
        else:
            self.update()
            if self.learner_step % self._config.steps_per_update == 0:
                self.publish()
        self._end_checkpoint(wait=False)
        is_due = time.monotonic() >= self._next_checkpoint_s and self.learner_step != self._saved_step
        if is_due and not self._writer.is_busy:
            self._begin_checkpoint()

    def _leave(self) -> None:
        """Put on disk what others and the next start need; what is not finite is left as it was there."""
        try:
            self.publish()
            self.save()
        except NonFiniteError as error:
            logger.error("%s", error)
        self._write_summary()

    def read_log(self) -> None:
        """Add new log entries to the replay, at most once per poll period."""
        now_s = time.monotonic()
        if now_s < self._next_poll_s:
            return
        self._next_poll_s = now_s + _POLL_PERIOD_S
        self._read_until(None)

    def missing(self) -> str:
        """Return what the next learner step waits for; empty when there is data for it and the ratio allows it."""
        ratio, limit = self._config.learner_steps_per_transition, self._config.max_learner_steps
        if limit and self.learner_step >= limit:
            return f"for nothing more, max_learner_steps = {limit} are done"
        if not self._replay.is_ready():
            return (
                f"for data. {self.num_transitions} transitions have come, training starts with "
                f"{self._config.replay.training_starts} (replay.training_starts), and some that may be used"
            )
        if ratio and self.learner_step >= ratio * self.num_transitions:
            return (
                f"for data. {self.num_transitions} transitions have come, learner_steps_per_transition = {ratio} "
                "allows no more steps for them"
            )
        return ""

    def update(self) -> None:
        """Do one learner step. Raises NonFiniteError when the networks cannot be updated any more."""
        start_s = time.monotonic()
        self._update_algorithm()
        self.learner_step += 1
        self._steps_here += 1
        skipped = total_skipped(self._updates.skipped_steps(), self.learner_step)
        is_due = self._metrics.count_step()
        averages = self._updates.take_metrics() if is_due else {}
        self._busy_s += time.monotonic() - start_s
        if is_due:
            position = {"learner_step": self.learner_step, "updates": self.learner_step}
            line = self._metrics.line(averages, **position, env_steps=self.num_transitions, skipped_updates=skipped)
            with self._alarm_on_full_disk("metrics", "a line of metrics is missing"):
                self._metrics.write(line)
            self._write_summary()
        failpoint("trainer.after_update")

    def _update_algorithm(self) -> None:
        """Let the algorithm do a step; when memory runs out for the first time, once more with all that can be freed.

        What was done before it ran out, a critic's update perhaps, stays done. Other trainers, which have done another
        part of the step, cannot follow: with them there is no second attempt.
        """
        self._leader.step(self._feed.position)
        try:
            return self._updates.step()
        except torch.OutOfMemoryError as error:
            if self._was_out_of_memory or not self._leader.is_alone:
                raise
            self._was_out_of_memory = True
            text = f"out of memory at learner step {self.learner_step}, trying once more: {str(error).splitlines()[0]}"
            self._status.set_alarm("memory", text)
        torch.cuda.empty_cache()  # not in the handler: the error's traceback holds the tensors
        self._updates.step()

    def publish(self) -> None:
        """Make the current policy the newest weights; refuses non-finite ones and keeps the last good version."""
        policy_tensors = self.algorithm.policy_tensors()
        self._check_finite(policy_tensors)
        tensors = {**policy_tensors, **self._classifier.tensors()}
        failpoint("trainer.before_publish")
        with self._alarm_on_full_disk("weights", "no new weights are published"):
            self._store.publish(serialise(tensors), self._weights_version + 1, self.learner_step)
            self._weights_version += 1

    def save(self) -> None:
        """Write a checkpoint and wait for it. A full disk is reported and keeps the one before; training goes on.

        Refuses non-finite state: resumed from it, training could only end in the same way again.
        """
        self._end_checkpoint(wait=True)
        self._begin_checkpoint()
        self._end_checkpoint(wait=True)

    def _begin_checkpoint(self) -> None:
        state = self.algorithm.state()
        self._check_finite(state)
        self._next_checkpoint_s = time.monotonic() + self._config.checkpoint_period_s
        self._begun_step = self.learner_step
        self._writer.begin(
            Checkpoint(
                tensors=state,
                learner_step=self.learner_step,
                log_position=self._feed.position,
                weights_version=self._weights_version,
                replay_noise=self._replay.noise.generators[0].get_state(),
                rank_noise=self._leader.rank_noise(self.algorithm, self._feed.position),
            )
        )

    def _end_checkpoint(self, *, wait: bool) -> None:
        try:
            if self._writer.end(wait=wait):
                self._saved_step = self._begun_step
                self._status.clear_alarms("checkpoint", "updates", "memory")
        except OSError as error:
            self._alarm_about_disk("checkpoint", "no new checkpoint, the one before stays", error)

    @contextlib.contextmanager
    def _alarm_on_full_disk(self, subject: str, consequence: str) -> Iterator[None]:
        """Let training go on when something cannot be written, and people know until it can again."""
        try:
            yield
        except OSError as error:
            self._alarm_about_disk(subject, consequence, error)
        else:
            self._status.clear_alarms(subject)

    def _alarm_about_disk(self, subject: str, consequence: str, error: OSError) -> None:
        self._status.set_alarm(subject, f"{consequence}: {error}. Training goes on; free space on the learner's disk.")

    def _check_finite(self, tensors: dict[str, Tensor]) -> None:
        check_finite(
            tensors,
            self.learner_step,
            f"Neither published nor saved; version {self._weights_version} stays in use, earlier checkpoints are in "
            f"{self._checkpoints}.",
        )

    def roll_back(self, reason: NonFiniteError) -> None:
        """Go back to the newest verified checkpoint, or to the start where there is none.

        Networks, optimisers and their generators are as they were. The replay and its generator stay as they are: the
        log is not at fault, and the batches that are drawn now are others than those that led here.
        """
        self._roll_backs.note(self._steps_here)
        if self._roll_backs.are_too_many:
            self._status.set_alarm("updates", f"training has diverged and stopped. {reason}")
            raise self._roll_backs.error(reason, self._config.replay.reward_scale, self._config.run_dir)
        left_out = self.algorithm.counters()
        self._end_checkpoint(wait=True)
        checkpoint = load_newest(self._checkpoints)
        self._take_up(checkpoint, left_out)
        self._lead(checkpoint)
        self._status.set_alarm("updates", f"training rolled back to learner step {self.learner_step}. {reason}")

    def _resume(self) -> None:
        """Take up the newest verified checkpoint, if any, with the replay as it was then."""
        published = self._store.latest()
        if published is not None:
            self._weights_version = published.version
        checkpoint = load_newest(self._checkpoints)
        self._take_up(checkpoint)
        if checkpoint is None:
            self._lead(None)
            return
        # A version that the actor may hold is never used again for other weights.
        self._weights_version = max(self._weights_version, checkpoint.weights_version)
        self._read_until(checkpoint.log_position)
        self._replay.resume_noise(checkpoint.replay_noise)
        self._lead(checkpoint)
        logger.info("resumed at learner step %d with %d transitions", self.learner_step, self.num_transitions)

    def _take_up(self, checkpoint: Checkpoint | None, left_out: Mapping[str, Tensor] | None = None) -> None:
        """Begin with a new algorithm where `checkpoint` says, at the run's start without one; metrics follow.

        left_out: `counters` of the algorithm whose place it takes.
        """
        self.algorithm = make_algorithm(self._config, self._specs)
        self.learner_step = 0
        if checkpoint is not None:
            self.algorithm.load_state(checkpoint.tensors)
            self.learner_step = self._saved_step = checkpoint.learner_step
        if left_out is not None:
            count_on(left_out, self.algorithm.counters())
        self._updates = GraphedUpdate(self.algorithm, self._replay.sample, self._config, self._replay.prepare)
        with self._alarm_on_full_disk("metrics", "metrics show steps that were taken back"):
            self._metrics.rewind(self.learner_step)

    def _lead(self, checkpoint: Checkpoint | None) -> None:
        """Let other trainers go on from where this one does."""
        self._leader.reload(self.algorithm, self._feed.position, checkpoint.rank_noise if checkpoint else {})

    def _read_until(self, end: int | None) -> None:
        while self._feed.read(end):
            self._status.report(self.learner_step, "for the log to be read")
            self._leader.read(self._feed.position)

    def _write_summary(self) -> None:
        summary: dict[str, Any] = {
            "algorithm": self._config.algorithm,
            "updates": self.learner_step,
            "updates_per_s": round(self._steps_here / self._busy_s, 2) if self._busy_s else 0.0,
            "transitions": self.num_transitions,
            "transitions_by_actor": dict(self._replay.transitions_by_actor),
            "weights_version": self._weights_version,
            "device": self._config.device,
        }
        with self._alarm_on_full_disk("summary", "the summary is not up to date"):
            replace_durably(self._summary_path, json.dumps(summary, indent=1).encode())


def run_trainer(config_path: Path) -> int:
    """Run until SIGTERM or SIGINT. Waits for the run's specs, which the first actor brings."""
    config = load_config(config_path)
    refuse_write_back(config)  # now rather than when an actor has come
    own_config = config_of(config, 0)
    stop = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stop.set())
    torch.set_num_threads(config.torch_threads)
    # The trainer of a learner that was killed may be writing its last checkpoint.
    with sole_use_of(config.run_dir, "trainer.lock", timeout_s=_PREDECESSOR_S, stop=stop):
        specs_path = config.run_dir / "specs.json"
        status = StatusReporter(config.run_dir)
        while not specs_path.exists():
            status.report(0, "for the first actor, which brings the names and units of this run's data")
            if stop.wait(_POLL_PERIOD_S):
                return 0
        with leading(config, config_path, stop) as leader:
            if leader is None:
                return 0
            trainer = Trainer(own_config, Specs.from_json(specs_path.read_text()), leader)
            logger.info("training with %s on %s", config.algorithm, config.device)
            if config.num_trainers > 1:
                logger.info("%d trainers share each batch", config.num_trainers)
            trainer.run(stop)
    return 0


if __name__ == "__main__":
    import sys

    from policy.cli import run_main

    sys.exit(run_main(lambda: run_trainer(Path(sys.argv[1]))))
