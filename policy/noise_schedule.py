"""Noise schedule of the diffusion policy: everything the forward and reverse process need, computed once."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """Coefficients per denoising step, each (T,) float32. Code index i = t - 1, so i = 0 is the cleanest level.

    q(x_t | a) = N(sqrt_alpha_bar a, (1 - alpha_bar) I) and
    p(x_{t-1} | x_t) = N(clean_coefficient x0_hat + noisy_coefficient x_t, sigma^2 I)
    with the posterior variance beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t), so sigma[0] = 0.
    Source: DDPM, Ho et al. 2020, arXiv:2006.11239, Eq 7.
    """

    beta: Tensor
    alpha_bar: Tensor
    sqrt_alpha_bar: Tensor
    sqrt_one_minus_alpha_bar: Tensor
    clean_coefficient: Tensor
    noisy_coefficient: Tensor
    sigma: Tensor

    @property
    def num_steps(self) -> int:
        return len(self.beta)

    def add_noise(self, clean_action: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Sample q(x_t | a). clean_action and noise (..., A), step (...) code indices."""
        kept, added = self.sqrt_alpha_bar[step], self.sqrt_one_minus_alpha_bar[step]
        return kept[..., None] * clean_action + added[..., None] * noise

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        return NoiseSchedule(**{name: value.to(device) for name, value in vars(self).items()})


def make_noise_schedule(kind: Literal["cosine", "vp"], num_steps: int) -> NoiseSchedule:
    """Build the schedule in float64 and store it in float32.

    cosine: Nichol and Dhariwal 2021, arXiv:2102.09672, Eq 17, s = 0.008, beta <= 0.999 (QVPO's default; the CGPO paper
    names none). vp: the discretised variance-preserving SDE with beta in [0.1, 10].
    """
    t = torch.arange(1, num_steps + 1, dtype=torch.float64)
    if kind == "cosine":
        s = 0.008

        def f(time: Tensor) -> Tensor:
            return torch.cos((time / num_steps + s) / (1 + s) * math.pi / 2) ** 2

        beta = (1 - f(t) / f(t - 1)).clamp(max=0.999)
    else:
        beta_min, beta_max = 0.1, 10.0
        beta = 1 - torch.exp(-beta_min / num_steps - 0.5 * (beta_max - beta_min) * (2 * t - 1) / num_steps**2)
    alpha_bar = torch.cumprod(1 - beta, 0)
    alpha_bar_previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    coefficients = {
        "beta": beta,
        "alpha_bar": alpha_bar,
        "sqrt_alpha_bar": alpha_bar.sqrt(),
        "sqrt_one_minus_alpha_bar": (1 - alpha_bar).sqrt(),
        "clean_coefficient": beta * alpha_bar_previous.sqrt() / (1 - alpha_bar),
        "noisy_coefficient": (1 - alpha_bar_previous) * (1 - beta).sqrt() / (1 - alpha_bar),
        "sigma": (beta * (1 - alpha_bar_previous) / (1 - alpha_bar)).sqrt(),
    }
    return NoiseSchedule(**{name: value.float() for name, value in coefficients.items()})
