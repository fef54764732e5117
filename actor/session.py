"""One actor process from its first demonstration to its summary. Decides what happens between episodes."""

import contextlib
import gc
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np

from actor.accounting import human_time
from actor.config import ActorConfig
from actor.env import RobotFailureError
from actor.evaluation import Evaluation, evaluate
from actor.learner_news import LearnerNews
from actor.loop import EpisodeTally, await_verdict, run_episode
from actor.policy_runner import PolicyRunner
from actor.protocol_stages import EpisodePlan
from actor.readiness import Readiness
from actor.report import (
    drop_torn_line,
    episode_line,
    episode_report,
    intervention_figures,
    percentiles,
    read_episodes,
    typical_duration_s,
    write_json,
)
from actor.spool import new_incarnation
from actor.stage_log import LoggedSchedule
from actor.throttle import VersionThrottle
from actor.uplink import open_uplink, uplink_figures
from actor.workcell import Workcell, configured_task
from policy.config import load_preset, to_toml
from policy.errors import ConfigError
from policy.files import make_folder
from policy.spec import Specs
from robot.errors import InterruptionError, RobotError

_PLACEMENTS, _OPERATOR, _POLICY = range(3)  # streams of random numbers, all from the one configured seed
_SWITCH_INTERVAL_S = 0.0005
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
        self._task = configured_task(config)
        make_folder(config.run_dir)
        self._episodes_path = config.run_dir / "episodes.jsonl"
        self._evaluations_path = config.run_dir / "evaluations.jsonl"
        drop_torn_line(self._evaluations_path)
        self._episodes = read_episodes(self._episodes_path)
        if self._episodes:
            check_same_task(config)
        self._episodes_before = len(self._episodes)
        self._schedule = LoggedSchedule(config, self._episodes, say)
        self._throttle = VersionThrottle(config.max_steps_per_version, config.max_version_wait_s)
        self._weights_ages_s: list[float] = []
        self._weights_lags_steps: list[int] = []
        self._final: Evaluation | None = None
        with contextlib.ExitStack() as on_failure:
            self._open_link(on_failure)
            self._cell = Workcell(
                config,
                self._task,
                self._link,
                on_failure,
                say,
                operator_seed=self._seed(_OPERATOR),
                should_stop=self._must_stop,
                training_steps=self._training_steps,
            )
            self._closing = on_failure.pop_all()
        # Only now: the spool would not have opened if another actor worked in this folder.
        recorded = replace(config, intervention=config.intervention.explicit())
        (config.run_dir / "config.toml").write_text(to_toml({"actor": recorded}))

    def _open_link(self, closing: contextlib.ExitStack) -> None:
        config = self._config
        specs = Specs(self._task.observation_spec, self._task.action_spec)
        self._spool, self._link = open_uplink(
            config,
            specs,
            new_incarnation(),
            len(self._episodes),
            closing,
            must_stop=self._must_stop,
            say=self._say,
        )
        self._policy = PolicyRunner(
            specs,
            config.policy,
            self._seed(_POLICY),
            self._link,
            self._link.learner_time_s,
            learner_step=lambda: self._link.learner_step,
        )
        self._readiness = Readiness(self._spool, self._link, self._policy, config.max_weights_age_s, self._say)
        self._news = LearnerNews(self._link, self._spool, config.learner, self._say)

    def run(self) -> None:
        """Demonstrate, train, evaluate; always close the robot, drain the spool and write the summary.

        Raises what the learner refused the connection with, and RobotFailureError when the robot fails.
        """
        try:
            self._say_where_it_stands()
            with undisturbed():
                self._demonstrate_and_train()
                if self._stop_requested():
                    self._say("stopped: saving what there is; once more ends the actor at once")
                self._evaluate_finally()
        except RobotError as error:
            raise RobotFailureError(str(error)) from error
        finally:
            try:
                self._close()
            except OSError as error:
                self._say(f"not all was written at the end: {error}")
        if self._link.refusal is not None:
            raise self._link.refusal

    def _say_where_it_stands(self) -> None:
        # One that a stop request cut short is recorded again: the learner has its steps, but it does not reach the end.
        wanted = self._config.demonstrations
        recorded = min(wanted, sum(row.kind == "demonstration" and row.is_counted for row in self._episodes))
        self._say(f"demonstrations: {recorded} of {wanted} recorded earlier, {wanted - recorded} to record")
        self._schedule.say_where_it_stands()

    def _demonstrate_and_train(self) -> None:
        next_evaluation = self._next_interim_evaluation()
        while True:
            plan = self._schedule.plan()
            is_over = self._must_stop if plan.is_initial else self._training_is_over
            if is_over():
                return
            if not plan.is_demonstration:
                self._throttle.wait(self._newest_version, self._training_is_over, self._mention_wait)
            self._readiness.wait(self._rest, is_over, needs_weights=not plan.is_demonstration)
            if is_over():
                return
            steps_before = self._training_steps
            self._run_episode(plan)
            self._throttle.spend(self._training_steps - steps_before)
            if next_evaluation is not None and self._training_steps >= next_evaluation and not self._training_is_over():
                self._evaluate("interim", self._config.interim_eval_episodes)
                next_evaluation = self._next_interim_evaluation()

    def _evaluate_finally(self) -> None:
        if self._config.eval_episodes == 0:
            return
        if self._must_stop():
            self._say("final evaluation: skipped, a stop was asked for")
            return
        self._final = self._evaluate("final", self._config.eval_episodes)

    def _run_episode(self, plan: EpisodePlan) -> None:
        gc.collect()  # here, where nothing waits for it, and not in the middle of an episode
        number, start_s, slept_s = len(self._episodes), time.monotonic(), self._cell.env.rate.slept_s
        tally = self._drive(plan, number - self._episodes_before)
        if tally is None:
            return
        self._weights_ages_s += tally.weights_ages_s
        self._weights_lags_steps += tally.weights_lags_steps
        report = episode_report(
            number,
            "demonstration" if plan.is_demonstration else "training",
            tally,
            stage=plan.stage,
            duration_s=time.monotonic() - start_s,
            slept_s=self._cell.env.rate.slept_s - slept_s,
            control_rate_hz=self._task.control_rate_hz,
            backlog=self._spool.pending,
        )
        self._episodes.append(report)
        self._readiness.keep_line(self._episodes_path, report, self._rest, self._must_stop)
        self._say(episode_line(report, self._cell.env.rate.statistics().p99_ms))
        self._schedule.observe(report)
        self._news.tell()
        if tally.interruption is not None:
            self._cell.recover_from(tally.interruption, self._must_stop)

    def _drive(self, plan: EpisodePlan, episode: int) -> EpisodeTally | None:
        """Run one episode and hear the operator on it; None when a stop is asked for before its first step."""
        cell, config = self._cell, self._config
        cell.await_device(self._must_stop)
        while not self._must_stop():
            try:
                tally = run_episode(
                    cell.env,
                    self._policy,
                    cell.arbiter,
                    self._spool,
                    episode=episode,
                    seed=self._seed(_PLACEMENTS),
                    is_demonstration=plan.is_demonstration,
                    assistance=plan.assistance,
                    rewards=cell.rewards,
                    operator=cell.operator,
                    codec=config.cameras.codec,
                    should_stop=self._must_stop,
                )
            except InterruptionError as error:  # before its first step: nothing of it is recorded
                cell.recover_from(error, self._must_stop)
                continue
            self._hear_verdict(tally, episode)
            return tally
        return None

    def _rest(self, reason: str) -> None:
        self._news.tell()
        self._cell.rest(reason)

    def _hear_verdict(self, tally: EpisodeTally, episode: int) -> None:
        if not tally.length or tally.stopped or tally.is_discarded or tally.interruption:
            return
        window_s = self._config.verdict_window_s
        if window_s:
            verdict = "SUCCESS" if tally.is_success else "FAILURE"
            self._say(f"{verdict} by {tally.reward_source}: {window_s:.0f} s to correct it by key")
        await_verdict(
            self._cell.env,
            self._cell.operator,
            self._spool,
            tally,
            episode=episode,
            window_s=window_s,
            should_stop=self._must_stop,
        )

    def _mention_wait(self) -> None:
        self._say(
            f"waiting up to {self._config.max_version_wait_s:.0f} s for the learner's next weights, so as not to "
            f"outrun it (max_steps_per_version = {self._config.max_steps_per_version})"
        )

    def _evaluate(self, kind: Literal["interim", "final"], episodes: int) -> Evaluation:
        self._policy.swap_if_newer()
        result = evaluate(
            self._cell.evaluation_env,
            self._policy,
            kind=kind,
            episodes=episodes,
            env_steps=self._training_steps,
            candidates=self._config.eval_candidates or None,
            codec=self._config.cameras.codec,
            arbiter=self._cell.arbiter,
            rewards=self._cell.truth,
            operator=self._cell.operator,
            videos=self._config.videos if kind == "final" else 0,
            video_dir=self._config.run_dir / "videos",
            should_stop=self._must_stop,
            recover=lambda error: self._cell.recover_from(error, self._must_stop),
        )
        self._readiness.keep_line(self._evaluations_path, result, self._rest, self._must_stop)
        partial = "" if result.episodes == episodes else f", stopped before all {episodes} were done"
        self._say(
            f"{kind} evaluation: {result.successes} of {result.episodes} succeeded "
            f"(95 % interval {result.wilson_low:.0%} to {result.wilson_high:.0%}), mean length "
            f"{result.mean_length:.1f} steps, policy v{result.weights_version}{partial}"
        )
        return result

    def _close(self) -> None:
        """Stop the robot first; whatever fails on the way, the rest is still closed."""
        with contextlib.ExitStack() as last_to_first:
            last_to_first.callback(lambda: write_json(self._config.run_dir / "actor_summary.json", self._summary()))
            last_to_first.callback(self._say_what_was_refused)
            last_to_first.callback(self._closing.close)

    def _say_what_was_refused(self) -> None:
        if self._news.refusals():
            self._say(f"ALARM: {self._news.refusals()}")

    def _summary(self) -> dict[str, Any]:
        config, period = self._config, self._cell.env.rate.statistics()
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
            "discarded_episodes": sum(episode.is_discarded for episode in self._episodes),
            "aborted_episodes": sum(episode.is_aborted for episode in self._episodes),
            "stale_image_steps": sum(episode.stale_image_steps for episode in self._episodes),
            "reward_sources": dict(Counter(episode.reward_source for episode in self._episodes)),
            "stages": config.stages.enabled,
            "safety": {"clips": dict(self._cell.safety_log.clips), "faults": self._cell.safety_log.faults},
            "control": {
                "period_ms": {"p50": period.p50_ms, "p99": period.p99_ms, "max": period.max_ms},
                "overruns": period.overruns,
            },
            "link": uplink_figures(self._spool, self._link),
            "weights": {
                "version": self._policy.weights_version,
                "staleness_s": percentiles(self._weights_ages_s),
                "lag_steps": percentiles(self._weights_lags_steps),
            },
            "intervention": intervention_figures(self._episodes),
            "human_time": human_time(asdict(episode) for episode in self._episodes),
            "eval": _final_figures(self._final),
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
        config, episodes = self._config, self._episodes[self._episodes_before :]
        return _RESERVE_MARGIN * config.eval_episodes * typical_duration_s(episodes, config.pace, config.eval_pace)

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


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep Python itself out of the control loop's way.

    A full garbage collection takes tens of milliseconds. And a thread that computes keeps the interpreter for up to the
    switch interval, 5 ms unless changed, while the control thread's deadline has come.
    """
    interval_s = sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    gc.disable()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval_s)
        gc.enable()
        gc.unfreeze()


def check_same_task(config: ActorConfig) -> None:
    """Raise ConfigError when the run folder holds episodes, and maybe unsent steps, of another task or variant."""
    path = config.run_dir / "config.toml"
    earlier = load_preset(str(path))["actor"] if path.exists() else {}
    for name in ("task", "pixels", "gripper", "frame", "offset_m", "control_rate_hz"):
        value = getattr(config, name)
        value = list(value) if isinstance(value, tuple) else value  # as TOML has it
        if earlier.get(name, value) != value:
            raise ConfigError(
                f"{config.run_dir} holds episodes of {name} {earlier[name]!r}, not of {value!r}. Choose another "
                f"--run-dir, or --{name.replace('_', '-')} {earlier[name]}."
            )


def _final_figures(final: Evaluation | None) -> dict[str, Any]:
    """Return the summary's "eval"; nulls when no episode was finished, so that its keys are always there."""
    names = ("requested_episodes", "episodes", "successes", "success_rate", "wilson_low", "wilson_high")
    is_known = final is not None and final.episodes > 0
    return {name: getattr(final, name) if is_known else None for name in (*names, "mean_return", "mean_length")}
