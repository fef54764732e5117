"""What many actors cost the ingest process, and what bad ones cost the others."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator

import psutil

from benchmarks.link.bench import Bench, CrowdProcess
from benchmarks.link.crowd import Crowd, Manner
from benchmarks.link.processes import Ingest, wait_for
from benchmarks.link.report import Section, Table, percentile

_RATE_HZ = 10.0
_HONEST = 3
_LAG_BEHIND_S = 1.0  # of a bad actor: it begins when the honest ones are under way
_NICENESS = 10


def load(bench: Bench) -> Section:
    """Processor time and memory of ingest."""
    seconds, sizes = (2.0, (1, 2)) if bench.is_quick else (12.0, (1, 4, 16))
    rows = []
    for count in sizes:
        folder = bench.fresh_folder()
        with contextlib.closing(Ingest(folder / "learner", bench.workload("jpeg").specs)) as ingest:
            ingest.start().wait_until_ready()
            crowd = Crowd(
                address=ingest.address, folder=str(folder), pictures=str(bench.pictures_path), actors=count,
                rate_hz=_RATE_HZ, seconds=seconds,
            )  # fmt: skip
            with contextlib.closing(CrowdProcess(crowd)) as process:
                measured = psutil.Process(ingest.pid)
                before, began_s = measured.cpu_times(), time.monotonic()
                process.begin()
                result = process.result()
                wall_s, after = time.monotonic() - began_s, measured.cpu_times()
                memory_mb = measured.memory_info().rss / 1e6
        busy = (after.user + after.system - before.user - before.system) / wall_s
        offered = sum(len(actor["offered_s"]) for actor in result.values())
        acknowledged = sum(actor["acknowledged"] for actor in result.values())
        per_record_ms = 1e3 * busy * wall_s / acknowledged
        cells = [f"{acknowledged / wall_s:.0f}", str(offered - acknowledged), f"{busy:.1%}"]
        rows.append([str(count), *cells, f"{per_record_ms:.2f}", f"{memory_mb:.0f}"])
    return Section(
        "Ingest's load",
        f"Simulated actors at {_RATE_HZ:.0f} Hz, state and two 128 x 128 cameras as JPEG, for {seconds:.0f} s: "
        "processor time of ingest as a share of one core, and its memory at the end.",
        [Table(["actors", "records/s", "not acknowledged", "of one core", "ms a record", "RSS, MB"], rows)],
    )


def fairness(bench: Bench) -> Section:
    """What honest actors feel of a bad one."""
    seconds = 4.0 if bench.is_quick else 12.0
    manners: dict[str, Manner | None] = {
        "none": None,
        "floods: sends as fast as it is taken": "flood",
        "deaf: floods and never reads an acknowledgement": "deaf",
    }
    header = [
        "bad actor",
        "its rows/s",
        "steps",
        "p50, ms",
        "p99, ms",
        "max, ms",
        "p99 / without",
        "missing",
        "RSS, MB",
    ]
    rows, reference = [], 0.0
    for name, manner in manners.items():
        latencies_s, taken, missing, memory_mb = _honest_latencies(bench, manner, seconds)
        late_ms = 1e3 * percentile(latencies_s, 99)
        reference = reference or late_ms
        times_ms = (1e3 * percentile(latencies_s, 50), late_ms, 1e3 * max(latencies_s))
        cells = [f"{taken / seconds:.0f}", str(len(latencies_s)), *(f"{time_ms:.1f}" for time_ms in times_ms)]
        rows.append([name, *cells, f"{late_ms / reference:.1f}", str(missing), f"{memory_mb:.0f}"])
    return Section(
        "Fairness",
        f"{_HONEST} honest actors at {_RATE_HZ:.0f} Hz, state and JPEG, beside one that is not: from offering an "
        "honest step to its row being in the log for another connection, which looks every 2 ms. The bad actor has a "
        f"process of its own at nice {_NICENESS}, because on this machine it takes its processor time from all "
        "others. Memory is that of ingest at the end.",
        [Table(header, rows)],
    )


def _honest_latencies(bench: Bench, manner: Manner | None, seconds: float) -> tuple[list[float], int, int, float]:
    """Return the honest steps' latencies, the bad one's rows, the honest ones missing, and ingest's memory in MB."""
    folder = bench.fresh_folder()
    with contextlib.ExitStack() as running:
        ingest = running.enter_context(contextlib.closing(Ingest(folder / "learner", bench.workload("jpeg").specs)))
        ingest.start().wait_until_ready()

        def crowd(prefix: str, count: int, crowd_manner: Manner, niceness: int) -> CrowdProcess:
            plan = Crowd(
                address=ingest.address, folder=str(folder), pictures=str(bench.pictures_path), prefix=prefix,
                actors=count, manner=crowd_manner, rate_hz=_RATE_HZ, seconds=seconds,
            )  # fmt: skip
            return running.enter_context(contextlib.closing(CrowdProcess(plan, niceness)))

        honest = crowd("honest", _HONEST, "steady", 0)
        bad = crowd("bad", 1, manner, _NICENESS) if manner else None
        watcher = RowWatcher(ingest)
        with watcher.watching():
            if bad:
                bad.begin()
                time.sleep(_LAG_BEHIND_S)
            honest.begin()
            offered = {actor_id: actor["offered_s"] for actor_id, actor in honest.result().items()}
            wanted = sum(map(len, offered.values()))
            with contextlib.suppress(TimeoutError):
                wait_for(lambda: watcher.count("honest") >= wanted, "the honest actors' rows", 10.0)
        latencies_s = [
            seen_s - offered[actor_id][sequence]
            for (actor_id, sequence), seen_s in watcher.seen_s.items()
            if actor_id in offered
        ]
        memory_mb = psutil.Process(ingest.pid).memory_info().rss / 1e6
        return latencies_s, watcher.count("bad"), wanted - len(latencies_s), memory_mb


class RowWatcher:
    """Notes when each row of the log can first be seen; decodes nothing, so that a flood does not hold it up."""

    def __init__(self, ingest: Ingest) -> None:
        self._path = ingest.run_dir / "log.sqlite"
        self.seen_s: dict[tuple[str, int], float] = {}  # monotonic, by actor and sequence

    def count(self, prefix: str) -> int:
        return sum(actor_id.startswith(prefix) for actor_id, _ in list(self.seen_s))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch in a thread until the block ends."""
        stop = threading.Event()
        thread = threading.Thread(target=self._watch, args=(stop,), name="row-watcher", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _watch(self, stop: threading.Event) -> None:
        position = 0
        with contextlib.closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as connection:
            while not stop.wait(0.002):
                rows = connection.execute(
                    "SELECT position, actor_id, sequence FROM records WHERE position > ? ORDER BY position", (position,)
                ).fetchall()
                now_s = time.monotonic()
                for position, actor_id, sequence in rows:  # noqa: B007 the last one is where to go on
                    self.seen_s.setdefault((actor_id, sequence), now_s)
