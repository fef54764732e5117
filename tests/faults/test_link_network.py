"""Whatever a network or a silent peer does to the link, the robot goes on, and every step arrives in the end."""

import itertools
import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from cgpo_proto import link_pb2, link_pb2_grpc

from benchmarks.fault_matrix.ends import Link, wait_until
from benchmarks.fault_matrix.proxy import FaultProxy
from policy.grpc_options import PROTOCOL_VERSION
from policy.image_codec import code_images
from policy.spec import ImageField, ObservationSpec, Specs
from policy.transition import RecordId
from policy.weights import serialise
from policy.wire import position_crc32
from tests.link_ends import Actor, Ingest
from tests.transitions import SPECS, assert_equal, make_transition

SLOW_BYTES_PER_S = 32_000  # 256 kbit/s
DAMAGES = 4
_BYTES_OF_SOME_RECORDS = {"up": 2000, "down": 200}  # or of their acknowledgements


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    link = Link(tmp_path)
    yield link
    link.close()


def test_the_control_loop_keeps_its_rate_whatever_the_network_does(link: Link) -> None:
    """Each fault lasts while the robot makes steps; what the loop waited for would let it make none."""
    proxy, actor = link.proxy, link.actor
    link.ingest.start()
    actor.start()
    actor.wait_for_steps(10)
    for name, value in (("latency_s", 0.5), ("bytes_per_s", SLOW_BYTES_PER_S), ("slice_bytes", 7)):
        setattr(proxy.up, name, value)
        setattr(proxy.down, name, value)
        goal = link.ingest.num_logged + 10
        actor.wait_for_steps(20)
        wait_until(partial(lambda goal: link.ingest.num_logged > goal, goal), f"progress with {name} = {value}")
        proxy.heal()
    for _ in range(3):
        proxy.reset()
        actor.wait_for_steps(5)
    proxy.close_listener()
    proxy.reset()
    actor.wait_for_steps(10)
    proxy.open_listener()

    connected = link.ingest.num_logged
    wait_until(lambda: link.ingest.num_logged > connected, "a new connection")
    ended = proxy.up.num_ended
    proxy.blackhole()
    actor.wait_for_steps(20)
    wait_until(lambda: proxy.up.num_ended > ended, "the actor's notice of a dead network")
    actor.wait_for_steps(5)
    proxy.heal()
    actor.finish()
    assert link.compare().faults == {}
    control = json.loads((actor.run_dir / "actor_summary.json").read_text())["control"]
    num_steps = len(actor.steps())
    assert num_steps > 120
    assert control["overruns"] < num_steps / 4, control


def test_an_actor_that_freezes_is_noticed_and_goes_on_when_it_thaws(link: Link) -> None:
    link.ingest.start()
    link.actor.start()
    link.actor.wait_for_steps(10)
    wait_until(lambda: link.ingest.num_logged > 0, "the first step")
    ended = link.proxy.down.num_ended
    link.actor.send(signal.SIGSTOP)
    wait_until(lambda: link.proxy.down.num_ended > ended, "the learner's notice of a frozen actor")
    link.actor.send(signal.SIGCONT)
    link.actor.wait_for_steps(10)
    link.actor.finish()
    assert link.compare().faults == {}


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Ingest]:
    ingest = Ingest(tmp_path / "run").start()
    yield ingest
    ingest.kill()


@pytest.fixture
def connect(tmp_path: Path, ingest: Ingest) -> Iterator[Callable[[str], tuple[FaultProxy, Actor]]]:
    """Return a function that starts an actor of a name, behind a proxy of its own."""
    opened: list[tuple[FaultProxy, Actor]] = []

    def start(name: str) -> tuple[FaultProxy, Actor]:
        proxy = FaultProxy(ingest.address)
        opened.append((proxy, Actor(tmp_path / name, proxy.address, actor_id=name)))
        return opened[-1]

    yield start
    for proxy, actor in opened:
        proxy.heal()
        actor.close()
        proxy.close()


def hold_down(proxy: FaultProxy) -> None:
    proxy.down.is_held = True


def hold_up(proxy: FaultProxy) -> None:
    proxy.up.is_held = True


def stop_reading(proxy: FaultProxy) -> None:
    proxy.up.is_unread = True


SILENCES: dict[str, Callable[[FaultProxy], None]] = {
    "half-open, nothing comes": hold_down,
    "half-open, nothing arrives": hold_up,
    "the other side is gone without a word": FaultProxy.drop_target_side,
    "the other side stops reading": stop_reading,
}


def test_every_kind_of_silence_is_noticed_and_hinders_nobody_else(
    ingest: Ingest, connect: Callable[[str], tuple[FaultProxy, Actor]]
) -> None:
    ends = {name: connect(name) for name in ("healthy", *SILENCES)}
    actors = {name: actor for name, (_, actor) in ends.items()}
    steps = itertools.count()

    def offer(count: int) -> None:
        for step in itertools.islice(steps, count):
            for actor in actors.values():
                actor.spool.offer(make_transition(step))

    def wait_for_connections() -> dict[str, int]:
        """Return how often each actor has connected again, once it has a connection and nothing to send."""
        for name, actor in actors.items():
            actor.drain()
            wait_until(partial(lambda link: link.statistics.is_connected, actor.link), f"{name}: a connection")
        return {name: actor.link.statistics.reconnects for name, actor in actors.items()}

    def has_noticed(name: str, reconnects: dict[str, int]) -> bool:
        statistics = actors[name].link.statistics  # it may have found another way already
        return not statistics.is_connected or statistics.reconnects > reconnects[name]

    offer(10)
    reconnects = wait_for_connections()
    for name, silence in SILENCES.items():
        silence(ends[name][0])
    offer(50)
    actors["healthy"].drain()
    for name in SILENCES:
        wait_until(partial(has_noticed, name, reconnects), f"notice of: {name}")
        ends[name][0].heal()
    assert not has_noticed("healthy", reconnects)

    reconnects = wait_for_connections()
    assert ingest.process is not None
    ingest.process.send_signal(signal.SIGSTOP)
    offer(50)
    for name in actors:
        wait_until(partial(has_noticed, name, reconnects), f"{name}: notice of a frozen learner")
    ingest.process.send_signal(signal.SIGCONT)
    offer(10)
    for name, actor in actors.items():
        actor.drain()
        logged = [entry for entry in ingest.entries() if entry.record_id.actor_id == name]
        assert [entry.record_id.sequence for entry in logged] == list(range(120))
        for entry in logged:
            assert_equal(entry.body, make_transition(entry.record_id.sequence))


@pytest.mark.parametrize("direction", ["up", "down"])
def test_nothing_that_was_damaged_on_its_way_is_kept(
    ingest: Ingest, connect: Callable[[str], tuple[FaultProxy, Actor]], direction: str
) -> None:
    """Damage after damage, at places that differ, while steps flow."""
    proxy, actor = connect("robot")
    rng, steps = random.Random(direction), itertools.count()
    way = getattr(proxy, direction)

    def is_sound() -> bool:
        return actor.link.statistics.is_connected and actor.spool.pending == 0

    for damages in range(1, DAMAGES + 1):
        wait_until(is_sound, "a sound connection")
        way.damage_at = rng.randrange(_BYTES_OF_SOME_RECORDS[direction])
        while way.num_damaged < damages:
            actor.spool.offer(make_transition(next(steps)))
            wait_until(lambda: is_sound() or way.num_damaged == damages, "an acknowledgement")  # noqa: B023
    actor.drain()
    assert way.num_damaged == DAMAGES
    assert actor.link.statistics.reconnects > 0
    assert actor.link.refusal is None
    entries = ingest.entries()
    assert [entry.record_id.sequence for entry in entries] == list(range(next(steps)))
    for entry in entries:
        assert_equal(entry.body, make_transition(entry.record_id.sequence))


def test_weights_that_were_cut_off_on_their_way_arrive_whole(
    ingest: Ingest, connect: Callable[[str], tuple[FaultProxy, Actor]]
) -> None:
    proxy, actor = connect("robot")
    tensor = torch.rand(1 << 20)  # 4 MB: four chunks
    wait_until(lambda: actor.link.statistics.is_connected, "a connection")
    proxy.down.bytes_per_s = 8e6
    for version in (1, 2):
        goal = proxy.down.num_forwarded + tensor.nbytes // 2
        ingest.weights.publish(serialise({"layer": tensor + version}), version, learner_step=version)
        wait_until(partial(lambda goal: proxy.down.num_forwarded > goal, goal), "half of the weights")
        proxy.reset()
        newest = actor.link.latest_weights()
        assert newest is None or newest.version < version
        assert torch.equal(actor.wait_for_version(version).tensors["layer"], tensor + version)


def test_an_acknowledgement_of_what_was_never_sent_lets_nothing_go(tmp_path: Path) -> None:
    """A window holds 64: what the spool holds beyond would be gone unseen."""

    class Overstating(link_pb2_grpc.LinkServicer):
        num_calls = 0

        def Hello(self, request: link_pb2.HelloRequest, context: grpc.ServicerContext) -> link_pb2.HelloReply:
            return link_pb2.HelloReply(protocol_version=PROTOCOL_VERSION, session=b"x")

        def Append(self, records: Iterator[link_pb2.Record], context: grpc.ServicerContext) -> Iterator[link_pb2.Ack]:
            self.num_calls += 1
            for record in records:
                position = RecordId(record.actor_id, record.incarnation, record.sequence + 65)
                yield link_pb2.Ack(
                    incarnation=position.incarnation,
                    next_sequence=position.sequence,
                    crc32=position_crc32(position),
                )

        def WatchWeights(
            self, request: link_pb2.WatchWeightsRequest, context: grpc.ServicerContext
        ) -> Iterator[link_pb2.WeightsChunk]:
            while context.is_active():
                time.sleep(0.05)
            yield from ()

    servicer = Overstating()
    server = grpc.server(ThreadPoolExecutor(8))
    link_pb2_grpc.add_LinkServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    actor = Actor(tmp_path / "actor", f"127.0.0.1:{port}")
    actor.offer(range(100))
    wait_until(lambda: servicer.num_calls > 1, "another attempt")
    assert "not on its way" in actor.link.statistics.last_error
    assert actor.spool.pending == 100
    actor.close()
    server.stop(0).wait()


def test_large_records_pass_a_slow_network_one_by_one(ingest: Ingest, tmp_path: Path) -> None:
    """98 kB take 3 s there: gRPC's pings wait for as long, and a whole window's would for minutes."""
    specs = Specs(
        ObservationSpec(SPECS.observation.fields, (ImageField(name="both", height=128, width=256),)), SPECS.action
    )
    proxy = FaultProxy(ingest.address)
    actor = Actor(tmp_path / "actor", proxy.address, specs=specs)
    for step in range(64):
        image = np.random.default_rng(step).integers(0, 256, (128, 256, 3), dtype=np.uint8)
        observation = code_images({**make_transition(step).observation, "both": image}, "raw")
        actor.spool.offer(make_transition(step, observation=observation))
        proxy.up.bytes_per_s = SLOW_BYTES_PER_S
    wait_until(lambda: actor.spool.acknowledged >= 3, "three records")
    actor.close()
    proxy.close()
