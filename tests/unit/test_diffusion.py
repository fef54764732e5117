"""The denoising error that all diffusion policies here are trained by."""

import pytest
import torch
from torch import Tensor

from learner.agents import Agents
from learner.diffusion import Diffusion
from learner.noise import Noise
from tests.oracles import small_config


def test_denoising_error_is_the_dimension_mean_of_the_squared_noise_error() -> None:
    """A network that says 0 errs by the noise itself: expectation 1. A network that knows the action errs by 0."""
    diffusion = Diffusion(Agents.single(small_config(policy={"denoising_steps": 20})), action_dim=2)
    schedule, rows = diffusion.schedule, 20_000
    action = torch.tensor([0.3, -0.8]).expand(rows, 2)
    feature = torch.zeros(rows, 1)
    levels: list[Tensor] = []

    def silent(noisy_action: Tensor, step: Tensor, feature: Tensor) -> Tensor:
        levels.append(step)
        return torch.zeros_like(noisy_action)

    def knowing(noisy_action: Tensor, step: Tensor, feature: Tensor) -> Tensor:
        signal = schedule.sqrt_alpha_bar[step, None] * action
        return (noisy_action - signal) / schedule.sqrt_one_minus_alpha_bar[step, None]

    source = Noise([0], is_population=False)
    error = diffusion.denoising_error(silent, action, feature, source)  # type: ignore[arg-type]
    assert error.shape == (rows,)
    assert error.mean().item() == pytest.approx(1.0, abs=5 * rows**-0.5)  # five standard errors; variance 2 / A = 1
    known = diffusion.denoising_error(knowing, action, feature, source)  # type: ignore[arg-type]
    assert known.max() < 1e-9
    # Every level is as likely as any other: five standard errors of a binomial share.
    share = torch.bincount(levels[0], minlength=20) / rows
    assert (share - 0.05).abs().max() < 5 * (0.05 * 0.95 / rows) ** 0.5
