"""SAC, soft actor-critic (arXiv:1812.05905), in reading order.

One learner step: both critics move to r + gamma (min_i Q'_i(s', a') - alpha log pi(a'|s')); then, with the new critics,
the actor climbs min_i Q_i(s, a) - alpha log pi(a|s) and alpha moves until the entropy is minus the number of action
elements; then the target critics follow.

Same as Stable-Baselines3, whose published curves are what this is measured by, in sizes, initialisation, order of steps
and rates, except:
- The critics' loss is the mean over critics of squared errors, there half their sum: Adam does not see the factor.
- log(1 - tanh^2) is exact, there stabilised by 1e-6.
- The paper moves alpha itself, we its logarithm, as Stable-Baselines3 does.
CGPO's paper runs SAC with alpha fixed at 0.2: sac.tune_temperature=false sac.initial_temperature=0.2.
With images the actor sees features that learn from the critics alone, as all algorithms here.
"""

import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithms.base import Metrics, NextFeature, SampleBatch, published_tensors
from learner.algorithms.critic_learner import CriticLearner
from learner.algorithms.soft_actor import SoftActor
from learner.algorithms.state import Resumable, Stateful
from learner.losses import scalar_critic_loss
from learner.noise import Noise
from learner.replay import Batch
from policy.critic_network import conservative_value
from policy.encoder import EncoderInput
from policy.spec import Specs


class Sac(Resumable):
    """See the module docstring; configuration in learner.algorithm_config.SacConfig."""

    def __init__(self, agents: Agents, specs: Specs) -> None:
        self._actor = SoftActor(agents, specs, lambda config: config.sac)
        self._critics = CriticLearner(agents, specs, lambda config: config.sac)

    def update_step(self, sample_batch: SampleBatch) -> Metrics:
        batch = sample_batch()
        next_feature = self._critics.next_feature(batch)
        targets = self._critic_targets(batch, next_feature)
        metrics = self._critics.descend(batch, next_feature, targets, scalar_critic_loss)
        feature = self._critics.feature(batch.observation)
        metrics |= self._actor.ascend(feature, lambda action: _smallest(self._critics.quantiles(feature, action)))
        self._critics.follow()
        return metrics

    @torch.no_grad()
    def _critic_targets(self, batch: Batch, next_feature: NextFeature) -> Tensor:
        """Return y (..., B, 1) = r + gamma (1 - terminated) (min_i Q'_i(s', a') - alpha log pi(a'|s'))."""
        next_action, entropy_bonus = self._actor.next_action(next_feature.online)
        next_value = _smallest(self._critics.target_quantiles(next_feature.target, next_action))
        return self._critics.bootstrap(batch, (next_value + entropy_bonus)[..., None])

    def explore(self, observation: EncoderInput, noise: Noise) -> Tensor:
        return self._actor.explore(self._critics.feature(observation), noise)

    def exploit(self, observation: EncoderInput, noise: Noise, candidates: int) -> Tensor:
        return self._actor.exploit(self._critics.feature(observation))

    def policy_tensors(self) -> dict[str, Tensor]:
        gripper = self._critics.gripper.critic if self._critics.gripper else None
        return published_tensors({"gaussian": self._actor.network, "heads": self._critics.heads, "gripper": gripper})

    def _parts(self) -> dict[str, Stateful]:
        return self._actor.parts() | self._critics.parts()


def _smallest(quantiles: Tensor) -> Tensor:
    """Return the minimum (..., B) over scalar critics (..., B, N, 1)."""
    return conservative_value(quantiles, num_dropped=0)
