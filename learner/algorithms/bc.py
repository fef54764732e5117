"""Behaviour cloning: the same diffusion policy regressed onto human actions, nothing else. The floor to beat."""

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.agents import Agents
from learner.algorithms.base import Metrics, SampleBatch, frozen_copy, published_tensors, update_ema
from learner.algorithms.state import Resumable, Stateful
from learner.diffusion import Diffusion
from learner.losses import mean_over_human_rows
from learner.noise import Noise
from policy.config import PolicyConfig
from policy.critic_network import CriticEnsemble
from policy.diffusion_policy import make_critic, make_denoiser
from policy.encoder import EncoderInput, ObservationHeads
from policy.errors import ConfigError
from policy.gripper_critic import GripperCritic, choice_of
from policy.spec import Specs


class BehaviourCloning(Resumable):
    """L = E ||eps - eps_theta||^2 on human rows; the EMA of the denoiser acts (Diffusion Policy, arXiv:2303.04137)."""

    def __init__(self, agents: Agents, specs: Specs) -> None:
        if agents.is_population:
            raise ConfigError("behaviour cloning trains one agent at a time")
        self._config, self._policy = agents.config.bc, agents.config.policy
        self._action_dim = specs.action.continuous_dim
        self._diffusion = Diffusion(agents, self._action_dim)
        self._denoiser = agents.network(lambda: make_denoiser(specs, self._policy))
        self._heads = agents.network(lambda: ObservationHeads(specs, self._policy))
        is_discrete = specs.action.gripper == "discrete"  # the gripper's values are logits here
        self._gripper = agents.network(lambda: GripperCritic(specs, self._policy)) if is_discrete else None
        self._averaged_denoiser = frozen_copy(self._denoiser)
        self._averaged_heads = frozen_copy(self._heads)
        trained = [*self._denoiser.parameters(), *self._heads.parameters()]
        if self._gripper:
            trained += self._gripper.parameters()
        self._optimiser = agents.optimiser(trained, lambda config: config.bc.learning_rate)
        self._noise = agents.noise(0)
        self._critic = _indifferent_critic(specs, self._policy).to(agents.device)

    def update_step(self, sample_batch: SampleBatch) -> Metrics:
        batch = sample_batch()
        feature, arm_action = self._heads(batch.observation), batch.action[:, : self._action_dim]
        error = self._diffusion.denoising_error(self._denoiser, arm_action, feature, self._noise)
        loss = mean_over_human_rows(error, batch.is_human)
        metrics: Metrics = {"actor_loss": loss.detach()}
        if self._gripper:
            error = F.cross_entropy(self._gripper(feature), choice_of(batch.action[:, -1]), reduction="none")
            gripper_loss = mean_over_human_rows(error, batch.is_human)
            metrics["gripper_loss"] = gripper_loss.detach()
            loss = loss + gripper_loss
        self._optimiser.descend(loss)
        update_ema(self._averaged_denoiser, self._denoiser, self._config.target_update_rate)
        update_ema(self._averaged_heads, self._heads, self._config.target_update_rate)
        return metrics

    def explore(self, observation: EncoderInput, noise: Noise) -> Tensor:
        return self.exploit(observation, noise, 1)

    @torch.no_grad()
    def exploit(self, observation: EncoderInput, noise: Noise, candidates: int) -> Tensor:
        feature = self._averaged_heads(observation)
        return self._diffusion.act(self._averaged_denoiser, self._critic, feature, candidates, noise)

    def policy_tensors(self) -> dict[str, Tensor]:
        return published_tensors(
            {
                "denoiser": self._averaged_denoiser,
                "heads": self._averaged_heads,
                "critic": self._critic if self._policy.behavior_candidates > 1 else None,
                "gripper": self._gripper,
            }
        )

    def _parts(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful] = {
            "denoiser": self._denoiser,
            "heads": self._heads,
            "averaged_denoiser": self._averaged_denoiser,
            "averaged_heads": self._averaged_heads,
            "optimiser": self._optimiser,
            "noise": self._noise,
        }
        return parts | ({"gripper": self._gripper} if self._gripper else {})


def _indifferent_critic(specs: Specs, policy: PolicyConfig) -> CriticEnsemble:
    """A critic that values everything 0, so that best-of-K picks the first sample: cloning has no values to offer."""
    critic = make_critic(specs, policy)
    for parameter in critic.parameters():
        torch.nn.init.zeros_(parameter)
    return critic.requires_grad_(False)
