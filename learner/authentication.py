"""Who may talk to the learner: a certificate of our CA on the connection, and the token on every call."""

import contextlib
import hmac
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from policy.credentials import Credentials

logger = logging.getLogger(__name__)

_FREE_FAILURES = 3
_MAX_DELAY_S = 2.0
_MAX_DELAYED = 2  # refused calls that wait at a time: each holds one of the server's threads
_MAX_PEERS = 256
_LOG_PERIOD_S = 10.0  # at most one line a peer
_MAX_CALLS = 8  # at a time with one certificate; an actor needs two or three
_REFUSAL = (
    "this learner takes calls with its token only. Copy the credentials folder that `python -m learner.certs` made for "
    "this machine, and name it: --credentials FOLDER"
)


def server_credentials(credentials: Credentials) -> grpc.ServerCredentials:
    """Return what a server needs that only talks to holders of a certificate of the same CA."""
    return grpc.ssl_server_credentials(
        [(credentials.key_pem, credentials.certificate_pem)],
        root_certificates=credentials.ca_pem,
        require_client_auth=True,
    )


def certified_actor(context: grpc.ServicerContext) -> str | None:
    """Return the actor id that the caller's certificate proves; None where the server runs without credentials."""
    # An iterable of bytes, whatever the stubs say.
    names = [*context.auth_context().get("x509_common_name", ())]
    return bytes(names[0]).decode() if names else None


class TokenInterceptor(grpc.ServerInterceptor):
    """Refuses every call without the token, before its message is read: services, health and unknown methods alike.

    A peer that keeps failing has to wait for its refusals. A call with the token never waits, whoever shares its
    address with such a peer.
    """

    def __init__(self, token: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._expected = f"Bearer {token}".encode()
        self._peers = _FailingPeers(clock)
        self._delayed = threading.BoundedSemaphore(_MAX_DELAYED)
        # Of streams, which reads nothing before the handler asks for it; on the wire a unary call is one too.
        self._refusing: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(self._refuse)

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Runs in the thread that hands out all calls, so it never waits."""
        given = [value for key, value in handler_call_details.invocation_metadata if key == "authorization"]
        if len(given) == 1 and hmac.compare_digest(_as_bytes(given[0]), self._expected):
            return continuation(handler_call_details)
        return self._refusing

    def _refuse(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        delay_s = self._peers.note_failure(context.peer())
        if delay_s > 0 and self._delayed.acquire(blocking=False):
            try:
                time.sleep(delay_s)
            finally:
                self._delayed.release()
        context.abort(grpc.StatusCode.UNAUTHENTICATED, _REFUSAL)


class CallLimit(grpc.ServerInterceptor):
    """Bounds the calls at a time of each certificate, so that one actor cannot hold all of the server's threads.

    One that was begun and never sends its message counts too. Without credentials nobody is bounded.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[str | None] = Counter()

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Make every call one of streams, whose handler begins before its message is read."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None

        def handle(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._counted(context):
                if handler.stream_stream is not None:
                    yield from handler.stream_stream(requests, context)
                    return
                for request in requests:
                    if handler.unary_stream is not None:
                        yield from handler.unary_stream(request, context)
                    else:
                        assert handler.unary_unary is not None, "the link has no calls of another kind"
                        yield handler.unary_unary(request, context)
                    return

        return grpc.stream_stream_rpc_method_handler(handle, handler.request_deserializer, handler.response_serializer)

    @contextlib.contextmanager
    def _counted(self, context: grpc.ServicerContext) -> Iterator[None]:
        name = certified_actor(context)
        with self._lock:
            self._calls[name] += 1
            is_one_too_many = self._calls[name] > _MAX_CALLS
        try:
            if is_one_too_many:
                context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{_MAX_CALLS} calls with the certificate of {name!r} are under way, which is the limit",
                )
            yield
        finally:
            with self._lock:
                self._calls[name] -= 1
                if not self._calls[name]:
                    del self._calls[name]


class _FailingPeers:
    """Counts refused calls by address, of the latest few hundred addresses."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, int] = OrderedDict()
        self._logged_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def note_failure(self, peer: str) -> float:
        """Log the failure, unless that was done just before; return for how long the peer should wait, s."""
        host = peer.rpartition(":")[0] or peer  # the port is another one for each connection
        now_s = self._clock()
        with self._lock:
            count = self._failures[host] = self._failures.pop(host, 0) + 1
            is_due = now_s - self._logged_s.get(host, -_LOG_PERIOD_S) >= _LOG_PERIOD_S
            if is_due:
                self._logged_s[host] = now_s
            while len(self._failures) > _MAX_PEERS:
                forgotten, _ = self._failures.popitem(last=False)
                self._logged_s.pop(forgotten, None)
        if is_due:
            logger.warning("refused %s: no or a wrong token (%d times so far)", peer, count)
        doublings = min(count - _FREE_FAILURES, 10)
        return min(_MAX_DELAY_S, 0.1 * 2.0**doublings) if doublings > 0 else 0.0


def _as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
