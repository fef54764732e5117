"""A TCP proxy whose faults are switched while it runs: a network's, or a peer's that is gone without a word.

It has an event loop in a thread of its own. The attributes of its two directions may be changed at any time from any
thread; a fault lasts until `heal`. What a TCP connection promises is kept, except for damaged bytes: held bytes are
late, not lost.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, fields
from typing import Any

_CHUNK_BYTES = 16 << 10
_CHUNKS_UNDERWAY = 16  # what the network itself holds before the sender has to wait
_POLL_S = 0.005
_PIECES_PER_S = 50.0  # with limited bandwidth
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: RST instead of FIN


@dataclass
class Direction:
    """What happens to the bytes of every connection on their way."""

    latency_s: float = 0.0
    bytes_per_s: float = 0.0  # 0: as fast as they come
    slice_bytes: int = _CHUNK_BYTES  # the receiver gets them in pieces of at most this
    is_held: bool = False  # taken from the sender and given to nobody, until this ends
    is_unread: bool = False  # left with the sender, whose buffers fill, until this ends
    damage_at: int | None = None  # one bit of the byte this many bytes from now is flipped; None again when it was
    damage_every_bytes: int = 0  # on average one in so many bytes is damaged; 0: none
    num_damaged: int = 0
    num_forwarded: int = 0
    num_ended: int = 0  # connections of which the sender has gone, or that were reset here
    last_end_monotonic_s: float = 0.0
    _rng: random.Random = field(default_factory=lambda: random.Random(0))

    def heal(self) -> None:
        """End all faults of this direction; the counts stay."""
        for setting in fields(self):
            if not setting.name.startswith(("num_", "last_", "_")):
                setattr(self, setting.name, setting.default)

    def damaged(self, data: bytes) -> bytes:
        """Return the next bytes with the damage that is due."""
        places = []
        if self.damage_at is not None:
            if self.damage_at < len(data):
                places, self.damage_at = [self.damage_at], None
            else:
                self.damage_at -= len(data)
        if self.damage_every_bytes and self._rng.random() < len(data) / self.damage_every_bytes:
            places.append(self._rng.randrange(len(data)))
        if not places:
            return data
        changed = bytearray(data)
        for place in places:
            changed[place] ^= 1 << self._rng.randrange(8)
        self.num_damaged += len(places)
        return bytes(changed)


class FaultProxy:
    """Listens on loopback, at one port for its whole life, and forwards to `target`."""

    def __init__(self, target: str) -> None:
        """target: HOST:PORT. May be changed later; it concerns connections that come then."""
        self.target = target
        self.up = Direction()  # from the one who connects to the target
        self.down = Direction()
        self.num_connections = 0
        self._connections: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy", daemon=True)
        self._thread.start()
        self._listener: asyncio.Server | None = None
        self._port = 0
        self.open_listener()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def num_open(self) -> int:
        """Connections whose connecting side is open."""
        return len(self._connections)

    def heal(self) -> None:
        """End the faults of both directions, and listen."""
        self.up.heal()
        self.down.heal()
        self.open_listener()

    def blackhole(self) -> None:
        """Accept connections and bytes, and forward nothing either way."""
        self.up.is_held = self.down.is_held = True

    def reset(self) -> None:
        """End all connections with RST to both sides."""
        self._call(self._each(_Connection.reset))

    def drop_target_side(self) -> None:
        """End the target's side of all connections; the other side stays open and hears nothing more."""
        self._call(self._each(_Connection.drop_target_side))

    def close_listener(self) -> None:
        """Refuse new connections; those that are there go on."""
        self._call(self._close_listener())

    def open_listener(self) -> None:
        """Accept connections again."""
        self._call(self._open_listener())

    def close(self) -> None:
        """End everything. May be called twice."""
        if self._loop.is_closed():
            return
        self.close_listener()
        self.reset()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _each(self, action: Callable[["_Connection"], Coroutine[Any, Any, None]]) -> None:
        for connection in list(self._connections):
            await action(connection)

    async def _open_listener(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(
                self._serve, "127.0.0.1", self._port, limit=_CHUNK_BYTES, reuse_address=True
            )
            self._port = self._listener.sockets[0].getsockname()[1]

    async def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()  # and do not wait: that would be for the connections too
            self._listener = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        connection = _Connection(reader, writer)
        self._connections.add(connection)
        try:
            await connection.run(self.target, self.up, self.down)
        finally:
            self._connections.discard(connection)


class _Connection:
    """One who connects, and the target's end for it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._target_writer: asyncio.StreamWriter | None = None
        self._ways: list[asyncio.Task[None]] = []
        self._is_carrying = asyncio.Event()
        self._is_over = asyncio.Event()

    async def run(self, target: str, up: Direction, down: Direction) -> None:
        host, _, port = target.rpartition(":")
        try:
            target_reader, self._target_writer = await asyncio.open_connection(host, int(port), limit=_CHUNK_BYTES)
            self._ways = [
                asyncio.create_task(_carry(self._reader, self._target_writer, up)),
                asyncio.create_task(_carry(target_reader, self._writer, down)),
            ]
            for way in self._ways:
                way.add_done_callback(self._note_end)
            self._is_carrying.set()
            await self._is_over.wait()
        except OSError:
            pass  # nobody listens at the target
        finally:
            self._is_carrying.set()
            await self.reset()

    async def reset(self) -> None:
        for writer in (self._writer, self._target_writer):
            _abort(writer)
        await self._end_ways()
        self._is_over.set()

    async def drop_target_side(self) -> None:
        await self._is_carrying.wait()
        for way in self._ways:
            way.remove_done_callback(self._note_end)
        await self._end_ways()
        _abort(self._target_writer)

    async def _end_ways(self) -> None:
        ways, self._ways = self._ways, []
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)

    def _note_end(self, way: asyncio.Task[None]) -> None:
        """End the connection when one way has failed or both have come to their end."""
        failed = not way.cancelled() and way.exception() is not None
        if failed or all(other.done() for other in self._ways):
            self._is_over.set()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Direction) -> None:
    """Bring bytes from one to the other until the sender closes; raise OSError when either breaks off."""
    underway: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_UNDERWAY)

    async def take() -> None:
        data = b"first"
        while data:
            data = await _read(reader, way)
            while way.is_unread:
                await asyncio.sleep(_POLL_S)
            await underway.put((time.monotonic() + way.latency_s, data))

    async def give() -> None:
        while True:
            due_s, data = await underway.get()
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            if not data:
                writer.write_eof()
                return
            await _give(way.damaged(data), writer, way)

    async with asyncio.TaskGroup() as both:
        both.create_task(take())
        both.create_task(give())


async def _read(reader: asyncio.StreamReader, way: Direction) -> bytes:
    """Return some bytes, none at the end; raise OSError when the sender resets the connection."""
    data = b""
    try:
        data = await reader.read(_CHUNK_BYTES)
    finally:
        if not data:
            way.num_ended, way.last_end_monotonic_s = way.num_ended + 1, time.monotonic()
    return data


async def _give(data: bytes, writer: asyncio.StreamWriter, way: Direction) -> None:
    while data:
        while way.is_held:
            await asyncio.sleep(_POLL_S)
        size, pause_s = way.slice_bytes, 0.0
        if way.bytes_per_s:
            size = max(1, min(size, int(way.bytes_per_s / _PIECES_PER_S)))
            pause_s = min(size, len(data)) / way.bytes_per_s
        piece, data = data[:size], data[size:]
        writer.write(piece)
        await writer.drain()
        way.num_forwarded += len(piece)
        await asyncio.sleep(pause_s)


def _abort(writer: asyncio.StreamWriter | None) -> None:
    if writer is None or writer.transport.is_closing():
        return
    with contextlib.suppress(OSError):  # the peer may have reset it already
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
