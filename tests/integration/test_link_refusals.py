"""What is wrong is refused with its reason, and disturbs nobody else."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
import torch
from cgpo_proto import link_pb2, link_pb2_grpc

from policy.errors import SpecMismatchError, WireError
from policy.spec import ActionSpec, ObservationSpec, Specs
from policy.weights import serialise
from tests.link_ends import HANG_LIMIT_S, POLICY, Actor, Ingest, append, hello, messages, refused, wait_until
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


def test_an_invalid_record_is_refused_by_name_after_the_valid_ones_before_it(
    ingest: Ingest, stub: link_pb2_grpc.LinkStub, connect: Callable[..., Actor]
) -> None:
    other = connect(ingest.address, actor_id="other")
    stub.Hello(hello(), timeout=HANG_LIMIT_S)
    records = messages(range(5))
    records[3].transition.reward = float("nan")
    code, text = refused(lambda: append(stub, records))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "record 3 of robot, incarnation a: reward = nan" in text
    assert [sequence for _, _, sequence in ingest.sequences()] == [0, 1, 2]
    other.offer(range(3))
    other.drain()
    assert other.link.statistics.reconnects == 0


def test_a_refused_record_stops_the_link_with_the_learners_words(ingest: Ingest, connect: Callable[..., Actor]) -> None:
    robot = connect(ingest.address)
    robot.spool.offer(make_transition(0, reward=float("inf")))
    wait_until(lambda: robot.link.refusal)
    assert isinstance(robot.link.refusal, WireError)
    assert "reward = inf is not finite" in str(robot.link.refusal)
    assert robot.spool.pending == 1


def test_a_gap_in_a_sequence_is_refused(stub: link_pb2_grpc.LinkStub, ingest: Ingest) -> None:
    stub.Hello(hello(), timeout=HANG_LIMIT_S)
    append(stub, messages(range(3)))
    code, text = refused(lambda: append(stub, messages(range(5, 6))))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "needs 3 next" in text


def test_records_before_any_hello_are_refused(stub: link_pb2_grpc.LinkStub) -> None:
    code, text = refused(lambda: append(stub, messages(range(1))))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "Hello" in text


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
        assert refused(lambda: list(hostile(iter([payload]), timeout=HANG_LIMIT_S)))[0] == code
    stub.Hello(hello(), timeout=HANG_LIMIT_S)
    assert append(stub, messages(range(3))) == 3


def test_the_pings_of_an_idle_actor_are_welcome(ingest: Ingest) -> None:
    options = [("grpc.keepalive_time_ms", 1000), ("grpc.http2.max_pings_without_data", 0)]
    with grpc.insecure_channel(ingest.address, options=options) as channel:
        stub = link_pb2_grpc.LinkStub(channel)  # type: ignore[no-untyped-call]
        code, _ = refused(lambda: list(stub.WatchWeights(link_pb2.WatchWeightsRequest(), timeout=5.0)))
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED  # gRPC's default server hangs up after 3 s: too many pings


def test_one_stream_too_many_is_refused_at_once_and_not_left_waiting(
    ingest: Ingest, stub: link_pb2_grpc.LinkStub
) -> None:
    ingest.weights.publish(serialise({"weight": torch.ones(1)}), version=1, learner_step=0)
    streams = [stub.WatchWeights(link_pb2.WatchWeightsRequest(), timeout=HANG_LIMIT_S) for _ in range(32)]
    for stream in streams:
        assert next(stream).version == 1  # so all of them are open
    code, _ = refused(lambda: stub.Hello(hello(), timeout=HANG_LIMIT_S))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    for stream in streams:
        stream.cancel()
