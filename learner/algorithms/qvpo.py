"""QVPO, Q-weighted variational policy optimisation (arXiv:2405.16173), in reading order.

One learner step: the critics learn from the best of K_t next actions; then K samples of the policy are drawn in each
state of a second batch, and the denoiser is regressed onto the best of them, weighted by how much better than their
mean it is, and onto uniform actions with a small share of that weight. Then both target networks follow. Letters as in
cgpo.py.

Read against its code (github.com/wadx2019/qvpo), from which it departs in these points:
- actor step size 3e-4 and no clipping of gradients, as CGPO's Table 4 gives them for QVPO (its code: 1e-4, norm 2);
- a time limit is no end of the task: replay.timeout_bootstrap (its code: nothing is bootstrapped there);
- lambda falls with the updates from their first one on, by default over a million (its code: with environment steps,
  the 10,000 of the warm-up counted, over the run's length);
- the critics' loss is the mean of their squared errors, there the sum: Adam does not see the factor;
- every state has one target (its code's `chosen`, 1 by default); of the weights, `qadv` and `qrelu`; left out are what
  its code switches off by default: unselected actions now and then, moving targets uphill, evaluating without noise,
  fewer actor than critic updates.
Its evaluation takes the best of 32 samples; how many are drawn here is the caller's choice (`exploit`).
"""

from typing import Literal

import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithms.base import Metrics, NextFeature, SampleBatch, frozen_copy, published_tensors, update_ema
from learner.algorithms.critic_learner import CriticLearner
from learner.algorithms.state import Resumable, Stateful
from learner.critic_contrast import critic_contrast
from learner.diffusion import Diffusion
from learner.losses import annealed_entropy_weight, combine_denoising_errors, scalar_critic_loss
from learner.noise import Noise
from learner.replay import Batch
from policy.diffusion_policy import make_denoiser
from policy.encoder import EncoderInput
from policy.sampler import best_of
from policy.spec import Specs


class Qvpo(Resumable):
    """See the module docstring; configuration in learner.algorithm_config.QvpoConfig."""

    def __init__(self, agents: Agents, specs: Specs) -> None:
        self._config, self._policy = agents.config.qvpo, agents.config.policy
        self._action_dim = specs.action.continuous_dim
        self._diffusion = Diffusion(agents, self._action_dim)
        self._kernels = self._diffusion.kernels
        self._denoiser = agents.network(lambda: make_denoiser(specs, self._policy))
        self._target_denoiser = frozen_copy(self._denoiser)
        self._critics = CriticLearner(
            agents,
            specs,
            lambda config: config.qvpo,
            adam_eps=self._config.adam_eps,
            grad_clip=self._config.grad_clip,
            kernels=self._kernels,
        )
        actor = self._denoiser.parameters()
        self._denoiser_optimiser = agents.optimiser(
            actor, lambda config: config.qvpo.actor_learning_rate, self._config.adam_eps
        )
        self._entropy_weight = agents.setting(lambda config: config.qvpo.entropy_weight, num_axes=2)
        self._critic_noise, self._actor_noise, self._loss_noise = (agents.noise(purpose) for purpose in range(3))
        self._actor_updates = torch.zeros((), dtype=torch.int64, device=agents.device)

    def update_step(self, sample_batch: SampleBatch) -> Metrics:
        batch = sample_batch()
        next_feature = self._critics.next_feature(batch)
        targets = self._critic_targets(batch, next_feature)
        metrics = self._critics.descend(batch, next_feature, targets, scalar_critic_loss)
        metrics |= self._update_actor(sample_batch())
        self._actor_updates += 1
        self._critics.follow()
        update_ema(self._target_denoiser, self._denoiser, self._config.target_update_rate)
        return metrics

    def explore(self, observation: EncoderInput, noise: Noise) -> Tensor:
        return self.exploit(observation, noise, self._policy.behavior_candidates)

    @torch.no_grad()
    def exploit(self, observation: EncoderInput, noise: Noise, candidates: int) -> Tensor:
        feature = self._critics.feature(observation)
        return self._diffusion.act(self._denoiser, self._critics.critic, feature, candidates, noise)

    def contrast(self, observation: EncoderInput, noise: Noise, num_candidates: int = 64) -> dict[str, Tensor]:
        """Return contrast and value_std on probe states, see learner.critic_contrast."""
        feature, critic = self._critics.feature(observation), self._critics.critic
        return critic_contrast(self._diffusion, self._denoiser, critic, feature, noise, num_candidates)

    @torch.no_grad()
    def _critic_targets(self, batch: Batch, next_feature: NextFeature) -> Tensor:
        """Return y (..., B, 1) = r + gamma (1 - terminated) min_i Q'_i(s', a').

        a' is the best of K_t target-policy samples by the target critics, which also rate it.
        """
        feature, target_critic = next_feature.target, self._critics.target_critic
        candidates = self._diffusion.candidates(
            self._target_denoiser, feature, self._config.target_candidates, self._critic_noise
        )
        next_action = self._diffusion.best_of(target_critic, feature, candidates)
        return self._critics.bootstrap(batch, self._kernels.value(target_critic, feature, next_action)[..., None])

    def _update_actor(self, batch: Batch) -> Metrics:
        feature = self._critics.feature(batch.observation)
        count = self._config.candidates
        candidates = self._diffusion.candidates(self._denoiser, feature, count, self._actor_noise)
        values = self._kernels.value(self._critics.critic, feature, candidates.flatten(-3, -2))
        values = values.reshape(candidates.shape[:-1])
        weight = q_weight(values, self._config.weight)
        loss = self._actor_loss(feature, best_of(candidates, values), weight)
        self._denoiser_optimiser.descend(loss, self._config.grad_clip)
        return {
            "actor_loss": loss.detach(),
            "q_mean": values.mean(dim=(-2, -1)),
            "target_advantage_mean": (values.amax(dim=-1) - values.mean(dim=-1)).mean(dim=-1),
            "weight_mean": weight.mean(dim=-1),
            "weight_max": weight.amax(dim=-1),
            "policy_action_std": candidates.std(dim=-2).mean(dim=(-2, -1)),
        }

    def _actor_loss(self, feature: Tensor, target_action: Tensor, weight: Tensor) -> Tensor:
        """Mean over all B (1 + N_e) rows: targets by their weight, N_e uniform actions per state by lambda of it."""
        count = self._config.entropy_samples
        uniform = 2 * self._loss_noise.uniform(feature.shape[-2], count, self._action_dim) - 1
        actions = torch.cat([target_action[..., None, :], uniform], dim=-2).flatten(-3, -2)
        error = self._diffusion.denoising_error(self._denoiser, actions, feature, self._loss_noise)
        error = error.reshape(*weight.shape, 1 + count)
        entropy_weight = annealed_entropy_weight(
            self._entropy_weight, self._actor_updates, self._config.entropy_anneal_steps
        )
        return combine_denoising_errors(error[..., 0], error[..., 1:], weight, entropy_weight, "concat")

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
        return self._critics.parts() | {
            "denoiser": self._denoiser,
            "target_denoiser": self._target_denoiser,
            "denoiser_optimiser": self._denoiser_optimiser,
            "critic_noise": self._critic_noise,
            "actor_noise": self._actor_noise,
            "loss_noise": self._loss_noise,
            "actor_updates": self._actor_updates,
        }


def q_weight(values: Tensor, kind: Literal["qadv", "qrelu"]) -> Tensor:
    """Weight (..., B) of each state's best candidate, given the values (..., B, K) of all.

    qadv: max_k Q - mean_k Q, never negative. qrelu: max(max_k Q, 0).
    """
    best = values.amax(dim=-1)
    return (best - values.mean(dim=-1) if kind == "qadv" else best).clamp(min=0)
