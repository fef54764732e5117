"""ResNet-10 as HIL-SERL publishes it ("resnetv1-10-frozen"): an ImageNet backbone small enough to run on a robot PC.

Architecture: rail-berkeley/hil-serl, serl_launcher/vision/resnet_v1.py. Padding, normalisation and order of operations
match it, so that converted weights give the same features (docs/encoder.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGE_CHANNELS = (64, 128, 256, 512)
MAP_CHANNELS = STAGE_CHANNELS[-1]
_NORM_GROUPS = 4
_NORM_EPS = 1e-5
_STRIDE = 32  # of the whole network: stem, pooling and three stages halve the image
_IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB, of pixels in [0, 1]
_IMAGENET_STD = (0.229, 0.224, 0.225)


def map_size(height: int, width: int) -> tuple[int, int]:
    """Return (h, w) of the map of an image of height x width pixels."""
    return -(-height // _STRIDE), -(-width // _STRIDE)


class ResNet10(nn.Module):
    """uint8 RGB images (B, H, W, 3) -> map (B, 512, h, w) before pooling; 4 x 4 for 128 x 128 pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, STAGE_CHANNELS[0], 7, stride=2, padding=3, bias=False)
        self.stem_norm = _group_norm(STAGE_CHANNELS[0])
        inputs = (STAGE_CHANNELS[0], *STAGE_CHANNELS[:-1])
        self.blocks = nn.ModuleList(
            ResidualBlock(channels_in, channels, stride=1 if index == 0 else 2)
            for index, (channels_in, channels) in enumerate(zip(inputs, STAGE_CHANNELS, strict=True))
        )
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2)  # a view, in the channels-last order that convolutions like
        x = (pixels.float() / 255 - self.mean) / self.std
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.max_pool2d(_pad_same(x, kernel=3, stride=2, value=-torch.inf), kernel_size=3, stride=2)
        for block in self.blocks:
            x = block(x)
        return x


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        # Flax's SAME is symmetric where nothing is skipped; then the convolution pads without a copy of its input.
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1 if stride == 1 else 0, bias=False)
        self.norm1 = _group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = _group_norm(channels)
        self.projection: nn.Conv2d | None = None
        self.projection_norm: nn.GroupNorm | None = None
        if channels_in != channels:
            self.projection = nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False)
            self.projection_norm = _group_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.projection is not None and self.projection_norm is not None:
            shortcut = self.projection_norm(self.projection(x))
        if self.stride > 1:
            x = _pad_same(x, kernel=3, stride=self.stride)
        x = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(shortcut + x)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_NORM_GROUPS, channels, eps=_NORM_EPS)


def _pad_same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad (B, C, H, W) as Flax's SAME does: ceil(size / stride) outputs, an odd pixel goes to the bottom and right.

    PyTorch's own padding is symmetric, which shifts a strided convolution by one pixel.
    """
    sides: list[int] = []
    for size in (x.shape[3], x.shape[2]):  # F.pad starts at the last axis
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides, value=value)
