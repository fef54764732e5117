"""Scalar critics and their targets as QVPO and DIPO train them: squared error to the next action's smallest value.

Shapes: B batch, N critics, A action; `...` as in learner.agents. The features' heads learn from the critics alone, and
a discrete gripper beside them, as in CGPO.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithms.base import Metrics, NextFeature, frozen_copy, next_feature_of, update_ema
from learner.algorithms.gripper import make_gripper
from learner.algorithms.state import Stateful
from learner.config import LearnerConfig
from learner.kernels import Kernels
from learner.replay import Batch
from policy.critic_network import conservative_value
from policy.diffusion_policy import make_critic
from policy.encoder import EncoderInput, ObservationHeads
from policy.spec import Specs


class CriticSettings(Protocol):
    """What QvpoConfig and DipoConfig have in common."""

    @property
    def critic_learning_rate(self) -> float: ...
    @property
    def adam_eps(self) -> float: ...
    @property
    def grad_clip(self) -> float: ...
    @property
    def discount(self) -> float: ...
    @property
    def target_update_rate(self) -> float: ...


class ScalarCritics:
    """Owns critics, heads, gripper, their targets and optimiser; the algorithm says which next action it would take."""

    def __init__(
        self, agents: Agents, specs: Specs, kernels: Kernels, read: Callable[[LearnerConfig], CriticSettings]
    ) -> None:
        """`read` finds the algorithm's own settings in a configuration."""
        policy = agents.config.policy
        self._settings = read(agents.config)
        self._kernels = kernels
        self._action_dim = specs.action.continuous_dim
        self.online = agents.network(lambda: make_critic(specs, policy))
        self.heads = agents.network(lambda: ObservationHeads(specs, policy))
        self.gripper = make_gripper(agents, specs, self._settings.discount)
        self.target = frozen_copy(self.online)
        self._target_heads = frozen_copy(self.heads)
        trained = [*self.online.parameters(), *self.heads.parameters()]
        if self.gripper:
            trained += self.gripper.critic.parameters()
        self._optimiser = agents.optimiser(
            trained, lambda config: read(config).critic_learning_rate, self._settings.adam_eps
        )
        self._discount = agents.setting(lambda config: read(config).discount, num_axes=1)

    def feature_of(self, observation: EncoderInput) -> Tensor:
        """Features (..., B, F), without gradient."""
        with torch.no_grad():
            feature: Tensor = self.heads(observation)
        return feature

    def next_feature(self, batch: Batch) -> NextFeature:
        return next_feature_of(batch, self.heads, self._target_heads)

    def value(self, feature: Tensor, action: Tensor) -> Tensor:
        """Smallest value (..., R) of actions (..., R, A), neighbouring rows of each state, without gradient."""
        return self._kernels.value(self.online, feature, action)

    def update(self, batch: Batch, next_feature: NextFeature, next_action: Tensor) -> Metrics:
        """Take a step towards r + gamma (1 - terminated) min_n Q_target,n(s', a'), given a' (..., B, A).

        The loss is the sum of the critics' mean squared errors, as in the code of both.
        """
        next_value = self._kernels.value(self.target, next_feature.target, next_action)
        target = batch.reward + self._discount * (1 - batch.is_terminal) * next_value
        feature = self.heads(batch.observation)
        quantiles = self._kernels.quantiles(self.online, feature, batch.action[..., : self._action_dim])
        loss = (quantiles.squeeze(-1) - target[..., None]).square().mean(dim=-2).sum(dim=-1)
        metrics: Metrics = {
            "critic_loss": loss.detach(),
            "q_data_mean": conservative_value(quantiles.detach(), num_dropped=0).mean(dim=-1),
        }
        if self.gripper:
            gripper_loss = self.gripper.loss(batch, feature, next_feature)
            metrics["gripper_loss"] = gripper_loss.detach()
            loss = loss + gripper_loss
        self._optimiser.descend(loss, self._settings.grad_clip)
        return metrics

    def follow(self) -> None:
        """Let the targets follow."""
        rate = self._settings.target_update_rate
        update_ema(self.target, self.online, rate)
        update_ema(self._target_heads, self.heads, rate)
        if self.gripper:
            self.gripper.follow(rate)

    def parts(self) -> dict[str, Stateful]:
        """Return what changes while they learn, by the names that CGPO gives them."""
        parts: dict[str, Stateful] = {
            "critic": self.online,
            "heads": self.heads,
            "target_heads": self._target_heads,
            "target_critic": self.target,
            "critic_optimiser": self._optimiser,
        }
        if self.gripper:
            parts |= {"gripper": self.gripper.critic, "target_gripper": self.gripper.target}
        return parts
