"""Frames of logs as training data: read, shifted at random, and put through the frozen backbone once."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from learner.reward_classifier.examples import Frame
from policy.encoder import EncoderInput, ObservationEncoder
from policy.episode_log import EpisodeLog
from policy.spec import Observation, Specs
from policy.transition import Transition

_FRAMES_AT_ONCE = 8


@dataclass(frozen=True)
class EncodedFrames:
    """n frames, each in v variants: itself first, then shifted copies."""

    vector: Tensor  # (n, V)
    maps: tuple[Tensor, ...]  # one per camera: (n, v, C, h, w) float16, half the memory and far finer than the noise

    def __len__(self) -> int:
        return len(self.vector)

    def originals(self, rows: slice, device: torch.device | str) -> EncoderInput:
        """Return rows as they were seen."""
        maps = (camera[rows, 0].to(device).float() for camera in self.maps)
        return EncoderInput(self.vector[rows].to(device), tuple(maps))

    def sample(self, count: int, rng: np.random.Generator, device: torch.device | str) -> EncoderInput:
        """Draw rows with replacement, each in a random variant."""
        rows = torch.from_numpy(rng.integers(len(self), size=count))
        maps = []
        for camera in self.maps:
            variant = torch.from_numpy(rng.integers(camera.shape[1], size=count))
            maps.append(camera[rows, variant].to(device).float())
        return EncoderInput(self.vector[rows].to(device), tuple(maps))


class FrameStore:
    """Encodes each frame once, however often a growing log is trained on. Forgets those of no further use."""

    def __init__(self, logs: Sequence[EpisodeLog], specs: Specs, encoder: ObservationEncoder, shift_px: int) -> None:
        self._logs = logs
        self._specs = specs
        self._encoder = encoder
        self._shift_px = shift_px
        self._encoded: dict[tuple[Frame, int], tuple[Tensor, ...]] = {}

    def observation(self, frame: Frame) -> Observation:
        """Read a frame's observation from its log."""
        (entry,) = self._logs[frame.log].read_after(frame.position - 1, 1)
        assert isinstance(entry.body, Transition)
        observation = entry.body.final_observation if frame.is_final else entry.body.observation
        assert observation is not None
        return observation

    def get(self, frames: Sequence[Frame], copies: int) -> EncodedFrames:
        """Return frames with `copies` shifted copies of each."""
        missing = [frame for frame in frames if (frame, copies) not in self._encoded]
        for start in range(0, len(missing), _FRAMES_AT_ONCE):
            self._encode(missing[start : start + _FRAMES_AT_ONCE], copies)
        found = [self._encoded[frame, copies] for frame in frames]
        vector_dim, num_cameras = self._specs.observation.vector_dim, len(self._specs.observation.images)
        if not found:
            return EncodedFrames(torch.zeros(0, vector_dim), ())
        vector, *maps = (torch.stack([parts[index] for parts in found]) for index in range(1 + num_cameras))
        return EncodedFrames(vector, tuple(maps))

    def keep_only(self, frames: set[Frame]) -> None:
        """Forget all other frames."""
        self._encoded = {key: parts for key, parts in self._encoded.items() if key[0] in frames}

    def _encode(self, frames: Sequence[Frame], copies: int) -> None:
        observations = [self.observation(frame) for frame in frames]
        vectors = [torch.from_numpy(self._specs.observation.normalise(observation)) for observation in observations]
        maps: list[Tensor] = []
        for image in self._specs.observation.images:
            variants = [
                self._variants(observation[image.name].pixels, frame, image.name, copies)
                for frame, observation in zip(frames, observations, strict=True)
            ]
            encoded = self._encoder.maps(torch.from_numpy(np.concatenate(variants))).half().cpu()
            maps.append(encoded.reshape(len(frames), 1 + copies, *encoded.shape[1:]))
        for row, frame in enumerate(frames):
            self._encoded[frame, copies] = (vectors[row], *(camera[row] for camera in maps))

    def _variants(self, pixels: NDArray[np.uint8], frame: Frame, camera: str, copies: int) -> NDArray[np.uint8]:
        """Return (1 + copies, H, W, 3); a frame's shifts are always the same, so that training can be repeated."""
        rng = np.random.default_rng(zlib.crc32(repr((frame, camera)).encode()))
        return np.stack([pixels, *(random_shift(pixels, self._shift_px, rng) for _ in range(copies))])


def random_shift(image: NDArray[np.uint8], shift_px: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Shift an image (H, W, 3) by up to shift_px in each direction; its edge fills the gap (DrQ, arXiv:2004.13649)."""
    padded = np.pad(image, ((shift_px, shift_px), (shift_px, shift_px), (0, 0)), mode="edge")
    top, left = rng.integers(2 * shift_px + 1, size=2)
    return padded[top : top + image.shape[0], left : left + image.shape[1]]
