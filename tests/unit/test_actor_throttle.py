"""The budget of steps per published version, on a virtual clock."""

from actor.throttle import VersionThrottle


class Learner:
    """Publishes a version every period_s of the virtual time that the throttle sleeps away."""

    def __init__(self, period_s: float) -> None:
        self.now_s = 0.0
        self._period_s = period_s

    def clock(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s

    def version(self) -> int:
        return int(self.now_s / self._period_s)


def never() -> bool:
    return False


def throttle(learner: Learner, steps_per_version: int = 50) -> VersionThrottle:
    return VersionThrottle(steps_per_version, 30.0, learner.clock, learner.sleep)


def test_steps_and_versions_keep_their_ratio_whatever_the_episode_length() -> None:
    learner = Learner(period_s=1.0)
    budget = throttle(learner)
    steps = 0
    for length in [100, 20, 35, 100, 7] * 20:
        budget.wait(learner.version, never)
        budget.spend(length)
        steps += length
        assert steps <= 50 * (learner.version() + 1) + 100
    assert steps >= 50 * learner.version()


def test_a_learner_that_never_publishes_delays_each_episode_but_stops_none() -> None:
    learner = Learner(period_s=1e9)
    budget = throttle(learner)
    for episode in range(4):
        budget.wait(learner.version, never)
        budget.spend(100)
        assert learner.now_s <= 30.1 * episode


def test_a_long_wait_is_mentioned_once() -> None:
    learner, mentions = Learner(period_s=1e9), []
    budget = throttle(learner)
    budget.wait(learner.version, never, lambda: mentions.append(learner.now_s))
    assert mentions == []
    budget.spend(100)
    budget.wait(learner.version, never, lambda: mentions.append(learner.now_s))
    assert len(mentions) == 1


def test_a_stop_request_ends_the_wait() -> None:
    learner = Learner(period_s=1e9)
    budget = throttle(learner)
    budget.spend(100)
    budget.wait(learner.version, lambda: learner.now_s > 1.0)
    assert learner.now_s < 1.1


def test_versions_of_an_earlier_process_are_no_budget() -> None:
    learner = Learner(period_s=1e9)
    budget = throttle(learner)
    budget.wait(lambda: 300, never)
    budget.spend(60)
    budget.wait(lambda: 300, never)
    assert learner.now_s >= 30.0


def test_zero_never_waits() -> None:
    learner = Learner(period_s=1e9)
    budget = throttle(learner, steps_per_version=0)
    budget.spend(10**6)
    budget.wait(learner.version, never)
    assert learner.now_s == 0.0
