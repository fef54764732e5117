"""Nonsense on every call of a real learner: it costs its sender the call, and nobody else anything."""

import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import psutil
import pytest
from cgpo_proto import link_pb2

from policy.grpc_options import MAX_PING_BYTES, SESSION_KEY
from policy.transition import RecordId
from policy.wire import make_record, record_crc32
from tests.golden.record import FOLDER, message_paths
from tests.link_ends import HANG_LIMIT_S, Actor, Ingest, hello, messages, wait_until

SERVICE = "/cgpo.v1.Link/"
MAX_GROWTH_BYTES = 100 << 20
ROUNDS = 60  # of one method
Code = grpc.StatusCode
# What link.proto and its servicer name. UNKNOWN is not among them: it is an exception that nobody foresaw.
FORESEEN = {
    Code.OK, Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.ALREADY_EXISTS, Code.ABORTED, Code.DATA_LOSS,
    Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED,
    Code.INTERNAL,  # gRPC's own answer to bytes that are no message
}  # fmt: skip
UNFORESEEN = ("Exception calling application", "Exception iterating responses", "ending this process")


@pytest.fixture
def honest(ingest: Ingest, connect: Callable[..., Actor]) -> Actor:
    """An actor at work, before anything else comes."""
    actor = connect(ingest.address, "honest", actor_id="honest")
    actor.offer(range(20))
    actor.drain()
    return actor


@pytest.fixture
def channel(ingest: Ingest) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(ingest.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield channel


@pytest.fixture(autouse=True)
def _nothing_happened_to_the_honest_actor(ingest: Ingest, honest: Actor) -> Iterator[None]:
    assert ingest.process is not None
    process = psutil.Process(ingest.process.pid)
    before_bytes = process.memory_info().rss
    yield
    honest.offer(range(20, 120))
    honest.drain()
    assert process.is_running()
    assert process.memory_info().rss - before_bytes < MAX_GROWTH_BYTES
    mine = [sequence for actor_id, _, sequence in ingest.sequences() if actor_id == "honest"]
    assert mine == list(range(120))
    assert honest.link.statistics.reconnects == 0
    log = ingest.log_path.read_text()
    assert not [words for words in UNFORESEEN if words in log], log[-3000:]


def outcome(call: Callable[..., Any], *arguments: Any, **settings: Any) -> grpc.StatusCode:
    """Make a call, to its end if it is a stream, and return the code that it ended with."""
    try:
        reply = call(*arguments, timeout=HANG_LIMIT_S, **settings)
        if not isinstance(reply, bytes):
            list(reply)
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)  # noqa: PT017 - it always is
        assert "metadata" not in (error.details() or ""), "the reason was too long for gRPC's trailers"  # noqa: PT017
        is_one_too_many = error.code() is Code.UNAVAILABLE and "RST_STREAM with error code 7" in (error.details() or "")
        return Code.RESOURCE_EXHAUSTED if is_one_too_many else error.code()  # refused before the server's own limit
    return Code.OK


def first_of(watch: "grpc.UnaryStreamMultiCallable[bytes, bytes]", data: bytes, **settings: Any) -> list[bytes]:
    stream = watch(data, **settings)
    try:
        return [next(stream)]
    finally:
        stream.cancel()


def nonsense(name: str, rng: random.Random) -> Iterator[bytes]:
    """Yield random bytes, and recorded messages of this kind with a few bytes changed."""
    originals = [path.read_bytes() for path in message_paths(name)]
    for _ in range(ROUNDS // 2):
        yield rng.randbytes(rng.choice([0, 1, 10, 1000, 100_000]))
        changed = bytearray(rng.choice(originals))
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(changed))
            changed[start : start + rng.choice([0, 1, 8])] = rng.randbytes(rng.choice([0, 1, 8]))
        yield bytes(changed)


@pytest.mark.parametrize(("method", "request_name"), [("Hello", "HelloRequest"), ("Ping", "PingRequest")])
def test_unary_calls(method: str, request_name: str, channel: grpc.Channel) -> None:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(SERVICE + method)
    for data in nonsense(request_name, random.Random(1)):
        assert outcome(call, data) in FORESEEN


def test_greetings_with_fields_that_hold_something_else(channel: grpc.Channel) -> None:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(SERVICE + "Hello")
    long = "n" * 1_000_000
    changes: list[dict[str, Any]] = [
        {"specs_json": "[" * 100_000},
        {"specs_json": long},
        {"policy_json": "{" * 100_000},
        {"policy_json": '{"encoder": "' + "n" * 200_000 + '"}'},
        {"policy_json": '{"' + "k" * 200_000 + '": 1}'},
        {"actor_id": long},
        {"actor_id": "a\nb"},
        {"incarnation": ""},
        {"host": long},
        {"spooled_incarnations": [str(number) for number in range(500_000)]},
        {"spooled_incarnations": [long]},
        {"spooled_incarnations": ["\0"] * 900},
        {"protocol_version": 2**32 - 1},
        {"pid": 2**32 - 1, "host": "h\n\0\x1b[2J"},
    ]
    for change in changes:
        request = hello()
        for name, value in change.items():
            if isinstance(value, list):
                request.spooled_incarnations.extend(value)
            else:
                setattr(request, name, value)
        assert outcome(call, request.SerializeToString()) in FORESEEN, change


@pytest.mark.parametrize("has_session", [False, True], ids=["no session", "session"])
def test_streams(has_session: bool, channel: grpc.Channel) -> None:
    rng = random.Random(2)
    greet: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(SERVICE + "Hello")
    append: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(SERVICE + "Append")
    watch: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(SERVICE + "WatchWeights")

    def metadata() -> tuple[tuple[str, bytes], ...]:
        if not has_session:
            return ((SESSION_KEY, rng.randbytes(rng.choice([0, 16, 500]))),)
        replies: list[bytes] = []

        def say_hello(timeout: float) -> bytes:
            replies.append(greet(hello().SerializeToString(), timeout=timeout))
            return replies[0]

        # The streams that were cancelled before take their time to end, and count until then.
        wait_until(lambda: outcome(say_hello) is Code.OK)
        return ((SESSION_KEY, link_pb2.HelloReply.FromString(replies[0]).session),)

    for data in nonsense("Record", rng):
        sent = [data, *(record.SerializeToString() for record in messages(range(3)))]
        assert outcome(append, iter(sent), metadata=metadata()) in FORESEEN
    for data in nonsense("WatchWeightsRequest", rng):
        assert outcome(first_of, watch, data, metadata=metadata()) in FORESEEN


def test_records_with_the_right_checksum_of_bodies_that_are_none(channel: grpc.Channel, ingest: Ingest) -> None:
    """They are put into quarantine and acknowledged, and the stream goes on."""
    rng = random.Random(3)
    greet: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(SERVICE + "Hello")
    reply = link_pb2.HelloReply.FromString(greet(hello().SerializeToString(), timeout=HANG_LIMIT_S))
    originals = [path.read_bytes() for path in sorted((FOLDER / "bodies").glob("*.bin"))]
    bodies = [*nonsense("Body", rng), *originals]

    def records() -> Iterator[bytes]:
        for sequence, body in enumerate(bodies):
            record_id = RecordId("robot", "a", sequence)
            yield make_record(record_id, body, record_crc32(record_id, body)).SerializeToString()

    append: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(SERVICE + "Append")
    stream = append(records(), timeout=HANG_LIMIT_S, metadata=((SESSION_KEY, reply.session),))
    acks = [link_pb2.Ack.FromString(data) for data in stream]
    assert acks[-1].next_sequence == len(bodies)
    in_log = [sequence for actor_id, _, sequence in ingest.sequences() if actor_id == "robot"]
    in_quarantine = [record.record_id.sequence for record in ingest.quarantine()]
    assert sorted(in_log + in_quarantine) == list(range(len(bodies)))
    assert sum(ack.refused for ack in acks) == len(in_quarantine) >= ROUNDS // 2


def test_bytes_that_are_no_http(ingest: Ingest) -> None:
    rng = random.Random(4)
    host, _, port = ingest.address.rpartition(":")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for beginning in (b"", b"", preface, preface, preface + bytes(9), b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=HANG_LIMIT_S) as connection:
            try:
                connection.sendall(beginning + rng.randbytes(64 << 10))
                while connection.recv(65536):
                    pass
            except OSError:
                pass  # hung up on, as it should be


def test_messages_above_the_limit(channel: grpc.Channel) -> None:
    large = bytes(9 << 20)
    append: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(SERVICE + "Append")
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes]
    for method in ("Hello", "Ping"):
        unary = channel.unary_unary(SERVICE + method)
        assert outcome(unary, large) == Code.RESOURCE_EXHAUSTED
    greet: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(SERVICE + "Hello")
    reply = link_pb2.HelloReply.FromString(greet(hello().SerializeToString(), timeout=HANG_LIMIT_S))
    metadata = ((SESSION_KEY, reply.session),)
    assert outcome(append, iter([large]), metadata=metadata) == Code.RESOURCE_EXHAUSTED


def test_far_too_many_calls_at_once(channel: grpc.Channel) -> None:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(SERVICE + "Ping")
    request = link_pb2.PingRequest(reply_bytes=MAX_PING_BYTES).SerializeToString()
    futures = [call.future(request, timeout=HANG_LIMIT_S) for _ in range(300)]
    codes = {outcome(lambda timeout, future=future: future.result(timeout)) for future in futures}
    assert codes <= {Code.OK, Code.RESOURCE_EXHAUSTED}
    wait_until(lambda: outcome(call, request) is Code.OK)
