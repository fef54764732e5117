"""The learner's end of the link: the calls of link.proto. One actor's bad message ends its own stream and no other."""

import logging
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import grpc
from cgpo_proto import link_pb2, link_pb2_grpc

from learner.authentication import certified_actor
from learner.committer import Acknowledgement, Committer, Inbox
from learner.handshake import Handshake
from learner.sessions import ActorInUseError, Session, Sessions, TooManyActorsError
from learner.trainer_status import TrainerStatus
from learner.weights_feed import WeightsFeed
from policy.episode_log import EpisodeLog
from policy.errors import CgpoError, DamagedRecordError, GapError, SpecMismatchError, WireError
from policy.grpc_options import MAX_PING_BYTES, PROTOCOL_VERSION, SESSION_KEY, WEIGHTS_CHUNK_BYTES
from policy.log_records import EncodedRecord
from policy.revision import read_revision
from policy.spec import Specs
from policy.text import MAX_REASON, clean
from policy.transition import EpisodeMark, RecordId
from policy.weights_store import WeightsManifest
from policy.wire import check_name, decode_body, position_crc32, record_id_of

logger = logging.getLogger(__name__)

_POLL_S = 0.2  # a stream looks this often whether it is to end
_DOUBT_S = 0.1  # within which gRPC says that a stream which ended was broken
_MAX_TEXT_BYTES = 1 << 18  # specs and policy of a Hello
_MAX_INCARNATIONS = 1000  # spooled ones that a Hello may name
_STATES = {
    "training": link_pb2.TRAINER_STATE_TRAINING,
    "waiting": link_pb2.TRAINER_STATE_WAITING,
    "down": link_pb2.TRAINER_STATE_DOWN,
}


class _SessionOverError(CgpoError):
    """The stream belongs to no session: the actor has to say Hello again."""


# What ends a call, most special first. An actor tries again after ABORTED, DATA_LOSS, UNAVAILABLE, RESOURCE_EXHAUSTED
# and, for a while, ALREADY_EXISTS; the others need a person.
_CODES: tuple[tuple[type[CgpoError], grpc.StatusCode], ...] = (
    (DamagedRecordError, grpc.StatusCode.DATA_LOSS),
    (GapError, grpc.StatusCode.ABORTED),
    (WireError, grpc.StatusCode.INVALID_ARGUMENT),
    (SpecMismatchError, grpc.StatusCode.FAILED_PRECONDITION),
    (ActorInUseError, grpc.StatusCode.ALREADY_EXISTS),
    (TooManyActorsError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (_SessionOverError, grpc.StatusCode.ABORTED),
    (CgpoError, grpc.StatusCode.UNAVAILABLE),  # the log takes nothing: disk or quarantine full
)


class LinkServicer(link_pb2_grpc.LinkServicer):
    """Checks what comes and answers. Any number of threads call it."""

    def __init__(
        self, log: EpisodeLog, committer: Committer, feed: WeightsFeed, handshake: Handshake, sessions: Sessions
    ) -> None:
        self._log = log
        self._committer = committer
        self._feed = feed
        self._handshake = handshake
        self._sessions = sessions
        self._revision = read_revision()  # now: the files may change while this process runs
        self._is_closing = threading.Event()

    def Hello(self, request: link_pb2.HelloRequest, context: grpc.ServicerContext) -> link_pb2.HelloReply:
        """Check that both sides agree, lease the actor id, and tell what is already stored of its incarnations."""
        try:
            _check_hello(request)
            self._check_certificate(request.actor_id, context)
            self._handshake.check(request.protocol_version, request.specs_json, request.policy_json)
            holder = f"process {request.pid} on {request.host or 'an unnamed host'} ({context.peer()})"
            session = self._sessions.open(
                request.actor_id,
                request.incarnation,
                holder,
                take_over=request.take_over,
                oldest_sequences=dict(zip(request.spooled_incarnations, request.first_sequences, strict=True)),
            )
        except CgpoError as error:
            _refuse(context, error)
        logger.info("%s connected: %s, incarnation %s", request.actor_id, holder, request.incarnation)
        newest = self._feed.news.manifest
        return link_pb2.HelloReply(
            protocol_version=PROTOCOL_VERSION,
            weights_version=newest.version if newest else 0,
            resume=[self._resume_position(request.actor_id, name) for name in request.spooled_incarnations],
            session=session,
        )

    def Append(
        self, request_iterator: Iterator[link_pb2.Record], context: grpc.ServicerContext
    ) -> Iterator[link_pb2.Ack]:
        """Store records and acknowledge them after each commit; see link.proto."""
        session = self._join(context, "Append")
        inbox = self._committer.open_inbox()
        reader = _Reader(inbox, session, self._handshake.specs)
        try:  # the machine may have no thread left
            threading.Thread(target=reader.read, args=(request_iterator,), name="append-reader", daemon=True).start()
            while (acknowledgements := inbox.take(_POLL_S)) is not None:
                yield from (_ack(session.actor_id, acknowledgement) for acknowledgement in acknowledgements)
                if self._is_over(session):
                    break
        except CgpoError as error:
            _refuse(context, error)
        finally:
            inbox.close()
            self._sessions.close_stream(session, "Append", is_goodbye=reader.has_heard_end and _is_there(context))
        self._end_if_taken_over(session, context)

    def WatchWeights(
        self, request: link_pb2.WatchWeightsRequest, context: grpc.ServicerContext
    ) -> Iterator[link_pb2.WeightsChunk]:
        """Send the newest weights, then each change, and the trainer's state; see link.proto."""
        session = self._join(context, "WatchWeights")
        sent_sha256, sent_status, number = request.have_sha256, None, -1
        try:
            while context.is_active() and not self._is_over(session):
                news = self._feed.wait(number, _POLL_S)
                number = news.number
                if news.status != sent_status:
                    sent_status = news.status
                    yield link_pb2.WeightsChunk(status=_status(news.status))
                if news.manifest is not None and news.manifest.sha256 != sent_sha256:
                    sent_sha256 = news.manifest.sha256
                    yield from _chunks(news.manifest, news.data)
        finally:
            self._sessions.close_stream(session, "WatchWeights", is_goodbye=False)
        self._end_if_taken_over(session, context)

    def Ping(self, request: link_pb2.PingRequest, context: grpc.ServicerContext) -> link_pb2.PingReply:
        """Say who answers; see link.proto."""
        if request.reply_bytes > MAX_PING_BYTES:
            _refuse(context, WireError(f"reply_bytes = {request.reply_bytes} is above the limit of {MAX_PING_BYTES}"))
        return link_pb2.PingReply(
            wall_time_s=time.time(),
            protocol_version=PROTOCOL_VERSION,
            commit=self._revision,
            payload=bytes(request.reply_bytes),
        )

    def close(self) -> None:
        """Let all streams end. Records that were not acknowledged are sent again by their actors."""
        self._is_closing.set()

    def _resume_position(self, actor_id: str, incarnation: str) -> link_pb2.ResumePosition:
        position = RecordId(actor_id, incarnation, self._log.next_sequence(actor_id, incarnation))
        return link_pb2.ResumePosition(
            incarnation=incarnation, next_sequence=position.sequence, crc32=position_crc32(position)
        )

    def _join(self, context: grpc.ServicerContext, stream: str) -> Session:
        keys = [value for key, value in context.invocation_metadata() if key == SESSION_KEY]
        key = keys[0] if len(keys) == 1 and isinstance(keys[0], bytes) else None
        session = self._sessions.open_stream(key, stream)
        if session is None:
            problem = f"{stream} needs the session of a Hello on this learner, and at most one such stream of it"
            _refuse(context, _SessionOverError(problem))
        return session

    def _is_over(self, session: Session) -> bool:
        return session.is_over or self._is_closing.is_set()

    def _end_if_taken_over(self, session: Session, context: grpc.ServicerContext) -> None:
        if session.is_taken_over:
            _refuse(context, _SessionOverError(f"another process took over the actor id {session.actor_id!r}"))

    def _check_certificate(self, actor_id: str, context: grpc.ServicerContext) -> None:
        certified = certified_actor(context)
        if certified is not None and certified != actor_id:
            logger.warning(
                "refused %s: it calls itself %r with the certificate of %r", context.peer(), actor_id, certified
            )
            context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"the certificate is that of {certified!r}, not of {actor_id!r}. Start with --actor-id {certified}, or "
                f"with the credentials that `python -m learner.certs add-actor {actor_id}` makes.",
            )


class _Reader:
    """Reads one Append stream: checks each record and hands it to the committer."""

    def __init__(self, inbox: Inbox, session: Session, specs: Specs | None) -> None:
        assert specs is not None, "a session follows a handshake, which fixes the specs"
        self._inbox = inbox
        self._actor_id = session.actor_id
        self._oldest_sequences = session.oldest_sequences
        self._specs = specs
        self.has_heard_end = False  # without an error

    def read(self, messages: Iterator[link_pb2.Record]) -> None:
        """Read until the actor ends the stream or is gone, a message ends it, or nobody takes any more."""
        error: CgpoError | None = None
        try:
            for message in messages:
                if not self._inbox.put(self._checked(message)):
                    return
            self.has_heard_end = True
        except grpc.RpcError:
            pass  # the actor went away; what arrived until then is still stored
        except CgpoError as problem:
            error = problem
        finally:
            self._inbox.end(error)

    def _checked(self, message: link_pb2.Record) -> EncodedRecord:
        """Return the record, with the reason for a refusal if there is one.

        Raises DamagedRecordError, or WireError when the record is not this actor's to send.
        """
        record_id = record_id_of(message)
        if record_id.actor_id != self._actor_id:
            raise WireError(f"{self._actor_id!r} sends a record of {record_id.actor_id!r}; each actor sends its own")
        is_oldest = self._oldest_sequences.get(record_id.incarnation) == record_id.sequence
        try:
            body = decode_body(message.body, self._specs)
        except WireError as error:
            reason = clean(str(error), MAX_REASON)
            return EncodedRecord(record_id, False, 0, 0, message.body, is_oldest=is_oldest, refusal=reason)
        is_mark = isinstance(body, EpisodeMark)
        return EncodedRecord(record_id, is_mark, body.episode, body.step, message.body, is_oldest=is_oldest)


def _is_there(context: grpc.ServicerContext) -> bool:
    """Whether who ended a stream is still connected; gRPC may end that of a broken connection in the same way at first.

    Another process must not have the actor id because of a cable: a goodbye is that of one who waits for the answer.
    """
    time.sleep(_DOUBT_S)
    return bool(context.is_active())


def _check_hello(request: link_pb2.HelloRequest) -> None:
    """Raise WireError before anything of it is read that costs time or room."""
    check_name("actor_id", request.actor_id)
    check_name("incarnation", request.incarnation)
    check_name("host", request.host or "unnamed")
    num_bytes = max(len(request.specs_json), len(request.policy_json))
    if num_bytes > _MAX_TEXT_BYTES or len(request.spooled_incarnations) > _MAX_INCARNATIONS:
        raise WireError(
            f"Hello with a text of {num_bytes} characters and {len(request.spooled_incarnations)} incarnations: the "
            f"limits are {_MAX_TEXT_BYTES} and {_MAX_INCARNATIONS}"
        )
    for incarnation in request.spooled_incarnations:
        check_name("spooled incarnation", incarnation)
    if len(request.first_sequences) != len(request.spooled_incarnations):
        raise WireError(
            f"Hello names {len(request.spooled_incarnations)} incarnations and {len(request.first_sequences)} first "
            "sequences; each has one"
        )


def _refuse(context: grpc.ServicerContext, error: CgpoError) -> NoReturn:
    logger.warning("refused %s: %s", context.peer(), error)
    context.abort(next(code for kind, code in _CODES if isinstance(error, kind)), clean(str(error)))


def _ack(actor_id: str, acknowledgement: Acknowledgement) -> link_pb2.Ack:
    position = RecordId(actor_id, acknowledgement.incarnation, acknowledgement.next_sequence)
    return link_pb2.Ack(
        crc32=position_crc32(position),
        incarnation=acknowledgement.incarnation,
        next_sequence=acknowledgement.next_sequence,
        refused=acknowledgement.refused,
        refusal=acknowledgement.refusal,
    )


def _status(status: TrainerStatus) -> link_pb2.LearnerStatus:
    return link_pb2.LearnerStatus(learner_step=status.learner_step, state=_STATES[status.state], alarm=status.alarm)


def _chunks(manifest: WeightsManifest, data: bytes) -> Iterator[link_pb2.WeightsChunk]:
    for offset in range(0, len(data), WEIGHTS_CHUNK_BYTES):
        chunk = link_pb2.WeightsChunk(
            version=manifest.version, offset=offset, data=data[offset : offset + WEIGHTS_CHUNK_BYTES]
        )
        if offset == 0:
            chunk.manifest.num_bytes = manifest.num_bytes
            chunk.manifest.sha256 = manifest.sha256
            chunk.manifest.learner_step = manifest.learner_step
            chunk.manifest.published_wall_s = manifest.published_wall_s
            for info in manifest.tensors:
                chunk.manifest.tensors.add(name=info.name, dtype=info.dtype, shape=info.shape)
        yield chunk
