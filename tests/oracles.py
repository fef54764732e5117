"""Closed forms that tests compare with, and the small specs, networks and batches they share."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from learner.algorithms.cgpo import Cgpo
from learner.config import LearnerConfig
from learner.noise import Noise
from learner.replay import Batch
from policy.config import from_dict
from policy.encoder import EncoderInput
from policy.noise_schedule import NoiseSchedule, make_noise_schedule
from policy.spec import ActionSpec, Field, ObservationSpec, Specs

# The paper's chain. In float64 the closed forms below hold to the rounding of the stored coefficients (1e-7).
SCHEDULE = NoiseSchedule(**{name: value.double() for name, value in vars(make_noise_schedule("cosine", 20)).items()})


class ClosedFormDenoiser:
    """The exact eps* of a data distribution, given its posterior mean E[a | x_t]."""

    def __init__(self, clean_mean: Callable[[Tensor, int, Tensor], Tensor], schedule: NoiseSchedule = SCHEDULE) -> None:
        self._clean_mean = clean_mean
        self._schedule = schedule

    def __call__(self, noisy_action: Tensor, step: int, feature: Tensor) -> Tensor:
        signal = self._schedule.sqrt_alpha_bar[step] * self._clean_mean(noisy_action, step, feature)
        return (noisy_action - signal) / self._schedule.sqrt_one_minus_alpha_bar[step]


def gaussian_gain(step: int, std: float, schedule: NoiseSchedule = SCHEDULE) -> Tensor:
    """k_t of the posterior mean m + k_t (x - sqrt(alpha_bar) m) under the prior N(m, std^2 I)."""
    alpha_bar = schedule.alpha_bar[step]
    return schedule.sqrt_alpha_bar[step] * std**2 / (alpha_bar * std**2 + 1 - alpha_bar)


def gaussian(mean: Tensor | float, std: float, schedule: NoiseSchedule = SCHEDULE) -> ClosedFormDenoiser:
    """Data N(mean, std^2 I)."""

    def clean_mean(x: Tensor, step: int, feature: Tensor) -> Tensor:
        return mean + gaussian_gain(step, std, schedule) * (x - schedule.sqrt_alpha_bar[step] * mean)

    return ClosedFormDenoiser(clean_mean, schedule)


def two_points(first: float, second: float, second_weight: float) -> ClosedFormDenoiser:
    """Data at two points of the line: `second` with probability `second_weight`."""

    def clean_mean(x: Tensor, step: int, feature: Tensor) -> Tensor:
        signal, variance = SCHEDULE.sqrt_alpha_bar[step], 1 - SCHEDULE.alpha_bar[step]
        log_odds = ((x - signal * first) ** 2 - (x - signal * second) ** 2) / (2 * variance)
        is_second = torch.sigmoid(log_odds + math.log(second_weight / (1 - second_weight)))
        return first + (second - first) * is_second

    return ClosedFormDenoiser(clean_mean)


def point_and_uniform(point: float, uniform_mass: float) -> ClosedFormDenoiser:
    """Data on the line: `point` with probability 1 - uniform_mass, else uniform on [-1, 1]."""

    def bell(z: Tensor) -> Tensor:
        return (-0.5 * z**2).exp() / math.sqrt(2 * math.pi)

    def clean_mean(x: Tensor, step: int, feature: Tensor) -> Tensor:
        signal, noise = SCHEDULE.sqrt_alpha_bar[step], SCHEDULE.sqrt_one_minus_alpha_bar[step]
        # Given x, the uniform part is a normal of mean x / signal and std noise / signal, cut off at -1 and 1.
        low, high = (-signal - x) / noise, (signal - x) / noise
        mass = (torch.special.ndtr(high) - torch.special.ndtr(low)).clamp(min=1e-300)
        uniform_mean = (x + noise * (bell(low) - bell(high)) / mass) / signal
        point_density = (1 - uniform_mass) * bell((x - signal * point) / noise) / noise
        uniform_density = uniform_mass * mass / (2 * signal)
        is_uniform = uniform_density / (point_density + uniform_density)
        mean: Tensor = is_uniform * uniform_mean.clamp(-1, 1) + (1 - is_uniform) * point
        return mean

    return ClosedFormDenoiser(clean_mean)


def make_specs(feature_dim: int, action_dim: int) -> Specs:
    """Specs under which normalised observations and actions equal the physical ones."""

    def field(name: str, size: int) -> Field:
        return Field(name=name, unit="m", low=(-1.0,) * size, high=(1.0,) * size)

    return Specs(ObservationSpec((field("position", feature_dim),)), ActionSpec((field("delta", action_dim),)))


def with_gripper(specs: Specs) -> Specs:
    """Return the specs with a discrete gripper as the action's last element."""
    gripper = Field(name="gripper", unit="", low=(-1.0,), high=(1.0,))
    return Specs(specs.observation, ActionSpec((*specs.action.fields, gripper), gripper="discrete"))


def small_config(**settings: Any) -> LearnerConfig:
    """A learner of CPU-second size; tables in `settings` (policy={...}, cgpo={"guidance": {...}}) override values."""
    policy: dict[str, Any] = {
        "denoising_steps": 5,
        "denoiser_hidden": [16],
        "time_embedding_dim": 8,
        "critic_hidden": [16],
        "num_critics": 2,
        "num_quantiles": 5,
        "drop_quantiles": 1,
    }
    scalar: dict[str, Any] = {"num_quantiles": 1, "drop_quantiles": 0}
    plain: dict[str, Any] = {"behavior_candidates": 1, "critic_activation": "relu"}
    gaussian: dict[str, Any] = {"distribution": "gaussian", "gaussian_hidden": [16], "gaussian_layer_norm": False}
    policy |= {
        "hil_serl_sac": scalar
        | {
            "distribution": "gaussian",
            "gaussian_hidden": [16],
            "behavior_candidates": 1,
            "critic_layer_norm": True,
        },
        "sac": scalar | plain | gaussian,
        "tqc": plain | gaussian,
        "td3": scalar | plain | {"distribution": "deterministic", "deterministic_hidden": [16]},
        "qvpo": scalar,
        "dipo": scalar,
    }.get(settings.get("algorithm", "cgpo"), {})
    cgpo = {"guidance": {"steps": 3}, "value_hidden": [16], "vbase_samples": 3, "entropy_samples": 2}
    qvpo = {"candidates": 6, "entropy_samples": 2}
    dipo = {"write_back": False}  # random_batch numbers no rows
    base: dict[str, Any] = {"policy": policy, "cgpo": cgpo, "qvpo": qvpo, "dipo": dipo, "device": "cpu"}
    return from_dict(LearnerConfig, merged(base, settings))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables `base` with the values of `changes`."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, Mapping) else value
    return result


def random_batch(size: int, feature_dim: int, action_dim: int, seed: int = 0) -> Batch:
    """A batch without meaning: every column random, a quarter terminal, half from humans, a third toggled."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(shape, generator=generator) - 1

    return Batch(
        observation=EncoderInput(uniform(size, feature_dim)),
        action=uniform(size, action_dim),
        reward=uniform(size),
        next_observation=EncoderInput(uniform(size, feature_dim)),
        is_terminal=(uniform(size) < -0.5).float(),
        is_human=uniform(size) < 0,
        gripper_toggled=uniform(size) < -1 / 3,
    )


def best_of_samples(algorithm: Cgpo, denoiser: Any, feature: Tensor, count: int, seed: int = 0) -> Tensor:
    """Return the best by the online critic of `count` unguided samples of each state; denoiser may be a closed form."""
    candidates = algorithm._diffusion.candidates(denoiser, feature, count, Noise([seed], is_population=False))
    return algorithm._diffusion.best_of(algorithm._critic, feature, candidates)
