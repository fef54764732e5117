"""python -m tests.bombs: decode small messages that want to become large; print how much memory and time each took.

A process of its own, because what C code allocates shows in the resident set alone, whose peak never sinks again.
"""

import json
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from cgpo_proto import link_pb2

from policy.grpc_options import MAX_TRANSITION_BYTES
from policy.image_codec import decode_image, encode_image
from policy.wire import decode_body
from tests.golden.expected import IMAGE_SPECS, SPECS
from tests.golden.record import FOLDER

HEIGHT, WIDTH = 160, 161
_STEP = (FOLDER / "bodies" / "protocol_2_step.bin").read_bytes()
_WITH_IMAGES = (FOLDER / "bodies" / "last_step_with_images.bin").read_bytes()
_PICTURE = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
_SIDE = 30_000  # pixels: 2.5 GiB decoded, just below OpenCV's own limit


def main() -> None:
    for data in (_STEP, _WITH_IMAGES):
        decode_body(data, IMAGE_SPECS if data is _WITH_IMAGES else SPECS)  # what a first call loads is no bomb's
    result = {}
    for name, decode in (*images(), *bodies()):
        before_kib, started_s = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        try:
            decode()
            error = None
        except Exception as raised:
            error = raised
        grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) << 10
        result[name] = {
            "grown_bytes": grown_bytes,
            "s": time.monotonic() - started_s,
            "error": type(error).__name__ if error else "",
            "characters": len(str(error)),
        }
    sys.stdout.write(json.dumps(result, indent=1))


def images() -> Iterator[tuple[str, Callable[[], object]]]:
    for codec, makers in (("png", _pngs()), ("jpeg", _jpegs())):
        for name, data in makers:
            yield f"{codec}: {name}", partial(decode_image, data, codec, HEIGHT, WIDTH)


def _pngs() -> Iterator[tuple[str, bytes]]:
    def chunk(kind: bytes, content: bytes, length: int | None = None) -> bytes:
        length = len(content) if length is None else length
        return struct.pack(">I", length) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def header(height: int, width: int) -> bytes:
        return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))

    magic, large, end = b"\x89PNG\r\n\x1a\n", zlib.compress(bytes(100 << 20)), chunk(b"IEND", b"")
    small = magic + header(HEIGHT, WIDTH)
    rows = chunk(b"IDAT", zlib.compress(bytes(HEIGHT * (1 + 3 * WIDTH))))
    frame = struct.pack(">IIIIIHHBB", 0, _SIDE, _SIDE, 0, 0, 1, 1, 0, 0)
    yield "header lies", magic + header(_SIDE, _SIDE) + rows + end
    yield "second header", small + header(_SIDE, _SIDE) + rows + end
    yield (
        "header hidden behind another chunk",
        (magic + chunk(b"tEXt", struct.pack(">II", WIDTH, HEIGHT) + bytes(5)) + header(_SIDE, _SIDE) + rows + end),
    )
    yield "pixels go on and on", small + chunk(b"IDAT", large) + end
    yield "compressed text", small + chunk(b"zTXt", b"k\0\0" + large) + rows + end
    yield "compressed profile", small + chunk(b"iCCP", b"k\0\0" + large) + rows + end
    yield "large frame of an animation", small + chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", frame) + rows
    yield "long chunk that is not there", small + chunk(b"tEXt", b"", (1 << 31) - 1)
    yield "long pixels that are not there", small + chunk(b"IDAT", bytes(8), (1 << 31) - 1)


def _jpegs() -> Iterator[tuple[str, bytes]]:
    valid = encode_image(_PICTURE, "jpeg").data
    start = valid.index(b"\xff\xc0")
    before, frame, after = valid[:start], valid[start : start + 19], valid[start + 19 :]
    large = frame[:5] + struct.pack(">HH", _SIDE, _SIDE) + frame[9:]
    yield "header lies", before + large + after
    yield "second header", before + frame + large + after
    yield "large header first", before + large + frame + after
    yield "progressive", before + b"\xff\xc2" + large[2:] + after
    for name, prefix in (("fill byte", b"\xff"), ("marker without length", b"\xff\x01")):
        # Read as a segment, what stands there hides the large frame and leads to the small one; decoders skip it.
        hidden = before + prefix + large + after
        length = int.from_bytes(hidden[start + 2 : start + 4], "big")
        yield f"header hidden behind a {name}", hidden.ljust(start + 2 + length, b"\0") + frame + after
    scan = valid.index(b"\xff\xda")
    yield "thousands of scans", valid[:-2] + valid[scan : scan + 14] * 5000 + valid[-2:]


def bodies() -> Iterator[tuple[str, Callable[[], object]]]:
    def step(change: Callable[[link_pb2.Transition], object]) -> Callable[[], object]:
        body = link_pb2.Body.FromString(_STEP)
        change(body.transition)
        data = body.SerializeToString()
        assert len(data) <= MAX_TRANSITION_BYTES, len(data)
        return lambda: decode_body(data, SPECS)

    def raw(field: int, element: bytes, count: int) -> Callable[[], object]:
        """An observation with `count` times the same element, as bytes: protobuf takes long to build it."""
        observation = (bytes([field << 3 | 2, len(element)]) + element) * count
        body = link_pb2.Body.FromString(_STEP)
        body.transition.ClearField("observation")
        transition = body.transition.SerializeToString() + b"\x1a" + _varint(len(observation)) + observation
        data = b"\x22" + _varint(len(transition)) + transition
        return lambda: decode_body(data, SPECS)

    def tensor(transition: link_pb2.Transition, index: int = 0) -> link_pb2.NamedTensor:
        return transition.observation.fields[index]

    count = MAX_TRANSITION_BYTES // 2 - 200
    yield "half a million tensors", raw(1, b"", count)
    yield "half a million images", raw(2, b"", count)
    yield "half a million tensors of unknown fields", raw(1, b"\x38\x00", count // 2)
    yield "many large dimensions", step(lambda t: tensor(t).shape.extend([2**32 - 1] * 200_000))
    yield "many dimensions of 1", step(lambda t: tensor(t).shape.extend([1] * 1_000_000))
    yield "many dimensions of 0", step(lambda t: tensor(t).shape.extend([0] * 1_000_000))
    yield "large shape without elements", step(lambda t: _replace(tensor(t), [0, 2**32 - 1, 2**32 - 1, 2**32 - 1]))
    yield "no shape", step(lambda t: _replace(tensor(t), []))
    yield "long action", step(lambda t: t.policy_action.extend([0.5] * 250_000))
    yield "long name", step(lambda t: setattr(tensor(t), "name", "n" * 1_000_000))
    yield "long reward source", step(lambda t: setattr(t, "reward_source", "n" * 1_000_000))
    yield "deep nesting", lambda: decode_body(b"\x0b" * 500_000, SPECS)
    large_image = link_pb2.Body.FromString(_WITH_IMAGES)
    for image in large_image.transition.observation.images:
        image.height = image.width = 1 << 16
    yield "large images", lambda: decode_body(large_image.SerializeToString(), IMAGE_SPECS)


def _replace(tensor: link_pb2.NamedTensor, shape: list[int]) -> None:
    tensor.data = b""
    del tensor.shape[:]
    tensor.shape.extend(shape)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


if __name__ == "__main__":
    main()
