"""What the link's benchmark measures: ingest and the plain peer as processes, an actor's end in this one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import psutil

from actor.link import Link
from actor.spool import Spool, new_incarnation
from benchmarks.link.baseline import Client
from benchmarks.link.peer import TcpClient
from benchmarks.link.workload import Workload
from policy.config import PolicyConfig
from policy.credentials import Credentials
from policy.episode_log import EpisodeLog
from policy.process import die_with_parent
from policy.spec import Specs
from policy.weights_store import WeightsStore

POLICY = PolicyConfig()
PATIENCE_S = 60.0  # after which a section gives up


@dataclass(frozen=True)
class Security:
    """Both ends' credentials."""

    learner: Path  # folder
    actor: Credentials


class GaveUpError(RuntimeError):
    """What a section waited for did not happen."""


def wait_for(condition: Callable[[], Any], what: str, limit_s: float = PATIENCE_S, poll_s: float = 0.002) -> float:
    """Wait until `condition()` holds; return the monotonic time at which it was seen to. Raises GaveUpError."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise GaveUpError(f"{what}: not within {limit_s:.0f} s")
        time.sleep(poll_s)
    return time.monotonic()


def start(command: list[str], log: TextIO | int, **options: Any) -> subprocess.Popen[str]:
    """Start a program of ours that ends with this process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *command], stderr=log, text=True, env=environment, preexec_fn=die_with_parent, **options
    )


class Ingest:
    """`python -m learner.ingest` on one run folder; every start after the first uses the same port."""

    def __init__(
        self, run_dir: Path, specs: Specs | None, policy: PolicyConfig = POLICY, security: Security | None = None
    ) -> None:
        """specs: those of the actor, for whoever reads the log here."""
        self.run_dir = run_dir
        self.specs = specs
        self.address = "127.0.0.1:0"
        self.log_path = run_dir / "ingest.log"
        self._flags = [] if security is None else ["--credentials", str(security.learner)]
        self._policy = policy
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> "Ingest":
        """Start and return at once; see wait_until_ready."""
        host, _, port = self.address.rpartition(":")
        self.run_dir.mkdir(parents=True, exist_ok=True)
        policy_path = self.run_dir / "policy.json"
        policy_path.write_text(self._policy.to_json())
        command = ["learner.ingest", "--run-dir", str(self.run_dir), "--host", host, "--port", port]
        with self.log_path.open("a") as log:
            self._process = start([*command, "--policy-json", str(policy_path), *self._flags], log)
        return self

    def is_listening(self) -> bool:
        """Whether an ingest, started by whomever, is ready in the run folder; notes its address."""
        self.address = self._ready().get("address", self.address)
        return bool(self._ready())

    def wait_until_ready(self) -> "Ingest":
        wait_for(lambda: self._ready().get("pid") == self.pid or self.process.poll() is not None, "ingest's start")
        if self.process.poll() is not None:
            raise GaveUpError(f"ingest ended: {self.log_path.read_text()[-500:]}")
        self.address = self._ready()["address"]
        return self

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "start() comes first"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def weights(self) -> WeightsStore:
        return WeightsStore(self.run_dir / "weights")

    def connections(self) -> int:
        """Return the number of its open TCP connections."""
        return sum(c.status == psutil.CONN_ESTABLISHED for c in psutil.Process(self.pid).net_connections("tcp"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)  # it may be frozen
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def _ready(self) -> dict[str, Any]:
        try:
            ready: dict[str, Any] = json.loads((self.run_dir / "ingest.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return ready


class Actor:
    """An actor's end of the link, in this process: spool and link, and no robot."""

    def __init__(
        self,
        directory: Path,
        address: str,
        workload: Workload,
        actor_id: str = "actor-0",
        *,
        policy: PolicyConfig = POLICY,
        security: Security | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        incarnation = new_incarnation()
        self.workload = workload
        self.spool = Spool(directory / "spool.sqlite", actor_id, incarnation)
        self.link = Link(
            address,
            self.spool,
            workload.specs,
            policy,
            actor_id,
            incarnation,
            directory / "weights",
            credentials=security.actor if security else None,
        )
        self.offered_s: list[float] = []  # monotonic, by sequence
        self.link.start()

    def connect(self) -> "Actor":
        """Wait for the link. Raises GaveUpError with the reason that the link gives."""
        try:
            wait_for(lambda: self.link.statistics.is_connected, "the link")
        except GaveUpError as error:
            raise GaveUpError(f"{error}: {self.link.statistics.last_error}") from error
        return self

    def offer(self) -> None:
        transition = self.workload.transition(len(self.offered_s))
        self.offered_s.append(transition.monotonic_time_s)
        self.spool.offer(transition)

    def offer_for(self, seconds: float, rate_hz: float) -> None:
        """Offer at a control rate, on absolute deadlines."""
        began_s, count = time.monotonic(), round(seconds * rate_hz)
        for index in range(count):
            time.sleep(max(0.0, began_s + index / rate_hz - time.monotonic()))
            self.offer()

    def drain(self) -> None:
        if not self.spool.wait_until_empty(PATIENCE_S):
            raise GaveUpError(f"{self.spool.pending} records not acknowledged: {self.link.statistics.last_error}")

    def close(self) -> None:
        self.link.close(0.0)
        self.spool.close()


@contextlib.contextmanager
def sending(actor: Actor, rate_hz: float) -> Iterator[None]:
    """Let an actor offer at a control rate, in a thread, until the block ends."""
    stop = threading.Event()

    def offer() -> None:
        while not stop.wait(1 / rate_hz):
            actor.offer()

    thread = threading.Thread(target=offer, name="offering", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class LogReader:
    """The learner's view of the log: a connection of its own that reads what is new, as a trainer does."""

    def __init__(self, ingest: Ingest) -> None:
        self._log = EpisodeLog(ingest.run_dir / "log.sqlite", ingest.specs, read_only=True)
        self._position = 0
        self.latencies_s: dict[str, list[float]] = {}  # by actor: from the step to here

    def read(self) -> int:
        """Read up to 64 new records; return how many there were."""
        entries = self._log.read_after(self._position, 64)
        now_s = time.monotonic()
        for entry in entries:
            offered_s = getattr(entry.body, "monotonic_time_s", now_s)
            self.latencies_s.setdefault(entry.record_id.actor_id, []).append(now_s - offered_s)
            self._position = entry.position
        return len(entries)

    def skip(self) -> None:
        """Pass over everything that is there now."""
        self._position = self._log.count()

    def close(self) -> None:
        self._log.close()


@contextlib.contextmanager
def watched(reader: LogReader, poll_s: float = 0.002) -> Iterator[None]:
    """Read the log in a thread until the block ends."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            if not reader.read():
                stop.wait(poll_s)

    thread = threading.Thread(target=watch, name="log-reader", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Peer:
    """The process of benchmarks.link.peer, and clients of it."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self.process = start(["benchmarks.link.peer"], subprocess.DEVNULL, stdin=pipe, stdout=pipe)
        assert self.process.stdout is not None
        ports = json.loads(self.process.stdout.readline())
        self.plain_port: int = ports["plain"]
        self._tcp_port: int = ports["tcp"]

    def plain(self) -> Client:
        return Client(f"127.0.0.1:{self.plain_port}")

    def tcp(self) -> TcpClient:
        return TcpClient(self._tcp_port)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[float]:
    """Freeze a process, as a machine that hangs would; yields when, monotonic. Thawed afterwards."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield time.monotonic()
    finally:
        process.send_signal(signal.SIGCONT)
