"""How much gets through, and how large it is."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from benchmarks.link.baseline import Client, episode_of
from benchmarks.link.bench import Bench
from benchmarks.link.processes import Actor, Ingest, Peer, Security
from benchmarks.link.report import Section, Table, Target, median, spread
from benchmarks.link.workload import EPISODE_STEPS, KINDS, Workload
from policy.wire import encode_body

_MAX_PENDING = 512  # records offered ahead of the link, so that memory stays small


def goodput(bench: Bench) -> Section:
    """Records and bytes a second, from offering to the acknowledgement of the last."""
    repeats, seconds = (1, 0.3) if bench.is_quick else (3, 1.5)
    rows, peer = [], Peer()
    try:
        for kind in ("raw", "jpeg", "state"):
            workload = bench.workload(kind)
            bodies = [encode_body(workload.transition(index)) for index in range(EPISODE_STEPS)]
            size = sum(map(len, bodies)) / len(bodies)
            rates: dict[str, list[float]] = {}
            for _ in range(repeats):  # in turns, so that a disturbance meets all of them
                for name, measure in _contenders(bench, workload, bodies, peer, seconds).items():
                    rates.setdefault(name, []).append(measure())
            limit = median(rates["TCP socket"])
            for name, values in rates.items():
                rate = median(values)
                cells = [f"{rate * size / 1e6:.1f}", f"{rate / limit:.1%}", f"{rate / 20:.0f}"]
                rows.append([kind, name, spread(values, 0), *cells])
    finally:
        peer.close()
    return Section(
        "Goodput",
        f"Transitions a second from one sender, median (range) of {repeats}. The link: offered to the spool, durable "
        "there, sent, durable in the learner's log, acknowledged. MB/s counts each kind's bytes in our coding, for "
        "all of them alike. The plain scheme sends whole episodes of float32 images, kept in the receiver's memory "
        "alone; in `unary` calls of 2 MB, or all in one `stream`. Bare gRPC: messages as large as ours in one stream "
        "that answers each. TCP: the same bytes through a socket. Turning images into JPEG or float32 is left out on "
        "both sides.",
        [Table(["images", "way", "transitions/s", "MB/s", "of TCP", "x 20 Hz"], rows)],
    )


def _contenders(
    bench: Bench, workload: Workload, bodies: list[bytes], peer: Peer, seconds: float
) -> dict[str, Callable[[], float]]:
    episode = episode_of([workload.transition(index) for index in range(EPISODE_STEPS)])
    return {
        "the link, durable": lambda: link_rate(bench, workload, seconds),
        "plain scheme, unary": lambda: _plain_rate(peer.plain(), episode, seconds, in_stream=False),
        "plain scheme, stream": lambda: _plain_rate(peer.plain(), episode, seconds, in_stream=True),
        "bare gRPC stream": lambda: _bare_rate(peer.plain(), bodies, seconds),
        "TCP socket": lambda: _tcp_rate(peer, bodies[0], seconds),
    }


def link_rate(bench: Bench, workload: Workload, seconds: float, security: Security | None = None) -> float:
    """Return transitions a second from the first offered to the last acknowledged."""
    with bench.connected(workload, security) as (_, actor):
        actor.offer_for(0.2, 50)
        actor.drain()
        began_s, count = time.monotonic(), 0
        while time.monotonic() - began_s < seconds:
            if actor.spool.pending < _MAX_PENDING:
                actor.offer()
                count += 1
            else:
                time.sleep(0.001)
        actor.drain()
        return count / (time.monotonic() - began_s)


def _plain_rate(client: Client, episode: list[dict[str, object]], seconds: float, *, in_stream: bool) -> float:
    with contextlib.closing(client):
        client.send_episode(episode[:2], in_stream=in_stream)
        began_s, count = time.monotonic(), 0
        while time.monotonic() - began_s < seconds:
            client.send_episode(episode, in_stream=in_stream)
            count += len(episode)
        return count / (time.monotonic() - began_s)


def _bare_rate(client: Client, bodies: list[bytes], seconds: float) -> float:
    def messages() -> Iterator[bytes]:
        while time.monotonic() - began_s < seconds:
            yield from bodies

    with contextlib.closing(client):
        client.exchange([b""])
        began_s = time.monotonic()
        return client.exchange(messages()) / (time.monotonic() - began_s)


def _tcp_rate(peer: Peer, body: bytes, seconds: float) -> float:
    with contextlib.closing(peer.tcp()) as client:
        began_s, count = time.monotonic(), 0
        while time.monotonic() - began_s < seconds:
            client.send(body, EPISODE_STEPS)
            count += EPISODE_STEPS
        return count / (time.monotonic() - began_s)


class CountingForwarder:
    """Passes TCP connections on and counts the bytes towards the server."""

    def __init__(self, port: int) -> None:
        self.num_bytes = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="forwarder", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                for source, sink, is_up in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._pass_on, args=(source, sink, is_up), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_up: bool) -> None:
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(1 << 16):
                self.num_bytes += len(data) if is_up else 0
                sink.sendall(data)

    def close(self) -> None:
        self._listener.close()


def size(bench: Bench) -> Section:
    """Bytes that a transition takes on its way, with all that gRPC adds."""
    steps = EPISODE_STEPS if bench.is_quick else 5 * EPISODE_STEPS
    rows, targets = [], []
    limits = {"raw": 100e3, "jpeg": 25e3}
    for kind in ("raw", "jpeg") if bench.is_quick else KINDS:
        per_step = {}
        for look, images in (("noisy", bench.pictures.noisy), ("drawn", bench.pictures.clean)):
            per_step[look] = _bytes_per_transition(bench, Workload(kind, images), steps)
        rows.append([f"the link, {kind}", f"{per_step['noisy'] / 1e3:.2f}", f"{per_step['drawn'] / 1e3:.2f}"])
        if kind in limits:
            text = f"{kind}: at most {limits[kind] / 1e3:.0f} kB per transition with two 128 x 128 cameras"
            measured = f"{per_step['noisy'] / 1e3:.2f} kB"
            targets.append(Target(text, measured, per_step["noisy"] <= limits[kind]))
    for kind in ("raw", "state"):
        plain = _plain_bytes_per_transition(bench.workload(kind))
        name = "float32 images" if kind == "raw" else "state"
        rows.append([f"plain scheme, {name}", f"{plain / 1e3:.2f}", "the same"])
    return Section(
        "Bytes per transition",
        f"kB on the wire from actor to learner, counted between the two, over whole episodes of {EPISODE_STEPS} steps "
        "with their final observations; framing, flow control and the connection's beginning are included. "
        f"Images: {bench.pictures.source}; with sensor noise (standard deviation 2 of 255), and as drawn.",
        [Table(["way", "kB, with noise", "kB, as drawn"], rows)],
        targets,
    )


def _bytes_per_transition(bench: Bench, workload: Workload, steps: int) -> float:
    folder = bench.fresh_folder()
    with contextlib.ExitStack() as running:
        ingest = Ingest(folder / "learner", workload.specs)
        running.callback(ingest.close)
        ingest.start().wait_until_ready()
        forwarder = CountingForwarder(int(ingest.address.rpartition(":")[2]))
        running.callback(forwarder.close)
        actor = Actor(folder / "actor", forwarder.address, workload)
        running.callback(actor.close)
        actor.connect()
        for _ in range(steps):
            actor.offer()
        actor.drain()
        return forwarder.num_bytes / steps


def _plain_bytes_per_transition(workload: Workload) -> float:
    peer = Peer()
    forwarder = CountingForwarder(peer.plain_port)
    try:
        with contextlib.closing(Client(forwarder.address)) as client:
            client.send_episode(episode_of([workload.transition(index) for index in range(EPISODE_STEPS)]))
        return forwarder.num_bytes / EPISODE_STEPS
    finally:
        forwarder.close()
        peer.close()
