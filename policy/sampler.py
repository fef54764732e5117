"""The reverse diffusion process. Unguided here; a guide may replace single steps (see learner/guidance.py)."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from policy.noise_schedule import NoiseSchedule


class NoisePredictor(Protocol):
    """eps_theta: the Denoiser, or a closed form in tests. Shapes as in Denoiser.forward."""

    def __call__(self, noisy_action: Tensor, step: int, feature: Tensor) -> Tensor: ...


class ReverseMean(NamedTuple):
    """What one denoiser call says about a reverse step."""

    mean: Tensor  # (B, A), of p(x_{t-1} | x_t)
    clean_action: Tensor  # (B, A), x0_hat before clipping


class Guide(Protocol):
    """Replaces some steps of the reverse process."""

    def is_active(self, step: int) -> bool: ...

    def reverse_step(
        self, denoiser: NoisePredictor, schedule: NoiseSchedule, x: Tensor, step: int, feature: Tensor, noise: Tensor
    ) -> Tensor:
        """Return x_{t-1} (B, A), detached."""


def draw_noise(schedule: NoiseSchedule, rows: int, action_dim: int, generator: torch.Generator) -> Tensor:
    """Return all noise of `rows` chains, (T + 1, rows, A): entry T starts the chains, entry i drives step i.

    Drawn up front so that a guided and an unguided chain can share it and a run can be replayed.
    """
    shape = (schedule.num_steps + 1, rows, action_dim)
    return torch.randn(shape, generator=generator, device=generator.device)


def reverse_mean(
    denoiser: NoisePredictor, schedule: NoiseSchedule, x: Tensor, step: int, feature: Tensor, clip: bool = True
) -> ReverseMean:
    """Predict the clean action and the mean of the reverse step. Source: CGPO Eq 4; DDPM Eq 7.

    The clean action is clipped to [-1, 1] inside the mean (QVPO's code): at t = T the prediction multiplies an error
    of the denoiser by 1 / sqrt(alpha_bar_T), about 400.
    """
    predicted_noise = denoiser(x, step, feature)
    clean = (x - schedule.sqrt_one_minus_alpha_bar[step] * predicted_noise) / schedule.sqrt_alpha_bar[step]
    bounded = clean.clamp(-1, 1) if clip else clean
    return ReverseMean(schedule.clean_coefficient[step] * bounded + schedule.noisy_coefficient[step] * x, clean)


def sample(
    denoiser: NoisePredictor, schedule: NoiseSchedule, feature: Tensor, noise: Tensor, guide: Guide | None = None
) -> Tensor:
    """Run the reverse process from noise to actions in [-1, 1].

    Shapes: feature (..., B, F), noise (T + 1, ..., B, A) as from draw_noise; returns (..., B, A), detached. With T = 20
    and the posterior variance the sampler is under-dispersed: a Gaussian policy of std 0.3 is sampled with std 0.245.
    """
    x = noise[-1]
    for step in reversed(range(schedule.num_steps)):
        if guide is not None and guide.is_active(step):
            x = guide.reverse_step(denoiser, schedule, x, step, feature, noise[step])
        else:
            with torch.no_grad():
                x = reverse_mean(denoiser, schedule, x, step, feature).mean + schedule.sigma[step] * noise[step]
    return x.clamp(-1, 1)


def best_of(candidates: Tensor, values: Tensor) -> Tensor:
    """Return (..., B, A), each row's candidate of largest value; candidates (..., B, K, A), values (..., B, K)."""
    index = values.argmax(dim=-1)
    return candidates.take_along_dim(index[..., None, None], dim=-2).squeeze(-2)
