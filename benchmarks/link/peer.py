"""The other side of the comparisons, as a process of its own: `python -m benchmarks.link.peer`.

Prints its two ports as JSON and serves until its input ends: the plain scheme of baseline.py, and a bare TCP socket.
With `--call PORT` it is a client of the plain scheme instead, which sends steps to that port for as long as it lives.
"""

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator

from benchmarks.link.baseline import Client, Server

_HEADER = struct.Struct("<cQ")
_BUFFER_BYTES = 1 << 20


def serve_tcp() -> int:
    """Serve TCP in background threads; return the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


def _answer(connection: socket.socket) -> None:
    """Take or give as many bytes as a request says, until the other side closes."""
    buffer = bytearray(_BUFFER_BYTES)
    with connection:
        while head := connection.recv(_HEADER.size, socket.MSG_WAITALL):
            direction, num_bytes = _HEADER.unpack(head)
            if direction == b"G":
                for offset in range(0, num_bytes, _BUFFER_BYTES):
                    connection.sendall(memoryview(buffer)[: num_bytes - offset])
            else:
                _drain(connection, buffer, num_bytes)
                connection.sendall(b"a")


def _drain(connection: socket.socket, buffer: bytearray, num_bytes: int) -> None:
    while num_bytes > 0:
        num_bytes -= connection.recv_into(buffer, min(num_bytes, _BUFFER_BYTES))


class TcpClient:
    """A bare socket: the limit of loopback as Python reaches it."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: bytes, count: int) -> None:
        """Send a message that many times; returns when the other side has all of them."""
        self._socket.sendall(_HEADER.pack(b"P", len(message) * count))
        for _ in range(count):
            self._socket.sendall(message)
        self._socket.recv(1)

    def receive(self, num_bytes: int) -> None:
        self._socket.sendall(_HEADER.pack(b"G", num_bytes))
        _drain(self._socket, bytearray(_BUFFER_BYTES), num_bytes)

    def close(self) -> None:
        self._socket.close()


def steps() -> Iterator[bytes]:
    """Yield messages of a raw step's size at 20 Hz, without an end."""
    while True:
        yield bytes(100_000)
        time.sleep(0.05)


def main() -> None:
    if sys.argv[1:2] == ["--call"]:
        Client(f"127.0.0.1:{sys.argv[2]}").exchange(steps())
        return
    ports = {"plain": Server().port, "tcp": serve_tcp()}
    print(json.dumps(ports), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
