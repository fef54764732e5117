"""HIL-SERL's SAC: RLPD on a tanh-Gaussian, the baseline of the paper's robot experiments, in reading order.

RLPD (arXiv:2302.02948) is SAC on batches half from people, with LayerNorm in the critics. Two critics and the minimum
of both are HIL-SERL's; RLPD's own are ten, of which each update takes the minimum of two drawn at random. The actor
climbs the mean over all critics. Letters: B batch, N critics, A action.

Differs from HIL-SERL's code: actor and critic share the encoder's heads, which learn from the critic alone, as in CGPO
here, so that both algorithms are compared behind the same eyes.
"""

import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithms.base import (
    Metrics,
    NextFeature,
    SampleBatch,
    frozen_copy,
    next_feature_of,
    published_tensors,
    update_ema,
)
from learner.algorithms.gripper import make_gripper
from learner.algorithms.state import Resumable, Stateful
from learner.algorithms.temperature import Temperature
from learner.losses import scalar_critic_loss
from learner.noise import Noise
from learner.replay import Batch
from policy.diffusion_policy import make_critic
from policy.encoder import EncoderInput, ObservationHeads
from policy.errors import ConfigError
from policy.gaussian_policy import GaussianPolicy, sample_tanh_gaussian
from policy.spec import Specs


class HilSerlSac(Resumable):
    """See the module docstring; configuration in learner.algorithm_config.HilSerlSacConfig."""

    def __init__(self, agents: Agents, specs: Specs) -> None:
        if agents.is_population:
            raise ConfigError("hil_serl_sac trains one agent at a time; the algorithm sac can train a population")
        config = agents.config
        self._config = config.hil_serl_sac
        self._actor = agents.network(lambda: GaussianPolicy(specs, config.policy))
        self._critic = agents.network(lambda: make_critic(specs, config.policy))
        self._heads = agents.network(lambda: ObservationHeads(specs, config.policy))
        self._gripper = make_gripper(agents, specs, self._config.discount)
        self._temperature = agents.network(lambda: Temperature(self._config.initial_temperature, "softplus"))
        self._target_critic = frozen_copy(self._critic)
        self._target_heads = frozen_copy(self._heads)
        self._action_dim = specs.action.continuous_dim
        self._target_entropy = -self._action_dim / 2
        valued = [*self._critic.parameters(), *self._heads.parameters()]
        if self._gripper:
            valued += self._gripper.critic.parameters()
        self._actor_optimiser = agents.optimiser(
            self._actor.parameters(), lambda config: config.hil_serl_sac.actor_learning_rate
        )
        self._critic_optimiser = agents.optimiser(valued, lambda config: config.hil_serl_sac.critic_learning_rate)
        self._temperature_optimiser = agents.optimiser(
            self._temperature.parameters(), lambda config: config.hil_serl_sac.temperature_learning_rate
        )
        self._critic_noise, self._actor_noise = (
            torch.Generator(agents.device).manual_seed(config.seed * 1000 + purpose) for purpose in range(2)
        )

    def update_step(self, sample_batch: SampleBatch) -> Metrics:
        for _ in range(self._config.cta_ratio - 1):
            self._update_critic(sample_batch())
        batch = sample_batch()
        return self._update_critic(batch) | self._update_actor(batch)

    def _update_critic(self, batch: Batch) -> Metrics:
        next_feature = next_feature_of(batch, self._heads, self._target_heads)
        targets = self._critic_targets(batch, next_feature)
        feature = self._heads(batch.observation)
        values = self._critic(feature, batch.action[:, : self._action_dim])
        loss = scalar_critic_loss(values, targets[:, None])
        metrics: Metrics = {"critic_loss": loss.detach(), "q_data_mean": values.detach().mean()}
        if self._gripper:
            gripper_loss = self._gripper.loss(batch, feature, next_feature)
            metrics["gripper_loss"] = gripper_loss.detach()
            loss = loss + gripper_loss
            self._gripper.follow(self._config.target_update_rate)
        self._critic_optimiser.descend(loss)
        update_ema(self._target_critic, self._critic, self._config.target_update_rate)
        update_ema(self._target_heads, self._heads, self._config.target_update_rate)
        return metrics

    @torch.no_grad()
    def _critic_targets(self, batch: Batch, next_feature: NextFeature) -> Tensor:
        """Return y (B,) = r + gamma (1 - terminated) (min_i Q_target_i(s', a') [- alpha log pi(a'|s')])."""
        next_action, log_density = self._sample(next_feature.online, self._critic_noise)
        values: Tensor = self._target_critic(next_feature.target, next_action).squeeze(-1)  # (B, N)
        if self._config.critic_subset:
            drawn = torch.randperm(values.shape[1], generator=self._critic_noise, device=values.device)
            values = values[:, drawn[: self._config.critic_subset]]
        next_value = values.amin(dim=1)
        if self._config.backup_entropy:
            next_value = next_value - self._temperature() * log_density
        return batch.reward + self._config.discount * (1 - batch.is_terminal) * next_value

    def _update_actor(self, batch: Batch) -> Metrics:
        """Ascend E[mean_i Q_i(s, a) - alpha log pi(a|s)], then move alpha towards the target entropy."""
        with torch.no_grad():
            feature = self._heads(batch.observation)
        action, log_density = self._sample(feature, self._actor_noise)
        value = self._critic(feature, action).mean(dim=(1, 2))
        loss = (self._temperature().detach() * log_density - value).mean()
        self._actor_optimiser.descend(loss)
        entropy = -log_density.detach().mean()
        if self._config.tune_temperature:
            self._temperature_optimiser.descend(self._temperature() * (entropy - self._target_entropy))
        return {
            "actor_loss": loss.detach(),
            "q_mean": value.detach().mean(),
            "entropy": entropy,
            "temperature": self._temperature().detach(),
            "policy_action_std": action.detach().std(dim=0, correction=0).mean(),
        }

    def explore(self, observation: EncoderInput, noise: Noise) -> Tensor:
        return self.exploit(observation, noise, 1)

    @torch.no_grad()
    def exploit(self, observation: EncoderInput, noise: Noise, candidates: int) -> Tensor:
        return self._sample(self._heads(observation), noise.generators[0])[0]

    def _sample(self, feature: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return actions (B, A) and their log-densities (B,)."""
        mean, std = self._actor(feature)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return sample_tanh_gaussian(mean, std, noise)

    def policy_tensors(self) -> dict[str, Tensor]:
        gripper = self._gripper.critic if self._gripper else None
        return published_tensors({"gaussian": self._actor, "heads": self._heads, "gripper": gripper})

    def _parts(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful] = {
            "actor": self._actor,
            "critic": self._critic,
            "heads": self._heads,
            "target_critic": self._target_critic,
            "target_heads": self._target_heads,
            "temperature": self._temperature,
            "actor_optimiser": self._actor_optimiser,
            "critic_optimiser": self._critic_optimiser,
            "temperature_optimiser": self._temperature_optimiser,
            "critic_noise": self._critic_noise,
            "actor_noise": self._actor_noise,
        }
        if self._gripper:
            parts |= {"gripper": self._gripper.critic, "target_gripper": self._gripper.target}
        return parts
