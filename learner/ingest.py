"""Ingest process: take transitions from actors into the episode log, give them weights. No torch, so it starts at once.

It outlives every trainer crash and owns the log's writing side. Each Append stream has a thread that reads and checks
records (learner/link_servicer.py); one thread commits what all of them brought (learner/committer.py), so a commit
holds whatever arrived during the one before: one record at control rate, dozens when a spool drains. Acknowledgements
follow the commit.
"""

import argparse
import contextlib
import errno
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import grpc
from cgpo_proto import link_pb2, link_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from learner.authentication import CallLimit, TokenInterceptor, server_credentials
from learner.committer import Committer
from learner.handshake import Handshake, read_policy
from learner.link_servicer import LinkServicer
from learner.run_lock import sole_use_of
from learner.sessions import Sessions
from learner.weights_feed import WeightsFeed
from policy.cli import run_main
from policy.credentials import Credentials, is_loopback
from policy.episode_log import EpisodeLog
from policy.errors import ConfigError, PortInUseError
from policy.files import replace_durably
from policy.grpc_options import SERVER_OPTIONS

logger = logging.getLogger("learner.ingest")  # also when run with -m

_STREAMS = 2  # that an actor holds
_SPARE_RPCS = 16  # unary calls, health checks; one call more is refused at once instead of waiting for a thread
_SPARE_THREADS = 4
_STOP_GRACE_S = 2.0
_WARNING_PERIOD_S = 60.0
_REMINDER_PERIOD_S = 24 * 3600.0  # of credentials that end soon


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """What the command line says."""

    run_dir: Path
    host: str
    port: int  # 0: the system chooses
    policy_json: Path
    credentials: Path | None = None
    insecure_lab_network: bool = False
    max_actors: int = 16
    min_free_gb: float = 0.0

    def __post_init__(self) -> None:
        if self.credentials and self.insecure_lab_network:
            raise ConfigError("--credentials and --insecure-lab-network contradict each other: leave one of them out.")
        if is_loopback(self.host) or self.credentials or self.insecure_lab_network:
            return
        raise ConfigError(
            f"--host {self.host} can be reached from other machines, and the link is neither encrypted nor "
            "authenticated. Make credentials (python -m learner.certs init) and start with --credentials FOLDER, "
            "listen on 127.0.0.1 and let the robot PC in by `ssh -L`, or add --insecure-lab-network on a network that "
            "you trust."
        )

    @property
    def is_exposed(self) -> bool:
        """Whether others than this machine's users may call without being asked who they are."""
        return self.credentials is None and not is_loopback(self.host)


def serve(config: IngestConfig, stop: threading.Event) -> None:
    """Serve one run until `stop` is set. RUN_DIR/ingest.json holds address and pid while the server is ready.

    Raises PortInUseError, ConfigError when host, credentials or run folder cannot be used, CorruptFileError for a
    damaged run.
    """
    run_dir, policy = config.run_dir, read_policy(config.policy_json)
    credentials = _load_credentials(config.credentials) if config.credentials else None
    _check_address_is_free(config.host, config.port)
    ready_path = run_dir / "ingest.json"
    with contextlib.ExitStack() as closing:
        closing.enter_context(sole_use_of(run_dir, "ingest.lock"))
        log = closing.enter_context(contextlib.closing(EpisodeLog(run_dir / "log.sqlite")))
        committer = closing.enter_context(contextlib.closing(Committer(log, run_dir, round(config.min_free_gb * 1e9))))
        feed = closing.enter_context(contextlib.closing(WeightsFeed(run_dir)))
        ready_path.unlink(missing_ok=True)  # left by a process that was killed
        handshake = Handshake(run_dir / "specs.json", policy)
        servicer = LinkServicer(log, committer, feed, handshake, Sessions(config.max_actors))
        with _server(config, credentials, servicer) as address:
            ready = {"address": address, "pid": os.getpid()}
            replace_durably(ready_path, json.dumps(ready).encode())
            logger.info("listening on %s with %d transitions in %s", address, log.count(), run_dir)
            last_reminder_s = time.monotonic()
            while not stop.wait(_WARNING_PERIOD_S):
                _warn_if_exposed(config)
                if credentials is not None and time.monotonic() - last_reminder_s > _REMINDER_PERIOD_S:
                    last_reminder_s = time.monotonic()
                    credentials.warn_if_ending()
            ready_path.unlink(missing_ok=True)


def _load_credentials(folder: Path) -> Credentials:
    credentials = Credentials.load(folder)
    if not credentials.can_serve:
        raise ConfigError(
            f"the credentials in {folder} are those of the actor {credentials.name!r}, which no actor takes for the "
            "learner's. `python -m learner.certs init` made the learner's as well: --credentials credentials/learner."
        )
    return credentials


@contextlib.contextmanager
def _server(config: IngestConfig, credentials: Credentials | None, servicer: LinkServicer) -> Iterator[str]:
    """Serve within the context; yields the address."""
    max_rpcs = _STREAMS * config.max_actors + _SPARE_RPCS
    health_servicer = _Health(experimental_non_blocking=False)
    server = grpc.server(
        ThreadPoolExecutor(max_rpcs + _SPARE_THREADS, thread_name_prefix="rpc"),
        options=SERVER_OPTIONS,
        maximum_concurrent_rpcs=max_rpcs,
        interceptors=[TokenInterceptor(credentials.token), CallLimit()] if credentials else [],
    )
    link_pb2_grpc.add_LinkServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    port = _bind(server, config.host, config.port, credentials)
    server.start()
    for service in ("", link_pb2.DESCRIPTOR.services_by_name["Link"].full_name):
        health_servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    _warn_if_exposed(config)
    try:
        yield _address(config.host, port)
    finally:
        health_servicer.enter_graceful_shutdown()
        servicer.close()
        server.stop(_STOP_GRACE_S).wait()


class _Health(health.HealthServicer):  # type: ignore[misc]  # grpc_health has no types
    """Answers Check alone: a Watch would last as long as its caller likes."""

    def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext) -> NoReturn:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "this learner answers Check only: ask again instead of watching")


def _warn_if_exposed(config: IngestConfig) -> None:
    if config.is_exposed:
        logger.warning(
            "%s is open to everybody on its network, neither encrypted nor authenticated: whoever reaches it can feed "
            "the learner and read its weights. `python -m learner.certs init` closes it.",
            _address(config.host, config.port),
        )


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


def _bind(server: grpc.Server, host: str, port: int, credentials: Credentials | None) -> int:
    try:
        if credentials is not None:
            return server.add_secure_port(_address(host, port), server_credentials(credentials))
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m learner.ingest", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of the run")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=50051, help="0 lets the system choose (default: %(default)s)")
    parser.add_argument("--policy-json", type=Path, required=True, help="the learner's policy architecture")
    parser.add_argument("--credentials", type=Path, help="folder of python -m learner.certs: TLS and token")
    parser.add_argument("--max-actors", type=int, default=16, help="actors at a time (default: %(default)s)")
    parser.add_argument(
        "--min-free-gb", type=float, default=0.0, help="take no data with less free disk (default: %(default)s)"
    )
    parser.add_argument(
        "--insecure-lab-network",
        action="store_true",
        help="listen beyond this machine although the link is neither encrypted nor authenticated",
    )
    config = IngestConfig(**vars(parser.parse_args()))
    stop = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stop.set())
    serve(config, stop)
    for signal_number in (signal.SIGTERM, signal.SIGINT):  # or one more would end the interpreter while it closes down
        signal.signal(signal_number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(run_main(main))
