"""TQC, truncated quantile critics (arXiv:2005.04269), in reading order.

SAC with other critics, which are CGPO's: N critics of M quantiles each. Their target is the pool of all N M target
quantiles without the N k highest, each minus alpha log pi(a'|s'); the actor climbs the mean of all quantiles, none
dropped. Actor, temperature and order of steps are SAC's (learner.algorithms.sac).

Sizes of the paper: N = 5 critics of 3 x 512, M = 25, k = 2 (chosen for each task there: Hopper 5, HalfCheetah 0, the
others 2). Stable-Baselines3, whose published curves are what this is measured by, has N = 2 critics of 2 x 256 with
k = 2 by default: policy.num_critics=2 policy.critic_hidden=[256,256].
Differs from the authors' code, as Stable-Baselines3 does, in that the actor's step looks at the critics after their own
step, not before; and in 10,000 random steps before learning, there 256.
"""

import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithms.base import Metrics, NextFeature, SampleBatch, published_tensors
from learner.algorithms.critic_learner import CriticLearner
from learner.algorithms.soft_actor import SoftActor
from learner.algorithms.state import Resumable, Stateful
from learner.losses import target_atoms
from learner.noise import Noise
from learner.replay import Batch
from policy.encoder import EncoderInput
from policy.spec import Specs


class Tqc(Resumable):
    """See the module docstring; configuration in learner.algorithm_config.TqcConfig."""

    def __init__(self, agents: Agents, specs: Specs) -> None:
        self._num_dropped = agents.config.policy.drop_quantiles
        self._actor = SoftActor(agents, specs, lambda config: config.tqc)
        self._critics = CriticLearner(agents, specs, lambda config: config.tqc)

    def update_step(self, sample_batch: SampleBatch) -> Metrics:
        batch = sample_batch()
        next_feature = self._critics.next_feature(batch)
        targets = self._critic_targets(batch, next_feature)
        metrics = self._critics.descend(batch, next_feature, targets, self._critics.quantile_huber_loss)
        feature = self._critics.feature(batch.observation)
        metrics |= self._actor.ascend(
            feature, lambda action: self._critics.quantiles(feature, action).mean(dim=(-2, -1))
        )
        self._critics.follow()
        return metrics

    @torch.no_grad()
    def _critic_targets(self, batch: Batch, next_feature: NextFeature) -> Tensor:
        """Return y_j (..., B, L) = r + gamma (1 - terminated) (z_j - alpha log pi(a'|s')), L = N (M - k)."""
        next_action, entropy_bonus = self._actor.next_action(next_feature.online)
        quantiles = self._critics.target_quantiles(next_feature.target, next_action)
        kept = target_atoms(quantiles, self._num_dropped, "pooled")
        return self._critics.bootstrap(batch, kept + entropy_bonus[..., None])

    def explore(self, observation: EncoderInput, noise: Noise) -> Tensor:
        return self._actor.explore(self._critics.feature(observation), noise)

    def exploit(self, observation: EncoderInput, noise: Noise, candidates: int) -> Tensor:
        return self._actor.exploit(self._critics.feature(observation))

    def policy_tensors(self) -> dict[str, Tensor]:
        gripper = self._critics.gripper.critic if self._critics.gripper else None
        return published_tensors({"gaussian": self._actor.network, "heads": self._critics.heads, "gripper": gripper})

    def _parts(self) -> dict[str, Stateful]:
        return self._actor.parts() | self._critics.parts()
