"""Kill -9 of either side again and again: the log is what the robot did, once and in order."""

import itertools
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from benchmarks.fault_matrix.ends import Link, Program, check_database, wait_until
from benchmarks.fault_matrix.oracle import read_log
from learner import ingest
from learner.config import ReplayConfig
from learner.replay import Replay
from policy.errors import EXIT_INTERRUPTED, EXIT_OK
from policy.failpoints import EXIT_CODE
from policy.log_records import LogEntry
from policy.spec import Specs
from policy.transition import EpisodeMark, MarkKind, Transition

KILLS = 5  # of each side
MOST_STEPS_BEFORE_A_KILL = 10
# A step that the robot made is on the disk within 100 ms where that disk is free; others may use this one's.
LONGEST_TAIL = 20


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    link = Link(tmp_path)
    yield link
    link.close()


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """A link of which either side died again and again, and which then came to its end.

    At random moments of kill -9, then of a crash right before and right after a commit.
    """
    link = Link(tmp_path_factory.mktemp("killed"))
    rng = random.Random(5)
    seeds = (("--seed", str(seed)) for seed in itertools.count())  # or each would do as the one before
    link.ingest.start()
    link.actor.start(*next(seeds))
    for _ in range(KILLS):
        link.actor.wait_for_steps(rng.randint(1, MOST_STEPS_BEFORE_A_KILL))
        link.ingest.kill()
        link.actor.wait_for_steps(rng.randint(1, MOST_STEPS_BEFORE_A_KILL))
        link.ingest.start()
        link.actor.wait_for_steps(rng.randint(1, MOST_STEPS_BEFORE_A_KILL))
        time.sleep(rng.uniform(0.0, 0.05))
        link.actor.kill_in_action()
        check_database(link.actor.run_dir / "spool.sqlite")
        link.actor.start(*next(seeds))
    for place in ("before", "after"):
        link.actor.wait_for_steps(1)
        link.ingest.kill()
        link.ingest.start(CGPO_FAILPOINTS=f"ingest.{place}_commit:exit@3")
        assert link.ingest.wait() == EXIT_CODE
        link.ingest.start()
    link.actor.kill_in_action()
    for place in ("before", "after"):
        link.actor.start(*next(seeds), CGPO_FAILPOINTS=f"spool.{place}_commit:exit@9")
        assert link.actor.wait() == EXIT_CODE
        link.actor.note_death(time.monotonic())
    link.actor.start(*next(seeds))
    link.actor.wait_for_steps(5)
    link.actor.finish()
    yield link
    link.close()


@pytest.fixture(scope="module")
def log(killed: Link) -> list[LogEntry]:
    return list(read_log(killed.ingest.run_dir))


def test_every_step_is_logged_once_in_order_and_unchanged(killed: Link) -> None:
    assert len(killed.actor.killed) == KILLS + 3
    result = killed.compare()
    assert result.faults == {}
    assert result.committed > 3 * KILLS
    assert all(len(tail) <= LONGEST_TAIL for tail in result.tails.values()), result.tails
    killed.ingest.check_log()


def test_an_episode_in_which_the_actor_died_is_closed_as_aborted(killed: Link, log: list[LogEntry]) -> None:
    by_incarnation: dict[str, list[Transition | EpisodeMark]] = {}
    for entry in log:
        by_incarnation.setdefault(entry.record_id.incarnation, []).append(entry.body)
    aborted = 0
    for incarnation in killed.actor.killed & by_incarnation.keys():
        bodies = by_incarnation[incarnation]
        steps = [body for body in bodies if isinstance(body, Transition)]
        marks = [(body.kind, body.episode, body.step) for body in bodies if isinstance(body, EpisodeMark)]
        expected = [] if steps[-1].is_last else [(MarkKind.ABORTED, steps[-1].episode, steps[-1].step)]
        assert marks == expected
        aborted += len(marks)
    assert aborted > 0


def test_no_next_observation_is_of_another_incarnation_or_episode(killed: Link, log: list[LogEntry]) -> None:
    """Draw from the replay until every row has come up; whatever follows what was said by the actor itself."""
    specs = Specs.from_json((killed.ingest.run_dir / "specs.json").read_text())
    replay = Replay(
        ReplayConfig(capacity=10_000, batch_size=256, demonstration_fraction=0.5),
        specs.observation,
        specs.action.dim,
        seed=0,
    )
    followers: dict[bytes, bytes] = {}
    previous: dict[str, Transition] = {}
    for entry in log:
        replay.add(entry.record_id, entry.body)
        step, before = entry.body, previous.get(entry.record_id.incarnation)
        if isinstance(step, EpisodeMark):
            continue
        if before is not None and (before.episode, before.step + 1) == (step.episode, step.step):
            followers[_row(specs, before)] = specs.observation.normalise(step.observation).tobytes()
        if step.final_observation is not None:
            followers[_row(specs, step)] = specs.observation.normalise(step.final_observation).tobytes()
        previous[entry.record_id.incarnation] = step
    drawn = set()
    for _ in range(100):
        batch = replay.sample()
        rows = torch.cat([batch.observation.vector, batch.action], 1).numpy()
        for row, next_vector in zip(rows, batch.next_observation.vector.numpy(), strict=True):
            assert followers[row.tobytes()] == next_vector.tobytes()
            drawn.add(row.tobytes())
    assert drawn == followers.keys(), "all that can be learned from, and nothing else, is drawn"


def _row(specs: Specs, step: Transition) -> bytes:
    return np.concatenate([specs.observation.normalise(step.observation), step.executed_action]).tobytes()


@pytest.mark.parametrize(("number", "times", "first"), [(signal.SIGTERM, 1, "actor"), (signal.SIGINT, 2, "ingest")])
def test_signals_at_any_moment_leave_all_files_whole(
    link: Link, number: signal.Signals, times: int, first: str
) -> None:
    rng = random.Random(times)
    link.ingest.start()
    link.actor.start()
    link.actor.wait_for_steps(rng.randint(1, MOST_STEPS_BEFORE_A_KILL))
    assert link.actor.process is not None
    children = psutil.Process(link.actor.process.pid).children(recursive=True)
    for program in (link.actor, link.ingest) if first == "actor" else (link.ingest, link.actor):
        for _ in range(times):
            program.send(number)
            time.sleep(rng.uniform(0.0, 0.1))
        # A second signal may come when it has ended already, or ends the actor at once.
        assert program.wait() in ({EXIT_OK, EXIT_INTERRUPTED} if (times, program) == (2, link.actor) else {EXIT_OK})
    assert not any(child.is_running() for child in children)
    if link.actor.process.returncode:
        link.actor.note_death(time.monotonic())
    link.ingest.check_log()
    assert not (link.ingest.run_dir / "ingest.json").exists()
    link.ingest.start()
    link.actor.finish()
    assert link.compare().faults == {}


def test_one_more_signal_when_all_is_done_is_not_how_ingest_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python gives signals back to the system before it ends, but for those that are ignored."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    monkeypatch.setattr(ingest, "serve", lambda config, stop: None)
    monkeypatch.setattr("sys.argv", ["ingest", "--run-dir", str(tmp_path), "--policy-json", str(tmp_path / "policy")])
    try:
        ingest.main()
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_IGN] * 2
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, EXIT_OK), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_learners_processes_end_with_their_supervisor(
    tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    supervisor = Program(tmp_path / "learner.log")
    supervisor.spawn(["learner", "--preset", "sim_quick", "--port", "0", "--run-dir", str(tmp_path / "run")])
    wait_until((tmp_path / "run" / "ingest.json").exists, supervisor.output)
    assert supervisor.process is not None
    children = psutil.Process(supervisor.process.pid).children(recursive=True)
    assert len(children) == 2
    supervisor.send(number)
    assert supervisor.wait() == exit_code
    wait_until(lambda: not any(child.is_running() for child in children), "the end of ingest and trainer")
    check_database(tmp_path / "run" / "log.sqlite")
