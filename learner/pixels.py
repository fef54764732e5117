"""DrQ's augmentation: images shifted by a few pixels, what comes in at the edge repeats it."""

import numpy as np
import torch
from torch import Tensor


def draw_shifts(rng: np.random.Generator, count: int, limit_px: int) -> Tensor:
    """Return shifts (count, 2), down and right in pixels, each uniform in [-limit_px, limit_px]."""
    return torch.from_numpy(rng.integers(-limit_px, limit_px + 1, size=(count, 2)))


def shift_images(images: Tensor, shifts_px: Tensor, limit_px: int) -> Tensor:
    """Return images (B, H, W, 3) with row i's window moved by shifts_px[i] (B, 2), none of them beyond limit_px.

    Same as padding by repeating the edge and cropping at random (DrQ, arXiv:2004.13649, section 3). Reads nothing back
    from the device.
    """
    if not limit_px:
        return images
    batch, height, width, channels = images.shape
    down, right = shifts_px.to(images.device).unbind(1)
    left_edge, right_edge = (
        images[:, :, :1].expand(-1, -1, limit_px, -1),
        images[:, :, -1:].expand(-1, -1, limit_px, -1),
    )
    padded = torch.cat([left_edge, images, right_edge], dim=2).flatten(2)  # (B, H, (W + 2 limit) C)
    windows = padded.unfold(2, width * channels, channels)  # (B, H, 2 limit + 1, W C), a view: every shift to the right
    rows = (torch.arange(height, device=images.device) + down[:, None]).clamp_(0, height - 1)  # (B, H)
    indices = torch.arange(batch, device=images.device)[:, None], rows, (right + limit_px)[:, None]
    return windows[indices].view(batch, height, width, channels)  # copies whole rows, 4 times as fast as pixels
