"""CGPO, critic-guided diffusion policy optimisation (arXiv:2605.30056), in reading order.

One learner step: critic updates towards truncated double-selected targets; then, with the new critic, one better action
per state is synthesised by a guided chain and the denoiser is regressed onto it, weighted by its advantage; then both
target networks follow. Letters: B batch, K candidates, A action, N critics, M quantiles, T denoising steps; `...` is
nothing for one agent and (P,) for a population (learner.agents). What takes time is in learner.kernels.

Ours, not the paper's, each a switch: BC warm-up, human actions as competing targets, LayerNorm critic, reward scale.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

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
from learner.critic_contrast import critic_contrast
from learner.diffusion import Diffusion
from learner.losses import (
    advantage_weight,
    annealed_entropy_weight,
    combine_denoising_errors,
    mean_over_human_rows,
    scalar_critic_loss,
    target_atoms,
)
from learner.noise import Noise
from learner.replay import Batch
from policy.critic_network import conservative_value
from policy.diffusion_policy import make_critic, make_denoiser
from policy.encoder import EncoderInput, ObservationHeads, feature_dim
from policy.spec import Specs


class Cgpo(Resumable):
    """See the module docstring; configuration in learner.algorithm_config.CgpoConfig."""

    def __init__(self, agents: Agents, specs: Specs) -> None:
        self._config, self._policy = agents.config.cgpo, agents.config.policy
        self._action_dim = specs.action.continuous_dim
        self._diffusion = Diffusion(agents, self._action_dim)
        self._kernels = self._diffusion.kernels
        self._denoiser = agents.network(lambda: make_denoiser(specs, self._policy))
        self._critic = agents.network(lambda: make_critic(specs, self._policy))
        self._heads = agents.network(lambda: ObservationHeads(specs, self._policy))
        self._gripper = make_gripper(agents, specs, self._config.discount)
        feature_width = feature_dim(specs, self._policy)
        self._value = agents.network(lambda: make_value_network(feature_width, self._config.value_hidden))
        self._target_denoiser = frozen_copy(self._denoiser)
        self._target_critic = frozen_copy(self._critic)
        self._target_heads = frozen_copy(self._heads)
        eps = self._config.adam_eps
        actor = self._denoiser.parameters()
        self._denoiser_optimiser = agents.optimiser(actor, lambda config: config.cgpo.actor_learning_rate, eps)
        # The heads learn from the critic alone; the actor's loss stops at the feature (DrQ, HIL-SERL).
        valued = [*self._critic.parameters(), *self._heads.parameters()]
        if self._gripper:
            valued += self._gripper.critic.parameters()
        self._critic_optimiser = agents.optimiser(valued, lambda config: config.cgpo.critic.learning_rate, eps)
        baseline = self._value.parameters()
        self._value_optimiser = agents.optimiser(baseline, lambda config: config.cgpo.value_learning_rate, eps)
        self._discount = agents.setting(lambda config: config.cgpo.discount, num_axes=1)
        self._entropy_weight = agents.setting(lambda config: config.cgpo.entropy_weight, num_axes=2)
        # One source per purpose: switching guidance off does not shift the critic's noise.
        self._critic_noise, self._actor_noise, self._loss_noise = (agents.noise(purpose) for purpose in range(3))
        self._actor_updates = torch.zeros((), dtype=torch.int64, device=agents.device)
        self._is_warm = self._config.bc_warmup_steps == 0

    def update_step(self, sample_batch: SampleBatch) -> Metrics:
        batches = [sample_batch() for _ in range(self._config.cta_ratio)]
        *earlier, (batch, candidates) = zip(batches, self._next_candidates(batches), strict=True)
        for earlier_batch, earlier_candidates in earlier:
            self._update_critic(earlier_batch, earlier_candidates)
            self._follow_critic()
        metrics = self._update_critic(batch, candidates)
        with torch.no_grad():
            feature = self._heads(batch.observation)  # once per state, for every chain and loss below
        if self.is_warming_up():
            metrics |= self._imitate(batch, feature)
        else:
            metrics |= self._update_actor(batch, feature)
        self._actor_updates += 1
        self._follow_critic()
        update_ema(self._target_denoiser, self._denoiser, self._config.target_update_rate)
        return metrics

    def is_warming_up(self) -> bool:
        """Whether the next step only imitates. Once that is over, nothing more is asked of the device."""
        self._is_warm = self._is_warm or int(self._actor_updates) >= self._config.bc_warmup_steps
        return not self._is_warm

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_state(state)
        self._is_warm = self._config.bc_warmup_steps == 0

    def explore(self, observation: EncoderInput, noise: Noise) -> Tensor:
        return self.exploit(observation, noise, self._policy.behavior_candidates)

    @torch.no_grad()
    def exploit(self, observation: EncoderInput, noise: Noise, candidates: int) -> Tensor:
        return self._diffusion.act(self._denoiser, self._critic, self._heads(observation), candidates, noise)

    @torch.no_grad()
    def contrast(self, observation: EncoderInput, noise: Noise, num_candidates: int = 64) -> dict[str, Tensor]:
        """Return contrast, guided_contrast and value_std on probe states, see learner.critic_contrast."""
        feature = self._heads(observation)
        guided = self._sampled_actions(feature, noise)[1]
        return critic_contrast(self._diffusion, self._denoiser, self._critic, feature, noise, num_candidates, guided)

    def _follow_critic(self) -> None:
        update_ema(self._target_critic, self._critic, self._config.target_update_rate)
        update_ema(self._target_heads, self._heads, self._config.target_update_rate)
        if self._gripper:
            self._gripper.follow(self._config.target_update_rate)

    # --- critic ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _next_candidates(self, batches: Sequence[Batch]) -> Sequence[Tensor]:
        """Return K_t target-policy samples (..., B, K, A) for the next states of each batch, all in one launch.

        The target policy only moves at the end of a step. (Its features of images are those of the step's beginning.)
        """
        feature = torch.cat([self._target_heads(batch.next_observation) for batch in batches], dim=-2)
        candidates = self._diffusion.candidates(
            self._target_denoiser, feature, self._config.critic.target_candidates, self._critic_noise
        )
        return candidates.chunk(len(batches), dim=-3)

    def _update_critic(self, batch: Batch, candidates: Tensor) -> Metrics:
        next_feature = next_feature_of(batch, self._heads, self._target_heads)
        targets = self._critic_targets(batch, next_feature, candidates)
        feature = self._heads(batch.observation)
        quantiles = self._kernels.quantiles(self._critic, feature, batch.action[..., : self._action_dim])
        if self._config.critic.type == "twin_scalar":
            loss = scalar_critic_loss(quantiles, targets)
        else:
            loss = self._kernels.quantile_huber_loss(quantiles, targets, self._config.critic.huber_kappa)
        metrics: Metrics = {
            "critic_loss": loss.detach(),
            "q_data_mean": self._conservative(quantiles.detach()).mean(dim=-1),
        }
        if self._gripper:
            gripper_loss = self._gripper.loss(batch, feature, next_feature)
            metrics["gripper_loss"] = gripper_loss.detach()
            loss = loss + gripper_loss
        self._critic_optimiser.descend(loss, self._config.grad_clip)
        return metrics

    @torch.no_grad()
    def _critic_targets(self, batch: Batch, next_feature: NextFeature, candidates: Tensor) -> Tensor:
        """Return target atoms (..., B, L): r + gamma (1 - terminated) Z_target(s', a'), highest atoms dropped.

        a' is the best of K_t target-policy samples by the online critic (DDQN). CGPO section 4.3, Algorithm 1.
        """
        config = self._config.critic
        if config.ddqn:
            next_action = self._diffusion.best_of(self._critic, next_feature.online, candidates)
        else:
            next_action = self._diffusion.best_of(self._target_critic, next_feature.target, candidates)
        quantiles = self._kernels.quantiles(self._target_critic, next_feature.target, next_action)
        if config.target_type == "scalar" or config.type == "twin_scalar":
            atoms = self._conservative(quantiles)[..., None]
        else:
            atoms = target_atoms(quantiles, self._policy.drop_quantiles, config.target_truncation)
        discount = self._discount * (1 - batch.is_terminal)
        return batch.reward[..., None] + discount[..., None] * atoms

    # --- actor ----------------------------------------------------------------------------------------------------

    def _update_actor(self, batch: Batch, feature: Tensor) -> Metrics:
        """Regress the denoiser onto one synthesised action per state, weighted by its advantage (CGPO Eq 15-19)."""
        policy_action, guided_action = self._sampled_actions(feature, self._actor_noise)
        actions = [policy_action, guided_action]
        if self._config.human_targets:
            actions.append(batch.action[..., : self._action_dim])
        values = self._value_of(feature, torch.stack(actions, dim=-2).flatten(-3, -2))
        policy_value, *target_values = values.view(*feature.shape[:-1], len(actions)).unbind(-1)
        target_action, target_value, metrics = self._target_action(batch, actions[1:], target_values)
        base_value = self._base_value(feature, policy_action, policy_value)
        weight = advantage_weight(target_value, base_value)
        metrics |= {
            "q_mean": policy_value.mean(dim=-1),
            "target_advantage_mean": (target_value - policy_value).mean(dim=-1),
            "target_move": (target_action - policy_action).norm(dim=-1).mean(dim=-1),
            "weight_mean": weight.mean(dim=-1),
            "weight_max": weight.amax(dim=-1),
            "weight_positive_fraction": (weight > 0).float().mean(dim=-1),
            "policy_action_std": policy_action.std(dim=-2, correction=0).mean(dim=-1),
        }
        if self._config.weight_norm == "mean":
            weight = weight / (weight.mean(dim=-1, keepdim=True) + 1e-6)
        loss = self._actor_loss(feature, target_action, weight)
        self._denoiser_optimiser.descend(loss, self._config.grad_clip)
        return metrics | {"actor_loss": loss.detach()}

    def _sampled_actions(self, feature: Tensor, source: Noise) -> tuple[Tensor, Tensor]:
        """Return each state's unguided sample and its synthesised better action, both (..., B, A)."""
        guidance = self._config.guidance
        noise = self._diffusion.chain_noise(feature.shape[-2], source)
        if guidance.type == "none":
            candidates = self._diffusion.candidates(self._denoiser, feature, guidance.best_of, source)
            best = self._diffusion.best_of(self._critic, feature, candidates)
            return self._kernels.sample(self._denoiser, feature, noise), best
        guided_noise = self._diffusion.chain_noise(feature.shape[-2], source)
        if self._config.shared_prefix:
            guided_noise = torch.cat([guided_noise[: guidance.steps], noise[guidance.steps :]])
        return self._kernels.sample_pair(self._denoiser, self._critic, feature, noise, guided_noise)

    def _target_action(
        self, batch: Batch, actions: Sequence[Tensor], values: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Metrics]:
        """Return a^g (..., B, A) and its value (..., B): the guided sample or, with human_targets, a better human one.

        actions and values are theirs, in that order.
        """
        if not self._config.human_targets:
            return actions[0], values[0], {}
        (guided_action, human_action), (guided_value, human_value) = actions, values
        human_wins = batch.is_human & (human_value > guided_value)
        target = torch.where(human_wins[..., None], human_action, guided_action)
        target_value = torch.where(human_wins, human_value, guided_value)
        return target, target_value, {"human_target_fraction": human_wins.float().mean(dim=-1)}

    def _base_value(self, feature: Tensor, policy_action: Tensor, policy_value: Tensor) -> Tensor:
        """Return the weight's baseline (..., B), training the value network where it is learned (CGPO Eq 16-17)."""
        if self._config.vbase == "zero":
            return torch.zeros_like(policy_value)
        if self._config.vbase == "sampled":
            count = self._config.vbase_samples
            actions = self._diffusion.candidates(self._denoiser, feature, count, self._actor_noise)
            values = self._value_of(feature, actions.flatten(-3, -2))
            return values.view(*policy_value.shape, count).mean(dim=-1)
        if self._config.vbase_critic == "target":
            policy_value = self._kernels.value(self._target_critic, feature, policy_action)
        predicted = self._kernels.regress(self._value, feature).squeeze(-1)
        self._value_optimiser.descend((predicted - policy_value).square().mean(dim=-1), self._config.grad_clip)
        with torch.no_grad():
            return self._kernels.regress(self._value, feature).squeeze(-1)

    def _actor_loss(self, feature: Tensor, target_action: Tensor, weight: Tensor) -> Tensor:
        count = self._config.entropy_samples
        uniform = 2 * self._loss_noise.uniform(feature.shape[-2], count, self._action_dim) - 1
        actions = torch.cat([target_action[..., None, :], uniform], dim=-2).flatten(-3, -2)  # (..., B (1 + N_e), A)
        error = self._diffusion.denoising_error(self._denoiser, actions, feature, self._loss_noise)
        error = error.view(*weight.shape, 1 + count)
        entropy_weight = annealed_entropy_weight(
            self._entropy_weight, self._actor_updates, self._config.entropy_anneal_steps
        )
        return combine_denoising_errors(
            error[..., 0], error[..., 1:], weight, entropy_weight, self._config.entropy_reduction
        )

    def _imitate(self, batch: Batch, feature: Tensor) -> Metrics:
        """BC warm-up: plain denoising regression on human rows, none if the batch holds none."""
        human_action = batch.action[..., : self._action_dim]
        error = self._diffusion.denoising_error(self._denoiser, human_action, feature, self._loss_noise)
        loss = mean_over_human_rows(error, batch.is_human)
        self._denoiser_optimiser.descend(loss, self._config.grad_clip)
        return {"actor_loss": loss.detach()}

    # --- shared ---------------------------------------------------------------------------------------------------

    def _value_of(self, feature: Tensor, action: Tensor) -> Tensor:
        """Conservative value (..., B K) of action (..., B K, A) by the online critic."""
        return self._kernels.value(self._critic, feature, action)

    def _conservative(self, quantiles: Tensor) -> Tensor:
        return conservative_value(quantiles, self._policy.drop_quantiles)

    def policy_tensors(self) -> dict[str, Tensor]:
        return published_tensors(
            {
                "denoiser": self._denoiser,
                "heads": self._heads,
                "critic": self._critic if self._policy.behavior_candidates > 1 else None,
                "gripper": self._gripper.critic if self._gripper else None,
            }
        )

    def _parts(self) -> dict[str, Stateful]:
        parts: dict[str, Stateful] = {
            "denoiser": self._denoiser,
            "critic": self._critic,
            "heads": self._heads,
            "target_heads": self._target_heads,
            "value": self._value,
            "target_denoiser": self._target_denoiser,
            "target_critic": self._target_critic,
            "denoiser_optimiser": self._denoiser_optimiser,
            "critic_optimiser": self._critic_optimiser,
            "value_optimiser": self._value_optimiser,
            "critic_noise": self._critic_noise,
            "actor_noise": self._actor_noise,
            "loss_noise": self._loss_noise,
            "actor_updates": self._actor_updates,
        }
        if self._gripper:
            parts |= {"gripper": self._gripper.critic, "target_gripper": self._gripper.target}
        return parts


def make_value_network(feature_dim: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """V_phi: (B, F) -> (B, 1), a small mish MLP."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip((feature_dim, *hidden[:-1]), hidden, strict=True):
        layers += [nn.Linear(fan_in, fan_out), nn.Mish()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], 1))
