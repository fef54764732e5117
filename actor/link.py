"""The link: sends what the spool holds to the learner and brings its newest weights back.

All of it runs in background threads, so the control loop waits for none of it. Whatever goes wrong on the network ends
in a new connection and the oldest unacknowledged step again; the learner passes over what it has already.
"""

import logging
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
from cgpo_proto import link_pb2, link_pb2_grpc
from google.protobuf.message import DecodeError

from actor.spool import Spool
from actor.weights_cache import WeightsCache
from policy.config import PolicyConfig
from policy.errors import CgpoError, SpecMismatchError, WireError
from policy.grpc_options import CHANNEL_OPTIONS, PROTOCOL_VERSION
from policy.spec import Specs
from policy.weights import PolicyWeights

logger = logging.getLogger(__name__)

_WINDOW = 64  # records sent and not acknowledged
_HELLO_TIMEOUT_S = 5.0
_ACK_TIMEOUT_S = 5.0
_MIN_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 2.0
_POLL_S = 0.1
_REFUSALS: dict[grpc.StatusCode, type[CgpoError]] = {
    grpc.StatusCode.FAILED_PRECONDITION: SpecMismatchError,
    grpc.StatusCode.INVALID_ARGUMENT: WireError,
}


@dataclass(kw_only=True)
class LinkStatistics:
    """What the link has done so far."""

    sent: int = 0  # records, those sent again included
    bytes_sent: int = 0  # of these records
    acked: int = 0  # records that the learner holds durably
    reconnects: int = 0
    is_connected: bool = False
    last_error: str = ""  # stays after a reconnection


class Link:
    """The connection of one actor to its learner, kept up until `close`."""

    def __init__(
        self,
        address: str,
        spool: Spool,
        specs: Specs,
        policy_config: PolicyConfig,
        actor_id: str,
        incarnation: str,
        cache_dir: Path,
    ) -> None:
        """`cache_dir` keeps the last good weights, which are at hand from the start, learner or not."""
        self._address = address
        self._spool = spool
        self._hello = link_pb2.HelloRequest(
            protocol_version=PROTOCOL_VERSION,
            actor_id=actor_id,
            incarnation=incarnation,
            specs_json=specs.to_json(),
            policy_json=policy_config.to_json(),
        )
        self._weights = WeightsCache(cache_dir)
        self._statistics = LinkStatistics()
        self._refusal: CgpoError | None = None
        self._has_connected = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def latest_weights(self) -> PolicyWeights | None:
        """Return the newest complete and verified weights, at first those of the cache. Never blocks."""
        return self._weights.newest

    @property
    def statistics(self) -> LinkStatistics:
        """A copy of the counters as they are now."""
        return replace(self._statistics, acked=self._spool.acknowledged)

    @property
    def refusal(self) -> CgpoError | None:
        """Why the learner takes nothing from this actor, with both sides' values; the link does not try again."""
        return self._refusal

    def close(self, drain_timeout_s: float) -> bool:
        """Wait for the learner to acknowledge what is spooled, then disconnect; return whether it has all of it.

        Close the spool after this, not before.
        """
        deadline_s = time.monotonic() + drain_timeout_s
        while self._thread.is_alive() and time.monotonic() < deadline_s:
            if self._spool.wait_until_empty(min(_POLL_S, drain_timeout_s)):
                break
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._statistics.is_connected = False
        return self._spool.pending == 0

    def _run(self) -> None:
        """Connect and work until that fails, wait, and again."""
        attempt = 0
        while not self._stop.is_set():
            try:
                with grpc.insecure_channel(self._address, options=CHANNEL_OPTIONS) as channel:
                    stub = link_pb2_grpc.LinkStub(channel)  # type: ignore[no-untyped-call]
                    self._say_hello(stub)
                    self._statistics.is_connected = True
                    attempt = 0
                    _Session(stub, self._hello.actor_id, self._spool, self._weights, self._statistics).run(self._stop)
            except (grpc.RpcError, OSError, CgpoError, sqlite3.Error) as error:
                self._refusal = _as_refusal(error)
                self._report(_describe(error))
            if self._refusal is not None:
                return
            attempt += 1
            self._stop.wait(random.uniform(_MIN_BACKOFF_S, min(_MAX_BACKOFF_S, _MIN_BACKOFF_S * 2**attempt)))

    def _say_hello(self, stub: link_pb2_grpc.LinkStub) -> None:
        """Agree with the learner, and let go of what it has stored without our having heard of it."""
        request = link_pb2.HelloRequest()
        request.CopyFrom(self._hello)
        request.spooled_incarnations.extend(self._spool.incarnations())
        reply = stub.Hello(request, timeout=_HELLO_TIMEOUT_S)
        for position in reply.resume:
            self._spool.acknowledge(position.incarnation, position.next_sequence)
        logger.info("connected to the learner at %s, %d steps to send", self._address, self._spool.pending)
        self._statistics.reconnects += self._has_connected
        self._has_connected = True

    def _report(self, problem: str) -> None:
        """Log a failure, but not each attempt that fails like the one before."""
        if self._statistics.is_connected or problem != self._statistics.last_error:
            outcome = "the link stops" if self._refusal else "steps stay in the spool, trying again"
            logger.warning("learner at %s: %s; %s", self._address, problem, outcome)
        self._statistics.is_connected = False
        self._statistics.last_error = problem


class _Session:
    """One connection: an Append and a WatchWeights stream, and what is in flight on them."""

    def __init__(
        self,
        stub: link_pb2_grpc.LinkStub,
        actor_id: str,
        spool: Spool,
        weights: WeightsCache,
        statistics: LinkStatistics,
    ) -> None:
        self._spool = spool
        self._weights = weights
        self._statistics = statistics
        self._in_flight: deque[tuple[str, int]] = deque()  # (incarnation, sequence) in the order of sending
        self._progress_monotonic_s = 0.0  # last acknowledgement, or first sending after an idle time
        self._changed = threading.Condition()  # guards the two above
        self._is_over = threading.Event()
        self._error: Exception | None = None
        self._append = stub.Append(self._records())
        self._watch = stub.WatchWeights(
            link_pb2.WatchWeightsRequest(actor_id=actor_id, have_sha256=weights.newest_sha256)
        )

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set or the connection fails; raise why it failed."""
        readers = [
            threading.Thread(target=self._read, args=(read,), name=f"link-{name}", daemon=True)
            for name, read in (("acks", self._read_acks), ("weights", self._read_weights))
        ]
        for reader in readers:
            reader.start()
        while not stop.is_set() and not self._is_over.wait(_POLL_S):
            self._check_progress()
        self._is_over.set()
        self._append.cancel()
        self._watch.cancel()
        for reader in readers:
            reader.join()
        if self._error is not None and not stop.is_set():
            raise self._error

    def _records(self) -> Iterator[link_pb2.Record]:
        """Yield what the spool holds, oldest first, as far as the window allows. Runs in a thread of gRPC's."""
        position = 0
        try:
            while not self._is_over.is_set():
                for record in self._spool.read_after(position, self._wait_for_room(), _POLL_S):
                    message = link_pb2.Record.FromString(record.payload)
                    self._note_sending(record.incarnation, record.sequence, len(record.payload))
                    yield message
                    position = record.position
        except DecodeError as error:
            self._end(WireError(f"the spool is damaged after position {position}: {error}. Move its file away."))
        except sqlite3.Error as error:
            self._end(error)

    def _wait_for_room(self) -> int:
        """Wait for room in the window; return how many records it takes, 0 when the connection is over."""
        with self._changed:
            while len(self._in_flight) >= _WINDOW and not self._is_over.is_set():
                self._changed.wait(_POLL_S)
            return _WINDOW - len(self._in_flight)

    def _note_sending(self, incarnation: str, sequence: int, num_bytes: int) -> None:
        with self._changed:
            if not self._in_flight:
                self._progress_monotonic_s = time.monotonic()
            self._in_flight.append((incarnation, sequence))
        self._statistics.sent += 1
        self._statistics.bytes_sent += num_bytes

    def _check_progress(self) -> None:
        """End a connection on which nothing is acknowledged: a frozen learner keeps it open."""
        with self._changed:
            silence_s = time.monotonic() - self._progress_monotonic_s
            count = len(self._in_flight)
        if count and silence_s > _ACK_TIMEOUT_S:
            self._end(TimeoutError(f"{count} steps sent and none acknowledged for {silence_s:.1f} s"))

    def _read(self, read: Callable[[], None]) -> None:
        try:
            read()
        except (grpc.RpcError, ConnectionError) as error:
            self._end(error)
        finally:
            self._end(ConnectionError("the learner closed the connection"))

    def _read_acks(self) -> None:
        for ack in self._append:
            with self._changed:
                while self._in_flight and self._is_covered(self._in_flight[0], ack):
                    self._in_flight.popleft()
                self._progress_monotonic_s = time.monotonic()
                self._changed.notify_all()
            self._spool.acknowledge(ack.incarnation, ack.next_sequence)

    def _read_weights(self) -> None:
        """Put chunks together; the cache judges what is complete."""
        manifest, version, data = link_pb2.WeightsManifest(), 0, bytearray()
        for chunk in self._watch:
            if chunk.HasField("manifest"):
                manifest, version, data = chunk.manifest, chunk.version, bytearray()
            if (chunk.version, chunk.offset) != (version, len(data)):
                raise ConnectionError(f"weights version {chunk.version} came in the wrong order")
            data += chunk.data
            if len(data) >= manifest.num_bytes:
                self._weights.offer(
                    bytes(data), manifest.sha256, version, manifest.learner_step, manifest.published_wall_s
                )

    @staticmethod
    def _is_covered(sent: tuple[str, int], ack: link_pb2.Ack) -> bool:
        incarnation, sequence = sent
        return incarnation == ack.incarnation and sequence < ack.next_sequence

    def _end(self, error: Exception) -> None:
        """End the session; the first reason is the one to report."""
        with self._changed:
            if not self._is_over.is_set():
                self._error = error
                self._is_over.set()


def _as_refusal(error: Exception) -> CgpoError | None:
    """Return the error that a person must act on, None where another attempt may succeed."""
    if isinstance(error, CgpoError):
        return error
    if isinstance(error, grpc.Call):
        refusal = _REFUSALS.get(error.code())
        return refusal(error.details()) if refusal else None
    return None


def _describe(error: Exception) -> str:
    if isinstance(error, grpc.Call):
        return f"{error.code().name}: {error.details()}"
    return str(error)
