"""Images of the replay: each frame once, as uint8 pixels or as the frozen backbone's maps, for the rows of all buffers.

`pixels` is live DrQ: every time a frame is drawn it is shifted at random and encoded, which needs a GPU (two cameras,
batch 256: 1024 passes of the backbone). `maps` is for learners without one. The backbone never changes, so each frame
is shifted and encoded when it arrives, `map_variants` times, and drawing picks one of them. What that changes against
live DrQ: a frame has that many augmentations for life instead of up to (2 * random_shift_px + 1)^2, and maps are
rounded to float16.

In both, the images of all cameras and of a step's two observations are shifted independently, as in DrQ; HIL-SERL
shares one shift among the cameras of an observation.
"""

import hashlib
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.config import ReplayConfig
from learner.pixels import draw_shifts, shift_images
from policy.encoder import ObservationEncoder, pixels_of
from policy.errors import ConfigError
from policy.resnet import MAP_CHANNELS, map_size
from policy.spec import Observation, ObservationSpec
from policy.transition import RecordId

logger = logging.getLogger(__name__)

_CHUNK_FRAMES = 2048  # memory is taken by this many frames at a time (two cameras of 128 x 128: 201 MB)


class FrameStore:
    """Frames of all cameras in numbered slots. A frame is kept while a row holds its slot.

    Memory grows with what is stored, not with the capacity of the buffers.
    """

    def __init__(self, shapes: Iterable[tuple[int, ...]], copies: int, dtype: torch.dtype, device: torch.device | str):
        """`shapes` of one copy of a frame, by camera; a slot has `copies` of each (augmented variants)."""
        self._shapes = list(shapes)
        self._copies = copies
        self._dtype = dtype
        self._device = device
        self._chunks: list[list[Tensor]] = [[] for _ in self._shapes]  # by camera, (frames * copies, *shape)
        self._holders: list[int] = []  # by slot
        self._free: list[int] = []

    @property
    def bytes_per_frame(self) -> int:
        return sum(math.prod(shape) for shape in self._shapes) * self._copies * self._dtype.itemsize

    def __len__(self) -> int:
        """Number of frames that are held."""
        return len(self._holders) - len(self._free)

    def put(self, frames: Sequence[Tensor]) -> int:
        """Store a frame of each camera, (copies, *shape), and return its slot, which nobody holds yet."""
        slot = self._free.pop() if self._free else self._grow()
        chunk, place = divmod(slot, _CHUNK_FRAMES)
        for chunks, frame in zip(self._chunks, frames, strict=True):
            chunks[chunk][place * self._copies : (place + 1) * self._copies] = frame
        return slot

    def hold(self, slot: int) -> None:
        self._holders[slot] += 1

    def release(self, slot: int) -> None:
        self._holders[slot] -= 1
        if not self._holders[slot]:
            self._free.append(slot)

    def gather(self, camera: int, slots: NDArray[np.int64], copies: NDArray[np.int64] | int = 0) -> Tensor:
        """Return (B, *shape): of each slot the given copy, on the store's device."""
        chunks, places = np.divmod(slots, _CHUNK_FRAMES)
        entries = places * self._copies + copies
        result = torch.empty((len(slots), *self._shapes[camera]), dtype=self._dtype, device=self._device)
        for chunk in np.unique(chunks):
            positions = torch.from_numpy(np.flatnonzero(chunks == chunk)).to(self._device)
            chosen = torch.from_numpy(entries[chunks == chunk]).to(self._device)
            result.index_copy_(0, positions, self._chunks[camera][chunk].index_select(0, chosen))
        return result

    def _grow(self) -> int:
        slot = len(self._holders)
        if slot % _CHUNK_FRAMES == 0:
            for chunks, shape in zip(self._chunks, self._shapes, strict=True):
                size = (_CHUNK_FRAMES * self._copies, *shape)
                chunks.append(torch.empty(size, dtype=self._dtype, device=self._device))
        self._holders.append(0)
        return slot


class ReplayImages(ABC):
    """What a replay does with images: store those of an observation, and return maps for a batch."""

    def __init__(self, spec: ObservationSpec, encoder: ObservationEncoder, store: FrameStore) -> None:
        self._names = [image.name for image in spec.images]
        self._encoder = encoder
        self.store = store

    @abstractmethod
    def put(self, observation: Observation, record_id: RecordId, is_final: bool) -> int:
        """Store the images of a record's (final) observation; returns their slot."""

    @abstractmethod
    def maps(self, slots: NDArray[np.int64], rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Return the maps (B, C, h, w) of each camera, float32 on the encoder's device."""

    def _pixels(self, observation: Observation) -> list[Tensor]:
        """Return each camera's image as (1, H, W, 3)."""
        return [torch.from_numpy(pixels_of(observation[name])[None].copy()) for name in self._names]


class PixelImages(ReplayImages):
    """Frames as they came; shifted and encoded each time they are drawn."""

    def __init__(
        self, config: ReplayConfig, spec: ObservationSpec, encoder: ObservationEncoder, device: torch.device | str
    ) -> None:
        shapes = [(image.height, image.width, 3) for image in spec.images]
        super().__init__(spec, encoder, FrameStore(shapes, 1, torch.uint8, device))
        self._shift_px = config.random_shift_px

    def put(self, observation: Observation, record_id: RecordId, is_final: bool) -> int:
        return self.store.put(self._pixels(observation))

    def maps(self, slots: NDArray[np.int64], rng: np.random.Generator) -> tuple[Tensor, ...]:
        shifted = []
        for camera in range(len(self._names)):
            images = self.store.gather(camera, slots).to(self._encoder.device)
            shifted.append(shift_images(images, draw_shifts(rng, len(slots), self._shift_px)))
        return self._encoder.maps_of_cameras(shifted)


class MapImages(ReplayImages):
    """The backbone's maps of a few shifted variants of each frame, made once.

    The shifts follow from the record's name, and the backbone always sees one observation's variants as one batch of
    the same size, so a replay that is built again from the log is the same bit for bit, however the log was read.
    Larger batches would not be faster: see policy.encoder.
    """

    def __init__(
        self, config: ReplayConfig, spec: ObservationSpec, encoder: ObservationEncoder, device: torch.device | str
    ) -> None:
        shapes = [(MAP_CHANNELS, *map_size(image.height, image.width)) for image in spec.images]
        super().__init__(spec, encoder, FrameStore(shapes, config.map_variants, torch.float16, device))
        self._variants = config.map_variants
        self._shift_px = config.random_shift_px

    def put(self, observation: Observation, record_id: RecordId, is_final: bool) -> int:
        rng = np.random.default_rng(_seed_of(record_id, is_final))
        variants = []
        for image in self._pixels(observation):
            copies = image.to(self._encoder.device).expand(self._variants, -1, -1, -1)
            variants.append(shift_images(copies, draw_shifts(rng, self._variants, self._shift_px)))
        return self.store.put(self._encoder.maps_of_cameras(variants))

    def maps(self, slots: NDArray[np.int64], rng: np.random.Generator) -> tuple[Tensor, ...]:
        maps = []
        for camera in range(len(self._names)):
            stored = self.store.gather(camera, slots, rng.integers(self._variants, size=len(slots)))
            maps.append(stored.to(self._encoder.device).float())
        return tuple(maps)


def make_images(
    config: ReplayConfig, spec: ObservationSpec, encoder: ObservationEncoder | None, device: torch.device | str
) -> ReplayImages | None:
    """Return what `config` names, kept on replay.device (auto: `device`, the trainer's); None without images.

    Raises ConfigError for replay.device = cuda on a machine without one. Warns when full buffers will not fit.
    """
    if not spec.images:
        return None
    assert encoder is not None, "a replay of images needs their encoder"
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("replay.device = 'cuda', but PyTorch finds no CUDA device here. Choose auto or cpu.")
    home = torch.device(device if config.device == "auto" else config.device)
    kind = PixelImages if config.image_storage == "pixels" else MapImages
    images = kind(config, spec, encoder, home)
    needed, memory = 2 * config.capacity * images.store.bytes_per_frame, _memory_bytes(home)
    if needed > memory:
        logger.warning(
            "replay.capacity = %d: full online and demonstration buffers need up to %.0f GB for images, %s has %.0f GB "
            "in all. A capacity of %d would fit.",
            config.capacity, needed / 1e9, home.type, memory / 1e9, memory // (2 * images.store.bytes_per_frame),
        )  # fmt: skip
    return images


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _seed_of(record_id: RecordId, is_final: bool) -> int:
    name = f"{record_id.actor_id}\n{record_id.incarnation}\n{record_id.sequence}\n{is_final}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
