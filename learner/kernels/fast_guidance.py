"""An unguided and a guided chain of every state, with the gradient of the guided one written out.

The numbers of policy.sampler.sample and learner.guidance up to rounding. Steps before guidance begins are computed once
for both chains if their noise agrees; from then on both pass the denoiser as one batch.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from learner.algorithm_config import GuidanceConfig
from learner.guidance import ValueGuide, clip_ascent
from policy.fast.activations import Kept
from policy.fast.chain import ChainDenoiser, Level, Levels, denoise, run, walk


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
    levels: Levels
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
        both_states = torch.cat([states, states], dim=-2)
        fresh, own = self.levels.scaled(noise)[:begin], guided_noise[:begin].unbind()
        if self.shares_prefix:
            x = guided_x = run(self.denoiser, self.levels, noise, group, 1, begin)
        else:
            both = torch.cat([guided_noise, noise], dim=-2)
            guided_x, x = walk(self.denoiser, self.levels, both, both_states, begin).chunk(2, dim=-2)
        for step in range(begin - 1, 0, -1):
            guided_x, x = self._step(guided_x, x, step, own[step], fresh[step], both_states, group)
        # the last step has sigma = 0: nothing could move
        x = torch.cat([guided_x, x], dim=-2)
        error = self.denoiser.error(x, both_states, 0)
        guided, unguided = denoise(x, error, self.levels.steps[0], torch.zeros_like(x)).clamp_(-1, 1).chunk(2, dim=-2)
        return unguided, guided

    def _step(
        self, guided_x: Tensor, x: Tensor, step: int, noise: Tensor, fresh: Tensor, states: Tensor, group: slice
    ) -> tuple[Tensor, Tensor]:
        """One step of the guided rows, with their noise, and of the unguided ones, with theirs times sigma."""
        level, through = self.levels.steps[step], self.config.through_denoiser
        both, rows = torch.cat([guided_x, x], dim=-2), guided_x.shape[-2] if through else 0
        both_error, slopes = self.denoiser.error_and_slopes(both, states, step, rows)
        guided_error, error = both_error.chunk(2, dim=-2)
        clean = torch.sub(guided_x, guided_error, alpha=level.error_gain).mul_(1 / level.bound)
        action = clean.clamp(-1, 1) if self.config.clip_grad != "none" else clean
        mean = torch.add(guided_x * level.noisy_weight, action, alpha=level.clipped_weight * level.bound)
        ascent = clip_ascent(self.config, clean, self.critic.ascent(action, group))
        if through:
            ascent = self._through_denoiser(ascent, slopes, level)
        return self.guide.move(mean, ascent, level.sigma, noise), denoise(x, error, level, fresh)

    def _through_denoiser(self, ascent: Tensor, slopes: list[Kept], level: Level) -> Tensor:
        """The gradient in the noisy action from that in the predicted clean one. Source: CGPO Eq 10."""
        ascent = ascent * (1 / level.bound)
        return self.denoiser.back(ascent * -level.error_gain, slopes).add_(ascent)
