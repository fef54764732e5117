"""An unguided and a guided chain of every state, with the gradient of the guided one written out.

The numbers of policy.sampler.sample and learner.guidance up to rounding. Steps before guidance begins are computed once
for both chains if their noise agrees; from then on both pass the denoiser as one batch.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from learner.algorithm_config import GuidanceConfig
from learner.guidance import ValueGuide, clip_ascent
from policy.activations import Kept
from policy.fast_chain import ChainDenoiser, Level, denoise, run


class AscentCritic(Protocol):
    """Critics and the states they are asked about. Without autograd."""

    def ascent(self, action: Tensor, group: slice) -> Tensor:
        """Gradient (..., B, A) of the conservative value in the action (..., B, A) for the states of a group."""


class GuidedPair(NamedTuple):
    """What both chains of all states are run with, without autograd.

    Shapes: `...` is nothing or (P,), a population's.
    """

    denoiser: ChainDenoiser
    critic: AscentCritic
    levels: list[Level]
    config: GuidanceConfig
    guide: ValueGuide
    shares_prefix: bool  # whether the noise of the two agrees from entry `config.steps` on

    def sample(self, noise: Tensor, guided_noise: Tensor) -> tuple[Tensor, Tensor]:
        """One unguided and one guided action (..., B, A) of each state, for the noise of each (T + 1, ..., B, A)."""
        both = torch.empty((2, *noise[0].shape), dtype=noise.dtype, device=noise.device)
        for group in self.denoiser.groups(rows_per_state=2):
            chosen = (..., group, slice(None))
            for actions, own in zip(both, self._run(noise[chosen], guided_noise[chosen], group), strict=True):
                actions[chosen] = own
        unguided, guided = both
        return unguided, guided

    def _run(self, noise: Tensor, guided_noise: Tensor, group: slice) -> tuple[Tensor, Tensor]:
        begin = min(self.config.steps, len(self.levels))
        states = self.denoiser.states(group, 1)
        both_states, both_noise = torch.cat([states, states], dim=-2), torch.cat([guided_noise, noise], dim=-2)
        if self.shares_prefix:
            alone = run(self.denoiser, self.levels, noise, states, stop=begin)
            x = torch.cat([alone, alone], dim=-2)
        else:
            x = run(self.denoiser, self.levels, both_noise, both_states, stop=begin)
        for step in range(begin - 1, 0, -1):
            x = self._step(x, step, both_noise[step], both_states, group)
        # the last step has sigma = 0: nothing could move
        x = denoise(x, self.denoiser.error(x, both_states, 0), self.levels[0], both_noise[0]).clamp_(-1, 1)
        guided, unguided = x.chunk(2, dim=-2)
        return unguided, guided

    def _step(self, x: Tensor, step: int, noise: Tensor, states: Tensor, group: slice) -> Tensor:
        """One step of the guided rows, which come first, and the unguided ones."""
        level, half = self.levels[step], x.shape[-2] // 2
        through, clips = self.config.through_denoiser, self.config.clip_grad != "none"
        error, slopes = self.denoiser.error_and_slopes(x, states, step, half if through else 0)
        (guided_x, x), (guided_error, error), (guided_noise, noise) = (
            both.chunk(2, dim=-2) for both in (x, error, noise)
        )
        clean = (guided_error * -level.error_gain).add_(guided_x, alpha=level.clean_gain)
        action = clean.clamp(-1, 1) if clips else clean
        mean = (action * level.clean_weight).add_(guided_x, alpha=level.noisy_weight)
        ascent = clip_ascent(self.config, clean, self.critic.ascent(action, group))
        if through:
            ascent = self._through_denoiser(ascent, slopes, level)
        moved = self.guide.move(mean, ascent, level.sigma, guided_noise)
        return torch.cat([moved, denoise(x, error, level, noise)], dim=-2)

    def _through_denoiser(self, ascent: Tensor, slopes: list[Kept], level: Level) -> Tensor:
        """The gradient in the noisy action from that in the predicted clean one. Source: CGPO Eq 10."""
        back = self.denoiser.back(ascent * -level.error_gain, slopes)
        return back.add_(ascent, alpha=level.clean_gain)
