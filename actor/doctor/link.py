"""The doctor's checks of the link: is the learner there, how fast, with which clock, and with which code."""

import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cgpo_proto import link_pb2, link_pb2_grpc

from actor.address import parse_address
from actor.channel import explain_unavailable, open_channel
from actor.doctor.check import Check, Percentiles, Result, failed, judged, ok, refused, short, skipped, warning
from actor.doctor.credentials import check_credentials
from policy.credentials import Credentials
from policy.errors import ConfigError
from policy.grpc_options import MAX_PING_BYTES, PROTOCOL_VERSION

_CONNECT_TIMEOUT_S = 3.0
_PING_TIMEOUT_S = 5.0
_LOAD_TIMEOUT_S = 8.0
_PINGS = 50
_CLOCK_PINGS = 5
_LOAD_S = 1.0  # of sending for the throughput, each way
_IP_MTU = 14  # linux/in.h; Python's socket has no name for it

_MAX_OFFSET_S = 0.05
_WARN_RTT_MS, _FAIL_RTT_MS = 50.0, 500.0


@dataclass(frozen=True)
class _Pong:
    sent_wall_s: float
    round_trip_s: float
    reply: link_pb2.PingReply

    @property
    def offset_s(self) -> float:
        """The learner's clock minus ours, if the way there takes as long as the way back."""
        return self.reply.wall_time_s - (self.sent_wall_s + 0.5 * self.round_trip_s)


class LinkProbe:
    """A connection to the learner for the checks, opened by the first of them."""

    def __init__(self, address: str, credentials: Path | None) -> None:
        """address: HOST:PORT; credentials: a folder, or none. Raises ConfigError for an address of another form."""
        self.address = address
        self._credentials = credentials
        self._host, self._port = parse_address(address)
        self._channel: grpc.Channel | None = None

    def connect(self) -> str:
        """Open the connection; return the path's MTU.

        Raises OSError, before gRPC's less telling errors, and ConfigError for credentials that fail on either side.
        """
        credentials = Credentials.load(self._credentials) if self._credentials else None
        with socket.create_connection((self._host, self._port), _CONNECT_TIMEOUT_S) as connection:
            try:
                mtu = f"MTU {connection.getsockopt(socket.IPPROTO_IP, _IP_MTU)} bytes"
            except OSError:  # IPv6
                mtu = ""
        channel = open_channel(self.address, credentials)
        try:
            grpc.channel_ready_future(channel).result(_CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            channel.close()
            if reason := explain_unavailable(self.address, credentials):
                raise ConfigError(reason) from None
            raise
        self._channel = channel
        return mtu

    @property
    def is_connected(self) -> bool:
        return self._channel is not None

    def ping(self, payload_bytes: int = 0, reply_bytes: int = 0) -> _Pong:
        """Raises grpc.RpcError."""
        assert self._channel is not None, "ping() before connect()"
        stub = link_pb2_grpc.LinkStub(self._channel)  # type: ignore[no-untyped-call]
        request = link_pb2.PingRequest(payload=bytes(payload_bytes), reply_bytes=reply_bytes)
        sent_wall_s, sent_s = time.time(), time.monotonic()
        reply = stub.Ping(request, timeout=_PING_TIMEOUT_S)
        return _Pong(sent_wall_s, time.monotonic() - sent_s, reply)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def link_checks(
    address: str,
    own_revision: str,
    needed_mb_s: Callable[[], float],
    closing: contextlib.ExitStack,
    *,
    credentials: Path | None,
    actor_id: str,
) -> list[Check]:
    """needed_mb_s: what the actor will send, MB/s. Raises ConfigError for an address that is none."""
    probe = LinkProbe(address, credentials)
    closing.callback(probe.close)

    def when_connected(run: Callable[[LinkProbe], Result]) -> Callable[[], Result]:
        def guarded() -> Result:
            if not probe.is_connected:
                return skipped("the learner is not reachable")
            try:
                return run(probe)
            except grpc.RpcError as error:
                return _rpc_failure(error)

        return guarded

    return [
        Check(group="link", name="credentials", run=lambda: check_credentials(credentials, actor_id, address)),
        Check(group="link", name="reachable", run=lambda: check_reachable(probe)),
        Check(group="link", name="round trip", run=when_connected(check_round_trip), timeout_s=_LOAD_TIMEOUT_S),
        Check(
            group="link",
            name="throughput",
            run=when_connected(lambda probe: check_throughput(probe, needed_mb_s())),
            timeout_s=2 * (_LOAD_S + _LOAD_TIMEOUT_S),
        ),
        Check(group="link", name="clock offset", run=when_connected(check_clock_offset), timeout_s=_LOAD_TIMEOUT_S),
        Check(group="link", name="protocol", run=when_connected(check_protocol)),
        Check(
            group="link", name="same commit", run=when_connected(lambda probe: check_same_commit(probe, own_revision))
        ),
    ]


def check_reachable(probe: LinkProbe) -> Result:
    start = (
        f"on the workstation: launch/learner.sh --preset NAME; from another machine: "
        f"ssh -N -L {probe._port}:127.0.0.1:{probe._port} WORKSTATION, then --learner 127.0.0.1:{probe._port}"
    )
    try:
        mtu = probe.connect()
    except ConnectionRefusedError:
        return failed(f"{probe.address}: connection refused", fix=start, detail="Nobody listens there.")
    except TimeoutError:
        fix = f"ping -c 3 {probe._host}; on the workstation: sudo ufw allow {probe._port}/tcp"
        detail = "The machine is off, not on this network, or a firewall drops what comes."
        limit = f"{_CONNECT_TIMEOUT_S:.0f} s"
        return failed(f"{probe.address}: no answer", limit=limit, fix=fix, detail=detail)
    except socket.gaierror as error:
        return failed(f"{probe.address}: {error.strerror}", fix=f"getent hosts {probe._host}, or give an IP address")
    except ConfigError as error:
        return refused(error)
    except grpc.FutureTimeoutError:
        fix = f"on the learner's machine: ss -ltnp 'sport = :{probe._port}' names what listens; start the learner again"
        return failed(f"{probe.address}: listens, but does not answer as a learner does", fix=fix)
    except OSError as error:
        return failed(f"{probe.address}: {error.strerror or error}", fix=f"ip route get {probe._host}")
    return ok(f"{probe.address} answers" + (f", {mtu}" if mtu else ""))


def check_round_trip(probe: LinkProbe) -> Result:
    figures = Percentiles.of([probe.ping().round_trip_s for _ in range(_PINGS)])
    return judged(
        figures.p99,
        f"{figures} ({_PINGS} pings)",
        warn=_WARN_RTT_MS,
        fail=_FAIL_RTT_MS,
        limit=f"p99 {_WARN_RTT_MS:.0f} ms",
        detail="The control loop never waits for it; weights arrive later and the spool grows.",
        fix=f"use a cable instead of Wi-Fi; mtr {probe._host} shows where it is slow",
    )


def check_throughput(probe: LinkProbe, needed_mb_s: float) -> Result:
    up = _rate_mb_s(lambda: probe.ping(payload_bytes=MAX_PING_BYTES))
    down = _rate_mb_s(lambda: probe.ping(reply_bytes=MAX_PING_BYTES))
    return judged(
        up,
        f"{up:.1f} MB/s up, {down:.1f} MB/s down",
        warn=4.0 * needed_mb_s,
        fail=needed_mb_s,
        is_low_bad=True,
        limit=f"{needed_mb_s:.2g} MB/s up for this task, 4 times that to catch up",
        fix=f"use a cable instead of Wi-Fi; iperf3 -c {probe._host} measures the network alone",
    )


def _rate_mb_s(send: Callable[[], object]) -> float:
    start_s, count = time.monotonic(), 0
    while (elapsed_s := time.monotonic() - start_s) < _LOAD_S or count == 0:
        send()
        count += 1
    return count * MAX_PING_BYTES / elapsed_s / 1e6


def check_clock_offset(probe: LinkProbe) -> Result:
    # Of several, the quickest: what delays one way and not the other is smallest there.
    best = min((probe.ping() for _ in range(_CLOCK_PINGS)), key=lambda pong: pong.round_trip_s)
    uncertainty_ms = 0.5e3 * best.round_trip_s
    measured = f"{best.offset_s * 1e3:+.3g} ms (± {uncertainty_ms:.2g} ms)"
    limit = f"± {_MAX_OFFSET_S * 1e3:.0f} ms"
    if abs(best.offset_s) <= _MAX_OFFSET_S:
        return ok(measured, limit=limit)
    return warning(
        measured,
        limit=limit,
        detail="Ages of weights and times in the log will be wrong by this much; nothing else depends on it.",
        fix="sudo timedatectl set-ntp true, on both machines",
    )


def check_protocol(probe: LinkProbe) -> Result:
    theirs = probe.ping().reply.protocol_version
    if theirs == PROTOCOL_VERSION:
        return ok(f"version {theirs} on both machines")
    return failed(
        f"version {PROTOCOL_VERSION} here, {theirs} at the learner",
        limit="equal",
        fix="git pull, on the machine with the lower version; then start its program again",
    )


def check_same_commit(probe: LinkProbe, own_revision: str) -> Result:
    theirs = probe.ping().reply.commit
    is_equal = bool(own_revision) and own_revision == theirs
    if is_equal and not own_revision.endswith("-dirty"):
        return ok(f"{short(theirs)} on both machines")
    here_and_there = f"{short(own_revision)} here, {short(theirs)} at the learner"
    commit = own_revision.removesuffix("-dirty") or "COMMIT"  # not the learner's: people paste this into a shell
    return warning(
        f"{short(theirs)} on both machines, which may differ" if is_equal else here_and_there,
        limit="equal, and no file changed",
        fix=f"git status; git checkout {commit}, on both machines; then start both programs again",
    )


def _rpc_failure(error: grpc.RpcError) -> Result:
    code = error.code() if isinstance(error, grpc.Call) else None
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return failed(
            "the learner does not know Ping",
            fix="git pull on the learner's machine, then start it again",
            detail="It is older than this actor, or something else listens there.",
        )
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return failed(
            f"refused: {error.details()}" if isinstance(error, grpc.Call) else "refused",
            detail="Its token is another one than this machine's: they are not of one set, or it was renewed since.",
            fix="copy this actor's folder from the learner's machine again; restart the learner if that was renewed",
        )
    text = error.details() if isinstance(error, grpc.Call) else str(error)
    return refused(ConnectionError(f"{code.name if code else 'gRPC'}: {text}"), fix="launch/learner.sh, again")
