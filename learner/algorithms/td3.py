"""TD3, twin delayed deterministic policy gradient (arXiv:1802.09477), in reading order.

One learner step: both critics move to r + gamma min_i Q'_i(s', a'), a' the target actor's action plus clipped noise. On
every second step the actor then climbs the first critic, and all targets follow.

Sizes, rates and batch are those of the authors' present code and of CGPO's Table 4: two layers of 256, 3e-4, batch 256.
The paper, and Stable-Baselines3 by default, have layers of 400 and 300, 1e-3 and batch 100:
policy.deterministic_hidden=[400,300] policy.critic_hidden=[400,300] td3.actor_learning_rate=1e-3
td3.critic_learning_rate=1e-3 replay.batch_size=100. Otherwise different from both codes:
- The critics' loss is the mean over critics of squared errors, there their sum: Adam does not see the factor.
- 10,000 random steps come before learning, as for all algorithms here and in Stable-Baselines3's runs, not 25,000.
With images the actor sees features that learn from the critics alone, as all algorithms here.

The delay is counted on the device and no branch depends on it: the actor's gradient is computed at every step and its
optimiser told when to take it, so that each step is the same list of operations, as a captured graph needs it. The
gradients that are not taken are about a fifth of the arithmetic.
"""

import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithms.base import Metrics, NextFeature, SampleBatch, frozen_copy, published_tensors, update_ema
from learner.algorithms.critic_learner import CriticLearner
from learner.algorithms.state import Resumable, Stateful
from learner.losses import scalar_critic_loss
from learner.noise import Noise
from learner.replay import Batch
from policy.critic_network import conservative_value
from policy.deterministic_policy import DeterministicPolicy, with_exploration_noise
from policy.encoder import EncoderInput
from policy.spec import Specs


class Td3(Resumable):
    """See the module docstring; configuration in learner.algorithm_config.Td3Config."""

    def __init__(self, agents: Agents, specs: Specs) -> None:
        self._config, policy = agents.config.td3, agents.config.policy
        self._action_dim = specs.action.continuous_dim
        self._exploration_noise = policy.exploration_noise
        self._actor = agents.network(lambda: DeterministicPolicy(specs, policy))
        self._target_actor = frozen_copy(self._actor)
        self._actor_optimiser = agents.optimiser(
            self._actor.parameters(), lambda config: config.td3.actor_learning_rate
        )
        self._critics = CriticLearner(agents, specs, lambda config: config.td3)
        self._target_noise = agents.noise(0)
        self._critic_updates = torch.zeros((), dtype=torch.int64, device=agents.device)

    def update_step(self, sample_batch: SampleBatch) -> Metrics:
        batch = sample_batch()
        next_feature = self._critics.next_feature(batch)
        targets = self._critic_targets(batch, next_feature)
        metrics = self._critics.descend(batch, next_feature, targets, scalar_critic_loss)
        self._critic_updates += 1
        is_due = (self._critic_updates % self._config.policy_delay == 0).float()
        metrics |= self._update_actor(self._critics.feature(batch.observation), is_due)
        self._critics.follow(is_due)
        update_ema(self._target_actor, self._actor, self._config.target_update_rate * is_due)
        return metrics

    @torch.no_grad()
    def _critic_targets(self, batch: Batch, next_feature: NextFeature) -> Tensor:
        """Return y (..., B, 1) = r + gamma (1 - terminated) min_i Q'_i(s', clip(pi'(s') + clip(noise)))."""
        noise = self._target_noise.normal(batch.action.shape[-2], self._action_dim)
        smoothing = (self._config.target_noise * noise).clamp(-self._config.noise_clip, self._config.noise_clip)
        next_action = (self._target_actor(next_feature.target) + smoothing).clamp(-1, 1)
        quantiles = self._critics.target_quantiles(next_feature.target, next_action)
        return self._critics.bootstrap(batch, conservative_value(quantiles, num_dropped=0)[..., None])

    def _update_actor(self, feature: Tensor, is_due: Tensor) -> Metrics:
        """Ascend E[Q_1(s, pi(s))] by one step where is_due () is 1."""
        action = self._actor(feature)
        value = self._critics.quantiles(feature, action)[..., 0, 0]
        loss = -value.mean(dim=-1)
        self._actor_optimiser.descend(loss, is_due=is_due)
        return {
            "actor_loss": loss.detach(),
            "policy_action_std": action.detach().std(dim=-2, correction=0).mean(dim=-1),
        }

    @torch.no_grad()
    def explore(self, observation: EncoderInput, noise: Noise) -> Tensor:
        action = self._actor(self._critics.feature(observation))
        return with_exploration_noise(action, noise.normal(action.shape[-2], self._action_dim), self._exploration_noise)

    @torch.no_grad()
    def exploit(self, observation: EncoderInput, noise: Noise, candidates: int) -> Tensor:
        action: Tensor = self._actor(self._critics.feature(observation))
        return action

    def policy_tensors(self) -> dict[str, Tensor]:
        gripper = self._critics.gripper.critic if self._critics.gripper else None
        return published_tensors({"deterministic": self._actor, "heads": self._critics.heads, "gripper": gripper})

    def _parts(self) -> dict[str, Stateful]:
        return self._critics.parts() | {
            "actor": self._actor,
            "target_actor": self._target_actor,
            "actor_optimiser": self._actor_optimiser,
            "target_noise": self._target_noise,
            "critic_updates": self._critic_updates,
        }
