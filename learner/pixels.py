"""DrQ's augmentation: images shifted by a few pixels, what comes in at the edge repeats it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def draw_shifts(rng: np.random.Generator, count: int, limit_px: int) -> NDArray[np.int64]:
    """Return shifts (count, 2), down and right in pixels, each uniform in [-limit_px, limit_px]."""
    return rng.integers(-limit_px, limit_px + 1, size=(count, 2))


def shift_images(images: Tensor, shifts_px: NDArray[np.int64]) -> Tensor:
    """Return images (B, H, W, 3) with row i's window moved by shifts_px[i].

    Same as padding by repeating the edge and cropping at random (DrQ, arXiv:2004.13649, section 3).
    """
    if not shifts_px.any():
        return images
    batch, height, width = images.shape[:3]
    device = images.device
    down, right = torch.from_numpy(shifts_px).to(device).unbind(1)
    rows = (torch.arange(height, device=device) + down[:, None]).clamp_(0, height - 1)  # (B, H)
    columns = (torch.arange(width, device=device) + right[:, None]).clamp_(0, width - 1)  # (B, W)
    return images[torch.arange(batch, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]
