"""The policy as the robot runs it: unguided samples, the best of which the published critic picks."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policy.config import PolicyConfig
from policy.critic_network import CriticEnsemble, conservative_value
from policy.denoiser import Denoiser
from policy.encoder import EncoderInput, ObservationHeads
from policy.errors import ConfigError
from policy.noise_schedule import make_noise_schedule
from policy.sampler import best_of, draw_noise, sample
from policy.spec import Observation, Specs
from policy.weights import load_strict


def make_denoiser(specs: Specs, config: PolicyConfig) -> Denoiser:
    return Denoiser(
        specs.action.continuous_dim,
        ObservationHeads(specs, config).feature_dim,
        config.denoiser_hidden,
        config.denoising_steps,
        config.time_embedding_dim,
    )


def make_critic(specs: Specs, config: PolicyConfig) -> CriticEnsemble:
    return CriticEnsemble(
        specs.action.continuous_dim,
        ObservationHeads(specs, config).feature_dim,
        config.critic_hidden,
        config.num_critics,
        config.num_quantiles,
        config.critic_layer_norm,
    )


class DiffusionPolicy:
    """Samples actions without any critic gradient, so control cost is T denoiser calls and one critic call.

    Acting is best-of-K_b by the conservative value of the critic that the learner publishes with the denoiser. With the
    `concat` entropy reduction a sixth of the regression target is uniform noise, so about one raw sample in eight is a
    random action (measured with an exact denoiser, T = 20: 11 %); all four of K_b = 4 are random once in 10^3 to 10^4.
    A policy without critic (behavior_candidates = 1) is smaller to send but needs the `mean` reduction, under which
    1 % of samples are random; the learner refuses the other combination.
    """

    def __init__(self, specs: Specs, config: PolicyConfig, seed: int) -> None:
        self._specs = specs
        self._config = config
        self._schedule = make_noise_schedule(config.schedule, config.denoising_steps)
        self._generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._denoiser = make_denoiser(specs, config)
            self._critic = make_critic(specs, config) if config.behavior_candidates > 1 else None
            self._heads = ObservationHeads(specs, config)

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace all weights, or none: raises WeightsError naming the differing tensors."""
        modules = torch.nn.ModuleDict({"denoiser": self._denoiser, "heads": self._heads})
        if self._critic is not None:
            modules["critic"] = self._critic
        load_strict(modules, tensors)

    @torch.no_grad()
    def select_action(self, observation: Observation, candidates: int | None = None) -> NDArray[np.float32]:
        """Return an action (A,) in [-1, 1]: the best of `candidates` samples (default: behavior_candidates)."""
        count = self._config.behavior_candidates if candidates is None else candidates
        if count > 1 and self._critic is None:
            raise ConfigError(
                f"{count} candidates asked for, but this policy was published without a critic to choose with "
                "(policy.behavior_candidates = 1). Ask for 1, or train with behavior_candidates above 1."
            )
        vector = torch.from_numpy(self._specs.observation.normalise(observation))[None]
        feature = self._heads(EncoderInput(vector)).expand(count, -1)
        noise = draw_noise(self._schedule, count, self._specs.action.continuous_dim, self._generator)
        actions = sample(self._denoiser, self._schedule, feature, noise)
        if self._critic is None or count == 1:
            return actions[0].numpy()
        values = conservative_value(self._critic(feature, actions), self._config.drop_quantiles)
        return best_of(actions[None], values[None])[0].numpy()
