"""Simulated actors in a process of their own: `python -m benchmarks.link.crowd '{"address": ...}'`.

Says "ready" when all are connected, begins at the first line of its input, and ends with a line of JSON: for each actor
how much it offered, what the learner acknowledged, and the monotonic time of each offer, by sequence.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import grpc
from cgpo_proto import link_pb2, link_pb2_grpc

from actor.spool import new_incarnation
from benchmarks.link.processes import POLICY, Actor
from benchmarks.link.workload import Workload, take_pictures
from policy.grpc_options import CHANNEL_OPTIONS, PROTOCOL_VERSION, SESSION_KEY
from policy.transition import RecordId
from policy.wire import encode_body, make_record, record_crc32

_MAX_PENDING = 256  # records that a flooding actor is ahead of its link

Manner = Literal["steady", "flood", "deaf"]


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """What a process of simulated actors does."""

    address: str
    folder: str
    pictures: str  # a file of take_pictures
    kind: str = "jpeg"
    prefix: str = "robot"  # of their ids
    actors: int = 1
    manner: Manner = "steady"  # flood: as fast as the link takes it; deaf: likewise, and it never reads an answer
    rate_hz: float = 10.0
    seconds: float = 10.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main() -> None:
    crowd = Crowd(**json.loads(sys.argv[1]))
    workload = Workload(crowd.kind, take_pictures(Path(crowd.pictures)).noisy)
    result = _be_deaf(crowd, workload) if crowd.manner == "deaf" else _send(crowd, workload)
    print(json.dumps(result), flush=True)


def _wait_for_start() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def _send(crowd: Crowd, workload: Workload) -> dict[str, Any]:
    names = [f"{crowd.prefix}-{index}" for index in range(crowd.actors)]
    actors = [Actor(Path(crowd.folder) / name, crowd.address, workload, name) for name in names]
    for actor in actors:
        actor.connect()
    _wait_for_start()
    behave = _flood if crowd.manner == "flood" else Actor.offer_for
    threads = []
    for index, actor in enumerate(actors):
        threads.append(threading.Thread(target=behave, args=(actor, crowd.seconds, crowd.rate_hz), daemon=True))
        threads[-1].start()
        time.sleep(1 / crowd.rate_hz / len(actors) if crowd.rate_hz and index < len(actors) - 1 else 0)
    for thread in threads:
        thread.join()
    for actor in actors:
        actor.spool.wait_until_empty(10)
    result = {
        name: {"offered_s": actor.offered_s, "acknowledged": actor.spool.acknowledged}
        for name, actor in zip(names, actors, strict=True)
    }
    for actor in actors:
        actor.close()
    return result


def _flood(actor: Actor, seconds: float, rate_hz: float) -> None:
    del rate_hz
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if actor.spool.pending < _MAX_PENDING:
            actor.offer()
        else:
            time.sleep(0.0005)


def _be_deaf(crowd: Crowd, workload: Workload) -> dict[str, Any]:
    """Send records for as long as the learner takes them, over a stream whose acknowledgements are never read."""
    incarnation = new_incarnation()
    sent: list[float] = []  # when, monotonic
    is_over = threading.Event()

    def records() -> Iterator[link_pb2.Record]:
        while not is_over.is_set():
            record_id = RecordId(f"{crowd.prefix}-0", incarnation, len(sent))
            body = encode_body(workload.transition(len(sent)))
            sent.append(time.monotonic())
            yield make_record(record_id, body, record_crc32(record_id, body))

    with grpc.insecure_channel(crowd.address, options=CHANNEL_OPTIONS) as channel:
        stub = link_pb2_grpc.LinkStub(channel)  # type: ignore[no-untyped-call]
        hello = link_pb2.HelloRequest(
            protocol_version=PROTOCOL_VERSION,
            actor_id=f"{crowd.prefix}-0",
            incarnation=incarnation,
            specs_json=workload.specs.to_json(),
            policy_json=POLICY.to_json(),
        )
        session = stub.Hello(hello, timeout=10).session
        _wait_for_start()
        stream = stub.Append(records(), metadata=((SESSION_KEY, session),))
        time.sleep(crowd.seconds)
        is_over.set()
        stream.cancel()
    return {f"{crowd.prefix}-0": {"offered_s": sent, "acknowledged": 0}}


if __name__ == "__main__":
    main()
