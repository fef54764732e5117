"""What becomes of an episode, and of the arm, when state, robot or the loop itself fails in it."""

import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actor.config import ActorConfig
from actor.env import RobotEnv, RobotFailureError
from actor.intervention import Arbiter, HumanInput
from actor.intervention_config import Assistance
from actor.loop import OUTAGE_LIMIT_S, EpisodeTally, run_episode
from actor.operator import OperatorSignal, ScriptedSignals
from actor.policy_runner import FixedWeights, PolicyRunner
from actor.rate import RateKeeper
from actor.safety_log import SafetyLog
from actor.session import Session
from actor.tasks import make_task
from policy.config import PolicyConfig
from policy.spec import Specs
from policy.transition import EpisodeMark, MarkKind, Recordable, Transition
from robot.backends.fake import FakeBackend
from robot.errors import RobotFaultError, StaleStateError
from robot.guard import GuardEvent, Mode
from robot.interface import RobotCommand, RobotState
from tests.teleop_fakes import PressedKeys

POLICY = PolicyConfig(denoising_steps=2, denoiser_hidden=(8,), behavior_candidates=1)


class Arm(FakeBackend):
    """A fake whose state can be stale, and which remembers what it was told, and when its states were read."""

    def __init__(self, scene: str = "reach") -> None:
        super().__init__(scene)
        self.told: list[RobotCommand | str] = []
        self.on_read: Callable[[int], None] = lambda reads: None
        self.reads = 0
        self.commands_at_fault = 0

    @property
    def commands(self) -> int:
        return sum(not isinstance(told, str) for told in self.told)

    def read_state(self) -> RobotState:
        self.reads += 1
        self.on_read(self.reads)
        return super().read_state()

    def send_command(self, command: RobotCommand) -> None:
        super().send_command(command)
        self.told.append(command)

    def stop(self) -> None:
        super().stop()
        self.told.append("stop")


class Nobody:
    def begin_episode(self, is_demonstration: bool, assistance: Assistance) -> None: ...

    def read(self) -> HumanInput:
        return HumanInput(np.zeros(3, np.float32), is_active=False)


class Outbox:
    def __init__(self) -> None:
        self.steps: list[Transition] = []
        self.marks: list[EpisodeMark] = []

    def offer(self, body: Recordable) -> None:
        (self.steps if isinstance(body, Transition) else self.marks).append(body)  # type: ignore[arg-type]


class Clock:
    """Time that passes in sleep alone."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s

    def keeper(self) -> RateKeeper:
        return RateKeeper(0.1, clock=lambda: self.now_s, sleep=self.sleep)


def drive(arm: Arm, rate: RateKeeper | None = None, **kwargs: Any) -> tuple[EpisodeTally, Outbox, RobotEnv]:
    env, outbox = RobotEnv(make_task("reach"), arm, rate), Outbox()
    specs = Specs(env.task.observation_spec, env.task.action_spec)
    policy = PolicyRunner(specs, POLICY, 0, FixedWeights(None))
    tally = run_episode(env, policy, Arbiter(Nobody(), 0), outbox, episode=3, seed=0, **kwargs)
    return tally, outbox, env


def stale_between(first: int, last: int) -> Callable[[int], None]:
    def on_read(reads: int) -> None:
        if first <= reads <= last:
            raise StaleStateError(0.2, 0.12)

    return on_read


def test_a_short_outage_is_held_through_and_leaves_a_gap_in_the_numbers() -> None:
    arm = Arm()
    arm.on_read = stale_between(12, 14)
    tally, outbox, _ = drive(arm)
    assert tally.interruption is None
    assert tally.length == make_task("reach").max_episode_steps
    numbers = [step.step for step in outbox.steps]
    gap = [before for before, after in itertools.pairwise(numbers) if after != before + 1]
    assert len(gap) == 1
    assert "stop" in arm.told
    stopped = arm.told.index("stop")
    assert not isinstance(arm.told[stopped + 1], str), "it goes on by itself"


def test_a_long_outage_ends_the_episode_with_the_arm_held() -> None:
    arm = Arm()
    arm.on_read = stale_between(12, 10**6)
    tally, outbox, env = drive(arm)
    assert isinstance(tally.interruption, StaleStateError)
    assert (len(outbox.steps), outbox.steps[-1].is_last) == (tally.length, False)
    assert arm.told[-1] == "stop"
    assert arm.reads == 12 + round(OUTAGE_LIMIT_S * env.task.control_rate_hz)
    assert env.guard.mode is Mode.HOLD


def test_what_the_operator_says_in_an_outage_concerns_the_last_recorded_step() -> None:
    arm = Arm()
    arm.on_read = stale_between(12, 10**6)
    steps_before = 9  # one poll before the first step and one after each
    tally, outbox, _ = drive(arm, operator=ScriptedSignals({steps_before + 1: [OperatorSignal.DISCARD]}))
    assert tally.is_discarded
    assert [(mark.kind, mark.step) for mark in outbox.marks] == [(MarkKind.DISCARD, outbox.steps[-1].step)]


def test_a_fault_ends_the_episode_at_once_and_nothing_is_sent_after_it() -> None:
    arm = Arm()

    def reflex(reads: int) -> None:
        if reads == 12:
            arm.fault = "reflex: joint 4"

    arm.on_read = reflex
    tally, outbox, env = drive(arm)
    assert isinstance(tally.interruption, RobotFaultError)
    assert len(outbox.steps) == tally.length > 0
    assert arm.told[-1] == "stop"
    told = len(arm.told)
    arm.fault = ""
    with pytest.raises(RobotFaultError, match="joint 4"):
        env.step(np.ones(3, np.float32))
    with pytest.raises(RobotFaultError, match="joint 4"):
        env.reset(seed=1)
    assert len(arm.told) == told


def test_after_a_lapse_of_the_loop_the_arm_holds_and_the_steps_are_not_joined() -> None:
    arm, clock = Arm(), Clock()

    def oversleep(reads: int) -> None:
        if reads == 12:
            clock.now_s += 0.35  # the period that begins with this measurement is the long one

    arm.on_read = oversleep
    _, outbox, _ = drive(arm, clock.keeper())
    numbers = [step.step for step in outbox.steps]
    gaps = [after - before for before, after in itertools.pairwise(numbers)]
    assert sorted(set(gaps)) == [1, 2]
    assert gaps.count(2) == 1
    assert arm.told.count("stop") == 2, "after the lapse, and when the episode is over"


def config(run_dir: Path) -> ActorConfig:
    return ActorConfig(
        policy=POLICY, task="reach", backend="fake", learner="127.0.0.1:1", run_dir=run_dir, demonstrations=3,
        pace=0.0, max_env_steps=60, eval_episodes=1, drain_timeout_s=0.0, videos=0,
    )  # fmt: skip


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> Arm:
    arm = Arm()
    monkeypatch.setattr("actor.workcell.connect_robot", lambda *_: arm)
    return arm


def reflex_at(arm: Arm, reads: int) -> None:
    def on_read(now: int) -> None:
        if now == reads:
            arm.fault = "reflex: joint 4"
            arm.commands_at_fault = arm.commands

    arm.on_read = on_read


def test_a_person_lets_the_session_go_on_after_a_fault(
    arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, said, told_at_fault = PressedKeys(), [], []
    monkeypatch.setattr("actor.workcell.open_operator", lambda *_: keys)
    reflex_at(arm, 30)
    waits = threading.Event()

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("nothing moves until"):
            told_at_fault.append(len(arm.told))
            waits.set()
        elif "press [x] first" in line:
            told_at_fault.append(len(arm.told))
            keys.pressed = [OperatorSignal.ACKNOWLEDGE, OperatorSignal.CONFIRM]

    def press() -> None:
        assert waits.wait(60)
        keys.pressed = [OperatorSignal.CONFIRM]  # without having acknowledged

    thread = threading.Thread(target=press)
    thread.start()
    Session(config(tmp_path), lambda: False, say).run()
    thread.join()
    assert told_at_fault[0] == told_at_fault[1], "nothing was sent while the fault stood"
    assert any("FAULT: reflex: joint 4" in line for line in said)
    rows = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert [row["is_aborted"] for row in rows].count(True) == 1
    assert sum(row["kind"] == "demonstration" and not row["is_aborted"] for row in rows) == 3
    summary = json.loads((tmp_path / "actor_summary.json").read_text())
    assert summary["safety"]["faults"] == 1
    assert summary["eval"]["episodes"] == 1
    events = [json.loads(line) for line in (tmp_path / "safety.jsonl").read_text().splitlines()]
    modes = [event["mode"] for event in events if event["kind"] == "mode"]
    assert modes[modes.index("FAULT") + 1] == "HOLD"
    assert "reflex: joint 4" in [event["reason"] for event in events]


def test_where_nobody_can_acknowledge_a_fault_the_session_ends_and_says_so(arm: Arm, tmp_path: Path) -> None:
    reflex_at(arm, 30)
    with pytest.raises(RobotFailureError, match=r"reflex: joint 4 Nobody can acknowledge.*no terminal"):
        Session(config(tmp_path), lambda: False, lambda line: None).run()
    assert arm.commands == arm.commands_at_fault > 0
    assert json.loads((tmp_path / "actor_summary.json").read_text())["aborted_episodes"] == 1


def test_a_pause_pressed_in_the_reset_is_obeyed_before_the_first_step() -> None:
    arm = Arm()
    script = ScriptedSignals({0: [OperatorSignal.PAUSE], 6: [OperatorSignal.PAUSE]})
    told: list[int] = []
    arm.on_read = lambda reads: told.append(arm.commands)
    tally, outbox, _ = drive(arm, operator=script)
    assert told[:6] == [0] * 6, "nothing moves while the pause lasts"
    assert (tally.length, outbox.steps[0].step) == (make_task("reach").max_episode_steps, 0)


def test_a_pause_pressed_in_an_outage_is_obeyed_when_it_is_over() -> None:
    arm = Arm()
    arm.on_read = stale_between(12, 14)
    polls_before = 10  # before the first step, and after each of the nine
    script = ScriptedSignals({polls_before + 1: [OperatorSignal.PAUSE], polls_before + 6: [OperatorSignal.RESET]})
    tally, _, env = drive(arm, operator=script)
    commands = [told for told in arm.told if not isinstance(told, str)]
    assert len(commands) == tally.length + 1, "the step under way, and nothing after it"
    assert tally.interruption is None
    assert env.guard.mode is Mode.HOLD


def test_the_safety_log_ends_on_a_full_disk() -> None:
    log = SafetyLog(Path("/dev/full"))
    log.observe(GuardEvent("mode", Mode.HOLD, "x" * 100_000, 0.0))
    log.close()
    log.close()


class Unplugged:
    """A device that fails while its person drives."""

    fault: str | None = None

    def begin_episode(self, is_demonstration: bool, assistance: Assistance) -> None: ...

    def read(self) -> HumanInput:
        return HumanInput(np.zeros(3, np.float32), is_active=self.fault is None, fault=self.fault)


def test_a_device_that_failed_in_use_is_missed_until_it_works() -> None:
    device = Unplugged()
    arbiter = Arbiter(device, hold_steps=0)
    arbiter.begin_episode(False)
    arbiter.decide(np.ones(3, np.float32))
    assert not arbiter.misses_a_hand()
    device.fault = "unplugged"
    np.testing.assert_array_equal(arbiter.decide(np.ones(3, np.float32)).action, np.zeros(3))
    assert arbiter.misses_a_hand()
    device.fault = None
    assert not arbiter.misses_a_hand()
