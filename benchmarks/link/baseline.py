"""The plain scheme that the link is compared with, and bare gRPC: what moving bytes costs without any promise.

Restated from what LeRobot's actor and learner do: whole episodes of float32 images through torch.save in 2 MB pieces,
weights the same way, with gRPC's default options. Nothing is durable, nothing is acknowledged before an episode's end,
nothing is sent again. Where that scheme leaves a choice the faster one is taken: next states share the memory of the
states after them, and the receiver answers an episode only after it has loaded it. Pieces travel in unary calls, or all
of an episode in one stream. No generated code: messages are bytes.
"""

import io
import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import torch
from torch import Tensor

from policy.transition import Transition

PIECE_BYTES = 2 << 20
POLL_PERIOD_S = 4.0  # between two looks for weights
_BEGIN, _MIDDLE, _END = b"B", b"M", b"E"
_STREAM_CHUNK_BYTES = 1 << 20
_LIMIT_BYTES = 8 << 20
_OPTIONS = (
    ("grpc.max_send_message_length", _LIMIT_BYTES),
    ("grpc.max_receive_message_length", _LIMIT_BYTES),
)
_SERVICE = "benchmark.Plain"


def pieces(blob: bytes) -> Iterator[bytes]:
    """Cut a blob into pieces of 2 MB, each behind a byte that says where it belongs."""
    for offset in range(0, len(blob), PIECE_BYTES):
        is_end = offset + PIECE_BYTES >= len(blob)
        yield (_END if is_end else _MIDDLE if offset else _BEGIN) + blob[offset : offset + PIECE_BYTES]


def save(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def load(blob: bytes) -> Any:
    return torch.load(io.BytesIO(blob), weights_only=True)


def episode_of(transitions: Sequence[Transition]) -> list[dict[str, Any]]:
    """Return an episode as that scheme has it: dictionaries of float32 tensors, images (3, H, W) in [0, 1]."""
    states = [_state(transition.observation) for transition in transitions]
    final = transitions[-1].final_observation
    assert final is not None, "an episode is sent when it is over"
    states.append(_state(final))
    return [
        {
            "state": states[step],
            "action": torch.from_numpy(transition.executed_action.copy()),
            "reward": transition.reward,
            "next_state": states[step + 1],
            "done": transition.terminated,
            "truncated": transition.truncated,
        }
        for step, transition in enumerate(transitions)
    ]


def _state(observation: Any) -> dict[str, Tensor]:
    state = {}
    for name, value in observation.items():
        if hasattr(value, "pixels"):
            pixels = np.ascontiguousarray(value.pixels.transpose(2, 0, 1))
            state[f"observation.images.{name}"] = torch.from_numpy(pixels).float() / 255
        else:
            state[f"observation.{name}"] = torch.from_numpy(value.copy())
    return state


class Server:
    """The receiving side: keeps the last episode and serves one blob of weights."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._weights: tuple[int, bytes] = (0, b"")
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(8), options=_OPTIONS)
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Send": grpc.unary_unary_rpc_method_handler(self._send),
            "SendStream": grpc.stream_unary_rpc_method_handler(self._send_stream),
            "Publish": grpc.unary_unary_rpc_method_handler(self._publish),
            "Weights": grpc.unary_unary_rpc_method_handler(self._piece_of_weights),
            "Acknowledge": grpc.stream_stream_rpc_method_handler(self._acknowledge),
            "Stream": grpc.unary_stream_rpc_method_handler(self._stream),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _send(self, piece: bytes, context: grpc.ServicerContext) -> bytes:
        """Put an episode together; the answer to its last piece says when it was there to be learned from."""
        del context
        if piece[:1] == _BEGIN:
            self._received.clear()
        self._received += piece[1:]
        if piece[:1] != _END:
            return b""
        blob = bytes(self._received)
        self._received.clear()
        episode = load(blob)
        return json.dumps({"transitions": len(episode), "visible_monotonic_s": time.monotonic()}).encode()

    def _send_stream(self, stream: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        answer = b""
        for piece in stream:
            answer = self._send(piece, context)
        return answer

    def _publish(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Serialise weights of that many bytes and offer them; answer when that began."""
        del context
        tensors = weights_of(int(request))
        began_s = time.monotonic()
        blob = save(tensors)
        with self._lock:
            self._weights = (self._weights[0] + 1, blob)
        return json.dumps({"began_monotonic_s": began_s}).encode()

    def _piece_of_weights(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer version, total size and the piece at the wanted offset; nothing for a version that the caller has."""
        del context
        wanted = json.loads(request)
        with self._lock:
            version, blob = self._weights
        piece = b"" if wanted["have"] == version else blob[wanted["offset"] : wanted["offset"] + PIECE_BYTES]
        return json.dumps({"version": version, "bytes": len(blob)}).encode().ljust(64) + piece

    def _acknowledge(self, stream: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        del context
        for _ in stream:
            yield b"a"

    def _stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        del context
        chunk = bytes(_STREAM_CHUNK_BYTES)
        for offset in range(0, int(request), _STREAM_CHUNK_BYTES):
            yield chunk[: int(request) - offset]


def weights_of(num_bytes: int) -> dict[str, Tensor]:
    """Return tensors of that many bytes in all, in layers of up to 1 MB, different each time."""
    size = min(num_bytes, 1 << 20) // 4
    return {f"layers.{layer}.weight": torch.rand(size) for layer in range(num_bytes // (4 * size))}


class Client:
    """The sending side."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=(*_OPTIONS, ("grpc.use_local_subchannel_pool", 1)))
        self._version = 0

    def close(self) -> None:
        self._channel.close()

    def send_episode(self, episode: list[dict[str, Any]], *, in_stream: bool = False) -> tuple[float, int]:
        """Send an episode; return when it was there to be learned from, monotonic, and its size in bytes.

        Has no deadline: with gRPC's default options it waits for a silent receiver for ever.
        """
        blob = save(episode)
        if in_stream:
            stream: grpc.StreamUnaryMultiCallable[bytes, bytes] = self._channel.stream_unary(f"/{_SERVICE}/SendStream")
            reply = stream(pieces(blob))
        else:
            send = self._unary("Send")
            for piece in pieces(blob):
                reply = send(piece)
        return float(json.loads(reply)["visible_monotonic_s"]), len(blob)

    def publish(self, num_bytes: int) -> float:
        """Have weights published; return when that began, monotonic."""
        return float(json.loads(self._unary("Publish")(str(num_bytes).encode()))["began_monotonic_s"])

    def fetch_weights(self) -> dict[str, Tensor] | None:
        """Return the weights of a new version; None when there is none."""
        fetch, blob = self._unary("Weights"), bytearray()
        while True:
            reply = fetch(json.dumps({"have": self._version, "offset": len(blob)}).encode())
            head = json.loads(reply[:64])
            if head["version"] == self._version:
                return None
            blob += reply[64:]
            if len(blob) == head["bytes"]:
                self._version = head["version"]
                tensors: dict[str, Tensor] = load(bytes(blob))
                return tensors

    def exchange(self, messages: Iterable[bytes]) -> int:
        """Send messages in a stream that answers each; return the number of answers. Bare gRPC."""
        call: grpc.StreamStreamMultiCallable[bytes, bytes]
        call = self._channel.stream_stream(f"/{_SERVICE}/Acknowledge")
        return sum(1 for _ in call(iter(messages)))

    def receive(self, num_bytes: int) -> int:
        """Receive that many bytes in a stream of 1 MiB chunks; return how many came. Bare gRPC."""
        call: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(f"/{_SERVICE}/Stream")
        return sum(map(len, call(str(num_bytes).encode())))

    def _unary(self, method: str) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(f"/{_SERVICE}/{method}")
        return call


BrokenError = grpc.RpcError
"""What a call raises once gRPC has noticed that the other side is gone."""
