"""From observations to features: a frozen image backbone, and the trained heads that algorithms own and publish.

    uint8 image --backbone (frozen, once per state)--> map --head per camera--> feature --+
    vector ----------------------------------------------- proprioception head ----------+--> (B, F)

Without images the feature is the vector itself, and nothing here has parameters.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from policy.config import PolicyConfig
from policy.encoder_weights import load_backbone
from policy.errors import ConfigError
from policy.fast.convolution import freeze_convolutions
from policy.image_codec import CodedImage, Image
from policy.layers import bounded_mlp
from policy.resnet import MAP_CHANNELS, map_size
from policy.spec import ImageField, Observation, Specs

# Images in one pass. On a CPU few are fastest: with 4 to 8 7 ms an image on one core (AMD Zen 4), one by one 7.5 ms, in
# batches of 64 9.5 ms. On a GPU the limit bounds the memory of a pass, about 4 MB an image.
_CPU_BATCH, _GPU_BATCH = 4, 512


class EncoderInput(NamedTuple):
    """A batch of observations after the frozen part. Rows of all tensors belong together."""

    vector: Tensor  # (B, V) from ObservationSpec.normalise
    maps: tuple[Tensor, ...] = ()  # one per camera in the spec's order, (B, C, h, w), from the backbone


def feature_dim(specs: Specs, config: PolicyConfig) -> int:
    """Return F, the width of what ObservationHeads returns."""
    images = specs.observation.images
    if not images:
        return specs.observation.vector_dim
    return config.proprioception_feature_dim + len(images) * config.image_feature_dim


class ObservationEncoder:
    """The frozen part: normalised vectors, and the backbone's map of every image. Its weights are never sent."""

    def __init__(self, specs: Specs, config: PolicyConfig) -> None:
        """Raise ConfigError or WeightsError when there are images and no backbone for them."""
        self._spec = specs.observation
        if self._spec.images:
            _check_encoder(specs, config)
        self.backbone = load_backbone(config.encoder_weights) if self._spec.images else None
        if self.backbone is not None:
            freeze_convolutions(self.backbone)

    @property
    def device(self) -> torch.device:
        """Where maps come out."""
        return torch.device("cpu") if self.backbone is None else self.backbone.mean.device

    def to(self, device: torch.device | str) -> "ObservationEncoder":
        """Move the backbone, in place."""
        if self.backbone is not None:
            self.backbone.to(device)
        return self

    @torch.no_grad()
    def inputs(self, observation: Observation) -> EncoderInput:
        """Return one observation as a batch of 1. Images may be coded or plain uint8 arrays (H, W, 3)."""
        vector = torch.from_numpy(self._spec.normalise(observation))[None]
        if self.backbone is None:
            return EncoderInput(vector)
        images = [torch.from_numpy(pixels_of(observation[image.name])[None].copy()) for image in self._spec.images]
        return EncoderInput(vector.to(self.device), self.maps_of_cameras(images))

    @torch.no_grad()
    def maps(self, images: Tensor) -> Tensor:
        """Return the maps (B, C, h, w) of uint8 images (B, H, W, 3), on the backbone's device."""
        assert self.backbone is not None, "a spec without images has no backbone"
        limit = _CPU_BATCH if self.device.type == "cpu" else _GPU_BATCH
        return torch.cat([self.backbone(few) for few in torch.split(images.to(self.device), limit)])

    def maps_of_cameras(self, images: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return `maps` of each camera's images; cameras of one image size share a call of the backbone."""
        if len({camera.shape for camera in images}) == 1:
            return self.maps(torch.cat(tuple(images))).chunk(len(images))
        return tuple(self.maps(camera) for camera in images)


class ObservationHeads(nn.Module):
    """EncoderInput -> feature (B, F): the trained part, by the critic's loss as in DrQ and HIL-SERL."""

    def __init__(self, specs: Specs, config: PolicyConfig) -> None:
        super().__init__()
        self.feature_dim = feature_dim(specs, config)
        images = specs.observation.images
        self.cameras = nn.ModuleList(CameraHead(image, config) for image in images)
        self.proprioception: nn.Module | None = None
        if images:
            _check_encoder(specs, config)
            self.proprioception = bounded_mlp(specs.observation.vector_dim, (config.proprioception_feature_dim,))

    def forward(self, observation: EncoderInput) -> Tensor:
        if self.proprioception is None:
            return observation.vector
        features = [head(maps) for head, maps in zip(self.cameras, observation.maps, strict=True)]
        return torch.cat([*features, self.proprioception(observation.vector)], dim=1)


class CameraHead(nn.Module):
    """Map (B, C, h, w) -> feature (B, image_feature_dim): S learned spatial embeddings of each channel, one layer.

    A spatial embedding is a weighted sum over the map's positions; its weights are learned for each channel.
    """

    def __init__(self, image: ImageField, config: PolicyConfig) -> None:
        super().__init__()
        height, width = map_size(image.height, image.width)
        self.embedding = nn.Parameter(torch.empty(MAP_CHANNELS, height, width, config.spatial_blocks))
        nn.init.normal_(self.embedding, std=(MAP_CHANNELS * height * width) ** -0.5)  # HIL-SERL's scale
        self.layer = bounded_mlp(MAP_CHANNELS * config.spatial_blocks, (config.image_feature_dim,))

    def forward(self, maps: Tensor) -> Tensor:
        embedded = torch.einsum("bchw,chws->bcs", maps, self.embedding)
        feature: Tensor = self.layer(embedded.flatten(1))
        return feature


def _check_encoder(specs: Specs, config: PolicyConfig) -> None:
    if config.encoder == "none":
        names = ", ".join(image.name for image in specs.observation.images)
        raise ConfigError(
            f"observations hold images ({names}), but policy.encoder is 'none'. Set policy.encoder = 'resnet10' and "
            "policy.encoder_weights (docs/encoder.md), or take the cameras out of the actor's configuration."
        )


def pixels_of(image: CodedImage | Image) -> Image:
    """Return the pixels (H, W, 3) of an observation's image, coded or plain."""
    return image.pixels if isinstance(image, CodedImage) else image
