"""What is wrong is refused with its reason, and disturbs nobody else."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cgpo_proto import link_pb2, link_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from policy.errors import SpecMismatchError
from policy.grpc_options import CHANNEL_OPTIONS, SESSION_KEY
from policy.spec import ActionSpec, Field, ObservationSpec, Specs
from tests.link_ends import (
    HANG_LIMIT_S,
    POLICY,
    Actor,
    Ingest,
    append,
    hello,
    join,
    messages,
    next_sequence,
    refused,
    unfinished_pings,
    wait_until,
)
from tests.transitions import SPECS, make_transition


def differing(kind: str) -> dict[str, Any]:
    if kind == "policy":
        return {"policy": replace(POLICY, denoising_steps=7)}
    observation, action = SPECS.observation.fields, SPECS.action.fields
    if kind == "observation":
        return {"specs": Specs(ObservationSpec((replace(observation[0], unit="deg"), *observation[1:])), SPECS.action)}
    return {"specs": Specs(SPECS.observation, ActionSpec((replace(action[0], high=(0.5,) * 3),)))}


@pytest.mark.parametrize(
    ("kind", "actors_value", "learners_value"),
    [
        ("observation", "q.unit: actor deg", "learner rad"),
        ("action", "delta.high: actor (0.5, 0.5, 0.5)", "learner (0.01, 0.01, 0.01)"),
        ("policy", "denoising_steps: actor 7", "learner 20"),
    ],
)
def test_an_actor_that_differs_is_told_both_values_and_keeps_its_steps(
    kind: str, actors_value: str, learners_value: str, ingest: Ingest, connect: Callable[..., Actor]
) -> None:
    connect(ingest.address, "first").offer(range(1))
    wait_until(lambda: (ingest.run_dir / "specs.json").exists())
    robot = connect(ingest.address, "second", **differing(kind))
    robot.offer(range(10))
    wait_until(lambda: robot.link.refusal)
    assert isinstance(robot.link.refusal, SpecMismatchError)
    assert actors_value in str(robot.link.refusal)
    assert learners_value in str(robot.link.refusal)
    robot.link.close(HANG_LIMIT_S)
    assert robot.spool.pending == 10


def test_an_invalid_record_goes_to_quarantine_and_the_stream_goes_on(
    ingest: Ingest, stub: link_pb2_grpc.LinkStub
) -> None:
    records = [*messages(range(3)), *messages(range(3, 4), reward=float("nan")), *messages(range(4, 6))]
    acks = append(stub, records)
    assert next_sequence(acks) == 6
    assert [ack.refusal for ack in acks if ack.refused] == ["reward = nan is not finite"]
    assert [sequence for _, _, sequence in ingest.sequences()] == [0, 1, 2, 4, 5]
    (held,) = ingest.quarantine()
    assert (held.record_id.sequence, held.payload) == (3, records[3].body)


def test_a_reason_is_kept_and_told_in_a_bounded_text(ingest: Ingest, stub: link_pb2_grpc.LinkStub) -> None:
    field = Field(name="scan", unit="m", low=(-1.0,) * 4000, high=(1.0,) * 4000)
    session = join(stub, hello(specs=Specs(ObservationSpec((field,)), SPECS.action)))
    bad = messages(range(1), observation={"scan": np.full(4000, np.nan, np.float32)})
    (ack,) = stub.Append(iter(bad), timeout=HANG_LIMIT_S, metadata=session)
    (held,) = ingest.quarantine()
    assert held.reason == ack.refusal
    assert held.reason.startswith("observation scan = [nan, nan")
    assert len(held.reason) == 500


def test_an_actor_hears_of_a_refusal_and_goes_on(ingest: Ingest, connect: Callable[..., Actor]) -> None:
    robot = connect(ingest.address)
    robot.spool.offer(make_transition(0, reward=float("inf")))
    robot.offer(range(1, 5))
    robot.drain()
    wait_until(lambda: robot.link.statistics.refused == 1)
    assert "reward = inf is not finite" in robot.link.statistics.last_refusal
    assert robot.link.refusal is None
    assert len(ingest.sequences()) == 4


def test_a_record_that_was_damaged_on_its_way_is_not_stored_and_asked_for_again(
    ingest: Ingest, stub: link_pb2_grpc.LinkStub
) -> None:
    records = messages(range(5))
    body = bytearray(records[3].body)
    body[20] ^= 1
    whole, records[3].body = records[3].body, bytes(body)
    code, text = refused(lambda: append(stub, records))
    assert code == grpc.StatusCode.DATA_LOSS
    assert "number 3 of 'robot'" in text
    assert [sequence for _, _, sequence in ingest.sequences()] == [0, 1, 2]
    records[3].body = whole
    assert next_sequence(append(stub, records)) == 5
    assert len(ingest.sequences()) == 5


def test_a_gap_in_a_sequence_is_refused(stub: link_pb2_grpc.LinkStub, ingest: Ingest) -> None:
    append(stub, messages(range(3)))
    code, text = refused(lambda: append(stub, messages(range(5, 6))))
    assert code == grpc.StatusCode.ABORTED
    assert "needs 3 next" in text


def test_streams_without_a_session_are_refused(ingest: Ingest, stub: link_pb2_grpc.LinkStub) -> None:
    for metadata in (None, ((SESSION_KEY, b"0123456789abcdef"),)):
        code, text = refused(
            lambda metadata=metadata: list(stub.Append(iter([]), timeout=HANG_LIMIT_S, metadata=metadata))  # type: ignore[misc]
        )
        assert code == grpc.StatusCode.ABORTED
        assert "Hello" in text


def test_an_actor_sends_its_own_records_only(ingest: Ingest, stub: link_pb2_grpc.LinkStub) -> None:
    request = hello()
    request.actor_id = "other"
    code, text = refused(
        lambda: list(stub.Append(iter(messages(range(1))), timeout=HANG_LIMIT_S, metadata=join(stub, request)))
    )
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "'other' sends a record of 'robot'" in text
    assert ingest.sequences() == []


def test_a_second_process_with_the_same_actor_id_is_refused_until_it_takes_over(
    ingest: Ingest, stub: link_pb2_grpc.LinkStub
) -> None:
    first = hello()
    first.host, first.pid = "lab-pc", 4711
    stream = stub.WatchWeights(link_pb2.WatchWeightsRequest(), timeout=HANG_LIMIT_S, metadata=join(stub, first))
    second = hello()
    second.incarnation = "b"
    code, text = refused(lambda: join(stub, second))
    assert code == grpc.StatusCode.ALREADY_EXISTS
    assert "process 4711 on lab-pc" in text
    assert "--take-over" in text
    second.take_over = True
    join(stub, second)
    assert refused(lambda: list(stream))[0] == grpc.StatusCode.ABORTED
    assert refused(lambda: join(stub, first))[0] == grpc.StatusCode.ALREADY_EXISTS


def test_a_host_cannot_forge_a_line_of_the_log(ingest: Ingest, stub: link_pb2_grpc.LinkStub) -> None:
    for host in ("pc\n2026 ERROR learner: forged", "pc\x1b[2J", "x" * 200_000):
        request = hello()
        request.host = host
        code, text = refused(lambda request=request: join(stub, request))  # type: ignore[misc]
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert len(text) < 1000


def test_a_hello_that_is_too_long_is_refused_before_it_is_read(ingest: Ingest, stub: link_pb2_grpc.LinkStub) -> None:
    for change in (
        {"specs_json": "x" * (1 << 20)},
        {"spooled_incarnations": ["i"] * 2000},
        {"spooled_incarnations": ["i" * 7000]},
        {"actor_id": "x" * 1000},
    ):
        request = hello()
        request.MergeFrom(link_pb2.HelloRequest(**change))
        assert refused(lambda request=request: join(stub, request))[0] == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[misc]


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"\xff" * 100, grpc.StatusCode.INTERNAL), (bytes(9 << 20), grpc.StatusCode.RESOURCE_EXHAUSTED)],
    ids=["no protobuf", "9 MiB"],
)
def test_bytes_that_are_no_message_end_their_own_call_only(
    payload: bytes, code: grpc.StatusCode, ingest: Ingest, stub: link_pb2_grpc.LinkStub
) -> None:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(ingest.address, options=options) as channel:
        hostile: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream("/cgpo.v1.Link/Append")
        session = join(stub)
        assert refused(lambda: list(hostile(iter([payload]), timeout=HANG_LIMIT_S, metadata=session)))[0] == code
    assert next_sequence(append(stub, messages(range(3)))) == 3


def test_the_pings_of_an_idle_actor_are_welcome(ingest: Ingest) -> None:
    options = [("grpc.keepalive_time_ms", 1000), ("grpc.http2.max_pings_without_data", 0)]
    with grpc.insecure_channel(ingest.address, options=options) as channel:
        stub = link_pb2_grpc.LinkStub(channel)  # type: ignore[no-untyped-call]
        metadata = join(stub)
        code, _ = refused(
            lambda: list(stub.WatchWeights(link_pb2.WatchWeightsRequest(), timeout=5.0, metadata=metadata))
        )
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED  # gRPC's default server hangs up after 3 s: too many pings


def test_one_actor_too_many_is_told_who_is_there(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path / "few", "--max-actors", "1").start()
    try:
        with grpc.insecure_channel(ingest.address, options=CHANNEL_OPTIONS) as channel:
            stub = link_pb2_grpc.LinkStub(channel)  # type: ignore[no-untyped-call]
            join(stub)
            request = hello()
            request.actor_id = "other"
            code, text = refused(lambda: join(stub, request))
    finally:
        ingest.kill()
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1 actors are connected, which is the limit (robot)" in text


def test_one_call_too_many_is_refused_at_once_and_not_left_waiting(tmp_path: Path) -> None:
    ingest = Ingest(tmp_path / "few", "--max-actors", "1").start()
    is_over = threading.Event()
    try:
        with grpc.insecure_channel(ingest.address, options=CHANNEL_OPTIONS) as channel:
            pending = unfinished_pings(channel, 2 + 16 + 1, is_over)
            wait_until(lambda: any(call.done() for call in pending))  # the one for which there was no room
            stub = link_pb2_grpc.LinkStub(channel)  # type: ignore[no-untyped-call]
            code, _ = refused(lambda: join(stub))
            for call in pending:
                call.cancel()
            is_over.set()
            wait_until(lambda: can_join(stub))
    finally:
        ingest.kill()
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_nobody_watches_health(ingest: Ingest) -> None:
    """gRPC's own servicer holds any number of such streams outside its limit of calls."""
    with grpc.insecure_channel(ingest.address, options=CHANNEL_OPTIONS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=HANG_LIMIT_S)
        assert refused(lambda: next(watching))[0] is grpc.StatusCode.UNIMPLEMENTED


def can_join(stub: link_pb2_grpc.LinkStub) -> bool:
    try:
        join(stub)
    except grpc.RpcError:
        return False
    return True
