"""Records demonstrations until enough are kept. Runs the control loop; between episodes it asks and remembers.

Every step goes to the spool as it happens. A discarded episode stays in the stream with a mark that keeps the learner
from learning from it, and so does one that the recorder's death cut short: the next recorder in the folder marks it.
A kept one is a line of episodes.jsonl, which the actor counts as one of its demonstrations.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable

import numpy as np

from actor.config import ActorConfig, RecorderConfig
from actor.device_driver import connect_device, make_driver
from actor.env import RobotEnv, RobotFailureError, connect_backend
from actor.intervention import Arbiter
from actor.link import Link
from actor.loop import EpisodeTally, run_episode
from actor.operator import open_operator
from actor.policy_runner import PolicyRunner
from actor.rate import RateKeeper
from actor.recording_judge import AskByKey, Decision, Judge, KeepSuccesses
from actor.recording_state import RecordingState, close_open_episode, discard_mark, flush
from actor.report import EpisodeReport, append_json_line, episode_line, read_episodes
from actor.spool import Spool, new_incarnation
from actor.tasks import make_task
from actor.tasks.base import TaskOptions
from policy.config import to_toml
from policy.errors import ConfigError
from policy.files import make_folder
from policy.spec import Specs
from policy.transition import EpisodeMark, MarkKind
from robot.errors import CameraStaleError, RobotError
from robot.interface import SimulatedBackend
from robot.teleop.terminal import Terminal, standard_terminal

_log = logging.getLogger(__name__)

_PLACEMENTS, _OPERATOR, _POLICY = range(3)  # streams of random numbers, all from the one configured seed
_IDLE_S = 0.02
_STOPPED_DRAIN_S = 2.0  # whoever asked for a stop does not want to wait; the spool keeps the rest


class Recorder:
    """Robot, input device, spool and link of one recording process.

    `should_stop` is asked after every step and while waiting for a person; `say` shows one line to that person.
    """

    def __init__(
        self,
        config: RecorderConfig,
        should_stop: Callable[[], bool],
        say: Callable[[str], None],
        terminal: Terminal | None = None,
    ) -> None:
        """Open everything. Raises CgpoError for a configuration that cannot work."""
        self._config = config
        self._should_stop = should_stop
        self._say = say
        self._wanted = config.episodes or config.demonstrations
        self._terminal = terminal or standard_terminal()
        if not config.auto and not self._terminal.is_usable:
            raise ConfigError(
                "nobody can say which demonstrations to keep: the standard input is no terminal in the foreground. "
                "Start the recorder in a terminal of its own, or with --auto, which keeps successes."
            )
        make_folder(config.run_dir)
        self._episodes_path = config.run_dir / "episodes.jsonl"
        self._state_path = config.run_dir / "recording.json"
        self._spool_path = config.run_dir / "spool.sqlite"
        self._reports = read_episodes(self._episodes_path)
        self._state = RecordingState.load(self._state_path)
        self._attempts = self._discarded = 0  # of this process
        with contextlib.ExitStack() as on_failure:
            self._open(on_failure)
            self._closing = on_failure.pop_all()
        # Only now: the spool would not have opened if another process worked in this folder.
        actor = {field.name: getattr(config, field.name) for field in dataclasses.fields(ActorConfig)}
        (config.run_dir / "config.toml").write_text(to_toml({"actor": ActorConfig(**actor)}))

    def _open(self, closing: contextlib.ExitStack) -> None:
        """Open the robot last, so that it is stopped first."""
        config = self._config
        cut_short = close_open_episode(self._state, len(self._reports), self._spool_path, config.actor_id)
        if cut_short:
            self._say(f"the last recorder ended in an episode: its {cut_short} steps are kept and marked as discarded")
        incarnation = new_incarnation()
        self._spool = Spool(self._spool_path, config.actor_id, incarnation)
        closing.callback(self._spool.close)
        self._state = RecordingState(
            incarnation=incarnation, written_before=self._spool.written, starts=self._state.starts
        )
        self._task = make_task(
            config.task,
            TaskOptions(
                pixels=config.pixels,
                image_size_px=config.cameras.image_size_px,
                gripper=config.gripper,
                frame=config.frame,
            ),
        )
        specs = Specs(self._task.observation_spec, self._task.action_spec)
        weights_dir = config.run_dir / "weights"
        self._link = Link(config.learner, self._spool, specs, config.policy, config.actor_id, incarnation, weights_dir)
        self._policy = PolicyRunner(specs, config.policy, self._seed(_POLICY), self._link)
        self._link.start()
        drain_s = config.drain_timeout_s
        closing.callback(lambda: self._link.close(min(drain_s, _STOPPED_DRAIN_S) if self._must_stop() else drain_s))
        self._open_people(closing)
        self._open_robot(closing)

    def _open_people(self, closing: contextlib.ExitStack) -> None:
        config = self._config
        self._device = connect_device(config.teleop, config.run_dir)
        if self._device is not None:
            closing.callback(self._device.close)
        self._operator = open_operator(config.keys, self._say, self._terminal)
        closing.callback(self._operator.close)
        self._judge: Judge = KeepSuccesses()
        if not config.auto:
            self._judge = AskByKey(self._terminal, self._operator, self._say)
        closing.callback(self._judge.close)

    def _open_robot(self, closing: contextlib.ExitStack) -> None:
        config = self._config
        backend = connect_backend(config.backend, self._task)
        closing.callback(backend.close)
        closing.callback(backend.stop)
        if self._device is None and not isinstance(backend, SimulatedBackend):
            raise ConfigError(
                "the scripted operator knows where objects are in a simulation only: choose an input device with "
                "--teleop.device"
            )
        self._env = RobotEnv(self._task, backend, RateKeeper(1.0 / self._task.control_rate_hz, config.pace))
        driver = make_driver(
            self._env, config.intervention, config.teleop, self._device, seed=self._seed(_OPERATOR, self._state.starts)
        )
        self._arbiter = Arbiter(driver, hold_steps=0)

    def run(self) -> None:
        """Record until enough is kept or a stop is asked for; always close the robot and say what is stored.

        Raises what the learner refused the connection with, and RobotFailureError when the robot fails.
        """
        self._say(f"demonstrations: {self._kept} of {self._wanted} kept earlier")
        redo = False
        try:
            with self._closing:
                while self._kept < self._wanted and not self._must_stop():
                    redo = self._record_one(redo) is Decision.REDO
        except RobotError as error:
            raise RobotFailureError(str(error)) from error
        finally:
            self._say(self._account())
        if self._link.refusal is not None:
            raise self._link.refusal

    def _record_one(self, is_redo: bool) -> Decision:
        self._judge.wait_for_start(f"demonstration {self._kept + 1} of {self._wanted}", self._wait)
        if self._must_stop():
            return Decision.DISCARD
        self._begin(is_redo)
        start_s = time.monotonic()
        tally = run_episode(
            self._env,
            self._policy,
            self._arbiter,
            self._spool,
            episode=self._state.episode,
            seed=self._seed(_PLACEMENTS, self._state.starts),
            is_demonstration=True,
            operator=self._operator,
            codec=self._config.cameras.codec,
            should_stop=self._must_stop,
        )
        report = self._report(tally, time.monotonic() - start_s)
        self._say(episode_line(report, self._task.control_rate_hz, self._env.rate.statistics().p99_ms))
        decision = self._decide(tally)
        self._conclude(decision, tally, report)
        return decision

    def _begin(self, is_redo: bool) -> None:
        """Remember that an episode is under way, before its first step."""
        self._state = dataclasses.replace(
            self._state,
            is_open=True,
            episode=self._attempts,
            first_sequence=self._spool.next_sequence,
            reports_before=len(self._reports),
            starts=self._state.starts + (not is_redo),
        )
        self._attempts += 1
        self._state.save(self._state_path)

    def _decide(self, tally: EpisodeTally) -> Decision:
        if tally.is_discarded or tally.stopped or tally.camera_fault or tally.length == 0:
            return Decision.DISCARD
        return self._judge.decide(tally, self._arbiter.episode_fault, self._wait)

    def _conclude(self, decision: Decision, tally: EpisodeTally, report: EpisodeReport) -> None:
        """Make the decision last: its mark in the stream, everything on the disk, and then the count."""
        episode = self._state.episode
        if decision is Decision.KEEP_AS_SUCCESS and not tally.is_success:
            kind = MarkKind.SUCCESS
            self._spool.offer(EpisodeMark(episode=episode, step=tally.last_step, kind=kind, wall_time_s=time.time()))
            report = dataclasses.replace(report, is_success=True)
        is_kept = decision in (Decision.KEEP, Decision.KEEP_AS_SUCCESS)
        if not is_kept and tally.length and not tally.is_discarded:
            self._spool.offer(discard_mark(episode, tally.last_step, "the person who recorded it"))
        flush(self._spool)
        if is_kept:
            self._reports.append(report)
            append_json_line(self._episodes_path, report)
        self._discarded += not is_kept
        self._state = dataclasses.replace(self._state, is_open=False)
        self._state.save(self._state_path)
        self._say(f"{'kept' if is_kept else 'discarded'}: {self._kept} of {self._wanted}")

    def _wait(self) -> bool:
        """Hold the arm for a period, while a person thinks; return whether to go on waiting."""
        if self._attempts:
            with contextlib.suppress(CameraStaleError):  # nothing is recorded now
                self._env.hold()
        time.sleep(_IDLE_S)
        return not self._must_stop()

    def _must_stop(self) -> bool:
        return self._should_stop() or self._link.refusal is not None

    @property
    def _kept(self) -> int:
        return sum(report.kind == "demonstration" and not report.stopped for report in self._reports)

    def _seed(self, stream: int, number: int = 0) -> int:
        """Return the stream's seed for its n-th use; over restarts no start comes twice."""
        return int(np.random.SeedSequence((self._config.seed, stream, number)).generate_state(1)[0])

    def _account(self) -> str:
        """Return what is stored, and what the learner has of it."""
        steps = sum(report.length for report in self._reports if report.kind == "demonstration")
        pending = self._spool.pending
        where = "the learner has all of it"
        if pending:
            where = f"{pending} records wait in {self._spool_path} until actor or recorder run here with the learner up"
        return (
            f"recorded: {self._kept} of {self._wanted} demonstrations ({steps} steps) kept, {self._discarded} "
            f"discarded now; {where}"
        )

    def _report(self, tally: EpisodeTally, duration_s: float) -> EpisodeReport:
        return EpisodeReport(
            episode=len(self._reports),
            kind="demonstration",
            is_success=tally.is_success,
            length=tally.length,
            episode_return=tally.episode_return,
            duration_s=duration_s,
            interventions=tally.interventions,
            intervention_steps=tally.intervention_steps,
            clipped_steps=tally.clipped_steps,
            weights_version=tally.weights_version,
            weights_age_s=tally.weights_ages_s[-1] if tally.weights_ages_s else 0.0,
            backlog=self._spool.pending,
            stopped=tally.stopped,
        )
