"""One connection to the learner, from its Hello to its end: what is in flight on it, and what comes back."""

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from cgpo_proto import link_pb2, link_pb2_grpc

from actor.link_statistics import LinkStatistics, TrainerState
from actor.spool import Spool
from actor.weights_cache import WeightsCache
from policy.errors import CgpoError
from policy.grpc_options import SESSION_KEY
from policy.text import MAX_REASON, clean
from policy.transition import RecordId
from policy.wire import make_record, position_crc32

logger = logging.getLogger(__name__)

POLL_S = 0.1
_WINDOW = 64  # records sent and not acknowledged
_WINDOW_BYTES = 2 << 20  # of them
_LEAST_WINDOW_BYTES = 32 << 10
_ACK_TIMEOUT_S = 5.0
_GOODBYE_S = 2.0  # for the last acknowledgements
# The largest policy so far has 50 MB. Ten times that, three times over while it is unpacked, is still memory that a
# robot's computer has to spare; what is announced as more is not taken in at all.
_MAX_WEIGHTS_BYTES = 512 << 20
_MAX_TENSORS = 10_000
# What a step may carry: an honest learner refuses it with more, or with an age beyond float32.
_MAX_INTEGER = (1 << 63) - 1
MAX_WALL_S = 1e11  # the year 5138
_TRAINER_STATES: dict[int, TrainerState] = {
    link_pb2.TRAINER_STATE_TRAINING: "training",
    link_pb2.TRAINER_STATE_WAITING: "waiting",
    link_pb2.TRAINER_STATE_DOWN: "down",
}


class Window:
    """How many bytes may be on their way: what waits before a slow network keeps gRPC's pings waiting too.

    Halved whenever a connection breaks with records on their way, doubled again as they are acknowledged. One record
    may always go.
    """

    def __init__(self) -> None:
        self.num_bytes = _WINDOW_BYTES
        self._acknowledged_bytes = 0  # since the last change

    def note_break(self) -> None:
        self.num_bytes = max(self.num_bytes // 2, _LEAST_WINDOW_BYTES)
        self._acknowledged_bytes = 0

    def note_acknowledged(self, num_bytes: int) -> None:
        self._acknowledged_bytes += num_bytes
        if self._acknowledged_bytes >= 8 * self.num_bytes:
            self.num_bytes = min(2 * self.num_bytes, _WINDOW_BYTES)
            self._acknowledged_bytes = 0


class LinkSession:
    """An Append and a WatchWeights stream."""

    def __init__(
        self,
        stub: link_pb2_grpc.LinkStub,
        session: bytes,
        actor_id: str,
        spool: Spool,
        weights: WeightsCache,
        statistics: LinkStatistics,
        window: Window,
    ) -> None:
        """session: what Hello replied. window: goes from one connection to the next."""
        self._window = window
        self._actor_id = actor_id
        self._spool = spool
        self._statistics = statistics
        self._in_flight: deque[tuple[str, int, int]] = deque()  # (incarnation, sequence, bytes), as they were sent
        self._progress_monotonic_s = 0.0  # last acknowledgement, or first sending after an idle time
        self._changed = threading.Condition()  # guards the two above
        self._is_leaving = threading.Event()
        self._is_over = threading.Event()
        self._error: Exception | None = None
        self._weights = _WeightsInbox(weights)
        metadata = ((SESSION_KEY, session),)
        self._append = stub.Append(self._records(), metadata=metadata)
        request = link_pb2.WatchWeightsRequest(actor_id=actor_id, have_sha256=weights.newest_sha256)
        self._watch = stub.WatchWeights(request, metadata=metadata)

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, then say goodbye; or until the connection fails, and raise why."""
        acks, news = (
            threading.Thread(target=self._read, args=(read,), name=f"link-{name}", daemon=True)
            for name, read in (("acks", self._read_acks), ("weights", self._read_news))
        )
        acks.start()
        news.start()
        while not stop.is_set() and not self._is_over.wait(POLL_S):
            self._check_progress()
        if not self._is_over.is_set():
            self._is_leaving.set()  # ends the stream of records, which frees the actor id at once
            acks.join(_GOODBYE_S)
        self._is_over.set()
        self._append.cancel()
        self._watch.cancel()
        acks.join()
        news.join()
        if self._error is not None and not stop.is_set():
            if self._in_flight:
                self._window.note_break()
            raise self._error

    def _records(self) -> Iterator[link_pb2.Record]:
        """Yield what the spool holds, oldest first, as far as the window allows. Runs in a thread of gRPC's."""
        position = 0
        try:
            while self._goes_on:
                for record in self._spool.read_after(position, _WINDOW, POLL_S):
                    if not self._wait_for_room(len(record.body)):
                        return
                    self._note_sending(record.record_id.incarnation, record.record_id.sequence, len(record.body))
                    yield make_record(record.record_id, record.body, record.crc32)
                    position = record.position
        except (sqlite3.Error, CgpoError) as error:
            self._end(error)

    @property
    def _goes_on(self) -> bool:
        return not (self._is_leaving.is_set() or self._is_over.is_set())

    def _wait_for_room(self, num_bytes: int) -> bool:
        """Wait until a record of so many bytes may go; return False when the connection is over."""
        with self._changed:
            while self._goes_on and not self._has_room(num_bytes):
                self._changed.wait(POLL_S)
            return self._goes_on

    def _has_room(self, num_bytes: int) -> bool:
        if len(self._in_flight) >= _WINDOW:
            return False
        bytes_in_flight = sum(sent_bytes for _, _, sent_bytes in self._in_flight)
        return not self._in_flight or bytes_in_flight + num_bytes <= self._window.num_bytes

    def _note_sending(self, incarnation: str, sequence: int, num_bytes: int) -> None:
        with self._changed:
            if not self._in_flight:
                self._progress_monotonic_s = time.monotonic()
            self._in_flight.append((incarnation, sequence, num_bytes))
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
        except Exception as error:  # a thread must not end in silence: whatever it is ends the connection
            self._end(error)
        finally:
            self._end(ConnectionError("the learner closed the connection"))

    def _read_acks(self) -> None:
        for ack in self._append:
            check_position(self._actor_id, ack)
            with self._changed:
                if not any(sent[:2] == (ack.incarnation, ack.next_sequence - 1) for sent in self._in_flight):
                    raise ConnectionError(
                        f"all before record {ack.next_sequence} of incarnation {ack.incarnation!r} was acknowledged, "
                        "and the one before it is not on its way: the acknowledgement was damaged, or made up"
                    )
                while self._in_flight and self._is_covered(self._in_flight[0], ack):
                    self._window.note_acknowledged(self._in_flight.popleft()[2])
                self._progress_monotonic_s = time.monotonic()
                self._changed.notify_all()
            self._spool.acknowledge(ack.incarnation, ack.next_sequence)
            if ack.refused:
                self._note_refusal(ack)

    def _note_refusal(self, ack: link_pb2.Ack) -> None:
        self._statistics.refused += ack.refused
        reason = clean(ack.refusal, MAX_REASON)
        self._statistics.last_refusal = reason
        logger.error("the learner put %d records into quarantine and learns nothing from them: %s", ack.refused, reason)

    def _read_news(self) -> None:
        for chunk in self._watch:
            if chunk.HasField("status"):
                self._note_status(chunk.status)
                continue
            if chunk.HasField("manifest"):
                self._statistics.learner_step = max(
                    self._statistics.learner_step, min(chunk.manifest.learner_step, _MAX_INTEGER)
                )
            self._weights.take(chunk)

    def _note_status(self, status: link_pb2.LearnerStatus) -> None:
        statistics = self._statistics
        statistics.trainer_state = _TRAINER_STATES.get(status.state, "unknown")
        if statistics.trainer_state != "down":  # nobody knows its step then
            statistics.learner_step = min(status.learner_step, _MAX_INTEGER)
        statistics.alarm = clean(status.alarm, MAX_REASON)

    @staticmethod
    def _is_covered(sent: tuple[str, int, int], ack: link_pb2.Ack) -> bool:
        incarnation, sequence, _ = sent
        return incarnation == ack.incarnation and sequence < ack.next_sequence

    def _end(self, error: Exception) -> None:
        """End the session; the first reason is the one to report."""
        with self._changed:
            if not self._is_over.is_set():
                self._error = error
                self._is_over.set()


def check_position(actor_id: str, position: link_pb2.Ack | link_pb2.ResumePosition) -> None:
    """Raise ConnectionError for a position that was damaged on its way: the spool would delete what it says."""
    expected = position_crc32(RecordId(actor_id, position.incarnation, position.next_sequence))
    if position.crc32 != expected:
        raise ConnectionError(
            f"an acknowledgement of everything below {position.next_sequence} was damaged on its way: its checksum is "
            f"{position.crc32:08x}, and {expected:08x} would be right"
        )


class _WeightsInbox:
    """Puts chunks together; the cache judges what is complete. What cannot be weights costs no memory."""

    def __init__(self, cache: WeightsCache) -> None:
        self._cache = cache
        self._manifest: link_pb2.WeightsManifest | None = None  # None: what comes is not wanted
        self._version = 0
        self._data = bytearray()

    def take(self, chunk: link_pb2.WeightsChunk) -> None:
        """Raises ConnectionError for chunks that do not follow one another."""
        if chunk.HasField("manifest"):
            self._begin(chunk.version, chunk.manifest)
        if chunk.version != self._version:
            raise ConnectionError(f"a chunk of weights version {chunk.version} came before its manifest")
        if self._manifest is None:
            return
        end = chunk.offset + len(chunk.data)
        if chunk.offset != len(self._data) or end > self._manifest.num_bytes:
            raise ConnectionError(
                f"weights version {chunk.version} came in the wrong order: bytes {chunk.offset} to {end} of "
                f"{self._manifest.num_bytes} after the first {len(self._data)}"
            )
        self._data += chunk.data
        if end == self._manifest.num_bytes:
            manifest, data = self._manifest, bytes(self._data)
            self._manifest, self._data = None, bytearray()
            self._cache.offer(data, manifest.sha256, chunk.version, manifest.learner_step, manifest.published_wall_s)

    def _begin(self, version: int, manifest: link_pb2.WeightsManifest) -> None:
        self._version, self._data, self._manifest = version, bytearray(), None
        if manifest.num_bytes > _MAX_WEIGHTS_BYTES or len(manifest.tensors) > _MAX_TENSORS:
            logger.error(
                "weights version %d refused before they came: %d bytes in %d tensors, the limits are %d and %d",
                version,
                manifest.num_bytes,
                len(manifest.tensors),
                _MAX_WEIGHTS_BYTES,
                _MAX_TENSORS,
            )
        elif not 0 <= manifest.published_wall_s < MAX_WALL_S or max(version, manifest.learner_step) > _MAX_INTEGER:
            logger.error(
                "weights version %d of step %d refused: published at %s s",
                version,
                manifest.learner_step,
                manifest.published_wall_s,
            )
        else:
            self._manifest = manifest
