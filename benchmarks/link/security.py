"""What encryption and the token cost: the link with and without them."""

import subprocess
import sys
from pathlib import Path

from benchmarks.link.bench import Bench
from benchmarks.link.goodput import link_rate
from benchmarks.link.latency import link_weights
from benchmarks.link.processes import GaveUpError, Security
from benchmarks.link.report import Section, Table, median, spread
from policy.credentials import Credentials


def tls(bench: Bench) -> Section:
    repeats, seconds, sizes_mb = (1, 0.3, (1,)) if bench.is_quick else (3, 1.5, (5, 80))
    security = make_credentials(bench.fresh_folder(), "actor-0")
    rows = []
    for kind in ("raw", "state"):
        open_rates, safe_rates = [], []
        for _ in range(repeats):  # in turns, so that a disturbance meets both
            open_rates.append(link_rate(bench, bench.workload(kind), seconds))
            safe_rates.append(link_rate(bench, bench.workload(kind), seconds, security))
        rows.append(_row(f"goodput, {kind}, transitions/s", open_rates, safe_rates))
    open_ms, safe_ms = _weights_ms(bench, None, sizes_mb, repeats), _weights_ms(bench, security, sizes_mb, repeats)
    for size_mb in sizes_mb:
        rows.append(_row(f"weights of {size_mb} MiB, ms", open_ms[size_mb], safe_ms[size_mb]))
    return Section(
        "Cost of TLS and token",
        "The link on loopback in the open, and with mutual TLS and the token as `python -m learner.certs init` makes "
        f"them; median (range) of {repeats}.",
        [Table(["figure", "in the open", "TLS and token", "ratio"], rows)],
    )


def make_credentials(folder: Path, actor_id: str) -> Security:
    """Make credentials of a learner on this machine and of one actor, by the command that a lab uses."""
    command = [sys.executable, "-m", "learner.certs", "init", "--out", str(folder / "lab"), "--host", "localhost"]
    command += ["--actor", actor_id]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise GaveUpError(f"learner.certs: {finished.stderr[-500:]}")
    return Security(folder / "lab" / "learner", Credentials.load(folder / "lab" / "actors" / actor_id))


def _weights_ms(
    bench: Bench, security: Security | None, sizes_mb: tuple[int, ...], repeats: int
) -> dict[int, list[float]]:
    version = 0
    times: dict[int, list[float]] = {}
    with bench.connected(bench.workload("state"), security) as (ingest, actor):
        for size_mb in sizes_mb:
            times[size_mb] = []
            for _ in range(repeats):
                version += 1
                times[size_mb].append(1e3 * link_weights(ingest, actor, version, size_mb << 20))
    return times


def _row(name: str, in_the_open: list[float], safe: list[float]) -> list[str]:
    return [name, spread(in_the_open, 0), spread(safe, 0), f"{median(safe) / median(in_the_open):.2f}"]
