"""The discrete gripper beside the arm's critic: a value for close, stay and open, by double DQN (HIL-SERL's hybrid)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.agents import Agents
from learner.algorithms.base import NextFeature, frozen_copy, update_ema
from learner.replay import Batch
from policy.errors import ConfigError
from policy.gripper_critic import GripperCritic, choice_of
from policy.spec import Specs


class GripperLearner:
    """Owns the gripper's critic and its target; the algorithm adds `loss` to its critic's and steps both at once."""

    def __init__(self, agents: Agents, specs: Specs, discount: float) -> None:
        config = agents.config
        self.critic: GripperCritic = agents.network(lambda: GripperCritic(specs, config.policy))
        self.target = frozen_copy(self.critic)
        self._discount = discount
        self._penalty = config.gripper_penalty * config.replay.reward_scale

    def loss(self, batch: Batch, feature: Tensor, next_feature: NextFeature) -> Tensor:
        """Return the mean squared error towards r - penalty + gamma (1 - terminated) Q_target(s', argmax Q(s', .)).

        Double DQN, arXiv:1509.06461. The penalty applies where the gripper really opened or closed.
        """
        with torch.no_grad():
            choice = self.critic(next_feature.online).argmax(dim=1, keepdim=True)
            next_value = self.target(next_feature.target).gather(1, choice).squeeze(1)
            reward = batch.reward - self._penalty * batch.gripper_toggled
            target = reward + self._discount * (1 - batch.is_terminal) * next_value
        value = self.critic(feature).gather(1, choice_of(batch.action[:, -1:])).squeeze(1)
        return F.mse_loss(value, target)

    def follow(self, rate: float | Tensor) -> None:
        update_ema(self.target, self.critic, rate)


def make_gripper(agents: Agents, specs: Specs, discount: float) -> GripperLearner | None:
    """Return what learns the gripper; None unless the action's gripper is discrete. ConfigError for a population."""
    if specs.action.gripper != "discrete":
        return None
    if agents.is_population:
        raise ConfigError("a discrete gripper cannot be trained for a population of agents; train one at a time")
    return GripperLearner(agents, specs, discount)
