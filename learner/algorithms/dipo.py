"""DIPO, diffusion policy by moving stored actions uphill (arXiv:2305.13122), in reading order.

One learner step: the critics learn from one sample of the target policy as next action; then the actions of a second
batch are moved towards higher values by a few Adam steps, kept beside their transitions, and the denoiser is regressed
onto them. Then both target networks follow. The critics themselves always learn from the actions that were executed.

Read against its code (github.com/BellmanTimeHut/DIPO), from which it departs in these points:
- moved actions are kept, as the paper says: its code assigns them to a copy that indexing made, so that they are lost
  and every action starts again from the one that was executed (`write_back = false`);
- 20 denoising steps in the preset, as in CGPO's Table 4 (its README: 100);
- one set of values for all tasks, its code's defaults; the README's values for each task are in DipoConfig;
- the target policy follows after every step (README: every second one on HalfCheetah);
- a time limit is no end of the task: replay.timeout_bootstrap (its code: nothing is bootstrapped there).
Its evaluation takes one sample whose reverse steps add no noise, and so does `exploit`. Such samples hardly differ,
since the first step forgets where the chain began (a normal of deviation 0.3 comes out with 0.0002 at T = 20): only
with `evaluation_noise` does it matter among how many the critic chooses.
"""

import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithms.base import Metrics, NextFeature, SampleBatch, frozen_copy, published_tensors, update_ema
from learner.algorithms.critic_learner import CriticLearner
from learner.algorithms.state import Resumable, Stateful
from learner.critic_contrast import critic_contrast
from learner.diffusion import Diffusion
from learner.losses import scalar_critic_loss
from learner.noise import Noise
from learner.replay import Batch
from policy.critic_network import conservative_value
from policy.diffusion_policy import make_denoiser
from policy.encoder import EncoderInput
from policy.errors import ConfigError
from policy.spec import Specs

_BETA_1, _BETA_2 = 0.9, 0.999  # Adam's
_NORM_FLOOR = 1e-6  # torch's clipping; keeps a gradient of zero from dividing by zero


class Dipo(Resumable):
    """See the module docstring; configuration in learner.algorithm_config.DipoConfig."""

    def __init__(self, agents: Agents, specs: Specs) -> None:
        self._config, self._policy = agents.config.dipo, agents.config.policy
        self._action_dim = specs.action.continuous_dim
        self._diffusion = Diffusion(agents, self._action_dim)
        self._kernels = self._diffusion.kernels
        self._denoiser = agents.network(lambda: make_denoiser(specs, self._policy))
        self._target_denoiser = frozen_copy(self._denoiser)
        self._critics = CriticLearner(
            agents,
            specs,
            lambda config: config.dipo,
            adam_eps=self._config.adam_eps,
            grad_clip=self._config.grad_clip,
            kernels=self._kernels,
        )
        actor = self._denoiser.parameters()
        self._denoiser_optimiser = agents.optimiser(
            actor, lambda config: config.dipo.actor_learning_rate, self._config.adam_eps
        )
        self._action_rate = agents.setting(lambda config: config.dipo.action_learning_rate, num_axes=2)
        self._critic_noise, self._loss_noise = (agents.noise(purpose) for purpose in range(2))
        # The moved action of each place in the replay's ring, and the number of the step that it belongs to.
        self._capacity = agents.config.replay.capacity if self._config.write_back else 0
        kept = (*agents.leading, self._capacity)
        self._moved = torch.zeros(*kept, self._action_dim, device=agents.device)
        self._moved_step = torch.full(kept, -1, dtype=torch.int64, device=agents.device)

    def update_step(self, sample_batch: SampleBatch) -> Metrics:
        batch = sample_batch()
        next_feature = self._critics.next_feature(batch)
        targets = self._critic_targets(batch, next_feature)
        metrics = self._critics.descend(batch, next_feature, targets, summed_critic_loss)
        metrics |= self._update_actor(sample_batch())
        self._critics.follow()
        update_ema(self._target_denoiser, self._denoiser, self._config.target_update_rate)
        return metrics

    @torch.no_grad()
    def explore(self, observation: EncoderInput, noise: Noise) -> Tensor:
        """One sample, unless policy.behavior_candidates says more: DIPO's own is 1."""
        feature = self._critics.feature(observation)
        count = self._policy.behavior_candidates
        return self._diffusion.act(self._denoiser, self._critics.critic, feature, count, noise)

    @torch.no_grad()
    def exploit(self, observation: EncoderInput, noise: Noise, candidates: int) -> Tensor:
        feature = self._critics.feature(observation)
        chains = self._diffusion.chain_noise(feature.shape[-2] * candidates, noise)
        if not self._config.evaluation_noise:
            chains = torch.cat([torch.zeros_like(chains[:-1]), chains[-1:]])  # only where the chains start is random
        actions = self._kernels.sample(self._denoiser, feature, chains)
        actions = actions.reshape(*feature.shape[:-1], candidates, self._action_dim)
        return self._diffusion.best_of(self._critics.critic, feature, actions)

    def contrast(self, observation: EncoderInput, noise: Noise, num_candidates: int = 64) -> dict[str, Tensor]:
        """Return contrast and value_std on probe states, see learner.critic_contrast."""
        feature, critic = self._critics.feature(observation), self._critics.critic
        return critic_contrast(self._diffusion, self._denoiser, critic, feature, noise, num_candidates)

    @torch.no_grad()
    def _critic_targets(self, batch: Batch, next_feature: NextFeature) -> Tensor:
        """Return y (..., B, 1) = r + gamma (1 - terminated) min_i Q'_i(s', a'), a' one sample of the target policy."""
        feature = next_feature.target
        noise = self._diffusion.chain_noise(feature.shape[-2], self._critic_noise)
        next_action = self._kernels.sample(self._target_denoiser, feature, noise)
        next_value = self._kernels.value(self._critics.target_critic, feature, next_action)
        return self._critics.bootstrap(batch, next_value[..., None])

    def _update_actor(self, batch: Batch) -> Metrics:
        feature = self._critics.feature(batch.observation)
        action = self._latest_action(batch)
        moved = self._uphill(feature, action)
        self._keep(batch, moved)
        loss = self._diffusion.denoising_error(self._denoiser, moved, feature, self._loss_noise).mean(dim=-1)
        self._denoiser_optimiser.descend(loss, self._config.grad_clip)
        gain = self._value_of(feature, moved) - self._value_of(feature, action)
        return {
            "actor_loss": loss.detach(),
            "target_gain_mean": gain.mean(dim=-1),
            "target_move": (moved - action).norm(dim=-1).mean(dim=-1),
        }

    def _uphill(self, feature: Tensor, action: Tensor) -> Tensor:
        """Move actions (..., B, A) towards higher values of the smallest critic by Adam, within [-1, 1].

        The gradient's norm is limited over the whole batch of an agent. What is not finite stays where it was.
        """
        config = self._config
        moved, mean, square = action, torch.zeros_like(action), torch.zeros_like(action)
        for step in range(1, config.action_steps + 1):
            gradient = self._value_gradient(feature, moved)
            if config.action_grad_ratio:
                norm = torch.linalg.vector_norm(gradient, dim=(-2, -1), keepdim=True)
                limit = config.action_grad_ratio * self._action_dim
                gradient = gradient * (limit / (norm + _NORM_FLOOR)).clamp(max=1)
            mean = _BETA_1 * mean + (1 - _BETA_1) * gradient
            square = _BETA_2 * square + (1 - _BETA_2) * gradient.square()
            spread = (square / (1 - _BETA_2**step)).sqrt() + config.adam_eps
            moved = (moved + self._action_rate * mean / (1 - _BETA_1**step) / spread).clamp(-1, 1)
        return torch.where(moved.isfinite(), moved, action)

    def _value_gradient(self, feature: Tensor, action: Tensor) -> Tensor:
        """Gradient (..., B, A) of each row's smallest value with respect to its action; no parameter's is touched."""
        with torch.enable_grad():
            action = action.detach().requires_grad_(True)
            quantiles = self._kernels.quantiles(self._critics.critic, feature, action, is_frozen=True)
            (gradient,) = torch.autograd.grad(conservative_value(quantiles, num_dropped=0).sum(), action)
        return gradient

    def _value_of(self, feature: Tensor, action: Tensor) -> Tensor:
        return self._kernels.value(self._critics.critic, feature, action)

    # --- moved actions beside their transitions -------------------------------------------------------------------

    def _latest_action(self, batch: Batch) -> Tensor:
        """Where each row's action was moved to when it was drawn last; the executed one if it never was."""
        executed = batch.action[..., : self._action_dim]
        if not self._config.write_back:
            return executed
        step = _numbers(batch)
        place = step % self._capacity
        is_kept = self._moved_step.gather(-1, place).eq(step)
        return torch.where(is_kept[..., None], self._moved.take_along_dim(place[..., None], dim=-2), executed)

    def _keep(self, batch: Batch, moved: Tensor) -> None:
        """Keep moved actions. A row that was drawn twice was also moved twice the same way."""
        if not self._config.write_back:
            return
        step = _numbers(batch)
        place = step % self._capacity
        self._moved.scatter_(-2, place[..., None].expand(moved.shape), moved)
        self._moved_step.scatter_(-1, place, step)

    def policy_tensors(self) -> dict[str, Tensor]:
        return published_tensors(
            {
                "denoiser": self._denoiser,
                "heads": self._critics.heads,
                "critic": self._critics.critic if self._policy.behavior_candidates > 1 else None,
                "gripper": self._critics.gripper.critic if self._critics.gripper else None,
            }
        )

    def _parts(self) -> dict[str, Stateful]:
        parts = self._critics.parts() | {
            "denoiser": self._denoiser,
            "target_denoiser": self._target_denoiser,
            "denoiser_optimiser": self._denoiser_optimiser,
            "critic_noise": self._critic_noise,
            "loss_noise": self._loss_noise,
        }
        return parts | ({"moved": self._moved, "moved_step": self._moved_step} if self._config.write_back else {})


def summed_critic_loss(quantiles: Tensor, targets: Tensor) -> Tensor:
    """Sum over critics of mean squared errors, as in DIPO's code: its gradient's norm is limited, so size matters."""
    return quantiles.shape[-2] * scalar_critic_loss(quantiles, targets)


def _numbers(batch: Batch) -> Tensor:
    if batch.rows is None:
        raise ConfigError(
            "dipo.write_back = true keeps a moved action of each transition, but this replay does not number its "
            "transitions: only learner.tensor_replay does. Set dipo.write_back = false."
        )
    return batch.rows
