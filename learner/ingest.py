"""Ingest process: take transitions from actors into the episode log, give them weights. No torch, so it starts at once.

It outlives every trainer crash and owns the log's writing side. Each Append stream has a thread that reads messages and
one that commits them, so a batch is whatever arrived during the commit before: alone at control rate, dozens when a
spool drains. Acknowledgements follow the commit.
"""

import argparse
import contextlib
import errno
import ipaddress
import json
import logging
import os
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import grpc
from cgpo_proto import link_pb2, link_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from learner.episode_log import EpisodeLog
from learner.handshake import Handshake, read_policy
from learner.run_lock import sole_use_of
from policy.cli import run_main
from policy.errors import ConfigError, PortInUseError, SpecMismatchError, WeightsError, WireError
from policy.files import replace_durably
from policy.grpc_options import MAX_PING_BYTES, PROTOCOL_VERSION, SERVER_OPTIONS, WEIGHTS_CHUNK_BYTES
from policy.revision import read_revision
from policy.transition import Recordable, RecordId
from policy.weights_store import WeightsManifest, WeightsStore
from policy.wire import record_from_message

logger = logging.getLogger("learner.ingest")  # also when run with -m

_MAX_BATCH = 32  # records in one commit
_MAX_RPCS = 32  # an actor holds two; one more is refused at once instead of waiting for a thread
_SPARE_THREADS = 4
_WEIGHTS_POLL_S = 0.1
_CLOSING_POLL_S = 0.2
_STOP_GRACE_S = 2.0


class LinkServicer(link_pb2_grpc.LinkServicer):
    """The learner's end of the link. One actor's bad message ends its own stream and no other."""

    def __init__(self, log: EpisodeLog, weights: WeightsStore, handshake: Handshake) -> None:
        self._log = log
        self._weights = weights
        self._handshake = handshake
        self._revision = read_revision()  # now: the files may change while this process runs
        self._is_closing = threading.Event()

    def Hello(self, request: link_pb2.HelloRequest, context: grpc.ServicerContext) -> link_pb2.HelloReply:
        """Check that both sides agree; tell what is already stored of the actor's spooled incarnations."""
        try:
            self._handshake.check(request.protocol_version, request.specs_json, request.policy_json)
        except SpecMismatchError as error:
            _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, error)
        except WireError as error:
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, error)
        logger.info("%s connected from %s, incarnation %s", request.actor_id, context.peer(), request.incarnation)
        newest = self._latest_weights()
        return link_pb2.HelloReply(
            protocol_version=PROTOCOL_VERSION,
            weights_version=newest.version if newest else 0,
            resume=[
                link_pb2.ResumePosition(
                    incarnation=incarnation, next_sequence=self._log.next_sequence(request.actor_id, incarnation)
                )
                for incarnation in request.spooled_incarnations
            ],
        )

    def Append(
        self, request_iterator: Iterator[link_pb2.Record], context: grpc.ServicerContext
    ) -> Iterator[link_pb2.Ack]:
        """Store records and acknowledge them after each commit; see link.proto."""
        inbox = _Inbox(self._is_closing)
        threading.Thread(target=inbox.fill, args=(request_iterator,), name="append-reader", daemon=True).start()
        try:
            while batch := inbox.take(_MAX_BATCH):
                yield from self._store(batch, context)
        finally:
            inbox.close()

    def WatchWeights(
        self, request: link_pb2.WatchWeightsRequest, context: grpc.ServicerContext
    ) -> Iterator[link_pb2.WeightsChunk]:
        """Send the newest weights, then each change; see link.proto."""
        sent_sha256 = request.have_sha256
        while context.is_active() and not self._is_closing.wait(_WEIGHTS_POLL_S):
            newest = self._latest_weights()
            if newest is None or newest.sha256 == sent_sha256:
                continue
            sent_sha256 = newest.sha256
            try:
                data = self._weights.read(newest)
            except WeightsError as error:
                logger.error("not sent to %s: %s", request.actor_id, error)
                continue
            yield from _chunks(newest, data)

    def Ping(self, request: link_pb2.PingRequest, context: grpc.ServicerContext) -> link_pb2.PingReply:
        """Say who answers; see link.proto."""
        if request.reply_bytes > MAX_PING_BYTES:
            problem = f"reply_bytes = {request.reply_bytes} is above the limit of {MAX_PING_BYTES}"
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, WireError(problem))
        return link_pb2.PingReply(
            wall_time_s=time.time(),
            protocol_version=PROTOCOL_VERSION,
            commit=self._revision,
            payload=bytes(request.reply_bytes),
        )

    def close(self) -> None:
        """Let all streams end. Records that were not acknowledged are sent again by their actors."""
        self._is_closing.set()

    def _store(self, batch: list[link_pb2.Record], context: grpc.ServicerContext) -> list[link_pb2.Ack]:
        """Commit the records before the first invalid one; return what to acknowledge, or end the stream."""
        records, problem = self._decode(batch)
        try:
            num_new = self._log.append(records)
        except WireError as error:
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, error)
        except sqlite3.Error as error:
            logger.error("the episode log takes no data: %s. Actors keep their steps and try again.", error)
            context.abort(grpc.StatusCode.UNAVAILABLE, f"the learner's episode log takes no data: {error}")
        if num_new < len(records):
            logger.info("%d records came again and were not stored twice", len(records) - num_new)
        if problem is not None:
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, problem)
        stored = {record_id.incarnation: record_id.sequence + 1 for record_id, _ in records}
        return [
            link_pb2.Ack(incarnation=incarnation, next_sequence=next_sequence)
            for incarnation, next_sequence in stored.items()
        ]

    def _decode(self, batch: list[link_pb2.Record]) -> tuple[list[tuple[RecordId, Recordable]], WireError | None]:
        specs = self._handshake.specs
        if specs is None:
            return [], WireError("no actor has said Hello to this run, so its specs are not known")
        records: list[tuple[RecordId, Recordable]] = []
        for message in batch:
            try:
                records.append(record_from_message(message, specs))
            except WireError as error:
                return records, error
        return records, None

    def _latest_weights(self) -> WeightsManifest | None:
        try:
            return self._weights.latest()
        except WeightsError as error:
            logger.error("%s", error)
            return None


class _Inbox:
    """Hands records from the thread that reads a stream to the one that commits them; when full, the reader waits."""

    def __init__(self, is_closing: threading.Event) -> None:
        self._is_closing = is_closing
        self._records: deque[link_pb2.Record] = deque()
        self._is_open = True
        self._changed = threading.Condition()

    def fill(self, messages: Iterator[link_pb2.Record]) -> None:
        """Read until the actor ends the stream or is gone, or nobody takes any more."""
        try:
            for message in messages:
                with self._changed:
                    self._changed.wait_for(lambda: not self._is_open or len(self._records) < 2 * _MAX_BATCH)
                    if not self._is_open:
                        return
                    self._records.append(message)
                    self._changed.notify_all()
        except grpc.RpcError:
            pass  # the actor went away; what arrived until then is still stored
        finally:
            self.close()

    def take(self, limit: int) -> list[link_pb2.Record]:
        """Return at least one and up to `limit` records; none at the end of the stream or of this process."""
        with self._changed:
            while not self._records and self._is_open and not self._is_closing.is_set():
                self._changed.wait(_CLOSING_POLL_S)
            if self._is_closing.is_set():
                return []
            taken = [self._records.popleft() for _ in range(min(limit, len(self._records)))]
            self._changed.notify_all()
            return taken

    def close(self) -> None:
        with self._changed:
            self._is_open = False
            self._changed.notify_all()


def serve(run_dir: Path, host: str, port: int, policy_json: Path, stop: threading.Event) -> None:
    """Serve one run until `stop` is set. RUN_DIR/ingest.json holds address and pid while the server is ready.

    Raises PortInUseError, ConfigError when the host or run folder cannot be used, CorruptFileError for a damaged run.
    """
    policy = read_policy(policy_json)
    _check_address_is_free(host, port)
    ready_path = run_dir / "ingest.json"
    with sole_use_of(run_dir, "ingest.lock"), contextlib.closing(EpisodeLog(run_dir / "log.sqlite")) as log:
        ready_path.unlink(missing_ok=True)  # left by a process that was killed
        servicer = LinkServicer(log, WeightsStore(run_dir / "weights"), Handshake(run_dir / "specs.json", policy))
        health_servicer = health.HealthServicer()
        server = grpc.server(
            ThreadPoolExecutor(_MAX_RPCS + _SPARE_THREADS, thread_name_prefix="rpc"),
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=_MAX_RPCS,
        )
        link_pb2_grpc.add_LinkServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        bound_port = _bind(server, host, port)
        server.start()
        for service in ("", link_pb2.DESCRIPTOR.services_by_name["Link"].full_name):
            health_servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
        ready = {"address": _address(host, bound_port), "pid": os.getpid()}
        replace_durably(ready_path, json.dumps(ready).encode())
        logger.info("listening on %s with %d transitions in %s", _address(host, bound_port), log.count(), run_dir)
        stop.wait()
        ready_path.unlink(missing_ok=True)
        health_servicer.enter_graceful_shutdown()
        servicer.close()
        server.stop(_STOP_GRACE_S).wait()


def _check_address_is_free(host: str, port: int) -> None:
    """Tell a used port from an impossible address, which gRPC does not."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _port_in_use(host, port) from error
        raise ConfigError(
            f"cannot listen on {_address(host, port)}: {error.strerror or error}. "
            "--host must be an address of this machine."
        ) from error


def _bind(server: grpc.Server, host: str, port: int) -> int:
    try:
        return server.add_insecure_port(_address(host, port))
    except RuntimeError as error:
        raise _port_in_use(host, port) from error


def _port_in_use(host: str, port: int) -> PortInUseError:
    return PortInUseError(
        f"another process listens on {_address(host, port)}. Is a learner running already? "
        f"`ss -ltnp 'sport = :{port}'` names the process: stop it, or choose another --port."
    )


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refuse(context: grpc.ServicerContext, code: grpc.StatusCode, error: Exception) -> NoReturn:
    logger.warning("refused %s: %s", context.peer(), error)
    context.abort(code, str(error))


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m learner.ingest", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of the run")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=50051, help="0 lets the system choose (default: %(default)s)")
    parser.add_argument("--policy-json", type=Path, required=True, help="the learner's policy architecture")
    parser.add_argument(
        "--insecure-lab-network",
        action="store_true",
        help="listen beyond this machine although the link is neither encrypted nor authenticated",
    )
    arguments = parser.parse_args()
    if not _is_loopback(arguments.host):
        if not arguments.insecure_lab_network:
            raise ConfigError(
                f"--host {arguments.host} can be reached from other machines, and the link is neither encrypted nor "
                "authenticated. Listen on 127.0.0.1 and let the robot PC in by `ssh -L`, or add "
                "--insecure-lab-network on a network that you trust."
            )
        logger.warning("listening on %s without encryption or authentication", arguments.host)
    stop = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stop.set())
    serve(arguments.run_dir, arguments.host, arguments.port, arguments.policy_json, stop)


if __name__ == "__main__":
    sys.exit(run_main(main))
