"""How soon a step can be learned from, and how soon weights can be acted on."""

import contextlib
import time

from benchmarks.link.baseline import POLL_PERIOD_S, Client, episode_of, weights_of
from benchmarks.link.bench import Bench
from benchmarks.link.processes import Actor, Ingest, LogReader, Peer, wait_for, watched
from benchmarks.link.report import Section, Table, Target, median, percentile, spread
from benchmarks.link.workload import EPISODE_STEPS, Workload
from policy.weights import serialise


def visibility(bench: Bench) -> Section:
    """From a step to the moment that a learner can read it."""
    rows, targets = [], []
    for rate_hz, steps in ((10, 100), (20, 200)):
        for kind in ("jpeg", "raw"):
            values = _link_visibility(bench, kind, rate_hz, 20 if bench.is_quick else steps)
            rows.append([f"the link, {kind}", str(rate_hz), *_latency_cells(values)])
            worst = percentile(values, 99) * 1e3
            promise = f"{kind} at {rate_hz} Hz: readable by the learner within 100 ms at p99"
            targets.append(Target(promise, f"{worst:.1f} ms", worst <= 100))
        values = _plain_visibility(bench.workload("raw"), rate_hz, 10 if bench.is_quick else EPISODE_STEPS)
        rows.append(["plain scheme", str(rate_hz), *_latency_cells(values)])
    return Section(
        "Time to visibility",
        "From offering a step to its having been read and decoded from the learner's log by another connection "
        f"(which looks every 2 ms), ms. The plain scheme: to the end of its episode of {EPISODE_STEPS} steps and its "
        "arrival, decoded, in the receiver's memory.",
        [Table(["way", "Hz", "steps", "p50, ms", "p99, ms", "max, ms"], rows)],
        targets,
    )  # fmt: skip


def _latency_cells(values_s: list[float]) -> list[str]:
    middle, late, worst = (value * 1e3 for value in (percentile(values_s, 50), percentile(values_s, 99), max(values_s)))
    return [str(len(values_s)), f"{middle:.1f}", f"{late:.1f}", f"{worst:.1f}"]


def _link_visibility(bench: Bench, kind: str, rate_hz: float, steps: int) -> list[float]:
    with bench.connected(bench.workload(kind)) as (ingest, actor):
        actor.offer_for(1.0, rate_hz)  # the first steps open files and fill caches
        actor.drain()
        with contextlib.closing(LogReader(ingest)) as reader:
            reader.skip()
            with watched(reader):
                actor.offer_for(steps / rate_hz, rate_hz)
                wait_for(lambda: len(reader.latencies_s.get("actor-0", ())) >= steps, "the last step in the log")
            return reader.latencies_s["actor-0"]


def _plain_visibility(workload: Workload, rate_hz: float, steps: int) -> list[float]:
    peer = Peer()
    try:
        with contextlib.closing(peer.plain()) as client:
            indices = range(EPISODE_STEPS - steps, EPISODE_STEPS)
            began_s, transitions = time.monotonic(), []
            for count, index in enumerate(indices):
                time.sleep(max(0.0, began_s + count / rate_hz - time.monotonic()))
                transitions.append(workload.transition(index))
            visible_s, _ = client.send_episode(episode_of(transitions))
            return [visible_s - transition.monotonic_time_s for transition in transitions]
    finally:
        peer.close()


def weights(bench: Bench) -> Section:
    """From the beginning of publishing to tensors that the policy may load."""
    sizes_mb, trials = ((1,), 1) if bench.is_quick else ((1, 5, 20, 80), 3)
    rows, peer = [], Peer()
    try:
        with bench.connected(bench.workload("state")) as (ingest, actor):
            version = 0
            for size_mb in sizes_mb:
                num_bytes = size_mb << 20
                times: dict[str, list[float]] = {}
                for trial in range(trials):
                    version += 1
                    times.setdefault("link", []).append(link_weights(ingest, actor, version, num_bytes))
                    times.setdefault("eager", []).append(_plain_weights(peer.plain(), num_bytes, 0.0))
                    delay_s = POLL_PERIOD_S * (2 * trial + 1) / (2 * trials)
                    times.setdefault("plain", []).append(_plain_weights(peer.plain(), num_bytes, delay_s))
                    times.setdefault("grpc", []).append(_grpc_download(peer.plain(), num_bytes))
                    times.setdefault("tcp", []).append(_tcp_download(peer, num_bytes))
                cells = [spread([1e3 * value for value in times[name]], 0) for name in times]
                rows.append([str(size_mb), *cells, f"{median(times['link']) / median(times['plain']):.2f}"])
    finally:
        peer.close()
    header = ["MiB", "the link, ms", "plain, no sleep, ms", "plain, looking every 4 s, ms", "bare gRPC, ms", "TCP, ms"]
    return Section(
        "Weight latency",
        f"From the beginning of serialising to usable tensors in the actor, ms, median (range) of {trials}. The "
        "link's include the learner's durable file, checksums on both sides, the check for non-finite values and the "
        f"actor's durable copy for its next start. The plain scheme looks every {POLL_PERIOD_S:.0f} s, as LeRobot's "
        "learner pushes; publications fall at evenly spread moments of that period. (LeRobot's actor takes them up "
        "at the end of an episode, which is not counted here.) The last column is the link over the plain scheme.",
        [Table([*header, "ratio"], rows)],
    )


def link_weights(ingest: Ingest, actor: Actor, version: int, num_bytes: int) -> float:
    """Return the seconds from the beginning of serialising to the actor's having them."""
    tensors = weights_of(num_bytes)
    began_s = time.monotonic()
    ingest.weights.publish(serialise(tensors), version, learner_step=version)
    ended_s = wait_for(
        lambda: (newest := actor.link.latest_weights()) is not None and newest.version == version,
        f"weights version {version}",
        poll_s=0.001,
    )
    return ended_s - began_s


def _plain_weights(client: Client, num_bytes: int, delay_s: float) -> float:
    """delay_s: what is left of the period between two looks when weights are published."""
    with contextlib.closing(client):
        began_s = client.publish(num_bytes)
        time.sleep(max(0.0, began_s + delay_s - time.monotonic()))
        assert client.fetch_weights() is not None
        return time.monotonic() - began_s


def _grpc_download(client: Client, num_bytes: int) -> float:
    with contextlib.closing(client):
        client.receive(1)
        began_s = time.monotonic()
        client.receive(num_bytes)
        return time.monotonic() - began_s


def _tcp_download(peer: Peer, num_bytes: int) -> float:
    with contextlib.closing(peer.tcp()) as client:
        began_s = time.monotonic()
        client.receive(num_bytes)
        return time.monotonic() - began_s
