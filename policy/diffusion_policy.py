"""The diffusion policy as the robot runs it: unguided samples, the best of which the published critic picks."""

import torch
from torch import Tensor, nn

from policy.config import PolicyConfig
from policy.critic_network import CriticEnsemble
from policy.denoiser import Denoiser
from policy.encoder import feature_dim
from policy.errors import ConfigError
from policy.fast.prepared_sampler import PreparedChain, PreparedCritic
from policy.noise_schedule import make_noise_schedule
from policy.sampler import draw_noise
from policy.spec import Specs


def make_denoiser(specs: Specs, config: PolicyConfig) -> Denoiser:
    return Denoiser(
        specs.action.continuous_dim,
        feature_dim(specs, config),
        config.denoiser_hidden,
        config.denoising_steps,
        config.time_embedding_dim,
    )


def make_critic(specs: Specs, config: PolicyConfig) -> CriticEnsemble:
    return CriticEnsemble(
        specs.action.continuous_dim,
        feature_dim(specs, config),
        config.critic_hidden,
        config.num_critics,
        config.num_quantiles,
        config.critic_layer_norm,
        config.critic_activation,
    )


class DiffusionActor:
    """Samples actions without any critic gradient, so control cost is T denoiser calls and one critic call.

    Acting is best-of-K_b by the conservative value of the critic that the learner publishes with the denoiser. With the
    `concat` entropy reduction a sixth of the regression target is uniform noise, so about one raw sample in eight is a
    random action (measured with an exact denoiser, T = 20: 11 %); all four of K_b = 4 are random once in 10^3 to 10^4.
    A policy without critic (behavior_candidates = 1) is smaller to send but needs the `mean` reduction, under which
    1 % of samples are random; the learner refuses the other combination.
    """

    def __init__(self, specs: Specs, config: PolicyConfig) -> None:
        self._config = config
        self._action_dim = specs.action.continuous_dim
        self._schedule = make_noise_schedule(config.schedule, config.denoising_steps)
        self._denoiser = make_denoiser(specs, config)
        self._critic = make_critic(specs, config) if config.behavior_candidates > 1 else None
        self.modules: dict[str, nn.Module] = {"denoiser": self._denoiser}
        if self._critic is not None:
            self.modules["critic"] = self._critic
        self.prepare()

    def prepare(self) -> None:
        self._chain = PreparedChain(self._denoiser, self._schedule)
        self._chooser = PreparedCritic(self._critic, self._config.drop_quantiles) if self._critic is not None else None

    def act(self, feature: Tensor, candidates: int | None, generator: torch.Generator) -> Tensor:
        count = self._config.behavior_candidates if candidates is None else candidates
        if count > 1 and self._chooser is None:
            raise ConfigError(
                f"{count} candidates asked for, but this policy was published without a critic to choose with "
                "(policy.behavior_candidates = 1). Ask for 1, or train with behavior_candidates above 1."
            )
        actions = self._chain.sample(feature, draw_noise(self._schedule, count, self._action_dim, generator))
        if self._chooser is None or count == 1:
            return actions[0]
        return actions[self._chooser.value(feature, actions).argmax()]
