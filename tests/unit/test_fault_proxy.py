"""Each fault of the proxy does what its name says."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks.fault_matrix.proxy import FaultProxy

HANG_LIMIT_S = 20.0
QUIET_S = 0.2  # nothing may come for so long
_MORE_THAN_BUFFERS = 64 << 20


class Server:
    """Takes one connection after the other; the test reads and writes their ends itself."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(HANG_LIMIT_S)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def accept(self) -> socket.socket:
        connection, _ = self._listener.accept()
        connection.settimeout(HANG_LIMIT_S)
        return connection

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    proxy = FaultProxy(server.address)
    yield proxy
    proxy.close()
    proxy.close()


@pytest.fixture
def ends(server: Server, proxy: FaultProxy) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Client's and server's end of one connection through the proxy."""
    client = connect(proxy)
    with contextlib.closing(client), contextlib.closing(server.accept()) as accepted:
        yield client, accepted


def connect(proxy: FaultProxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=HANG_LIMIT_S)


def receive(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        received = end.recv(count - len(data))
        assert received, f"closed after {len(data)} of {count} bytes"
        data += received
    return data


def is_quiet(end: socket.socket) -> bool:
    end.settimeout(QUIET_S)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    else:
        return False
    finally:
        end.settimeout(HANG_LIMIT_S)


def wait_until(condition: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "hangs"
        time.sleep(0.005)


Ends = tuple[socket.socket, socket.socket]


def test_without_a_fault_it_carries_every_byte_both_ways(proxy: FaultProxy, ends: Ends) -> None:
    client, server = ends
    data = bytes(range(256)) * 4000
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    assert receive(server, len(data)) == data
    sender.join()
    server.sendall(b"back")
    assert receive(client, 4) == b"back"
    wait_until(lambda: (proxy.up.num_forwarded, proxy.down.num_forwarded) == (len(data), 4))
    assert (proxy.num_connections, proxy.num_open) == (1, 1)
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b"", "the end of one direction"
    server.sendall(b"still")
    assert receive(client, 5) == b"still"
    server.close()
    assert client.recv(1) == b""
    wait_until(lambda: proxy.num_open == 0)


def test_latency_delays_and_does_not_limit_the_rate(proxy: FaultProxy, ends: Ends) -> None:
    client, server = ends
    proxy.up.latency_s = 0.3
    start_s = time.monotonic()
    for _ in range(10):
        client.sendall(b"x" * 100)
        time.sleep(0.01)
    receive(server, 1)
    assert time.monotonic() - start_s >= 0.3
    receive(server, 999)
    assert time.monotonic() - start_s < 10 * 0.3, "messages are underway at the same time"


def test_bandwidth_is_limited(proxy: FaultProxy, ends: Ends) -> None:
    client, server = ends
    proxy.up.bytes_per_s = 20_000
    start_s = time.monotonic()
    client.sendall(bytes(8000))
    receive(server, 8000)
    assert time.monotonic() - start_s >= 0.35


def test_a_blackhole_takes_everything_and_gives_it_when_it_ends(proxy: FaultProxy, ends: Ends) -> None:
    client, server = ends
    proxy.blackhole()
    client.sendall(b"up")
    server.sendall(b"down")
    assert is_quiet(server)
    assert is_quiet(client)
    newcomer = connect(proxy)  # is accepted
    newcomer.sendall(b"hello")
    assert is_quiet(newcomer)
    newcomer.close()
    wait_until(lambda: proxy.up.num_ended == 1)  # that somebody gave up is noted although nobody is told
    proxy.heal()
    assert (receive(server, 2), receive(client, 4)) == (b"up", b"down")


def test_half_open_is_silent_one_way_only(proxy: FaultProxy, ends: Ends) -> None:
    client, server = ends
    proxy.down.is_held = True
    server.sendall(b"lost for now")
    client.sendall(b"heard")
    assert receive(server, 5) == b"heard"
    assert is_quiet(client)


def test_stop_reading_fills_the_senders_buffers(proxy: FaultProxy, ends: Ends) -> None:
    client, server = ends
    proxy.up.is_unread = True
    client.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < _MORE_THAN_BUFFERS:
            sent += client.send(bytes(1 << 16))
            time.sleep(0.001)
    assert 0 < sent < _MORE_THAN_BUFFERS
    assert is_quiet(server)
    proxy.heal()
    assert receive(server, sent) == bytes(sent)


def test_reset_ends_both_sides_with_an_error_and_the_next_connection_works(
    server: Server, proxy: FaultProxy, ends: Ends
) -> None:
    client, target = ends
    for sender, receiver in ((client, target), (target, client)):  # both ways are open
        sender.sendall(b"x")
        assert receive(receiver, 1) == b"x"
    proxy.reset()
    for end in ends:
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    wait_until(lambda: proxy.num_open == 0)
    assert (proxy.up.num_ended, proxy.down.num_ended) == (1, 1)
    assert time.monotonic() - HANG_LIMIT_S < proxy.up.last_end_monotonic_s <= time.monotonic()
    client = connect(proxy)
    client.sendall(b"again")
    with contextlib.closing(server.accept()) as accepted:
        assert receive(accepted, 5) == b"again"
    client.close()


def test_the_targets_side_may_go_without_a_word(proxy: FaultProxy, ends: Ends) -> None:
    client, server = ends
    proxy.drop_target_side()
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    client.sendall(b"anybody?")
    assert is_quiet(client)
    assert proxy.num_open == 1
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_slices_arrive_as_they_were_cut(proxy: FaultProxy, ends: Ends) -> None:
    client, server = ends
    proxy.up.slice_bytes = 7
    proxy.up.bytes_per_s = 700.0  # so that they do not gather on the way
    client.sendall(bytes(28))
    assert len(server.recv(100)) <= 14
    receive(server, 14)


def test_exactly_the_chosen_byte_is_damaged_once(proxy: FaultProxy, ends: Ends) -> None:
    client, server = ends
    client.sendall(bytes(100))
    assert receive(server, 100) == bytes(100)
    proxy.up.damage_at = 150  # from now on
    for _ in range(3):
        client.sendall(bytes(100))
        time.sleep(0.01)
    received = receive(server, 300)
    assert [place for place, byte in enumerate(received) if byte] == [150]
    assert received[150].bit_count() == 1
    assert proxy.up.num_damaged == 1


def test_damage_comes_at_the_chosen_rate(proxy: FaultProxy, ends: Ends) -> None:
    client, server = ends
    proxy.down.damage_every_bytes = 1000
    for _ in range(200):
        server.sendall(bytes(500))
        receive(client, 500)
    assert 50 < proxy.down.num_damaged < 150  # 100 are expected
    proxy.heal()
    damaged = proxy.down.num_damaged
    server.sendall(bytes(5000))
    assert receive(client, 5000) == bytes(5000)
    assert proxy.down.num_damaged == damaged


def test_a_closed_listener_refuses_newcomers_alone(proxy: FaultProxy, ends: Ends) -> None:
    client, server = ends
    address = proxy.address
    proxy.close_listener()
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    client.sendall(b"still here")
    assert receive(server, 10) == b"still here"
    proxy.open_listener()
    assert proxy.address == address
    connect(proxy).close()


def test_a_target_that_is_not_there_ends_the_connection(proxy: FaultProxy) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        proxy.target = f"127.0.0.1:{probe.getsockname()[1]}"
        with contextlib.suppress(ConnectionResetError), contextlib.closing(connect(proxy)) as client:
            assert client.recv(1) == b""
