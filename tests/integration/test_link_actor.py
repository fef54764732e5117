"""The actor's end of the link against a learner that does as the test says."""

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import NoReturn

import grpc
import pytest
import torch
from cgpo_proto import link_pb2, link_pb2_grpc

from actor import link
from policy.errors import ConfigError
from policy.grpc_options import PROTOCOL_VERSION, SESSION_KEY
from policy.transition import RecordId
from policy.weights import serialise
from policy.weights_store import sha256
from policy.wire import decode_body, encode_body, position_crc32
from tests.link_ends import HANG_LIMIT_S, Actor, Ingest, wait_until
from tests.transitions import SPECS, make_transition

IN_USE = (grpc.StatusCode.ALREADY_EXISTS, "in use by process 17 on lab-pc; stop it, or start with --take-over")


class FakeLearner(link_pb2_grpc.LinkServicer):
    """Acknowledges everything and sends `news`; a Hello is refused while `refusals` lasts."""

    def __init__(self) -> None:
        self.refusals: Iterator[tuple[grpc.StatusCode, str]] = iter(())
        self.hellos: list[link_pb2.HelloRequest] = []
        self.sessions: list[tuple[str, bytes]] = []  # of streams: call, session
        self.news: list[link_pb2.WeightsChunk] = []
        self.goodbyes = 0
        self.refusal = ""  # of every record
        self.clock_offset_s = 0.0
        self.damaged_acks: Iterator[bool] = iter(())  # of the acknowledgements to come
        self.resume: list[link_pb2.ResumePosition] = []
        self.closing = threading.Event()

    def Hello(self, request: link_pb2.HelloRequest, context: grpc.ServicerContext) -> link_pb2.HelloReply:
        self.hellos.append(request)
        for code, text in itertools.islice(self.refusals, 1):
            refuse(context, code, text)
        session = b"session %d" % len(self.hellos)
        return link_pb2.HelloReply(protocol_version=PROTOCOL_VERSION, session=session, resume=self.resume)

    def Append(self, records: Iterator[link_pb2.Record], context: grpc.ServicerContext) -> Iterator[link_pb2.Ack]:
        self._note_session("Append", context)
        for record in records:
            position = RecordId(record.actor_id, record.incarnation, record.sequence + 1)
            yield link_pb2.Ack(
                incarnation=record.incarnation,
                next_sequence=position.sequence,
                crc32=position_crc32(position) ^ int(next(self.damaged_acks, False)),
                refused=int(bool(self.refusal)),
                refusal=self.refusal,
            )
        self.goodbyes += 1

    def WatchWeights(
        self, request: link_pb2.WatchWeightsRequest, context: grpc.ServicerContext
    ) -> Iterator[link_pb2.WeightsChunk]:
        self._note_session("WatchWeights", context)
        sent = 0
        while context.is_active() and not self.closing.wait(0.01):
            yield from self.news[sent:]
            sent = len(self.news)

    def Ping(self, request: link_pb2.PingRequest, context: grpc.ServicerContext) -> link_pb2.PingReply:
        return link_pb2.PingReply(wall_time_s=time.time() + self.clock_offset_s)

    def _note_session(self, call: str, context: grpc.ServicerContext) -> None:
        session = dict(context.invocation_metadata())[SESSION_KEY]
        assert isinstance(session, bytes)
        self.sessions.append((call, session))


def refuse(context: grpc.ServicerContext, code: grpc.StatusCode, text: str) -> NoReturn:
    context.abort(code, text)


@pytest.fixture
def learner() -> Iterator[FakeLearner]:
    learner = FakeLearner()
    server = grpc.server(ThreadPoolExecutor(8))
    link_pb2_grpc.add_LinkServicer_to_server(learner, server)  # type: ignore[no-untyped-call]
    learner.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"  # type: ignore[attr-defined]
    server.start()
    yield learner
    learner.closing.set()
    server.stop(0).wait()


@pytest.fixture
def start(learner: FakeLearner, connect: Callable[..., Actor]) -> Callable[..., Actor]:
    return lambda **changes: connect(learner.address, **changes)  # type: ignore[attr-defined]


def is_connected(robot: Actor) -> bool:
    return robot.link.statistics.is_connected


def test_an_actor_says_who_it_is_and_joins_its_streams_to_the_session(
    learner: FakeLearner, start: Callable[..., Actor]
) -> None:
    start(take_over=True)
    wait_until(lambda: len(learner.sessions) == 2)
    (hello,) = learner.hellos
    assert (hello.actor_id, hello.incarnation) == ("robot", "a")
    assert (hello.host, hello.pid, hello.take_over) == (socket.gethostname(), os.getpid(), True)
    assert sorted(learner.sessions) == [("Append", b"session 1"), ("WatchWeights", b"session 1")]


def test_a_clean_close_ends_the_stream_of_records_after_the_last_acknowledgement(
    learner: FakeLearner, start: Callable[..., Actor]
) -> None:
    robot = start()
    robot.offer(range(20))
    assert robot.link.close(HANG_LIMIT_S)
    assert learner.goodbyes == 1
    assert robot.spool.pending == 0


def test_a_damaged_acknowledgement_deletes_nothing_and_ends_the_connection(
    learner: FakeLearner, start: Callable[..., Actor]
) -> None:
    learner.damaged_acks = iter([True])
    robot = start()
    robot.offer(range(20))
    robot.drain()
    assert len(learner.hellos) == 2
    assert "was damaged on its way" in robot.link.statistics.last_error


def test_a_damaged_resume_position_deletes_nothing(learner: FakeLearner, start: Callable[..., Actor]) -> None:
    learner.resume = [link_pb2.ResumePosition(incarnation="a", next_sequence=1_000_000, crc32=1)]
    robot = start()
    robot.offer(range(20))
    wait_until(lambda: len(learner.hellos) >= 3)
    assert "was damaged on its way" in robot.link.statistics.last_error
    assert robot.spool.pending == 20


def test_a_close_does_not_wait_for_a_learner_that_does_not_answer(
    learner: FakeLearner, start: Callable[..., Actor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actor.link._HELLO_TIMEOUT_S", 10 * HANG_LIMIT_S)
    thaw = threading.Event()
    monkeypatch.setattr(FakeLearner, "Hello", lambda *_: thaw.wait())
    robot = start()
    start_s = time.monotonic()
    time.sleep(0.3)
    robot.link.close(0.0)
    thaw.set()
    assert time.monotonic() - start_s < HANG_LIMIT_S


@pytest.mark.parametrize("code", ["ABORTED", "DATA_LOSS", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "INTERNAL"])
def test_what_may_pass_is_tried_again(learner: FakeLearner, start: Callable[..., Actor], code: str) -> None:
    learner.refusals = iter([(grpc.StatusCode[code], "for now")] * 2)
    robot = start()
    wait_until(lambda: is_connected(robot))
    assert robot.link.refusal is None
    assert "for now" in robot.link.statistics.last_error


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "PERMISSION_DENIED"])
def test_what_a_person_must_mend_ends_the_link(learner: FakeLearner, start: Callable[..., Actor], code: str) -> None:
    learner.refusals = itertools.repeat((grpc.StatusCode[code], "your token is not known"))
    robot = start()
    wait_until(lambda: robot.link.refusal)
    assert isinstance(robot.link.refusal, ConfigError)
    assert "your token is not known" in str(robot.link.refusal)
    assert len(learner.hellos) == 1


def test_an_actor_id_in_use_is_waited_for_as_long_as_a_dead_process_may_hold_it(
    learner: FakeLearner, start: Callable[..., Actor]
) -> None:
    learner.refusals = iter([IN_USE] * 3)
    robot = start()
    wait_until(lambda: is_connected(robot))
    assert robot.link.refusal is None


def test_an_actor_id_that_stays_in_use_ends_the_link_with_the_learners_words(
    learner: FakeLearner, start: Callable[..., Actor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actor.link._LEASE_WAIT_S", 0.5)
    learner.refusals = itertools.repeat(IN_USE)
    robot = start()
    wait_until(lambda: robot.link.refusal)
    assert isinstance(robot.link.refusal, ConfigError)
    assert str(robot.link.refusal) == IN_USE[1]
    assert len(learner.hellos) > 1


def test_an_actor_takes_over_once_and_not_back(learner: FakeLearner, start: Callable[..., Actor]) -> None:
    robot = start(take_over=True)
    wait_until(lambda: is_connected(robot))
    learner.news.append(link_pb2.WeightsChunk(version=1, offset=7))  # ends the connection
    wait_until(lambda: len(learner.hellos) > 1)
    assert [hello.take_over for hello in learner.hellos[:2]] == [True, False]


def test_a_process_that_is_taken_over_from_ends_and_keeps_what_it_has(
    ingest: Ingest, connect: Callable[..., Actor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actor.link._LEASE_WAIT_S", 0.5)
    first = connect(ingest.address, "first", incarnation="a")
    first.offer(range(5))
    first.drain()
    second = connect(ingest.address, "second", incarnation="b", take_over=True)
    second.offer(range(5))
    second.drain()
    wait_until(lambda: first.link.refusal)
    assert f"process {os.getpid()} on {socket.gethostname()}" in str(first.link.refusal)
    assert "--take-over" in str(first.link.refusal)
    first.offer(range(5, 8))
    assert first.spool.flush(HANG_LIMIT_S)
    assert (first.spool.pending, second.link.refusal) == (3, None)


def test_the_next_process_of_an_actor_that_said_goodbye_need_not_wait(
    ingest: Ingest, connect: Callable[..., Actor]
) -> None:
    first = connect(ingest.address, incarnation="a")
    wait_until(lambda: is_connected(first))
    first.close()
    robot = connect(ingest.address, incarnation="b")
    wait_until(lambda: is_connected(robot))
    assert robot.link.statistics.last_error == ""


def test_the_clocks_are_compared_and_a_difference_is_said(
    learner: FakeLearner, start: Callable[..., Actor], caplog: pytest.LogCaptureFixture
) -> None:
    learner.clock_offset_s = -3600.0
    robot = start()
    wait_until(lambda: is_connected(robot))
    assert robot.link.statistics.clock_offset_s == pytest.approx(-3600.0, abs=1.0)
    assert robot.link.learner_time_s() == pytest.approx(time.time() - 3600.0, abs=1.0)
    assert "the learner's clock is -3600." in caplog.text


def test_setting_the_clock_while_connected_makes_no_weights_old(
    learner: FakeLearner, start: Callable[..., Actor], monkeypatch: pytest.MonkeyPatch
) -> None:
    robot = start()
    wait_until(lambda: is_connected(robot))
    now_s = time.time()
    monkeypatch.setattr("actor.link.time", SimpleNamespace(time=lambda: now_s + 3600.0, monotonic=time.monotonic))
    assert robot.link.learner_time_s() == pytest.approx(now_s, abs=60.0)


def test_a_learner_that_is_away_for_long_is_waited_for_at_the_same_pace() -> None:
    assert all(0.2 <= link._backoff_s(attempt) <= 1.0 for attempt in (1, 5, 1024, 5000, 10**6))


def test_a_link_that_ends_by_a_fault_of_its_own_says_so(
    connect: Callable[..., Actor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("actor.link._backoff_s", lambda attempt: 1 / 0)
    robot = connect("127.0.0.1:1")
    wait_until(lambda: robot.link.refusal)
    assert "the link to the learner ended: ZeroDivisionError" in str(robot.link.refusal)
    assert "the link to the learner ended" in caplog.text


def test_clocks_that_agree_are_not_mentioned(
    learner: FakeLearner, start: Callable[..., Actor], caplog: pytest.LogCaptureFixture
) -> None:
    robot = start()
    wait_until(lambda: is_connected(robot))
    assert abs(robot.link.statistics.clock_offset_s) < 1.0
    assert ("the learner's clock is" in caplog.text) == (abs(robot.link.statistics.clock_offset_s) > 0.05)


def test_what_the_learner_says_of_itself_is_known(learner: FakeLearner, start: Callable[..., Actor]) -> None:
    robot = start()
    assert robot.link.statistics.trainer_state == "unknown"
    for step, state, name, alarm in (
        (40, link_pb2.TRAINER_STATE_TRAINING, "training", ""),
        (50, link_pb2.TRAINER_STATE_WAITING, "waiting", "no room for a checkpoint"),
        (0, link_pb2.TRAINER_STATE_DOWN, "down", ""),
    ):
        learner.news.append(
            link_pb2.WeightsChunk(status=link_pb2.LearnerStatus(learner_step=step, state=state, alarm=alarm))
        )
        wait_until(lambda name=name: robot.link.statistics.trainer_state == name)  # type: ignore[misc]
        wait_until(lambda alarm=alarm: robot.link.statistics.alarm == alarm)  # type: ignore[misc]
        assert robot.link.learner_step == (step or 50)  # one that is down says no step
    learner.news.append(link_pb2.WeightsChunk(version=1, offset=7))
    wait_until(lambda: robot.link.statistics.trainer_state == "unknown")


@pytest.mark.parametrize("clock_offset_s", [float("nan"), float("inf"), 1e300])
def test_a_clock_that_says_no_time_is_passed_over(
    learner: FakeLearner, start: Callable[..., Actor], clock_offset_s: float
) -> None:
    learner.clock_offset_s = clock_offset_s
    robot = start()
    wait_until(lambda: is_connected(robot))
    assert robot.link.statistics.clock_offset_s == 0


def test_a_learner_cannot_make_steps_invalid_by_its_own_step(learner: FakeLearner, start: Callable[..., Actor]) -> None:
    status = link_pb2.LearnerStatus(learner_step=(1 << 64) - 1, state=link_pb2.TRAINER_STATE_TRAINING)
    robot = start()
    for news in (link_pb2.WeightsChunk(status=status), chunk(1, GOOD, learner_step=(1 << 64) - 1)):
        learner.news.append(news)
    learner.news.append(chunk(2, GOOD))
    robot.wait_for_version(2)
    assert robot.link.learner_step == (1 << 63) - 1
    transition = make_transition(weights_lag_steps=robot.link.learner_step)
    assert decode_body(encode_body(transition), SPECS).episode == 0  # as the learner reads it


def test_the_learners_words_reach_no_terminal_as_they_are(
    learner: FakeLearner, start: Callable[..., Actor], caplog: pytest.LogCaptureFixture
) -> None:
    words = "no\n2026 ERROR actor: forged\x1b[2J" + "x" * 100_000
    learner.refusal = words
    robot = start()
    robot.offer(range(1))
    wait_until(lambda: robot.link.statistics.refused)
    learner.news.append(link_pb2.WeightsChunk(status=link_pb2.LearnerStatus(alarm=words)))
    wait_until(lambda: robot.link.statistics.alarm)
    for said in (robot.link.statistics.last_refusal, robot.link.statistics.alarm):
        assert said.startswith(r"no\n2026 ERROR actor: forged\x1b[2Jxxx")
        assert len(said) == 500
    assert "\x1b" not in caplog.text
    assert len(caplog.text) < 5000


def test_the_words_of_a_refused_hello_are_made_printable(learner: FakeLearner, start: Callable[..., Actor]) -> None:
    learner.refusals = itertools.repeat((grpc.StatusCode.FAILED_PRECONDITION, "specs\n\x1b[2J"))
    robot = start()
    wait_until(lambda: robot.link.refusal is not None)
    assert str(robot.link.refusal) == r"specs\n\x1b[2J"
    assert robot.link.statistics.last_error.isprintable()


# Weights that are none


def chunk(version: int, data: bytes, *, num_bytes: int | None = None, **manifest: object) -> link_pb2.WeightsChunk:
    """Return weights in one piece, whose manifest may say something else."""
    values = {
        "num_bytes": len(data) if num_bytes is None else num_bytes,
        "sha256": sha256(data),
        "published_wall_s": 1.7e9,
        "learner_step": 10 * version,
    }
    return link_pb2.WeightsChunk(
        version=version,
        data=data,
        manifest=link_pb2.WeightsManifest(**(values | manifest)),  # type: ignore[arg-type]
    )


GOOD = serialise({"weight": torch.ones(3)})


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (chunk(1, b"x", num_bytes=1 << 40), "version 1 refused before they came: 1099511627776 bytes"),
        (chunk(1, GOOD, published_wall_s=float("nan")), "version 1 of step 10 refused: published at nan"),
        (chunk(1, GOOD, published_wall_s=-1e300), "version 1 of step 10 refused: published at -1e+300"),
        (chunk(1, GOOD, learner_step=1 << 63), "version 1 of step 9223372036854775808 refused"),
        (chunk((1 << 64) - 1, GOOD, learner_step=0), "version 18446744073709551615 of step 0 refused"),
        (chunk(1, b"no safetensors"), "version 1 refused, there are none before: 14 bytes are not"),
        (chunk(1, serialise({"w": torch.tensor(torch.inf)})), "w holds non-finite values"),
        (
            chunk(1, b"x", num_bytes=9, tensors=[link_pb2.TensorInfo(name="w")] * 10_001),
            "version 1 refused before they came: 9 bytes in 10001 tensors",
        ),
    ],
    ids=[
        "too large",
        "no time",
        "no time that is",
        "no step",
        "no version",
        "no file",
        "not finite",
        "too many tensors",
    ],
)
def test_bad_weights_are_refused_with_a_reason_and_the_next_ones_taken(
    learner: FakeLearner,
    start: Callable[..., Actor],
    caplog: pytest.LogCaptureFixture,
    bad: link_pb2.WeightsChunk,
    words: str,
) -> None:
    robot = start()
    learner.news.append(bad)
    learner.news.append(chunk(2, GOOD))
    robot.wait_for_version(2)
    assert words in caplog.text
    assert robot.link.statistics.reconnects == 0


def test_weights_that_came_damaged_come_again(
    learner: FakeLearner, start: Callable[..., Actor], caplog: pytest.LogCaptureFixture
) -> None:
    robot = start()
    learner.news = [chunk(1, b"?" + GOOD[1:], sha256=sha256(GOOD))]
    wait_until(lambda: "version 1 came damaged" in robot.link.statistics.last_error)
    learner.news = [chunk(1, GOOD)]
    robot.wait_for_version(1)
    assert "version 1 refused, there are none before: weights are corrupt" in caplog.text


def test_weights_that_are_damaged_for_good_end_one_connection_only(
    learner: FakeLearner, start: Callable[..., Actor], caplog: pytest.LogCaptureFixture
) -> None:
    learner.news = [chunk(1, GOOD, sha256="0" * 64)]
    robot = start()
    wait_until(lambda: caplog.text.count("version 1 refused") == 2)
    learner.news.append(chunk(2, GOOD))
    robot.wait_for_version(2)
    assert robot.link.statistics.reconnects == 1


@pytest.mark.parametrize(
    "chunks",
    [
        [link_pb2.WeightsChunk(version=1, data=b"x")],
        [chunk(1, b"x", num_bytes=100), link_pb2.WeightsChunk(version=1, offset=2, data=b"x")],
        [chunk(1, b"x", num_bytes=100), link_pb2.WeightsChunk(version=1, offset=1, data=bytes(100))],
        [chunk(1, b"x", num_bytes=100), link_pb2.WeightsChunk(version=2, offset=1, data=b"x")],
    ],
    ids=["no manifest", "a gap", "more than announced", "another version"],
)
def test_chunks_that_do_not_follow_end_the_connection_and_the_weights_come_anew(
    learner: FakeLearner, start: Callable[..., Actor], chunks: list[link_pb2.WeightsChunk]
) -> None:
    learner.news = chunks
    robot = start()
    wait_until(lambda: "weights version" in robot.link.statistics.last_error)
    learner.news = [chunk(3, GOOD)]
    robot.wait_for_version(3)
    assert robot.link.learner_step == 30
