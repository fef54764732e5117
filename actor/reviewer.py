"""An operator for simulations who knows the truth: takes back false successes, declares those that were missed."""

from actor.operator import OperatorInput, OperatorSignal
from actor.rewards import RewardSource, Verdict
from actor.tasks.base import Outcome
from policy.spec import Observation

_REACTION_STEPS = 4  # a person at 10 Hz takes about this long to be sure and to press the key


class TruthReviewer:
    """A reward source under review, and the operator who reviews it; stands between the loop and both.

    A success that the task does not see is vetoed after the episode, as people do it, so that the log keeps the claim
    beside the veto. One that the source has not seen a few steps later is declared by key, which ends the episode.
    """

    def __init__(self, rewards: RewardSource, operator: OperatorInput) -> None:
        self._rewards = rewards
        self._operator = operator
        self._solved_steps = 0
        self._polls_until_veto: int | None = None

    def begin_episode(self) -> None:
        self._solved_steps = 0
        self._polls_until_veto = None
        self._rewards.begin_episode()

    def judge(self, observation: Observation, outcome: Outcome) -> Verdict:
        verdict = self._rewards.judge(observation, outcome)
        self._solved_steps = self._solved_steps + 1 if outcome.is_success and not verdict.is_success else 0
        # The loop's next poll belongs to this very step; the one after it comes when the episode is over.
        self._polls_until_veto = 1 if verdict.is_success and not outcome.is_success else None
        return verdict

    def poll(self) -> list[OperatorSignal]:
        """Return what the operator beside it says, and then its own word."""
        signals = self._operator.poll()
        if self._polls_until_veto == 0:
            self._polls_until_veto = None
            signals.append(OperatorSignal.FAILURE)
        elif self._polls_until_veto is not None:
            self._polls_until_veto -= 1
        if self._solved_steps > _REACTION_STEPS:
            self._solved_steps = 0
            signals.append(OperatorSignal.SUCCESS)
        return signals

    def close(self) -> None:
        pass
