"""Images of the replay: each frame once, as uint8 pixels or as the frozen backbone's maps, for the rows of all buffers.

`pixels` is live DrQ: every time a frame is drawn it is shifted at random and encoded, which needs a GPU (two cameras,
batch 256: 1024 passes of the backbone). `maps` is for learners without one. The backbone never changes, so each frame
is shifted and encoded when it arrives, `map_variants` times, and drawing picks one of them. What that changes against
live DrQ: a frame has that many augmentations for life instead of up to (2 * random_shift_px + 1)^2, and maps are
rounded to float16.

In both, the images of all cameras and of a step's two observations are shifted independently, as in DrQ; HIL-SERL
shares one shift among the cameras of an observation.
"""

import bisect
import hashlib
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from learner.config import ReplayConfig
from learner.noise import Noise
from learner.pixels import draw_shifts, shift_images
from policy.encoder import ObservationEncoder, pixels_of
from policy.resnet import MAP_CHANNELS, map_size
from policy.spec import Observation, ObservationSpec
from policy.transition import RecordId

logger = logging.getLogger(__name__)

_CHUNK_FRAMES = 2048  # memory is taken by this many frames at a time (two cameras of 128 x 128: 201 MB)


class FrameStore:
    """Frames of all cameras in numbered slots. A frame is kept while a row holds its slot.

    Memory grows with what is stored, not with the capacity of the buffers: by chunks of one size on a CPU. On a GPU
    each is as large as all before it together, so that a batch is taken from few of them.
    """

    def __init__(self, shapes: Iterable[tuple[int, ...]], copies: int, dtype: torch.dtype, device: torch.device | str):
        """`shapes` of one copy of a frame, by camera; a slot has `copies` of each (augmented variants)."""
        self._shapes = list(shapes)
        self._copies = copies
        self._dtype = dtype
        self._device = torch.device(device)
        self._chunks: list[list[Tensor]] = [[] for _ in self._shapes]  # by camera, (frames * copies, *shape)
        self._starts: list[int] = []  # first slot of each chunk
        self._holders: list[int] = []  # by slot
        self._free: list[int] = []

    @property
    def bytes_per_frame(self) -> int:
        return sum(math.prod(shape) for shape in self._shapes) * self._copies * self._dtype.itemsize

    @property
    def num_chunks(self) -> int:
        return len(self._starts)

    def __len__(self) -> int:
        """Number of frames that are held."""
        return len(self._holders) - len(self._free)

    def put(self, frames: Sequence[Tensor]) -> int:
        """Store a frame of each camera, (copies, *shape), and return its slot, which nobody holds yet."""
        slot = self._free.pop() if self._free else self._grow()
        chunk = bisect.bisect(self._starts, slot) - 1
        first = (slot - self._starts[chunk]) * self._copies
        for chunks, frame in zip(self._chunks, frames, strict=True):
            chunks[chunk][first : first + self._copies].copy_(frame, non_blocking=True)
        return slot

    def hold(self, slot: int) -> None:
        self._holders[slot] += 1

    def release(self, slot: int) -> None:
        self._holders[slot] -= 1
        if not self._holders[slot]:
            self._free.append(slot)

    def gather(self, camera: int, slots: Tensor, copies: Tensor | int = 0) -> Tensor:
        """Return (B, *shape): of each slot (B,) the given copy; all on the store's device."""
        chunks = self._chunks[camera]
        if len(chunks) == 1:
            return chunks[0].index_select(0, slots * self._copies + copies)
        if self._device.type == "cpu":
            return self._gather_by_chunk(chunks, slots, copies)
        return self._gather_from_all(chunks, slots, copies)

    def _gather_by_chunk(self, chunks: list[Tensor], slots: Tensor, copies: Tensor | int) -> Tensor:
        """Copy every frame once."""
        home = torch.bucketize(slots, torch.tensor(self._starts), right=True) - 1
        entries = (slots - torch.tensor(self._starts)[home]) * self._copies + copies
        result = torch.empty((len(slots), *chunks[0].shape[1:]), dtype=self._dtype)
        for chunk in sorted(set(home.tolist())):
            (places,) = torch.nonzero(home == chunk, as_tuple=True)
            result.index_copy_(0, places, chunks[chunk].index_select(0, entries[places]))
        return result

    def _gather_from_all(self, chunks: list[Tensor], slots: Tensor, copies: Tensor | int) -> Tensor:
        """Take a frame of each chunk and keep the right one: shapes do not depend on where the slots are."""
        result: Tensor | None = None
        for start, chunk in zip(self._starts, chunks, strict=True):
            entries = ((slots - start) * self._copies + copies).clamp(0, len(chunk) - 1)
            taken = chunk.index_select(0, entries)
            is_here_or_later = (slots >= start).view(-1, *(1,) * (taken.dim() - 1))
            result = taken if result is None else torch.where(is_here_or_later, taken, result)
        assert result is not None
        return result

    def _grow(self) -> int:
        slot = len(self._holders)
        if slot == sum(len(chunk) for chunk in self._chunks[0]) // self._copies:
            frames = _CHUNK_FRAMES if self._device.type == "cpu" else max(_CHUNK_FRAMES, slot)
            self._starts.append(slot)
            for chunks, shape in zip(self._chunks, self._shapes, strict=True):
                chunks.append(torch.empty((frames * self._copies, *shape), dtype=self._dtype, device=self._device))
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
    def maps(self, slots: Tensor, noise: Noise) -> tuple[Tensor, ...]:
        """Return each camera's maps (B, C, h, w), float32 on the encoder's device, for slots (B,) on the store's."""

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

    def maps(self, slots: Tensor, noise: Noise) -> tuple[Tensor, ...]:
        shifted = []
        for camera in range(len(self._names)):
            images = self.store.gather(camera, slots).to(self._encoder.device)
            shifts = noise.integers(2 * self._shift_px + 1, len(slots), 2) - self._shift_px
            shifted.append(shift_images(images, shifts, self._shift_px))
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
            variants.append(shift_images(copies, draw_shifts(rng, self._variants, self._shift_px), self._shift_px))
        return self.store.put(self._encoder.maps_of_cameras(variants))

    def maps(self, slots: Tensor, noise: Noise) -> tuple[Tensor, ...]:
        maps = []
        for camera in range(len(self._names)):
            stored = self.store.gather(camera, slots, noise.integers(self._variants, len(slots)))
            maps.append(stored.to(self._encoder.device).float())
        return tuple(maps)


def make_images(
    config: ReplayConfig, spec: ObservationSpec, encoder: ObservationEncoder | None, home: torch.device
) -> ReplayImages | None:
    """Return what `config` names, kept on `home`; None without images. Warns when full buffers will not fit there."""
    if not spec.images:
        return None
    assert encoder is not None, "a replay of images needs their encoder"
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
