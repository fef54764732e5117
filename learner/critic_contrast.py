"""Critic contrast: how far above its mean sample the critic sees what a policy is regressed onto (CGPO Eq 9, Fig 9)."""

import torch
from torch import Tensor, nn

from learner.diffusion import Diffusion
from learner.noise import Noise


@torch.no_grad()
def critic_contrast(
    diffusion: Diffusion,
    denoiser: nn.Module,
    critic: nn.Module,
    feature: Tensor,
    source: Noise,
    num_candidates: int,
    guided_action: Tensor | None = None,
) -> dict[str, Tensor]:
    """Measure it on probe states, feature (..., B, F), with K = num_candidates unguided samples of each state.

    Returns, each (...): contrast, the mean over states of max_i Q(s, a_i) - mean_i Q(s, a_i); guided_contrast, that of
    Q(s, a^g) - mean_i Q(s, a_i) for guided_action (..., B, A); and value_std, the standard deviation of Q(s, a_i) over
    states and samples, which frees both of the reward's scale when they are divided by it. The K samples cost T B K
    rows of the denoiser.
    """
    actions = diffusion.candidates(denoiser, feature, num_candidates, source)
    values = diffusion.kernels.value(critic, feature, actions.flatten(-3, -2)).reshape(actions.shape[:-1])
    mean = values.mean(dim=-1)
    result = {"contrast": (values.amax(dim=-1) - mean).mean(dim=-1), "value_std": values.std(dim=(-2, -1))}
    if guided_action is not None:
        result["guided_contrast"] = (diffusion.kernels.value(critic, feature, guided_action) - mean).mean(dim=-1)
    return result
