"""The four stages of the paper's robot protocol: who helps when, decided from what the last episodes came to.

The paper (section 5.3, "following SiLRI") says that initial expert guidance and autonomous exploration are balanced,
that corrections are for deviations that recur, and full demonstrations for failure that persists. It gives no number:
every threshold here is ours.

    GUIDANCE ---> EXPLORATION <---> CORRECTION ---> DEMONSTRATION
                       ^                                  |
                       +----------------------------------+

No torch: the launcher's configuration needs this module.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from actor.intervention_config import Assistance
from policy.errors import ConfigError


class Stage(StrEnum):
    """What the next episode is for."""

    GUIDANCE = "guidance"  # demonstrations, then frequent help
    EXPLORATION = "exploration"  # the policy alone
    CORRECTION = "correction"  # a human corrects where the policy deviates
    DEMONSTRATION = "demonstration"  # a human shows the whole task again


@dataclass(frozen=True, kw_only=True)
class StagesConfig:
    """Thresholds of the intervention stages, all of them ours: the paper gives none."""

    enabled: bool = False
    """Let the four stages decide who helps when; false: initial demonstrations, then help that fades out."""
    guidance_episodes: int = 10
    """Training episodes with frequent help after the initial demonstrations; then the policy explores."""
    deviation_window: int = 5
    """Exploration: this many of its latest episodes are looked at."""
    recurring_deviations: int = 3
    """Exploration: with this many of them not solved without help, a human begins to correct."""
    recovered_successes: int = 2
    """Correction: so many episodes in a row solved without help end it, and the policy explores again."""
    persistent_failures: int = 6
    """Correction: so many episodes in a row not solved without help call for a full demonstration."""
    full_demonstrations: int = 1
    """Full demonstrations before the policy explores again."""

    def __post_init__(self) -> None:
        for name in ("deviation_window", "recurring_deviations", "recovered_successes", "persistent_failures"):
            if getattr(self, name) < 1:
                raise ConfigError(f"stages.{name} = {getattr(self, name)} must be at least 1")
        if self.guidance_episodes < 0 or self.full_demonstrations < 1:
            raise ConfigError(
                f"stages.guidance_episodes = {self.guidance_episodes} must not be negative, full_demonstrations = "
                f"{self.full_demonstrations} at least 1"
            )
        if self.recurring_deviations > self.deviation_window:
            raise ConfigError(
                f"stages.recurring_deviations = {self.recurring_deviations} cannot be reached in a deviation_window of "
                f"{self.deviation_window} episodes"
            )


class EpisodeResult(Protocol):
    """What the stages look at in an episode (actor.report.EpisodeReport)."""

    @property
    def kind(self) -> str:
        """`demonstration` or `training`."""

    @property
    def is_success(self) -> bool: ...

    @property
    def intervention_steps(self) -> int: ...

    @property
    def is_counted(self) -> bool:
        """False for an episode that was cut short or discarded."""


@dataclass(frozen=True)
class EpisodePlan:
    """How the next episode is to be run, and why."""

    is_demonstration: bool
    assistance: Assistance
    reason: str
    stage: Stage | None = None  # None: the stages are off
    is_initial: bool = False  # one of the demonstrations before training


@dataclass(frozen=True)
class StageChange:
    """A transition between stages, with the numbers behind it."""

    before: Stage
    after: Stage
    reason: str
    numbers: dict[str, int]


class Schedule(Protocol):
    """Plans one episode after another."""

    def plan(self) -> EpisodePlan:
        """Return how to run the next episode; the same until `observe`."""

    def observe(self, result: EpisodeResult) -> StageChange | None:
        """Take the result of an episode; return the change of stage that it caused."""


@dataclass
class FixedSchedule:
    """Initial demonstrations, then training episodes in which help fades out by the operator's own configuration."""

    demonstrations: int
    _recorded: int = 0

    def plan(self) -> EpisodePlan:
        missing = self.demonstrations - self._recorded
        if missing > 0:
            return EpisodePlan(True, "none", f"{missing} demonstrations to record", is_initial=True)
        return EpisodePlan(False, "random", "training, with help that fades out")

    def observe(self, result: EpisodeResult) -> StageChange | None:
        self._recorded += result.kind == "demonstration" and result.is_counted
        return None


@dataclass
class StageMachine:
    """The present stage, and what counts towards the next one. The same results always lead to the same state.

    An episode is solved unaided when it succeeds and no human chose any of its steps; anything else, a success with
    help included, counts as a deviation. Episodes that were cut short or discarded count for nothing.
    """

    config: StagesConfig
    demonstrations: int
    stage: Stage = Stage.GUIDANCE
    reason: str = "training begins"
    _recorded: int = 0  # initial demonstrations
    _unaided: list[bool] = field(default_factory=list)  # of each training episode since the stage began
    _shown: int = 0  # demonstrations since the stage began

    def __post_init__(self) -> None:
        if self.demonstrations == self.config.guidance_episodes == 0:
            self.stage, self.reason = Stage.EXPLORATION, "no guidance is configured"

    def plan(self) -> EpisodePlan:
        if self.stage is Stage.GUIDANCE and self._recorded < self.demonstrations:
            reason = f"initial demonstration {self._recorded + 1} of {self.demonstrations}"
            return EpisodePlan(True, "none", reason, self.stage, is_initial=True)
        if self.stage is Stage.DEMONSTRATION:
            return EpisodePlan(True, "none", self.reason, self.stage)
        return EpisodePlan(False, _ASSISTANCE[self.stage], self.reason, self.stage)

    def observe(self, result: EpisodeResult) -> StageChange | None:
        if not result.is_counted:
            return None
        if result.kind == "demonstration":
            self._recorded += self.stage is Stage.GUIDANCE
            self._shown += self.stage is Stage.DEMONSTRATION and result.is_success
        else:
            self._unaided.append(result.is_success and result.intervention_steps == 0)
        change = self._change()
        if change is not None:
            self.stage, self.reason = change.after, change.reason
            self._unaided, self._shown = [], 0
        return change

    def _change(self) -> StageChange | None:
        if self.stage is Stage.GUIDANCE:
            return self._after_guidance()
        if self.stage is Stage.EXPLORATION:
            return self._after_exploration()
        if self.stage is Stage.CORRECTION:
            return self._after_correction()
        if self._shown < self.config.full_demonstrations:
            return None
        reason = f"{self._shown} full demonstration{'s' * (self._shown > 1)} recorded: the policy tries again"
        return StageChange(self.stage, Stage.EXPLORATION, reason, {"demonstrations": self._shown})

    def _after_guidance(self) -> StageChange | None:
        guided, needed = len(self._unaided), self.config.guidance_episodes
        if self._recorded < self.demonstrations or guided < needed:
            return None
        reason = f"{self._recorded} demonstrations and {guided} guided episodes are done: the policy explores alone"
        numbers = {"demonstrations": self._recorded, "guided_episodes": guided, "guidance_episodes": needed}
        return StageChange(self.stage, Stage.EXPLORATION, reason, numbers)

    def _after_exploration(self) -> StageChange | None:
        recent = self._unaided[-self.config.deviation_window :]
        deviations, limit = recent.count(False), self.config.recurring_deviations
        if deviations < limit:
            return None
        reason = (
            f"{deviations} of the last {len(recent)} episodes failed or needed help (limit {limit}): deviations recur"
        )
        numbers = {"deviations": deviations, "episodes": len(recent), "recurring_deviations": limit}
        return StageChange(self.stage, Stage.CORRECTION, reason, numbers)

    def _after_correction(self) -> StageChange | None:
        successes, failures = _run_at_end(self._unaided, True), _run_at_end(self._unaided, False)
        if successes >= self.config.recovered_successes:
            reason = f"{successes} episodes in a row solved without help: the policy explores alone"
            return StageChange(self.stage, Stage.EXPLORATION, reason, {"successes_in_a_row": successes})
        if failures >= self.config.persistent_failures:
            reason = f"{failures} episodes in a row not solved without help: failure persists, show the whole task"
            return StageChange(self.stage, Stage.DEMONSTRATION, reason, {"failures_in_a_row": failures})
        return None


_ASSISTANCE: dict[Stage, Assistance] = {
    Stage.GUIDANCE: "random",
    Stage.EXPLORATION: "none",
    Stage.CORRECTION: "on_deviation",
}

ADVICE = {
    Stage.GUIDANCE: "help often, early rather than late, and give back soon",
    Stage.EXPLORATION: "hands off; only keep the robot safe",
    Stage.CORRECTION: "take over where the policy deviates again, bring it back, and let go",
    Stage.DEMONSTRATION: "drive the whole episode",
}
"""What each stage asks of the person at the robot."""


def make_schedule(config: StagesConfig, demonstrations: int) -> Schedule:
    """Return the schedule at the start of a run; one that goes on observes the episodes so far first."""
    return StageMachine(config, demonstrations) if config.enabled else FixedSchedule(demonstrations)


def stage_line(change: StageChange, episode: int, env_steps: int, wall_time_s: float) -> dict[str, Any]:
    """Return the line of stages.jsonl for a change after `episode`, at `env_steps` steps on the robot."""
    return {
        "wall_time_s": wall_time_s,
        "episode": episode,
        "env_steps": env_steps,
        "from": change.before,
        "to": change.after,
        "reason": change.reason,
        "numbers": change.numbers,
    }


def _run_at_end(flags: list[bool], value: bool) -> int:
    """Return how many of the last flags, without a break, are `value`."""
    return next((i for i, flag in enumerate(reversed(flags)) if flag is not value), len(flags))
