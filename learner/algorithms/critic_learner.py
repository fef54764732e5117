"""The value side that the baselines have in common: critics, their slow targets, and whatever learns with them."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithms.base import Metrics, NextFeature, frozen_copy, next_feature_of, update_ema
from learner.algorithms.gripper import make_gripper
from learner.algorithms.state import Stateful
from learner.config import LearnerConfig
from learner.kernels import Kernels, make_kernels
from learner.replay import Batch
from policy.diffusion_policy import make_critic
from policy.encoder import EncoderInput, ObservationHeads
from policy.spec import Specs

CriticLoss = Callable[[Tensor, Tensor], Tensor]  # (quantiles (..., B, N, M), targets (..., B, L)) -> (...)


class CriticSettings(Protocol):
    """What the configurations of these algorithms have in common."""

    @property
    def critic_learning_rate(self) -> float: ...
    @property
    def discount(self) -> float: ...
    @property
    def target_update_rate(self) -> float: ...


class CriticLearner:
    """Critics, the encoder heads that learn from them alone (DrQ, HIL-SERL), the discrete gripper's critic if any, the
    targets of all, and one Adam. Letters: B batch, N critics, M quantiles, L target atoms, F feature, A action.
    """

    def __init__(
        self,
        agents: Agents,
        specs: Specs,
        settings: Callable[[LearnerConfig], CriticSettings],
        adam_eps: float = 1e-8,
        grad_clip: float = 0.0,
        kernels: Kernels | None = None,
    ) -> None:
        """`kernels`: those of the algorithm's Diffusion, if it has one."""
        policy, own = agents.config.policy, settings(agents.config)
        self._kernels = kernels or make_kernels(agents)
        self._action_dim = specs.action.continuous_dim
        self.critic = agents.network(lambda: make_critic(specs, policy))
        self.heads = agents.network(lambda: ObservationHeads(specs, policy))
        self.gripper = make_gripper(agents, specs, own.discount)
        self.target_critic = frozen_copy(self.critic)
        self.target_heads = frozen_copy(self.heads)
        valued = [*self.critic.parameters(), *self.heads.parameters()]
        if self.gripper:
            valued += self.gripper.critic.parameters()
        self._optimiser = agents.optimiser(valued, lambda config: settings(config).critic_learning_rate, adam_eps)
        self._grad_clip = grad_clip
        self._discount = agents.setting(lambda config: settings(config).discount, num_axes=1)
        self._rate = own.target_update_rate

    @torch.no_grad()
    def feature(self, observation: EncoderInput) -> Tensor:
        """Return the online heads' features (..., B, F), without gradient: what the actor sees."""
        feature: Tensor = self.heads(observation)
        return feature

    def next_feature(self, batch: Batch) -> NextFeature:
        return next_feature_of(batch, self.heads, self.target_heads)

    def quantiles(self, feature: Tensor, action: Tensor) -> Tensor:
        """Return the online critics' quantiles (..., B, N, M), differentiable in the action (..., B, A)."""
        return self._kernels.quantiles(self.critic, feature, action, is_frozen=True)

    def target_quantiles(self, feature: Tensor, action: Tensor) -> Tensor:
        """Return the target critics' quantiles (..., B, N, M)."""
        return self._kernels.quantiles(self.target_critic, feature, action)

    def quantile_huber_loss(self, quantiles: Tensor, targets: Tensor) -> Tensor:
        """Return the loss (...) of quantiles (..., B, N, M) to target atoms (..., B, L)."""
        return self._kernels.quantile_huber_loss(quantiles, targets)

    def bootstrap(self, batch: Batch, next_atoms: Tensor) -> Tensor:
        """Return target atoms (..., B, L): r + gamma (1 - terminated) next_atoms."""
        discount = self._discount * (1 - batch.is_terminal)
        return batch.reward[..., None] + discount[..., None] * next_atoms

    def descend(self, batch: Batch, next_feature: NextFeature, targets: Tensor, critic_loss: CriticLoss) -> Metrics:
        """Take one step of everything here, towards the critics' targets (..., B, L)."""
        feature = self.heads(batch.observation)
        quantiles = self._kernels.quantiles(self.critic, feature, batch.action[..., : self._action_dim])
        loss = critic_loss(quantiles, targets)
        metrics: Metrics = {
            "critic_loss": loss.detach(),
            "q_data_mean": quantiles.detach().mean(dim=(-3, -2, -1)),
        }
        if self.gripper:
            gripper_loss = self.gripper.loss(batch, feature, next_feature)
            metrics["gripper_loss"] = gripper_loss.detach()
            loss = loss + gripper_loss
        self._optimiser.descend(loss, self._grad_clip)
        return metrics

    def follow(self, is_due: float | Tensor = 1.0) -> None:
        """Move all targets towards their online twins, by an EMA, unless is_due () is 0."""
        rate = self._rate * is_due
        update_ema(self.target_critic, self.critic, rate)
        update_ema(self.target_heads, self.heads, rate)
        if self.gripper:
            self.gripper.follow(rate)

    def parts(self) -> dict[str, Stateful]:
        """Return what changes while it learns, as learner.algorithms.state.Resumable wants it."""
        parts: dict[str, Stateful] = {
            "critic": self.critic,
            "heads": self.heads,
            "target_critic": self.target_critic,
            "target_heads": self.target_heads,
            "critic_optimiser": self._optimiser,
        }
        if self.gripper:
            parts |= {"gripper": self.gripper.critic, "target_gripper": self.gripper.target}
        return parts
