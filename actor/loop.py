"""The control loop: one episode, step by step. It waits for the robot's period and for nothing else."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from actor.env import RobotEnv
from actor.intervention import Arbiter, Decision
from actor.intervention_config import Assistance
from actor.operator import NoOperator, OperatorInput, OperatorSignal
from actor.policy_runner import PolicyRunner, Proposal
from actor.rate import LAPSE_S
from actor.rewards import DECLARED_FAILURE, DECLARED_SUCCESS, RewardSource, TaskReward, Verdict
from actor.tasks.base import Outcome
from policy.image_codec import ImageCodec, code_images
from policy.spec import Observation
from policy.transition import ActionSource, EpisodeMark, MarkKind, Recordable, Transition
from robot.errors import InterruptionError, OutageError

_log = logging.getLogger(__name__)

OUTAGE_LIMIT_S = 5.0  # an episode waits this long, holding, for state or images to come back

_ENDINGS = (OperatorSignal.SUCCESS, OperatorSignal.FAILURE, OperatorSignal.DISCARD, OperatorSignal.RESET)


class Outbox(Protocol):
    """Takes every step, and what an operator says about steps before (actor.spool.Spool)."""

    def offer(self, body: Recordable) -> object:
        """Keep a record for the learner. Never blocks."""


@dataclass
class EpisodeTally:
    """What an episode came to."""

    length: int = 0
    last_step: int = -1  # number of the last recorded step; a pause leaves a gap in the numbers
    episode_return: float = 0.0
    is_success: bool = False
    reward_source: str = "task"  # who judged the last step
    is_discarded: bool = False
    stopped: bool = False
    interruption: InterruptionError | None = None  # what ended it before its time
    interventions: int = 0
    intervention_steps: int = 0
    human_steps: int = 0  # interventions and demonstrations
    clipped_steps: int = 0
    stale_image_steps: int = 0  # that observed an image older than it should be
    weights_version: int = 0
    weights_ages_s: list[float] = field(default_factory=list)
    weights_lags_steps: list[int] = field(default_factory=list)
    _previous_source: ActionSource = ActionSource.POLICY

    def add(self, transition: Transition, is_success: bool, info: dict[str, Any]) -> None:
        self.length += 1
        self.last_step = transition.step
        self.episode_return += transition.reward
        self.is_success = is_success
        self.reward_source = transition.reward_source
        self.human_steps += transition.is_human
        self.intervention_steps += transition.is_intervention
        self.interventions += transition.is_intervention and transition.source != self._previous_source
        self._previous_source = transition.source
        self.clipped_steps += bool(info["clip_reasons"])
        self.stale_image_steps += bool(info.get("stale_cameras"))
        self.weights_version = transition.weights_version
        if transition.weights_version > 0:
            self.weights_ages_s.append(transition.weights_age_s)
            self.weights_lags_steps.append(transition.weights_lag_steps)


class _Listener:
    """Sorts what the operator says during one episode."""

    def __init__(self, operator: OperatorInput, arbiter: Arbiter) -> None:
        self._operator = operator
        self._arbiter = arbiter
        self.ending: OperatorSignal | None = None  # the latest word that ends the episode
        self.is_paused = False
        self.bookmarks = 0

    def listen(self) -> None:
        for signal in self._operator.poll():
            if signal in _ENDINGS:
                self.ending = signal
            elif signal is OperatorSignal.PAUSE:
                self.is_paused = not self.is_paused
            elif signal is OperatorSignal.INTERVENE:
                self._arbiter.toggle_intervention()
            elif signal is OperatorSignal.BOOKMARK:
                self.bookmarks += 1  # what is left concerns a fault, and there is none

    def begin(self) -> None:
        """Hear what was said before the first step; a verdict then concerns no episode."""
        self.listen()
        if self.ending is not None:
            _log.warning("%s came between two episodes and concerns neither", self.ending.name)
            self.ending = None


def run_episode(
    env: RobotEnv,
    policy: PolicyRunner,
    arbiter: Arbiter,
    outbox: Outbox,
    *,
    episode: int,
    seed: int,
    is_demonstration: bool = False,
    assistance: Assistance = "random",
    rewards: RewardSource | None = None,
    operator: OperatorInput | None = None,
    codec: ImageCodec = "jpeg",
    watch: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> EpisodeTally:
    """Run one episode with the newest weights and offer each step to the outbox.

    Blocks only in env.step() and, while the operator pauses, in env.hold(): send, wait for the period's end, observe.
    watch() is called after the reset and after every step, when the environment has its newest measurement.
    When should_stop() turns true the present step is finished and closes the episode as truncated.

    When state or images are too old the arm holds, and the episode goes on once they are back; after OUTAGE_LIMIT_S, or
    at once with a robot's fault, it ends where it is. The step under way is not recorded, and the one before it, which
    then lacks its next observation, is not trained on. Raises InterruptionError, with nothing recorded, when that
    happens before the first step.
    """
    rewards, listener = rewards or TaskReward(), _Listener(operator or NoOperator(), arbiter)
    policy.swap_if_newer()
    observation: Observation = code_images(env.reset(seed=seed)[0], codec)
    arbiter.begin_episode(is_demonstration, assistance)
    rewards.begin_episode()
    listener.begin()
    watch()
    tally, step = EpisodeTally(), 0
    error: InterruptionError | None = None
    while True:
        if error is not None or listener.is_paused:  # paused in the reset, or in an outage
            back = _hold_until_ready(error, env, listener, tally, should_stop)
            if back is None:
                _conclude_unrecorded(outbox, episode, listener, tally, should_stop())
                return tally
            # A number is left out: the step before has no next observation.
            observation, step, error = code_images(back, codec), step + bool(tally.length), None
        proposal = policy.propose(observation)
        decision = arbiter.decide(proposal.action)
        env.is_human_driving = decision.source is not ActionSource.POLICY
        try:
            measured, reward, terminated, truncated, info = env.step(decision.action)
        except InterruptionError as interruption:
            error = interruption
            continue
        watch()
        next_observation: Observation = code_images(measured, codec)
        verdict = rewards.judge(next_observation, Outcome(reward, terminated, info["is_success"]))
        listener.listen()
        resumed = _hold_while_needed(env, listener, tally, should_stop)
        verdict = _overruled(verdict, listener.ending)
        tally.stopped = should_stop() and not (verdict.terminated or truncated)
        # The task may see success where another judge does not, and then never calls the episode truncated.
        is_over = truncated or tally.length + 1 >= env.task.max_episode_steps
        is_last = bool(is_over or verdict.terminated or tally.stopped or listener.ending or tally.interruption)
        final_observation = next_observation if is_last else None
        transition = _transition(episode, step, observation, proposal, decision, verdict, info, final_observation)
        outbox.offer(transition)
        tally.add(transition, verdict.is_success, info)
        _offer_marks(outbox, transition, listener, tally)
        if is_last:
            env.guard.hold("the episode is over")  # and not on towards the last step's goal
            return tally
        # After a pause a number is left out: then the step before it has no next observation, because time passed.
        observation = next_observation if resumed is None else code_images(resumed, codec)
        step += 1 if resumed is None else 2


def await_verdict(
    env: RobotEnv,
    operator: OperatorInput,
    outbox: Outbox,
    tally: EpisodeTally,
    *,
    episode: int,
    window_s: float,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Hold the arm after an episode while the operator may correct its verdict by key; update `tally`.

    Ends with a verdict, a reset, or after window_s of control periods; a pause makes it last until the next key. With
    window_s = 0 it still hears what was said since the last step.
    """
    periods_left = round(window_s * env.task.control_rate_hz)
    is_paused = False
    while not should_stop():
        for signal in operator.poll():
            is_paused = signal is OperatorSignal.PAUSE and not is_paused
            kind = _MARKS.get(signal)
            if kind is not None:
                outbox.offer(_mark(episode, tally.last_step, kind))
                _correct(tally, kind)
            if signal in _ENDINGS:
                return
        if periods_left <= 0 and not is_paused:
            return
        try:
            env.hold("the episode is over; its verdict may be corrected")
        except InterruptionError as error:
            tally.interruption = error
            return
        periods_left -= 1


_MARKS = {
    OperatorSignal.SUCCESS: MarkKind.SUCCESS,
    OperatorSignal.FAILURE: MarkKind.FAILURE,
    OperatorSignal.DISCARD: MarkKind.DISCARD,
    OperatorSignal.BOOKMARK: MarkKind.BOOKMARK,
}


def _correct(tally: EpisodeTally, kind: MarkKind) -> None:
    """Let a verdict that comes after the episode replace the one at its end."""
    if kind is MarkKind.DISCARD:
        tally.is_discarded = True
    elif kind in (MarkKind.SUCCESS, MarkKind.FAILURE):
        is_success = kind is MarkKind.SUCCESS
        tally.episode_return += float(is_success) - float(tally.is_success)
        tally.is_success, tally.reward_source = is_success, "human"


def _hold_until_ready(
    error: InterruptionError | None,
    env: RobotEnv,
    listener: _Listener,
    tally: EpisodeTally,
    should_stop: Callable[[], bool],
) -> dict[str, Any] | None:
    """Hold the arm until state and images are back and no pause is on; return what is observed then.

    None when the episode ends instead.
    """
    measured: dict[str, Any] | None = None
    if error is not None:
        measured = _outlast(error, env, listener, tally, should_stop)
        if measured is None:
            return None
    if listener.is_paused:
        measured = _hold_while_needed(env, listener, tally, should_stop)
    return None if should_stop() else measured


def _hold_while_needed(
    env: RobotEnv, listener: _Listener, tally: EpisodeTally, should_stop: Callable[[], bool]
) -> dict[str, Any] | None:
    """Hold the arm while the operator pauses, and after a lapse of the control loop; return what is observed then.

    None when there was no need to hold, or the episode ends in it.
    """
    measured: dict[str, Any] | None = None
    while (listener.is_paused or env.rate.has_lapsed) and not should_stop():
        reason = "pause: the operator's key" if listener.is_paused else f"overrun: a control period over {LAPSE_S} s"
        try:
            measured = env.hold(reason)
        except InterruptionError as error:
            measured = _outlast(error, env, listener, tally, should_stop)
            if measured is None:
                return None
        listener.listen()
        if listener.ending is not None:
            return None
    return measured


def _outlast(
    error: InterruptionError, env: RobotEnv, listener: _Listener, tally: EpisodeTally, should_stop: Callable[[], bool]
) -> dict[str, Any] | None:
    """Hold the arm until state and images are back; return what is observed then.

    None, with the tally's `interruption` set, when they do not come back in time, when a fault latched, and when the
    episode is ended meanwhile.
    """
    for _ in range(round(OUTAGE_LIMIT_S * env.task.control_rate_hz)):
        if not isinstance(error, OutageError) or should_stop():
            break
        listener.listen()
        if listener.ending is not None:
            break
        try:
            return env.hold(str(error))
        except InterruptionError as still:
            error = still
    tally.interruption = error
    return None


def _overruled(verdict: Verdict, ending: OperatorSignal | None) -> Verdict:
    """Let the operator's word go before the reward source's."""
    if ending is OperatorSignal.SUCCESS:
        return DECLARED_SUCCESS
    return DECLARED_FAILURE if ending is OperatorSignal.FAILURE else verdict


def _transition(
    episode: int,
    step: int,
    observation: Observation,
    proposal: Proposal,
    decision: Decision,
    verdict: Verdict,
    info: dict[str, Any],
    final_observation: Observation | None,
) -> Transition:
    return Transition(
        episode=episode,
        step=step,
        observation=observation,
        policy_action=proposal.action,
        executed_action=info["executed_action"],
        source=decision.source,
        reward=verdict.reward,
        terminated=verdict.terminated,
        truncated=final_observation is not None and not verdict.terminated,
        weights_version=proposal.weights_version,
        weights_age_s=proposal.weights_age_s,
        weights_lag_steps=proposal.weights_lag_steps,
        wall_time_s=time.time(),
        monotonic_time_s=time.monotonic(),
        reward_source=verdict.source,
        gripper_toggled=info.get("gripper_toggled", False),
        final_observation=final_observation,
    )


def _offer_marks(outbox: Outbox, step: Transition, listener: _Listener, tally: EpisodeTally) -> None:
    for _ in range(listener.bookmarks):
        outbox.offer(_mark(step.episode, step.step, MarkKind.BOOKMARK))
    listener.bookmarks = 0
    if listener.ending is OperatorSignal.DISCARD:
        outbox.offer(_mark(step.episode, step.step, MarkKind.DISCARD))
        tally.is_discarded = True


def _conclude_unrecorded(
    outbox: Outbox, episode: int, listener: _Listener, tally: EpisodeTally, is_stopped: bool
) -> None:
    """End an episode after its last recorded step, which no observation follows: offer what became of it."""
    tally.stopped = is_stopped
    tally.is_discarded = tally.length == 0  # nothing of it is anywhere
    if tally.length == 0:
        return
    kind = None if listener.ending is None else _MARKS.get(listener.ending)
    if kind is None:
        outbox.offer(_mark(episode, tally.last_step, MarkKind.ABORTED, note=str(tally.interruption or "stopped")))
    else:
        outbox.offer(_mark(episode, tally.last_step, kind))
        _correct(tally, kind)


def _mark(episode: int, step: int, kind: MarkKind, note: str = "") -> EpisodeMark:
    return EpisodeMark(episode=episode, step=step, kind=kind, wall_time_s=time.time(), note=note)
