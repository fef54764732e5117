"""Records demonstrations until enough are kept. Runs the control loop; between episodes it asks and remembers.

Every step goes to the spool as it happens. A discarded episode stays in the stream with a mark that keeps the learner
from learning from it, and so does one that the recorder's death cut short (actor/recording_state.py). Each episode is a
line of episodes.jsonl; the actor counts those that were kept as its demonstrations.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable

import numpy as np

from actor.config import ActorConfig, RecorderConfig
from actor.env import RobotFailureError
from actor.learner_news import LearnerNews
from actor.loop import EpisodeTally, run_episode
from actor.policy_runner import PolicyRunner
from actor.readiness import Readiness
from actor.recording_judge import AskByKey, Decision, Judge, KeepSuccesses
from actor.recording_state import RecordingState, discard_mark, flush
from actor.report import episode_line, episode_report, read_episodes
from actor.session import check_same_task
from actor.spool import new_incarnation
from actor.uplink import open_uplink
from actor.workcell import Workcell, configured_task
from policy.config import to_toml
from policy.errors import ConfigError
from policy.files import make_folder
from policy.spec import Specs
from policy.transition import EpisodeMark, MarkKind
from robot.errors import InterruptionError, RobotError
from robot.teleop.terminal import standard_terminal

_PLACEMENTS, _OPERATOR, _POLICY = range(3, 6)  # streams of random numbers; the actor's are 0 to 2
_IDLE_S = 0.02


class Recorder:
    """Robot, input device, spool and link of one recording process.

    `should_stop` is asked after every step and while waiting for a person; `say` shows one line to that person.
    """

    def __init__(self, config: RecorderConfig, should_stop: Callable[[], bool], say: Callable[[str], None]) -> None:
        """Open everything. Raises CgpoError for a configuration that cannot work."""
        self._config = config
        self._should_stop = should_stop
        self._say = say
        self._wanted = config.episodes or config.demonstrations
        if not config.auto and not standard_terminal().is_usable:
            raise ConfigError(
                "nobody can say which demonstrations to keep: the standard input is no terminal in the foreground. "
                "Start the recorder in a terminal of its own, or with --auto, which keeps successes."
            )
        self._task = configured_task(config)
        make_folder(config.run_dir)
        self._episodes_path = config.run_dir / "episodes.jsonl"
        self._episodes = read_episodes(self._episodes_path)
        if self._episodes:
            check_same_task(config)
        self._attempts = self._discarded = 0  # of this process
        with contextlib.ExitStack() as on_failure:
            self._open_link(on_failure)
            self._open_cell(on_failure)
            self._closing = on_failure.pop_all()
        # Only now: the spool would not have opened if another process worked in this folder.
        actor = {field.name: getattr(config, field.name) for field in dataclasses.fields(ActorConfig)}
        recorded = ActorConfig(**actor | {"intervention": config.intervention.explicit()})
        (config.run_dir / "config.toml").write_text(to_toml({"actor": recorded}))

    def _open_link(self, closing: contextlib.ExitStack) -> None:
        config, incarnation = self._config, new_incarnation()
        state = RecordingState.load(config.run_dir)
        specs = Specs(self._task.observation_spec, self._task.action_spec)
        self._spool, self._link = open_uplink(
            config, specs, incarnation, len(self._episodes), closing, must_stop=self._must_stop, say=self._say
        )
        self._state = dataclasses.replace(state, incarnation=incarnation)
        self._policy = PolicyRunner(
            specs,
            config.policy,
            self._seed(_POLICY),
            self._link,
            self._link.learner_time_s,
            learner_step=lambda: self._link.learner_step,
        )
        self._readiness = Readiness(self._spool, self._link, self._policy, 0.0, self._say)
        self._news = LearnerNews(self._link, self._spool, config.learner, self._say)

    def _open_cell(self, closing: contextlib.ExitStack) -> None:
        seed = self._seed(_OPERATOR, self._state.starts)
        self._cell = Workcell(
            self._config, self._task, self._link, closing, self._say, operator_seed=seed, should_stop=self._must_stop
        )
        self._judge: Judge = KeepSuccesses()
        if not self._config.auto:
            self._judge = AskByKey(standard_terminal(), self._cell.operator, self._config.keys, self._say)
        closing.callback(self._judge.close)

    def run(self) -> None:
        """Record until enough is kept or a stop is asked for; always close the robot and say what is stored.

        Raises what the learner refused the connection with, and RobotFailureError when the robot fails.
        """
        self._say(f"demonstrations: {self._kept} of {self._wanted} kept earlier")
        is_redo = False
        try:
            with self._closing:
                while self._kept < self._wanted and not self._must_stop():
                    is_redo = self._record_one(is_redo)
        except RobotError as error:
            raise RobotFailureError(str(error)) from error
        finally:
            self._say(self._account())
            if self._news.refusals():
                self._say(f"ALARM: {self._news.refusals()}")
        if self._link.refusal is not None:
            raise self._link.refusal

    def _record_one(self, is_redo: bool) -> bool:
        """Record an episode and make what is decided about it last; return whether to begin again from its start."""
        self._news.tell()
        self._readiness.wait(self._cell.rest, self._must_stop, needs_weights=False)
        self._judge.wait_for_start(f"demonstration {self._kept + 1} of {self._wanted}", self._wait)
        if self._must_stop():
            return False
        self._begin(is_redo)
        start_s, slept_s = time.monotonic(), self._cell.env.rate.slept_s
        try:
            tally = self._drive()
        except InterruptionError as error:  # before its first step: nothing of it is recorded
            self._cell.recover_from(error, self._must_stop)
            return True
        decision = self._decide(tally)
        self._conclude(decision, tally, time.monotonic() - start_s, self._cell.env.rate.slept_s - slept_s)
        if tally.interruption is not None:
            self._cell.recover_from(tally.interruption, self._must_stop)
        return decision is Decision.REDO

    def _begin(self, is_redo: bool) -> None:
        """Remember that an episode is under way, before its first step."""
        self._state = dataclasses.replace(
            self._state,
            episode=self._attempts,
            reports_before=len(self._episodes),
            starts=self._state.starts + (not is_redo),
        )
        self._attempts += 1
        self._state.save(self._config.run_dir)

    def _drive(self) -> EpisodeTally:
        return run_episode(
            self._cell.env,
            self._policy,
            self._cell.arbiter,
            self._spool,
            episode=self._state.episode,
            seed=self._seed(_PLACEMENTS, self._state.starts),
            is_demonstration=True,
            rewards=self._cell.rewards,
            operator=self._cell.operator,
            codec=self._config.cameras.codec,
            should_stop=self._must_stop,
        )

    def _decide(self, tally: EpisodeTally) -> Decision:
        if tally.is_discarded or tally.stopped or tally.interruption:
            return Decision.DISCARD
        return self._judge.decide(tally, self._cell.arbiter.episode_fault, self._wait)

    def _conclude(self, decision: Decision, tally: EpisodeTally, duration_s: float, slept_s: float) -> None:
        """Offer the decision's mark, wait until all is on the disk, and only then count the episode."""
        episode = self._state.episode
        is_kept = decision in (Decision.KEEP, Decision.KEEP_AS_SUCCESS)
        if decision is Decision.KEEP_AS_SUCCESS and not tally.is_success:
            self._spool.offer(
                EpisodeMark(episode=episode, step=tally.last_step, kind=MarkKind.SUCCESS, wall_time_s=time.time())
            )
            tally.is_success, tally.reward_source = True, "human"
        if not is_kept and tally.length and not tally.is_discarded:
            self._spool.offer(discard_mark(episode, tally.last_step, "not kept by the recorder"))
        tally.is_discarded = not is_kept
        self._make_durable()
        report = episode_report(
            len(self._episodes),
            "demonstration",
            tally,
            stage=None,
            duration_s=duration_s,
            slept_s=slept_s,
            control_rate_hz=self._task.control_rate_hz,
            backlog=self._spool.pending,
        )
        if not self._readiness.keep_line(self._episodes_path, report, self._cell.rest, self._must_stop):
            self._say(f"{self._episodes_path} has no line of this demonstration: the next start here discards it")
            return
        self._episodes.append(report)
        self._discarded += not is_kept
        line = episode_line(report, self._cell.env.rate.statistics().p99_ms)
        self._say(f"{line}  kept {self._kept} of {self._wanted}")

    def _make_durable(self) -> None:
        """Wait until the episode is on the disk, however long a person needs to mend that disk, or a stop."""
        while not self._spool.flush(_IDLE_S) and not self._must_stop():
            self._readiness.wait(self._cell.rest, self._must_stop, needs_weights=False)
        flush(self._spool)

    def _wait(self) -> bool:
        """Hold the arm for a period, while a person thinks; return whether to go on waiting."""
        if self._attempts:
            with contextlib.suppress(InterruptionError):  # nothing is recorded now; a fault shows at the next start
                self._cell.env.hold("between two episodes")
        time.sleep(_IDLE_S)
        return not self._must_stop()

    def _must_stop(self) -> bool:
        return self._should_stop() or self._link.refusal is not None

    @property
    def _kept(self) -> int:
        return sum(report.kind == "demonstration" and report.is_counted for report in self._episodes)

    def _seed(self, stream: int, number: int = 0) -> int:
        """Return the stream's seed for its n-th use; over restarts no start comes twice."""
        return int(np.random.SeedSequence((self._config.seed, stream, number)).generate_state(1)[0])

    def _account(self) -> str:
        """Return what is stored, and what the learner has of it."""
        kept = [row for row in self._episodes if row.kind == "demonstration" and row.is_counted]
        pending = self._spool.pending
        where = "the learner has all of it"
        if pending:
            folder = self._config.run_dir
            where = f"{pending} records wait in {folder} until actor or recorder run there with the learner up"
        return (
            f"recorded: {len(kept)} of {self._wanted} demonstrations ({sum(row.length for row in kept)} steps) kept, "
            f"{self._discarded} discarded now; {where}"
        )
