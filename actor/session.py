"""One actor process from its first demonstration to its summary. Decides what happens between episodes."""

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from actor.config import ActorConfig
from actor.env import RobotEnv, RobotFailureError, connect_backend
from actor.evaluate import Evaluation, evaluate
from actor.intervention import Arbiter, ScriptedTeleop
from actor.link import Link
from actor.loop import EpisodeTally, run_episode
from actor.policy_runner import PolicyRunner
from actor.rate import RateKeeper
from actor.report import (
    EpisodeKind,
    EpisodeReport,
    append_json_line,
    drop_torn_line,
    episode_line,
    intervention_figures,
    percentiles,
    read_episodes,
    write_json,
)
from actor.spool import Spool, new_incarnation
from actor.tasks import make_task
from actor.throttle import VersionThrottle
from policy.config import load_preset, to_toml
from policy.errors import ConfigError
from policy.files import make_folder
from policy.spec import Specs
from robot.errors import RobotError
from robot.interface import SimulatedBackend

_log = logging.getLogger(__name__)

_PLACEMENTS, _OPERATOR, _POLICY = range(3)  # streams of random numbers, all from the one configured seed
_RECENT_EPISODES = 20  # over which an episode's duration is measured
_MENTION_PERIOD_S = 10.0
_STOPPED_DRAIN_S = 2.0  # whoever asked for a stop does not want to wait; the spool keeps the rest
_RESERVE_MARGIN = 1.5  # unassisted episodes may be longer than the measured ones, and filming takes time


class Session:
    """Robot, policy, spool and link of one process.

    `should_stop` is asked after every step; `say` shows one line to the operator.
    """

    def __init__(self, config: ActorConfig, should_stop: Callable[[], bool], say: Callable[[str], None]) -> None:
        """Open everything. Raises CgpoError for a configuration that cannot work."""
        self._config = config
        self._stop_requested = should_stop
        self._say = say
        self._started_s = time.monotonic()
        self._task = make_task(config.task)
        self._backend = connect_backend(config.backend, self._task)
        _check_pace(config, is_simulated=isinstance(self._backend, SimulatedBackend))
        make_folder(config.run_dir)
        self._episodes_path = config.run_dir / "episodes.jsonl"
        self._evaluations_path = config.run_dir / "evaluations.jsonl"
        drop_torn_line(self._evaluations_path)
        self._episodes = read_episodes(self._episodes_path)
        if self._episodes:
            _check_same_task(config)
        self._episodes_before = len(self._episodes)
        self._weights_ages_s: list[float] = []
        self._final: Evaluation | None = None
        self._next_mention_s = self._started_s
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._backend.close)
            self._open_robot()
            self._open_link()
            on_failure.pop_all()
        # Only now: the spool would not have opened if another actor worked in this folder.
        (config.run_dir / "config.toml").write_text(to_toml({"actor": config}))

    def _open_robot(self) -> None:
        config, period_s = self._config, 1.0 / self._task.control_rate_hz
        self._env = RobotEnv(self._task, self._backend, RateKeeper(period_s, config.pace))
        # An environment of its own, so that drawing videos does not count as overruns of the control loop.
        self._evaluation_env = RobotEnv(self._task, self._backend, RateKeeper(period_s, config.eval_pace))
        teleop = ScriptedTeleop(self._env, config.intervention, self._seed(_OPERATOR), self._training_steps)
        self._arbiter = Arbiter(teleop, round(config.intervention.settings.hold_s * self._task.control_rate_hz))
        self._throttle = VersionThrottle(config.max_steps_per_version, config.max_version_wait_s)

    def _open_link(self) -> None:
        config = self._config
        specs = Specs(self._task.observation_spec, self._task.action_spec)
        incarnation = new_incarnation()
        self._spool = Spool(config.run_dir / "spool.sqlite", config.actor_id, incarnation)
        self._link = Link(
            config.learner,
            self._spool,
            specs,
            config.policy,
            config.actor_id,
            incarnation,
            config.run_dir / "weights",
        )
        self._policy = PolicyRunner(specs, config.policy, self._seed(_POLICY), self._link)
        self._link.start()

    def run(self) -> None:
        """Demonstrate, train, evaluate; always close the robot, drain the spool and write the summary.

        Raises what the learner refused the connection with, and RobotFailureError when the robot fails.
        """
        try:
            self._demonstrate()
            self._train()
            self._say_if_stopped()
            self._evaluate_finally()
        except RobotError as error:
            raise RobotFailureError(str(error)) from error
        finally:
            self._close()
        if self._link.refusal is not None:
            raise self._link.refusal

    def _demonstrate(self) -> None:
        # One that a stop request cut short is recorded again: the learner has its steps, but it does not reach the end.
        recorded = sum(episode.kind == "demonstration" and not episode.stopped for episode in self._episodes)
        missing = max(0, self._config.demonstrations - recorded)
        self._say(f"demonstrations: {recorded} of {self._config.demonstrations} recorded earlier, {missing} to record")
        for _ in range(missing):
            if self._must_stop():
                return
            self._run_episode("demonstration")

    def _train(self) -> None:
        next_evaluation = self._next_interim_evaluation()
        while not self._training_is_over():
            self._throttle.wait(self._newest_version, self._must_stop)
            steps_before = self._training_steps
            self._run_episode("training")
            self._throttle.spend(self._training_steps - steps_before)
            if next_evaluation is not None and self._training_steps >= next_evaluation and not self._training_is_over():
                self._evaluate("interim", self._config.interim_eval_episodes)
                next_evaluation = self._next_interim_evaluation()

    def _say_if_stopped(self) -> None:
        if self._stop_requested():
            self._say("stopped: saving what there is; once more ends the actor at once")

    def _evaluate_finally(self) -> None:
        if self._config.eval_episodes == 0:
            return
        if self._must_stop():
            self._say("final evaluation: skipped, a stop was asked for")
            return
        self._final = self._evaluate("final", self._config.eval_episodes)

    def _run_episode(self, kind: EpisodeKind) -> None:
        number = len(self._episodes)
        start_s = time.monotonic()
        tally = run_episode(
            self._env,
            self._policy,
            self._arbiter,
            self._spool,
            episode=number - self._episodes_before,
            seed=self._seed(_PLACEMENTS),
            is_demonstration=kind == "demonstration",
            should_stop=self._must_stop,
        )
        self._weights_ages_s += tally.weights_ages_s
        report = _report(number, kind, tally, time.monotonic() - start_s, self._spool.pending)
        self._episodes.append(report)
        append_json_line(self._episodes_path, report)
        period = self._env.rate.statistics()
        self._say(episode_line(report, self._task.control_rate_hz, period.p99_ms))
        self._mention_missing_learner()

    def _mention_missing_learner(self) -> None:
        """Say, now and then, that steps pile up."""
        link, now_s = self._link.statistics, time.monotonic()
        if link.is_connected or self._link.refusal is not None or now_s < self._next_mention_s:
            return
        self._next_mention_s = now_s + _MENTION_PERIOD_S
        self._say(
            f"learner {self._config.learner} is not connected ({link.last_error or 'no answer yet'}): "
            f"{self._spool.pending} steps wait in the spool, the actor goes on"
        )

    def _evaluate(self, kind: Literal["interim", "final"], episodes: int) -> Evaluation:
        self._policy.swap_if_newer()
        result = evaluate(
            self._evaluation_env,
            self._policy,
            kind=kind,
            episodes=episodes,
            env_steps=self._training_steps,
            candidates=self._config.eval_candidates or None,
            videos=self._config.videos if kind == "final" else 0,
            video_dir=self._config.run_dir / "videos",
            should_stop=self._must_stop,
        )
        append_json_line(self._evaluations_path, result)
        partial = "" if result.episodes == episodes else f", stopped before all {episodes} were done"
        self._say(
            f"{kind} evaluation: {result.successes} of {result.episodes} succeeded "
            f"(95 % interval {result.wilson_low:.0%} to {result.wilson_high:.0%}), mean length "
            f"{result.mean_length:.1f} steps, policy v{result.weights_version}{partial}"
        )
        return result

    def _close(self) -> None:
        """Stop the robot first; whatever fails on the way, the rest is still closed."""
        drain_s = self._config.drain_timeout_s
        with contextlib.ExitStack() as last_to_first:
            last_to_first.callback(lambda: write_json(self._config.run_dir / "actor_summary.json", self._summary()))
            last_to_first.callback(self._spool.close)
            last_to_first.callback(
                lambda: self._link.close(min(drain_s, _STOPPED_DRAIN_S) if self._must_stop() else drain_s)
            )
            last_to_first.callback(self._backend.close)
            last_to_first.callback(self._backend.stop)

    def _summary(self) -> dict[str, Any]:
        config, period = self._config, self._env.rate.statistics()
        demonstrations = [episode for episode in self._episodes if episode.kind == "demonstration"]
        return {
            "task": config.task,
            "backend": config.backend,
            "seed": config.seed,
            "wall_s": time.monotonic() - self._started_s,
            "stopped": self._stop_requested(),
            "env_steps": sum(episode.length for episode in self._episodes),
            "episodes": len(self._episodes),
            "demonstrations": {
                "episodes": len(demonstrations),
                "successes": sum(episode.is_success for episode in demonstrations),
                "steps": sum(episode.length for episode in demonstrations),
            },
            "control": {
                "period_ms": {"p50": period.p50_ms, "p99": period.p99_ms, "max": period.max_ms},
                "overruns": period.overruns,
            },
            "link": self._link_figures(),
            "weights": {"version": self._policy.weights_version, "staleness_s": percentiles(self._weights_ages_s)},
            "intervention": intervention_figures(self._episodes),
            "eval": _final_figures(self._final),
        }

    def _link_figures(self) -> dict[str, Any]:
        """Return what this process offered to its spool and what became of it."""
        statistics = self._link.statistics
        return {
            "offered": self._spool.offered,
            "sent": statistics.sent,
            "acked": statistics.acked,
            "pending": self._spool.pending,
            "bytes_per_transition": statistics.bytes_sent / statistics.sent if statistics.sent else None,
            "reconnects": statistics.reconnects,
        }

    @property
    def _training_steps(self) -> int:
        return sum(episode.length for episode in self._episodes if episode.kind == "training")

    def _must_stop(self) -> bool:
        return self._stop_requested() or self._link.refusal is not None

    def _training_is_over(self) -> bool:
        if self._must_stop():
            return True
        if self._config.max_env_steps and self._training_steps >= self._config.max_env_steps:
            return True
        used_s = time.monotonic() - self._started_s
        return self._config.max_minutes > 0 and used_s + self._reserve_s() >= 60 * self._config.max_minutes

    def _reserve_s(self) -> float:
        """Return the time to keep for the final evaluation, judged by the latest episodes of this process."""
        recent = self._episodes[self._episodes_before :][-_RECENT_EPISODES:]
        if not recent:
            return 0.0
        mean_s = sum(episode.duration_s for episode in recent) / len(recent)
        return _RESERVE_MARGIN * self._config.eval_episodes * mean_s

    def _next_interim_evaluation(self) -> int | None:
        every = self._config.eval_every_steps
        return (self._training_steps // every + 1) * every if every else None

    def _newest_version(self) -> int:
        weights = self._link.latest_weights()
        return weights.version if weights else 0

    def _seed(self, stream: int) -> int:
        """Return the stream's seed for the next episode; episodes of an earlier process keep theirs to themselves."""
        sequence = np.random.SeedSequence((self._config.seed, stream, len(self._episodes)))
        return int(sequence.generate_state(1)[0])


def _check_pace(config: ActorConfig, is_simulated: bool) -> None:
    if is_simulated:
        return
    if (config.pace, config.eval_pace) != (1.0, 1.0) or config.max_steps_per_version:
        raise ConfigError(
            f"actor.pace = {config.pace}, eval_pace = {config.eval_pace} and max_steps_per_version = "
            f"{config.max_steps_per_version}: backend {config.backend!r} is no simulator, it runs in real time (both "
            "paces 1) and never waits for its learner (0)"
        )


def _check_same_task(config: ActorConfig) -> None:
    """Raise ConfigError when the run folder holds episodes, and maybe unsent steps, of another task."""
    path = config.run_dir / "config.toml"
    earlier = load_preset(str(path))["actor"]["task"] if path.exists() else config.task
    if earlier != config.task:
        raise ConfigError(
            f"{config.run_dir} holds episodes of task {earlier!r}, not of {config.task!r}. Choose another --run-dir, "
            f"or --task {earlier}."
        )


def _report(number: int, kind: EpisodeKind, tally: EpisodeTally, duration_s: float, backlog: int) -> EpisodeReport:
    return EpisodeReport(
        episode=number,
        kind=kind,
        is_success=tally.is_success,
        length=tally.length,
        episode_return=tally.episode_return,
        duration_s=duration_s,
        interventions=tally.interventions,
        intervention_steps=tally.intervention_steps,
        clipped_steps=tally.clipped_steps,
        weights_version=tally.weights_version,
        weights_age_s=tally.weights_ages_s[-1] if tally.weights_ages_s else 0.0,
        backlog=backlog,
        stopped=tally.stopped,
    )


def _final_figures(final: Evaluation | None) -> dict[str, Any]:
    """Return the summary's "eval"; nulls when no episode was finished, so that its keys are always there."""
    names = ("requested_episodes", "episodes", "successes", "success_rate", "wilson_low", "wilson_high")
    is_known = final is not None and final.episodes > 0
    return {name: getattr(final, name) if is_known else None for name in (*names, "mean_return", "mean_length")}
