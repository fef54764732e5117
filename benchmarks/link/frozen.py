"""How long a frozen peer goes unnoticed."""

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import psutil

from benchmarks.link.baseline import BrokenError, Client
from benchmarks.link.bench import Bench, CrowdProcess
from benchmarks.link.crowd import Crowd
from benchmarks.link.peer import steps
from benchmarks.link.processes import GaveUpError, Ingest, Peer, sending, start, stopped, wait_for
from benchmarks.link.report import Section, Table, Target, spread

_DEAD_LIMIT_S = 30.0  # for the plain scheme to notice
_TARGET_S = 5.0


def frozen(bench: Bench) -> Section:
    """How long a frozen peer goes unnoticed."""
    trials, limit_s = (1, 2.0) if bench.is_quick else (4, _DEAD_LIMIT_S)
    plain = _PlainFreezes(limit_s)
    plain.start()
    ours = {
        "learner frozen, link idle": _frozen_ingest(bench, trials, rate_hz=0.0),
        "learner frozen, actor sending at 20 Hz": _frozen_ingest(bench, trials, rate_hz=20.0),
        "actor frozen, as ingest sees it": _frozen_actor(bench, trials),
    }
    rows = [[case, spread(times), noticed] for (case, times), noticed in zip(ours.items(), plain.finish(), strict=True)]
    worst_s = max(max(times) for times in ours.values())
    return Section(
        "Detection of a frozen peer",
        f"Seconds from SIGSTOP to the connection's end, median (range) of {trials}. The plain scheme: the same calls "
        f"with gRPC's default options and, as there, no deadline; watched for {limit_s:.0f} s.",
        [Table(["case", "the link, s", "plain scheme"], rows)],
        [Target("a frozen peer is noticed within 5 s", f"{worst_s:.1f} s at worst", worst_s <= _TARGET_S)],
    )


def _frozen_ingest(bench: Bench, trials: int, rate_hz: float) -> list[float]:
    times = []
    with bench.connected(bench.workload("jpeg")) as (ingest, actor):
        for trial in range(trials):
            actor.connect()
            with sending(actor, rate_hz) if rate_hz else contextlib.nullcontext():
                time.sleep(1.0 + 0.5 * trial)  # at another moment between two pings
                with stopped(ingest.process) as since_s:
                    noticed_s = wait_for(lambda: not actor.link.statistics.is_connected, "the link's end", poll_s=0.01)
                    times.append(noticed_s - since_s)
    return times


def _frozen_actor(bench: Bench, trials: int) -> list[float]:
    """Ingest has noticed when its side of the connection is closed."""
    folder, times = bench.fresh_folder(), []
    with contextlib.closing(Ingest(folder / "learner", bench.workload("jpeg").specs)) as ingest:
        ingest.start().wait_until_ready()
        crowd = Crowd(
            address=ingest.address, folder=str(folder), pictures=str(bench.pictures_path), rate_hz=20.0, seconds=600.0
        )
        with contextlib.closing(CrowdProcess(crowd)) as process:
            process.begin()
            for trial in range(trials):
                wait_for(lambda: ingest.connections() > 0, "the actor's connection", poll_s=0.02)
                time.sleep(1.0 + 0.5 * trial)
                with stopped(process.process) as since_s:
                    times.append(wait_for(lambda: ingest.connections() == 0, "the end", poll_s=0.02) - since_s)
    return times


class _PlainFreezes:
    """The plain scheme's three cases, all at once and in the background, because it is a long wait."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._outcomes = ["failed"] * 3
        cases = (self._idle, self._sending, self._actor)
        self._threads = [
            threading.Thread(target=self._run, args=(n, case), daemon=True) for n, case in enumerate(cases)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> list[str]:
        for thread in self._threads:
            thread.join()
        return self._outcomes

    def _run(self, number: int, case: Callable[[], float | None]) -> None:
        noticed_s = case()
        limit = f"not within {self._limit_s:.0f} s"
        self._outcomes[number] = limit if noticed_s is None else f"{noticed_s:.1f} s"

    def _idle(self) -> float | None:
        return self._freeze_server(lambda client: client.exchange(_silence()))

    def _sending(self) -> float | None:
        return self._freeze_server(lambda client: client.exchange(steps()))

    def _freeze_server(self, call: Callable[[Client], object]) -> float | None:
        peer, over = Peer(), threading.Event()
        client = peer.plain()

        def work() -> None:
            try:
                with contextlib.suppress(BrokenError):
                    call(client)
            finally:
                over.set()

        try:
            threading.Thread(target=work, daemon=True).start()
            time.sleep(1.0)
            with stopped(peer.process) as since_s:
                return time.monotonic() - since_s if over.wait(self._limit_s) else None
        finally:
            client.close()
            peer.close()

    def _actor(self) -> float | None:
        peer = Peer()
        caller = start(["benchmarks.link.peer", "--call", str(peer.plain_port)], subprocess.DEVNULL)
        try:
            server = psutil.Process(peer.process.pid)
            wait_for(lambda: _established(server), "the caller's connection", poll_s=0.05)
            time.sleep(1.0)
            with stopped(caller) as since_s:
                gone_s = wait_for(lambda: not _established(server), "its end", self._limit_s, poll_s=0.05)
                return gone_s - since_s
        except GaveUpError:
            return None
        finally:
            caller.kill()
            caller.wait()
            peer.close()


def _established(process: psutil.Process) -> bool:
    return any(connection.status == psutil.CONN_ESTABLISHED for connection in process.net_connections("tcp"))


def _silence() -> Iterator[bytes]:
    yield b"hello"
    time.sleep(2 * _DEAD_LIMIT_S)
