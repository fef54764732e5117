"""The comparison of log and oracle sees each way in which they can differ."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.fault_matrix.oracle import ExecutedStep, compare, digest
from policy.log_records import LogEntry
from policy.transition import EpisodeMark, MarkKind, RecordId, Transition
from tests.transitions import make_transition


def transition(index: int) -> Transition:
    """Step `index` of episodes of ten steps; the numbers 4 are left out, as after a pause."""
    step = index % 10
    return replace(make_transition(index), episode=index // 10, step=step + (step >= 4))


def entry(position: int, sequence: int, body: Transition | EpisodeMark, incarnation: str = "a") -> LogEntry:
    return LogEntry(position, RecordId("robot", incarnation, sequence), body)


def done(index: int, incarnation: str = "a") -> ExecutedStep:
    step = transition(index)
    content = digest(step.observation, step.executed_action)
    return ExecutedStep(incarnation, step.episode, step.step, content, float(index))


DONE = [done(index) for index in range(25)]
LOG = [entry(index + 1, index, transition(index)) for index in range(25)]
ABORTED = EpisodeMark(episode=2, step=5, kind=MarkKind.ABORTED, wall_time_s=0.0)


def test_equal_ones_have_no_faults() -> None:
    result = compare(DONE, [*LOG, entry(26, 25, ABORTED)], killed=set())
    assert (result.committed, result.faults, result.tails) == (25, {}, {})


def test_incarnations_are_apart_although_they_count_alike() -> None:
    both = [*DONE, *(replace(step, incarnation="b") for step in DONE)]
    log = [*LOG, *(entry(25 + e.position, e.record_id.sequence, e.body, "b") for e in LOG)]
    assert compare(both, log, set()).faults == {}
    assert compare(both, LOG, set()).faults == {"lost": 25}


@pytest.mark.parametrize(
    ("log", "faults"),
    [
        ([*LOG[:7], *LOG[8:]], {"lost": 1}),
        (LOG[:-2], {"lost": 2}),
        ([*LOG, entry(26, 25, transition(3))], {"duplicated": 1, "reordered": 1}),
        ([*LOG, LOG[-1]], {"duplicated": 2}),
        ([*LOG[:5], LOG[6], LOG[5], *LOG[7:]], {"reordered": 2}),
        ([*LOG, entry(26, 25, transition(25))], {"unexpected": 1}),
    ],
)
def test_each_fault_is_counted(log: list[LogEntry], faults: dict[str, int]) -> None:
    assert compare(DONE, log, killed=set()).faults == faults


@pytest.mark.parametrize("name", ["observation", "executed_action"])
def test_a_changed_value_is_seen(name: str) -> None:
    step = transition(3)
    if name == "observation":
        q = np.nextafter(step.observation["q"], 9.0, dtype=np.float32)
        changed = replace(step, observation={**step.observation, "q": q})
    else:
        changed = replace(step, executed_action=-step.executed_action)
    assert compare(DONE, [*LOG[:3], entry(4, 3, changed), *LOG[4:]], killed=set()).faults == {"altered": 1}


def test_only_the_end_of_a_killed_incarnation_may_be_missing() -> None:
    result = compare(DONE, LOG[:-3], killed={"a"})
    assert (result.faults, result.tails) == ({}, {"a": DONE[-3:]})
    assert compare(DONE, [*LOG[:-3], LOG[-1]], killed={"a"}).faults == {"lost": 2}
    assert compare(DONE, [], killed={"a"}).tails == {"a": DONE}
