"""An unguided and a guided chain of every state on a CPU, with the gradient of the guided one written out.

The numbers of policy.sampler.sample and learner.guidance up to rounding. Steps before guidance begins are computed once
for both chains if their noise agrees; from then on both pass the denoiser as one batch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from learner.config import GuidanceConfig
from learner.guidance import ValueGuide, clip_ascent
from learner.kernels.fast_critic import FastCritic
from policy.fast_chain import FastDenoiser, Level, denoise


@torch.no_grad()
def sample_pair(
    tensors: Mapping[str, Tensor],
    critic: FastCritic,
    levels: list[Level],
    config: GuidanceConfig,
    guide: ValueGuide,
    feature: Tensor,
    noise: Tensor,
    guided_noise: Tensor,
    shares_prefix: bool,
) -> tuple[Tensor, Tensor]:
    """One unguided and one guided action (B, A) of each state, for one denoiser's tensors.

    feature (B, F), noise and guided_noise (T + 1, B, A), the same from entry `config.steps` on with shares_prefix.
    """
    denoiser = FastDenoiser(tensors, feature)
    first_guided = min(config.steps, len(levels)) - 1
    unguided, guided = torch.empty_like(noise[0]), torch.empty_like(noise[0])
    for group in denoiser.groups(rows_per_state=2):
        states = denoiser.states(group, 1)
        both_states = torch.cat([states, states])
        both_noise = torch.cat([guided_noise[:, group], noise[:, group]], dim=1)
        x = both_noise[-1]
        if shares_prefix:
            alone = noise[-1, group]
            for step in range(len(levels) - 1, first_guided, -1):
                alone = denoise(alone, denoiser.error(alone, states, step), levels[step], noise[step, group])
            x = torch.cat([alone, alone])
        else:
            for step in range(len(levels) - 1, first_guided, -1):
                x = denoise(x, denoiser.error(x, both_states, step), levels[step], both_noise[step])
        pair = _GuidedPair(denoiser, critic, config, guide, group, both_states)
        for step in range(first_guided, 0, -1):
            x = pair.step(x, step, levels[step], both_noise[step])
        # the last step has sigma = 0: nothing could move
        x = denoise(x, denoiser.error(x, both_states, 0), levels[0], both_noise[0]).clamp_(-1, 1)
        guided[group], unguided[group] = x.chunk(2)
    return unguided, guided


class _GuidedPair:
    """The guided rows of a group of states, followed by the unguided ones."""

    def __init__(
        self,
        denoiser: FastDenoiser,
        critic: FastCritic,
        config: GuidanceConfig,
        guide: ValueGuide,
        group: slice,
        states: Tensor,
    ) -> None:
        self._denoiser, self._critic, self._config, self._guide = denoiser, critic, config, guide
        self._group, self._states = group, states

    def step(self, x: Tensor, step: int, level: Level, noise: Tensor) -> Tensor:
        """One step of both, (2 B, A)."""
        half = len(x) // 2
        through = self._config.through_denoiser
        error, slopes = self._denoiser.error_and_slopes(x, self._states, step, half if through else 0)
        guided_x, clips = x[:half], self._config.clip_grad != "none"
        clean = (error[:half] * -level.error_gain).add_(guided_x, alpha=level.clean_gain)
        action = clean.clamp(-1, 1) if clips else clean
        mean = (action * level.clean_weight).add_(guided_x, alpha=level.noisy_weight)
        ascent = clip_ascent(self._config, clean, self._critic.ascent(action, self._group))
        if through:
            ascent = self._through_denoiser(ascent, slopes, level)
        moved = self._guide.move(mean, ascent, level.sigma, noise[:half])
        return torch.cat([moved, denoise(x[half:], error[half:], level, noise[half:])])

    def _through_denoiser(self, ascent: Tensor, slopes: list[tuple[Tensor, ...]], level: Level) -> Tensor:
        """The gradient in the noisy action from that in the predicted clean one. Source: CGPO Eq 10."""
        back = self._denoiser.back(ascent * -level.error_gain, slopes)
        return back.add_(ascent, alpha=level.clean_gain)
