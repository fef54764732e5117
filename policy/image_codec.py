"""Images as they are sent and stored, and the very pixels that the receiver will see. The only file that knows JPEG."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from policy.errors import ConfigError, WireError

ImageCodec = Literal["jpeg", "png", "raw"]
Image = NDArray[np.uint8]  # (H, W, 3) RGB

CODECS: tuple[ImageCodec, ...] = get_args(ImageCodec)
_JPEG_QUALITY = 95
# 4:4:4: the default 4:2:0 halves the colour resolution, and at 128 pixels a coloured object is a few pixels wide.
_JPEG_OPTIONS = [
    cv2.IMWRITE_JPEG_QUALITY,
    _JPEG_QUALITY,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
]
_MAGIC = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}
_MAX_HEADER_BYTES = 4096  # of a coded image: quantisation and Huffman tables, chunks
_START_OF_FRAME, _START_OF_SCAN, _JPEG_END = 0xC0, 0xDA, b"\xff\xd9"
_JPEG_SEGMENTS = {0xE0, 0xDB, 0xC4, _START_OF_FRAME, _START_OF_SCAN}  # JFIF, quantisation and Huffman tables
_JPEG_MARKER = re.compile(rb"\xff[^\x00]")  # within a scan, 0xFF itself is written as FF 00


@dataclass(frozen=True, eq=False)
class CodedImage:
    """Bytes of an image together with what they decode to. The actor acts on `pixels`, so the learner sees the same."""

    codec: ImageCodec
    data: bytes
    pixels: Image  # (H, W, 3) uint8 RGB, read-only


def encode_image(pixels: Image, codec: ImageCodec) -> CodedImage:
    """Return the image (H, W, 3) uint8 RGB as it is sent, with the pixels that remain. Raises ConfigError."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ConfigError(f"an image has shape {pixels.shape} and type {pixels.dtype}, expected (H, W, 3) uint8 RGB")
    if codec not in CODECS:
        raise ConfigError(f"unknown image codec {codec!r}. Valid: {', '.join(CODECS)}.")
    if codec == "raw":
        kept = pixels.copy()
        kept.setflags(write=False)
        return CodedImage(codec, kept.tobytes(), kept)
    bgr = np.ascontiguousarray(pixels[:, :, ::-1])
    _, encoded = cv2.imencode(f".{codec}", bgr, _JPEG_OPTIONS if codec == "jpeg" else [])
    return decode_image(encoded.tobytes(), codec, pixels.shape[0], pixels.shape[1])


def decode_image(data: bytes, codec: str, height: int, width: int) -> CodedImage:
    """Undo `encode_image`. Raises WireError unless `data` is one whole image of that codec and size."""
    expected = f"a {codec} image of {width} x {height} pixels"
    if codec == "raw":
        if len(data) != height * width * 3:
            raise WireError(f"{len(data)} bytes are not {expected}, which has {height * width * 3}")
        pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
        return CodedImage("raw", data, pixels)
    if codec not in CODECS or not data.startswith(_MAGIC[codec]):
        raise WireError(f"{len(data)} bytes that begin with {data[:4].hex()} are not {expected}")
    if (
        len(data) > 2 * height * width * 3 + _MAX_HEADER_BYTES
    ):  # measured for noise: 1.01 times the pixels and 700 bytes
        raise WireError(f"{len(data)} bytes are more than {expected} can need")
    # Decoders take files apart in ways of their own: 41 bytes that name a long chunk make OpenCV allocate 2 GiB, 50 KB
    # with two headers 3 GiB. What they are given has therefore nothing in it but the parts that encode_image writes.
    claimed = _png_size(data) if codec == "png" else _jpeg_size(data)
    if claimed is None:
        raise WireError(f"{len(data)} bytes are not {expected}: parts are missing, or others than encode_image writes")
    if claimed != (height, width):
        raise WireError(f"{len(data)} bytes of {codec} claim {claimed[1]} x {claimed[0]} pixels, expected {expected}")
    bgr: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None or bgr.shape != (height, width, 3):
        raise WireError(f"{len(data)} bytes are damaged: they do not decode to {expected}")
    pixels = np.ascontiguousarray(bgr[:, :, ::-1])
    pixels.setflags(write=False)
    return CodedImage("jpeg" if codec == "jpeg" else "png", data, pixels)


def code_images(observation: Mapping[str, Any], codec: ImageCodec) -> dict[str, Any]:
    """Return the observation with every uint8 image encoded; vectors pass. What results is acted on and recorded."""
    return {
        name: encode_image(value, codec) if getattr(value, "dtype", None) == np.uint8 else value
        for name, value in observation.items()
    }


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a whole baseline JPEG with one frame and one scan, None for any other bytes."""
    size, position = None, 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker not in _JPEG_SEGMENTS or (marker == _START_OF_FRAME and size is not None):
            return None
        if marker == _START_OF_FRAME:
            height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
            size = int.from_bytes(height, "big"), int.from_bytes(width, "big")
        position += 2 + length
        if marker == _START_OF_SCAN:
            end = _JPEG_MARKER.search(data, position)
            return size if end is not None and data[end.start() :] == _JPEG_END else None
    return None


def _png_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a whole PNG of pixels alone, None for any other bytes."""
    kinds, position = [], 8
    while position + 12 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        kinds.append(kind)
        position += 12 + length
    is_whole = position == len(data) and len(kinds) >= 3 and kinds[0] == b"IHDR" and kinds[-1] == b"IEND"
    if not is_whole or set(kinds[1:-1]) != {b"IDAT"}:
        return None
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
