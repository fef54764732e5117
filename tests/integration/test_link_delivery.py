"""Every transition arrives exactly once, whoever dies and whenever."""

import itertools
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import pytest
from cgpo_proto import link_pb2, link_pb2_grpc

import actor.link_session
from policy.grpc_options import PROTOCOL_VERSION
from tests.link_ends import HANG_LIMIT_S, Actor, Ingest, append, hello, messages, next_sequence, wait_until
from tests.transitions import assert_equal, make_transition

ROOT = Path(__file__).parents[2]


def test_every_transition_arrives_once_although_ingest_is_killed_again_and_again(
    ingest: Ingest, connect: Callable[..., Actor]
) -> None:
    robot = connect(ingest.address)
    steps = itertools.count()
    for _ in range(4):
        acked = robot.spool.acknowledged
        for _ in range(150):
            robot.spool.offer(make_transition(next(steps)))
        wait_until(partial(lambda before: robot.spool.acknowledged > before, acked))
        ingest.kill()
        for _ in range(50):
            robot.spool.offer(make_transition(next(steps)))
        ingest.start()
    robot.drain()
    entries = ingest.entries()
    assert [entry.record_id.sequence for entry in entries] == list(range(800))
    for step, entry in enumerate(entries):
        assert_equal(entry.body, make_transition(step))
    statistics = robot.link.statistics
    assert statistics.acked == 800
    assert statistics.reconnects >= 4
    assert statistics.is_connected


KILLED_ACTOR = """
import sys, time
from pathlib import Path
from tests.link_ends import Actor
from tests.transitions import make_transition
robot = Actor(Path(sys.argv[1]), sys.argv[2], incarnation="a")
for step in range(1_000_000):
    robot.spool.offer(make_transition(step))
    time.sleep(0.001)
"""


def test_a_restarted_actor_first_sends_what_its_killed_predecessor_left(
    ingest: Ingest, connect: Callable[..., Actor], tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_ACTOR, tmp_path / "actor", ingest.address], cwd=ROOT
    ) as earlier:
        wait_until(lambda: (ingest.run_dir / "specs.json").exists() and len(ingest.entries()) > 100)
        ingest.kill()  # so that the actor dies with a backlog
        time.sleep(0.1)
        earlier.kill()
    ingest.start()
    robot = connect(ingest.address, incarnation="b")
    assert robot.spool.pending > 0
    robot.offer(range(5))
    robot.drain()
    sequences = ingest.sequences()
    num_earlier = len(sequences) - 5
    assert sequences[:num_earlier] == [("robot", "a", sequence) for sequence in range(num_earlier)]
    assert sequences[num_earlier:] == [("robot", "b", sequence) for sequence in range(5)]


def test_records_whose_acknowledgement_was_lost_are_not_stored_twice(
    ingest: Ingest, stub: link_pb2_grpc.LinkStub, connect: Callable[..., Actor]
) -> None:
    append(stub, messages(range(30)))
    assert next_sequence(append(stub, messages(range(20, 40)))) == 40
    assert [position.next_sequence for position in stub.Hello(hello("a", "b"), timeout=HANG_LIMIT_S).resume] == [40, 0]
    robot = connect(ingest.address)
    robot.offer(range(50))
    robot.drain()
    assert [sequence for _, _, sequence in ingest.sequences()] == list(range(50))


def test_a_log_that_is_an_older_copy_goes_on_where_the_actor_can(
    ingest: Ingest, tmp_path: Path, connect: Callable[..., Actor]
) -> None:
    """A log restored from a backup: what came since is acknowledged and gone, and must not stop what comes now."""
    robot = connect(ingest.address)
    robot.offer(range(10))
    robot.drain()
    ingest.stop()
    shutil.copytree(ingest.run_dir, tmp_path / "backup")
    ingest.start()
    robot.offer(range(10, 20))
    robot.drain()
    ingest.stop()
    shutil.rmtree(ingest.run_dir)
    shutil.copytree(tmp_path / "backup", ingest.run_dir)
    ingest.start()
    robot.offer(range(20, 30))
    robot.drain()
    assert robot.link.refusal is None
    assert [sequence for _, _, sequence in ingest.sequences()] == [*range(10), *range(20, 30)]
    assert "goes on at record 20 here and not at 10" in ingest.log_path.read_text()
    robot.offer(range(30, 35))
    robot.drain()
    assert len(ingest.sequences()) == 25


def test_without_a_learner_steps_are_kept_and_sent_when_it_comes(tmp_path: Path, connect: Callable[..., Actor]) -> None:
    ingest = Ingest(tmp_path / "run").start()
    ingest.stop()
    robot = connect(ingest.address)
    robot.offer(range(100))
    wait_until(lambda: robot.link.statistics.last_error)
    assert "UNAVAILABLE" in robot.link.statistics.last_error
    assert not robot.link.statistics.is_connected
    assert robot.link.refusal is None
    assert robot.spool.pending == 100
    ingest.start()
    robot.offer(range(100, 120))
    robot.drain()
    assert len(ingest.entries()) == 120
    ingest.stop()


def test_closing_waits_for_the_learner_as_long_as_it_is_told(ingest: Ingest, tmp_path: Path) -> None:
    robot = Actor(tmp_path / "actor", ingest.address)
    robot.offer(range(200))
    robot.close(HANG_LIMIT_S)
    assert len(ingest.entries()) == robot.link.statistics.sent == 200  # each once, as nothing went wrong
    assert not robot.link.statistics.is_connected
    absent = Actor(tmp_path / "absent", "127.0.0.1:1")
    absent.offer(range(3))
    assert not absent.link.close(0.2)
    absent.spool.close()


def test_actors_do_not_wait_for_each_other(ingest: Ingest, connect: Callable[..., Actor]) -> None:
    names = ("one", "two", "three", "four", "five", "six")
    robots = [connect(ingest.address, name, actor_id=name) for name in names]
    for robot in robots:
        robot.offer(range(20))
    for robot in robots:
        robot.drain()
    assert sorted(ingest.sequences()) == sorted((name, "a", step) for name in names for step in range(20))


def test_a_learner_that_freezes_while_nothing_is_sent_is_left_and_found_again(
    ingest: Ingest, connect: Callable[..., Actor]
) -> None:
    robot = connect(ingest.address)
    robot.offer(range(10))
    robot.drain()
    assert ingest.process is not None
    ingest.process.send_signal(signal.SIGSTOP)
    # Keepalive alone can tell. With gRPC's own ping timeout it takes 62 s, beyond the hang limit.
    wait_until(lambda: not robot.link.statistics.is_connected)
    ingest.process.send_signal(signal.SIGCONT)
    robot.offer(range(10, 20))
    robot.drain()
    assert [sequence for _, _, sequence in ingest.sequences()] == list(range(20))


def test_a_learner_that_acknowledges_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, connect: Callable[..., Actor]
) -> None:
    monkeypatch.setattr(actor.link_session, "_ACK_TIMEOUT_S", 0.3)

    class Mute(link_pb2_grpc.LinkServicer):
        def Hello(self, request: link_pb2.HelloRequest, context: grpc.ServicerContext) -> link_pb2.HelloReply:
            return link_pb2.HelloReply(protocol_version=PROTOCOL_VERSION)

        def Append(self, records: Iterator[link_pb2.Record], context: grpc.ServicerContext) -> Iterator[link_pb2.Ack]:
            for _ in records:
                pass
            yield from ()

        def WatchWeights(
            self, request: link_pb2.WatchWeightsRequest, context: grpc.ServicerContext
        ) -> Iterator[link_pb2.WeightsChunk]:
            while context.is_active():
                time.sleep(0.05)
            yield from ()

    server = grpc.server(ThreadPoolExecutor(8))
    link_pb2_grpc.add_LinkServicer_to_server(Mute(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    robot = connect(f"127.0.0.1:{port}")
    robot.offer(range(100))
    wait_until(lambda: robot.link.statistics.reconnects)
    assert "64 steps sent and none acknowledged" in robot.link.statistics.last_error
    assert robot.spool.pending == 100
    server.stop(0).wait()
