"""The link: sends what the spool holds to the learner and brings its newest weights back.

All of it runs in background threads, so the control loop waits for none of it. Whatever goes wrong on the network ends
in a new connection and the oldest unacknowledged step again; the learner passes over what it has already.
"""

import logging
import os
import random
import socket
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from cgpo_proto import link_pb2, link_pb2_grpc

from actor.channel import explain_unavailable, open_channel
from actor.link_session import MAX_WALL_S, POLL_S, LinkSession, Window, check_position
from actor.link_statistics import LinkStatistics
from actor.spool import Spool
from actor.weights_cache import WeightsCache
from policy.config import PolicyConfig
from policy.credentials import Credentials
from policy.errors import CgpoError, ConfigError, SpecMismatchError, WireError
from policy.grpc_options import PROTOCOL_VERSION
from policy.spec import Specs
from policy.text import clean
from policy.weights import PolicyWeights

logger = logging.getLogger(__name__)

_HELLO_TIMEOUT_S = 5.0
_PING_TIMEOUT_S = 1.0
_PINGS = 5
_NOTED_OFFSET_S = 0.05
_NAMED_INCARNATIONS = 1000  # as many as a learner reads; what it has of others it passes over when it comes again
_MIN_BACKOFF_S = 0.2
_MAX_BACKOFF_S = 1.0  # a learner that was started again listens within half a second
_LEASE_WAIT_S = 15.0  # the lease of a predecessor that was killed ends after 10 s
_REFUSALS: dict[grpc.StatusCode, type[CgpoError]] = {
    grpc.StatusCode.FAILED_PRECONDITION: SpecMismatchError,
    grpc.StatusCode.INVALID_ARGUMENT: WireError,
    grpc.StatusCode.UNAUTHENTICATED: ConfigError,
    grpc.StatusCode.PERMISSION_DENIED: ConfigError,
}


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
        *,
        take_over: bool = False,
        credentials: Credentials | None = None,
    ) -> None:
        """`cache_dir` keeps the last good weights, which are at hand from the start, learner or not.

        take_over: end the lease of another process that holds the actor id. credentials: None sends all in the open.
        """
        self._address = address
        self._credentials = credentials
        self._spool = spool
        self._hello = link_pb2.HelloRequest(
            protocol_version=PROTOCOL_VERSION,
            actor_id=actor_id,
            incarnation=incarnation,
            specs_json=specs.to_json(),
            policy_json=policy_config.to_json(),
            host=socket.gethostname(),
            pid=os.getpid(),
            take_over=take_over,
        )
        self._weights = WeightsCache(cache_dir)
        self._statistics = LinkStatistics()
        self._window = Window()
        self._refusal: CgpoError | None = None
        self._monotonic_offset_s: float | None = None  # the learner's clock minus our monotonic one, once measured
        self._has_connected = False
        self._in_use_since_s: float | None = None  # since when the learner says that another has the actor id
        self._tls_problem = ("", "")  # gRPC's words, and what was found to be behind them
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def latest_weights(self) -> PolicyWeights | None:
        """Return the newest complete and verified weights, at first those of the cache. Never blocks."""
        return self._weights.newest

    @property
    def learner_step(self) -> int:
        """The newest step of the learner that was heard of, 0 before any."""
        return self._statistics.learner_step

    def learner_time_s(self) -> float:
        """Return the time on the learner's clock, as far as it could be measured. Setting our clock changes nothing."""
        offset_s = self._monotonic_offset_s
        return time.time() if offset_s is None else time.monotonic() + offset_s

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
            if self._spool.wait_until_empty(min(POLL_S, drain_timeout_s)):
                break
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._statistics.is_connected = False
        return self._spool.pending == 0

    def _run(self) -> None:
        try:
            self._keep_connected()
        except Exception as error:  # ends the process in order: no step would reach the learner any more
            self._statistics.is_connected = False
            self._refusal = CgpoError(
                f"the link to the learner ended: {error!r}. That is a fault of this program. Every step is in the "
                "spool: start again in the same folder, and report it with the log."
            )
            logger.critical("%s", self._refusal, exc_info=error)

    def _keep_connected(self) -> None:
        """Connect and work until that fails, wait, and again."""
        attempt = 0
        while not self._stop.is_set():
            acknowledged = self._spool.acknowledged
            try:
                with open_channel(self._address, self._credentials) as channel:
                    self._work_on(channel)
            except _Stopping:
                return
            except Exception as error:
                was_connected = self._statistics.is_connected
                self._statistics.is_connected = False  # before anything that takes time
                # A learner whose disk is full takes every connection and no step.
                was_of_use = was_connected and (self._spool.acknowledged > acknowledged or not self._spool.pending)
                attempt = 0 if was_of_use else attempt
                self._judge(error, was_connected=was_connected, was_of_use=was_of_use)
            if self._refusal is not None:
                return
            attempt += 1
            self._stop.wait(_backoff_s(attempt))

    def _work_on(self, channel: grpc.Channel) -> None:
        stub = link_pb2_grpc.LinkStub(channel)  # type: ignore[no-untyped-call]
        session = self._say_hello(stub)
        self._measure_clock_offset(stub)
        self._statistics.is_connected = True
        LinkSession(
            stub, session, self._hello.actor_id, self._spool, self._weights, self._statistics, self._window
        ).run(self._stop)

    def _say_hello(self, stub: link_pb2_grpc.LinkStub) -> bytes:
        """Agree with the learner, let go of what it has stored without our having heard of it; return the session."""
        request = link_pb2.HelloRequest()
        request.CopyFrom(self._hello)
        for incarnation, oldest in list(self._spool.oldest_sequences().items())[:_NAMED_INCARNATIONS]:
            request.spooled_incarnations.append(incarnation)
            request.first_sequences.append(oldest)
        reply: link_pb2.HelloReply = self._call(stub.Hello, request, _HELLO_TIMEOUT_S)
        for position in reply.resume:
            check_position(request.actor_id, position)
        for position in reply.resume:
            self._spool.acknowledge(position.incarnation, position.next_sequence)
        logger.info("connected to the learner at %s, %d steps to send", self._address, self._spool.pending)
        self._statistics.reconnects += self._has_connected
        self._has_connected = True
        self._in_use_since_s = None
        self._hello.take_over = False  # once: who took over from us is not to be thrown out in turn
        return bytes(reply.session)

    def _measure_clock_offset(self, stub: link_pb2_grpc.LinkStub) -> None:
        """Compare the clocks, by the quickest of a few pings: its reply was made in the middle of its way, nearly.

        Without an answer the offset of the connection before stays.
        """
        measured: list[tuple[float, float, float]] = []  # duration, offsets from our two clocks
        for _ in range(_PINGS):
            start_s, start_wall_s = time.monotonic(), time.time()
            try:
                reply: link_pb2.PingReply = self._call(stub.Ping, link_pb2.PingRequest(), _PING_TIMEOUT_S)
            except grpc.RpcError as error:
                logger.info("the learner's clock was not measured: %s", _describe(error))
                return
            duration_s = time.monotonic() - start_s
            if not 0 <= reply.wall_time_s < MAX_WALL_S:
                logger.warning("the learner's clock says %s s: it is not compared with this one", reply.wall_time_s)
                return
            sent_s = reply.wall_time_s - duration_s / 2
            measured.append((duration_s, sent_s - start_wall_s, sent_s - start_s))
        duration_s, offset_s, self._monotonic_offset_s = min(measured)
        self._statistics.clock_offset_s = offset_s
        if abs(offset_s) > _NOTED_OFFSET_S:
            logger.warning(
                "the learner's clock is %+.3f s from this one, give or take %.3f s: ages of weights are corrected by it"
                ", recorded times are not. Let both machines keep time by NTP.",
                offset_s,
                duration_s / 2,
            )

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        """Make a unary call, with its deadline, and give it up when the link is to stop."""
        future = method.future(request, timeout=timeout_s)
        while True:
            try:
                return future.result(timeout=POLL_S)
            except grpc.FutureTimeoutError:
                if self._stop.is_set():
                    future.cancel()
                    raise _Stopping from None

    def _judge(self, error: Exception, *, was_connected: bool, was_of_use: bool) -> None:
        """Find out whether another attempt may succeed, and report what went wrong."""
        if not (isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.ALREADY_EXISTS):
            self._in_use_since_s = None
            self._refusal = _as_refusal(error)
        elif self._in_use_since_s is None:
            self._in_use_since_s = time.monotonic()
        elif time.monotonic() - self._in_use_since_s > _LEASE_WAIT_S:
            self._refusal = ConfigError(clean(error.details()))  # which names the other one, and what to do
        if not isinstance(error, grpc.RpcError | OSError | CgpoError | sqlite3.Error):
            logger.error("the link meets what it does not expect", exc_info=error)
        self._report(_describe(error) if was_connected else self._explained(error), was_of_use=was_of_use)

    def _explained(self, error: Exception) -> str:
        """Return what went wrong; where gRPC says no more than UNAVAILABLE, what TLS has to do with it, if anything."""
        words = _describe(error)
        if not (isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNAVAILABLE):
            return words
        if words != self._tls_problem[0] and not self._stop.is_set():  # once: it makes a connection of its own
            self._tls_problem = (words, explain_unavailable(self._address, self._credentials))
        return self._tls_problem[1] or words

    def _report(self, problem: str, *, was_of_use: bool) -> None:
        """Log a failure, but not each attempt that fails like the one before."""
        if was_of_use or problem != self._statistics.last_error:
            outcome = "the link stops" if self._refusal else "steps stay in the spool, trying again"
            logger.warning("learner at %s: %s; %s", self._address, problem, outcome)
        self._statistics.trainer_state = "unknown"
        self._statistics.last_error = problem


def _backoff_s(attempt: int) -> float:
    """Return how long to wait after this many attempts without use, which may be any number."""
    # The exponent is bounded as well: a float has no room for 2**1024, which a night without a learner comes to.
    return random.uniform(_MIN_BACKOFF_S, min(_MAX_BACKOFF_S, _MIN_BACKOFF_S * 2 ** min(attempt, 10)))


class _Stopping(Exception):
    """The link is to stop, in the middle of a call."""


def _as_refusal(error: Exception) -> CgpoError | None:
    """Return the error that a person must act on, None where another attempt may succeed."""
    if isinstance(error, CgpoError):
        return error
    if isinstance(error, grpc.Call):
        refusal = _REFUSALS.get(error.code())
        return refusal(clean(error.details())) if refusal else None
    return None


def _describe(error: Exception) -> str:
    if isinstance(error, grpc.Call):
        return clean(f"{error.code().name}: {error.details()}")
    return clean(str(error) or repr(error))
