"""Both ends of the link as tests use them: a real ingest process, and an actor's spool and link in this one."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cgpo_proto import link_pb2, link_pb2_grpc

from actor.link import Link
from actor.spool import Spool
from policy.config import PolicyConfig
from policy.credentials import Credentials
from policy.episode_log import EpisodeLog
from policy.grpc_options import PROTOCOL_VERSION, SESSION_KEY
from policy.log_records import LogEntry, QuarantinedRecord
from policy.spec import Specs
from policy.transition import RecordId
from policy.weights import PolicyWeights
from policy.weights_store import WeightsStore
from policy.wire import encode_body, make_record, record_crc32
from tests.transitions import SPECS, make_transition

HANG_LIMIT_S = 30.0
POLICY = PolicyConfig()


def wait_until(condition: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "hangs"
        time.sleep(0.01)


class Ingest:
    """The ingest process of one run folder; every start after the first uses the same port."""

    def __init__(self, run_dir: Path, *flags: str) -> None:
        self.run_dir = run_dir
        self.flags = flags
        self.policy_path = run_dir.with_suffix(".policy.json")
        self.policy_path.write_text(POLICY.to_json())
        self.address = "127.0.0.1:0"
        self.log_path = run_dir.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *flags: str, host: str = "127.0.0.1", port: str | None = None) -> list[str]:
        command = [sys.executable, "-m", "learner.ingest", "--run-dir", str(self.run_dir), "--host", host]
        port = port or self.address.rpartition(":")[2]
        return [*command, "--port", port, "--policy-json", str(self.policy_path), *self.flags, *flags]

    def start(self, *flags: str) -> "Ingest":
        with self.log_path.open("ab") as log:
            self.process = process = subprocess.Popen(self.command(*flags), stderr=log)
        wait_until(lambda: self._ready().get("pid") == process.pid or process.poll() is not None)
        self.address = self._ready()["address"]
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> str:
        """Stop as the supervisor does and return what it logged."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(HANG_LIMIT_S)
        return self.log_path.read_text()

    def entries(self) -> list[LogEntry]:
        log = EpisodeLog(self.run_dir / "log.sqlite", SPECS, read_only=True)
        try:
            return log.read_after(0, 100_000)
        finally:
            log.close()

    def sequences(self) -> list[tuple[str, str, int]]:
        return [(e.record_id.actor_id, e.record_id.incarnation, e.record_id.sequence) for e in self.entries()]

    def quarantine(self) -> list[QuarantinedRecord]:
        log = EpisodeLog(self.run_dir / "log.sqlite", read_only=True)
        try:
            return log.quarantine()
        finally:
            log.close()

    @property
    def weights(self) -> WeightsStore:
        return WeightsStore(self.run_dir / "weights")

    def _ready(self) -> dict[str, Any]:
        try:
            ready: dict[str, Any] = json.loads((self.run_dir / "ingest.json").read_text())
        except FileNotFoundError:
            return {}
        return ready


class Actor:
    """Spool and link of one actor process."""

    def __init__(
        self,
        directory: Path,
        address: str,
        incarnation: str = "a",
        actor_id: str = "robot",
        specs: Specs = SPECS,
        policy: PolicyConfig = POLICY,
        credentials: Credentials | None = None,
        take_over: bool = False,
    ) -> None:
        self.spool = Spool(directory / "spool.sqlite", actor_id, incarnation)
        self.link = Link(
            address,
            self.spool,
            specs,
            policy,
            actor_id,
            incarnation,
            directory / "weights",
            credentials=credentials,
            take_over=take_over,
        )
        self.link.start()

    def offer(self, steps: range) -> None:
        for step in steps:
            self.spool.offer(make_transition(step))

    def drain(self) -> None:
        assert self.spool.wait_until_empty(HANG_LIMIT_S), self.link.statistics

    def wait_for_version(self, version: int) -> PolicyWeights:
        wait_until(lambda: (newest := self.link.latest_weights()) and newest.version == version)
        newest = self.link.latest_weights()
        assert newest is not None
        return newest

    def close(self, drain_timeout_s: float = 0.0) -> None:
        self.link.close(drain_timeout_s)
        self.spool.close()


def hello(*incarnations: str, specs: Specs = SPECS) -> link_pb2.HelloRequest:
    return link_pb2.HelloRequest(
        protocol_version=PROTOCOL_VERSION,
        actor_id="robot",
        incarnation="a",
        specs_json=specs.to_json(),
        policy_json=POLICY.to_json(),
        spooled_incarnations=incarnations,
        first_sequences=[0] * len(incarnations),
    )


def messages(steps: range, incarnation: str = "a", **changes: Any) -> list[link_pb2.Record]:
    """Return the messages of steps; `changes` may give them values that a receiver refuses."""
    records = []
    for step in steps:
        record_id, body = RecordId("robot", incarnation, step), encode_body(make_transition(step, **changes))
        records.append(make_record(record_id, body, record_crc32(record_id, body)))
    return records


def join(stub: link_pb2_grpc.LinkStub, request: link_pb2.HelloRequest | None = None) -> tuple[tuple[str, bytes], ...]:
    """Say Hello and return the metadata of the session's streams."""
    return ((SESSION_KEY, stub.Hello(request or hello(), timeout=HANG_LIMIT_S).session),)


def append(stub: link_pb2_grpc.LinkStub, records: list[link_pb2.Record]) -> list[link_pb2.Ack]:
    """Say Hello, send records, say goodbye, and return the acknowledgements."""
    return list(stub.Append(iter(records), timeout=HANG_LIMIT_S, metadata=join(stub)))


def next_sequence(acks: list[link_pb2.Ack]) -> int:
    return max(int(ack.next_sequence) for ack in acks)


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call()
    assert isinstance(error.value, grpc.Call)
    return error.value.code(), error.value.details() or ""


def unfinished_pings(channel: grpc.Channel, count: int, is_over: threading.Event) -> "list[grpc.Future[bytes]]":
    """Begin calls whose message does not come. Before the channel is closed, cancel them and set is_over."""
    ping: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary("/cgpo.v1.Link/Ping")

    def nothing() -> Iterator[bytes]:
        is_over.wait(HANG_LIMIT_S)
        yield from ()

    return [ping.future(nothing(), timeout=HANG_LIMIT_S) for _ in range(count)]
