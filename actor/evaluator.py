"""Runs the trials of an evaluation, one after another, and writes the report when all are done.

The policies act alone. A person who takes over ends no trial, but makes it no success. What is evaluated is a copy of
each policy in the evaluation's folder, so that a learner that goes on changes nothing.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actor.config import EvaluateConfig
from actor.env import RobotEnv, RobotFailureError
from actor.evaluation import evaluation_seed
from actor.evaluation_report import write_report
from actor.film import Film
from actor.loop import EpisodeTally, await_verdict, run_episode
from actor.policy_runner import FixedWeights
from actor.published_policy import FixedPolicy, PublishedPolicy, check_candidates
from actor.recording_judge import AskByKey, KeepSuccesses
from actor.statistics import rms_jerk
from actor.trials import Pose, Start, Trial, TrialFolder, check_start, recorded_starts
from actor.workcell import Workcell, configured_task
from policy.config import to_json
from policy.errors import EXIT_INTERRUPTED, EXIT_OK, ConfigError
from policy.spec import Specs
from policy.transition import Recordable, Transition
from robot.errors import InterruptionError, RobotError
from robot.interface import Array
from robot.teleop.terminal import standard_terminal

# What trials must have in common to be counted together.
_SETTINGS = (
    "task",
    "backend",
    "pixels",
    "gripper",
    "frame",
    "offset_m",
    "control_rate_hz",
    "cameras",
    "looks_variation",
    "reward",
    "intervention",
    "verdict_window_s",
    "eval_pace",
    "eval_candidates",
    "seed",
    "episodes",
)
_IDLE_S = 0.02


class Evaluator:
    """`should_stop` is asked after every step and while waiting for a person; `say` shows one line to that person."""

    def __init__(self, config: EvaluateConfig, should_stop: Callable[[], bool], say: Callable[[str], None]) -> None:
        """Open everything. Raises CgpoError; for a policy that cannot act here before anything is written."""
        self._config = config
        self._should_stop = should_stop
        self._say = say
        self._task = configured_task(config)
        self._specs = Specs(self._task.observation_spec, self._task.action_spec)
        self._starts = _starts(config)
        self._has_moved = False
        with contextlib.ExitStack() as on_failure:
            self._policies = self._open_folder(on_failure)
            self._open_cell(on_failure)
            self._closing = on_failure.pop_all()

    def _open_folder(self, closing: contextlib.ExitStack) -> dict[str, FixedPolicy]:
        """Return the policies by label: those that this evaluation began with, or copies made now."""
        config = self._config
        if config.checkpoint is None:
            raise ConfigError("which policy? Give --checkpoint, the run folder of a learner or of launch/sim.sh.")
        paths = {"A": config.checkpoint} | ({"B": config.against} if config.against is not None else {})
        settings = _settings(config, self._starts) | {
            "policies": {label: str(path.resolve()) for label, path in paths.items()}
        }
        if (config.run_dir / "evaluation.json").exists():
            self._folder = TrialFolder(config.run_dir)
            closing.callback(self._folder.close)
            self._folder.check(settings)
            return {label: self._read(label, self._folder.policy_folder(label)) for label in paths}
        policies = {label: self._read(label, path) for label, path in paths.items()}
        self._folder = TrialFolder(config.run_dir)
        closing.callback(self._folder.close)
        for label, policy in policies.items():
            policy.published.keep(self._folder.policy_folder(label))
        self._folder.prepare(settings, list(paths), config.episodes)
        return policies

    def _read(self, label: str, path: Path) -> FixedPolicy:
        """Return a policy that can act in this task. Raises CgpoError, naming the option that it was given by."""
        name = f"--{'checkpoint' if label == 'A' else 'against'} {path}"
        published = PublishedPolicy.read(path)
        published.check(name, self._specs)
        candidates = self._config.eval_candidates or None
        check_candidates(name, published.config, candidates)
        return FixedPolicy(published, candidates)

    def _open_cell(self, closing: contextlib.ExitStack) -> None:
        # The judge, if it is a classifier, looks through the first policy's image encoder.
        first = self._policies["A"].published
        config = dataclasses.replace(self._config, policy=first.config, pace=self._config.eval_pace)
        nothing = FixedWeights(None)
        self._cell = Workcell(
            config, self._task, nothing, closing, self._say, operator_seed=config.seed, should_stop=self._should_stop
        )
        self._person: AskByKey | KeepSuccesses = KeepSuccesses()
        if not (self._cell.is_simulated or config.auto):
            if not standard_terminal().is_usable:
                raise ConfigError(
                    "nobody can say when the objects are back in their places: the standard input is no terminal in "
                    "the foreground. Start the evaluation in a terminal of its own, or with --auto."
                )
            self._person = AskByKey(standard_terminal(), self._cell.operator, config.keys, self._say)
        closing.callback(self._person.close)

    def run(self) -> int:
        """Run the trials that are missing; write the report when there are all. Return the exit code.

        Raises RobotFailureError when the robot fails; the trials before are kept.
        """
        try:
            with self._closing:
                is_complete = self._run_trials()
        except RobotError as error:
            raise RobotFailureError(str(error)) from error
        done, total = len(self._folder.counted), len(self._folder.order)
        if not is_complete:
            self._say(f"stopped after {done} of {total} trials: the same command goes on with the next one")
            return EXIT_INTERRUPTED
        for line in write_report(self._folder, export=self._config.export):
            self._say(line)
        return EXIT_OK

    def _run_trials(self) -> bool:
        """Return whether all trials are done."""
        order = self._folder.order
        if self._folder.counted:
            self._say(f"{len(self._folder.counted)} of {len(order)} trials were done earlier")
        for number, label in enumerate(order, start=1):
            while number not in self._folder.counted:
                self._person.wait_for_start(f"trial {number} of {len(order)}", self._wait)
                if self._should_stop():
                    return False
                self._try(number, len(order), self._policies[label])
        return True

    def _try(self, number: int, total: int, policy: FixedPolicy) -> None:
        """Run a trial and write it down; a stop request or a camera's fault before its first step leaves nothing."""
        index = (number - 1) // len(self._policies)
        record = _Record(self._cell.env, self._starts[index], self._config.film)
        policy.reseed(self._starts[index].seed)
        self._has_moved = True
        try:
            tally = self._drive(number, policy, record)
        except InterruptionError as error:
            self._cell.recover_from(error, self._should_stop)
            return
        if tally.stopped:
            return
        void = "the operator discarded it" if tally.is_discarded else str(tally.interruption or "")
        name = f"videos/trial_{number:03d}.mp4"
        video = name if record.save_film(self._config.run_dir / name) else ""
        trial = record.trial(number, index, tally, video=video, void=void)
        self._folder.add(trial)
        self._say(f"trial {number} of {total}: {_outcome(trial)}")
        if tally.interruption is not None:
            self._cell.recover_from(tally.interruption, self._should_stop)

    def _drive(self, number: int, policy: FixedPolicy, record: "_Record") -> EpisodeTally:
        cell, config = self._cell, self._config
        tally = run_episode(
            cell.env,
            policy,
            cell.arbiter,
            record,
            episode=number,
            seed=record.start.seed,
            assistance="none",
            rewards=cell.rewards,
            operator=cell.operator,
            codec=config.cameras.codec,
            watch=record.watch,
            should_stop=self._should_stop,
        )
        if tally.length and not (tally.stopped or tally.is_discarded or tally.interruption):
            await_verdict(
                cell.env,
                cell.operator,
                record,
                tally,
                episode=number,
                window_s=config.verdict_window_s,
                should_stop=self._should_stop,
            )
        return tally

    def _wait(self) -> bool:
        """Hold the arm for a period, while a person thinks; return whether to go on waiting."""
        if self._has_moved:
            with contextlib.suppress(InterruptionError):  # nothing is observed now; a fault shows at the next start
                self._cell.env.hold("between two trials")
        time.sleep(_IDLE_S)
        return not self._should_stop()


class _Record:
    """What is kept of one trial while it runs; the loop's outbox."""

    def __init__(self, env: RobotEnv, start: Start, is_filmed: bool) -> None:
        self.start = start
        self._env = env
        self._film = Film(env) if is_filmed else None
        self._positions: list[Array] = []  # (3,) m, in O; one more than actions
        self._actions: list[NDArray[np.float32]] = []
        self._O_T_EE: Pose = []
        self._objects: dict[str, Pose] = {}

    def watch(self) -> None:
        """Note where the arm is. Raises ConfigError when a trial does not begin at its recorded start state."""
        state, objects = self._env.state, self._env.objects
        if not self._positions:
            check_start(self.start, state.O_T_EE, objects)
            self._O_T_EE = state.O_T_EE.tolist()
            self._objects = {name: pose.tolist() for name, pose in objects.items()}
        self._positions.append(state.O_T_EE[:3, 3].copy())
        if self._film is not None:
            self._film.take()

    def offer(self, body: Recordable) -> None:
        if isinstance(body, Transition):
            self._actions.append(body.executed_action)

    def save_film(self, path: Path) -> bool:
        return self._film is not None and self._film.save(path)

    def trial(self, number: int, index: int, tally: EpisodeTally, *, video: str, void: str) -> Trial:
        task = self._env.task
        period_s = 1.0 / task.control_rate_hz
        arm_dim = task.action_spec.dim - (task.action_spec.gripper != "none")
        actions = np.reshape(self._actions, (-1, task.action_spec.dim))[:, :arm_dim]
        return Trial(
            trial=number,
            start=index,
            seed=self.start.seed,
            O_T_EE=self._O_T_EE,
            objects=self._objects,
            is_success=tally.is_success and tally.interventions == 0,
            verdict=tally.is_success,
            judged_by=tally.reward_source,
            length=tally.length,
            cycle_time_s=tally.length * period_s,
            interventions=tally.interventions,
            intervention_steps=tally.intervention_steps,
            clipped_steps=tally.clipped_steps,
            stale_image_steps=tally.stale_image_steps,
            ee_jerk_m_s3=rms_jerk(np.reshape(self._positions, (-1, 3)), period_s),
            action_jerk_s3=rms_jerk(actions, period_s),
            video=video,
            void=void,
        )


def _starts(config: EvaluateConfig) -> list[Start]:
    if config.starts is not None:
        return recorded_starts(config.starts, config.episodes)
    return [Start(seed=evaluation_seed(config.seed, index)) for index in range(config.episodes)]


def _settings(config: EvaluateConfig, starts: Sequence[Start]) -> dict[str, Any]:
    explicit = dataclasses.replace(config, intervention=config.intervention.explicit())
    values = json.loads(to_json(explicit))
    return {**{name: values[name] for name in _SETTINGS}, "start_seeds": [start.seed for start in starts]}


def _outcome(trial: Trial) -> str:
    """Return what is said of a trial. It must not tell which policy it was."""
    if trial.void:
        return f"void, it is run again: {trial.void}"
    help_text = f", {trial.interventions} interventions" if trial.interventions else ""
    return f"{'SUCCESS' if trial.is_success else 'FAILURE'} {trial.cycle_time_s:.1f} s{help_text}"
