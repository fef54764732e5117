"""Guided chains: the spherical step by hand, how far guidance reaches in closed form, and what it must leave alone."""

import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from learner.algorithm_config import GuidanceConfig
from learner.guidance import NaiveGuide, ValueFunction, dsg_step, make_guide, value_ascent
from policy.critic_network import CriticEnsemble, conservative_value
from policy.denoiser import Denoiser
from policy.noise_schedule import make_noise_schedule
from policy.sampler import Guide, NoisePredictor, draw_noise, reverse_mean, sample
from tests.oracles import SCHEDULE, gaussian

NUM_STEPS = SCHEDULE.num_steps
ACTION_DIM, FEATURE_DIM = 3, 2

# Policy std: D(s, G) for G = 5, 10, 15. Linear value and rate 1 displace the mean by sqrt(A) D along the gradient.
DISPLACEMENT = {
    0.05: (0.038871, 0.050227, 0.055148),
    0.1: (0.114066, 0.158368, 0.177962),
    0.3: (0.354101, 0.672688, 0.840881),
    0.6: (0.488874, 1.275303, 1.859627),
    1.0: (0.538854, 1.718664, 2.970936),
}


def no_feature(rows: int) -> Tensor:
    return torch.zeros(rows, 0, dtype=torch.float64)


def noise_of(rows: int, action_dim: int, seed: int = 0) -> Tensor:
    return draw_noise(SCHEDULE, rows, action_dim, torch.Generator().manual_seed(seed)).double()


def guided(value: ValueFunction, **settings: object) -> Guide:
    guide = make_guide(GuidanceConfig(**settings), value)  # type: ignore[arg-type]
    assert guide is not None
    return guide


def quadratic(feature: Tensor, action: Tensor) -> Tensor:
    return -(action - 0.5).square().sum(dim=-1) / 2


def unclipped_chain(denoiser: NoisePredictor, noise: Tensor, guide: Guide) -> Tensor:
    """`sample` without any clipping, so that the chain of a Gaussian policy stays affine."""
    x, feature = noise[-1], no_feature(noise.shape[1])
    for step in reversed(range(NUM_STEPS)):
        if guide.is_active(step):
            x = guide.reverse_step(denoiser, SCHEDULE, x, step, feature, noise[step])
        else:
            mean = reverse_mean(denoiser, SCHEDULE, x, step, feature, clip=False).mean
            x = mean + SCHEDULE.sigma[step] * noise[step]
    return x


class RandomNetworks:
    """An untrained denoiser and critic in float64, so that lengths are exact to the norm's floor of 1e-8."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.denoiser = Denoiser(ACTION_DIM, FEATURE_DIM, (16, 16), NUM_STEPS).double()
        self.critic = CriticEnsemble(ACTION_DIM, FEATURE_DIM, (16, 16), 2, 5, layer_norm=False).double()
        self.feature = torch.randn(6, FEATURE_DIM, dtype=torch.float64)
        self.noise = noise_of(6, ACTION_DIM, seed)

    def value(self, feature: Tensor, action: Tensor) -> Tensor:
        return conservative_value(self.critic(feature, action), 1)

    def sample(self, guide: Guide | None) -> Tensor:
        return sample(self.denoiser, SCHEDULE, self.feature, self.noise, guide)


# --- one step -----------------------------------------------------------------------------------------------------


def test_spherical_step_by_hand() -> None:
    """Loss gradient (3, 4), noise (1, 0), sigma 0.5, rate 0.95: half of everything is easy to redo on paper."""
    step = dsg_step(
        mean=torch.zeros(1, 2, dtype=torch.float64),
        ascent=torch.tensor([[-3.0, -4.0]], dtype=torch.float64),
        sigma=torch.tensor(0.5, dtype=torch.float64),
        noise=torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        rate=0.95,
    )
    assert step[0].tolist() == pytest.approx([-0.40684869, -0.57833740], abs=1e-7)
    assert step.norm().item() == pytest.approx(0.70710678, abs=1e-7)


def test_rate_zero_follows_the_noise_and_rate_one_the_critic() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, ascent, noise = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor(0.3, dtype=torch.float64)
    radius = 0.3 * 4**0.5

    def moves_along(direction: Tensor, ascent: Tensor, rate: float, tolerance: float = 1e-7) -> None:
        expected = mean + radius * torch.nn.functional.normalize(direction)
        torch.testing.assert_close(dsg_step(mean, ascent, sigma, noise, rate), expected, rtol=0, atol=tolerance)

    # Tolerances: the norm's floor of 1e-8 against lengths near 1.
    moves_along(noise, ascent, rate=0.0)
    moves_along(ascent, ascent, rate=1.0)
    # Without a gradient the noise alone is left, shortened to a twentieth before it is normalised.
    moves_along(noise, torch.zeros_like(ascent), rate=0.95, tolerance=2e-6)


@pytest.mark.parametrize("rate", [0.0, 0.35, 0.95, 1.0])
def test_every_guided_step_has_the_length_of_its_shell(rate: float) -> None:
    networks = RandomNetworks()
    guide = guided(networks.value, rate=rate)
    for step in range(1, 10):
        assert guide.is_active(step)
        x, noise = networks.noise[-1], networks.noise[step]
        after = guide.reverse_step(networks.denoiser, SCHEDULE, x, step, networks.feature, noise)
        mean = reverse_mean(networks.denoiser, SCHEDULE, x, step, networks.feature).mean
        length = (after - mean).norm(dim=-1)
        torch.testing.assert_close(length, (3**0.5 * SCHEDULE.sigma[step]).expand(6), rtol=1e-6, atol=0)


def test_only_the_last_steps_are_guided_and_the_final_one_is_deterministic() -> None:
    """G = 10 gives nine guided steps: the last one has sigma 0 and nothing to turn."""
    for guide in (guided(quadratic, steps=10), guided(quadratic, type="naive", steps=10)):
        assert [step for step in range(NUM_STEPS) if guide.is_active(step)] == list(range(1, 10))
    assert SCHEDULE.sigma[0] == 0


# --- how far guidance reaches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", DISPLACEMENT)
@pytest.mark.parametrize(("index", "steps"), [(0, 5), (1, 10), (2, 15)])
def test_linear_value_displaces_a_gaussian_policy_by_its_recursion(std: float, index: int, steps: int) -> None:
    """With rate 1 a guided step ignores its noise and the chain is affine: without noise it is the mean itself."""
    slope = torch.tensor([3.0, -1.0, 0.5, 2.0, 0.0, 1.0, -2.0, 0.1], dtype=torch.float64)
    guide = guided(lambda feature, action: action @ slope, rate=1.0, steps=steps, clip_grad="none")
    mean = unclipped_chain(gaussian(0.0, std), torch.zeros(NUM_STEPS + 1, 1, 8, dtype=torch.float64), guide)[0]
    expected = 8**0.5 * DISPLACEMENT[std][index] * slope / slope.norm()
    torch.testing.assert_close(mean, expected, rtol=0, atol=3e-6)  # half a printed digit times sqrt(8), and floors


@pytest.mark.parametrize(
    ("action_dim", "std", "mean", "value", "unguided_value"),
    [(8, 0.3, 0.500, -0.001, -1.244), (3, 0.3, 0.501, -0.001, -0.463), (8, 0.1, 0.158, None, None)],
)
def test_quadratic_value_is_reached_where_the_policy_is_wide_enough(
    action_dim: int, std: float, mean: float, value: float | None, unguided_value: float | None
) -> None:
    count = 20_000
    noise = noise_of(count, action_dim)
    unguided = sample(gaussian(0.0, std), SCHEDULE, no_feature(count), noise)
    target = sample(gaussian(0.0, std), SCHEDULE, no_feature(count), noise, guided(quadratic))
    assert target.mean().item() == pytest.approx(mean, abs=1e-3)
    if value is not None and unguided_value is not None:
        assert quadratic(noise, target).mean().item() == pytest.approx(value, abs=5e-4)
        # The unguided value varies by about sqrt(A) 0.5 0.245 per sample: five standard errors.
        assert quadratic(noise, unguided).mean().item() == pytest.approx(unguided_value, abs=0.013)


def test_more_rate_and_more_steps_reach_further() -> None:
    count = 2_000
    noise = noise_of(count, 8)

    def reached(**settings: object) -> float:
        guide = guided(lambda feature, action: action.sum(dim=-1), **settings)
        return sample(gaussian(-0.5, 0.3), SCHEDULE, no_feature(count), noise, guide).mean().item() + 0.5

    by_rate = [reached(rate=rate) for rate in (0.1, 0.35, 0.65, 0.95, 1.0)]
    # sqrt(8) times the mean displacement per coordinate along (1, ..., 1) / sqrt(8).
    assert [8**0.5 * move for move in by_rate] == pytest.approx([0.208, 0.892, 1.691, 1.898, 1.903], abs=0.03)
    by_steps = [reached(steps=steps) for steps in (5, 10, 15)]
    assert by_steps == sorted(by_steps)


@pytest.mark.parametrize("kind", ["dsg", "naive"])
def test_guided_actions_are_worth_more_under_random_critics(kind: Literal["dsg", "naive"]) -> None:
    for seed in range(5):
        networks = RandomNetworks(seed)
        count = 500
        feature = torch.randn(count, FEATURE_DIM, dtype=torch.float64)
        noise = noise_of(count, ACTION_DIM, seed)
        target, unguided = (
            networks.value(feature, sample(gaussian(0.0, 0.3), SCHEDULE, feature, noise, guide))
            for guide in (guided(networks.value, type=kind), None)
        )
        assert target.mean() > unguided.mean()
        if kind == "dsg":
            assert (target > unguided).double().mean() > 0.9


# --- what guidance must not depend on, and must leave alone -------------------------------------------------------


def test_both_gradient_paths_agree_where_the_denoiser_is_isotropic() -> None:
    """Through the denoiser the gradient is multiplied by k_t > 0 alone, and the step normalises it away."""
    noise = noise_of(32, 8)
    through, direct = (
        sample(gaussian(0.1, 0.3), SCHEDULE, no_feature(32), noise, guided(quadratic, through_denoiser=choice))
        for choice in (True, False)
    )
    torch.testing.assert_close(through, direct, rtol=0, atol=1e-5)


def test_gradient_through_the_denoiser_is_the_gradient_with_respect_to_the_noisy_action() -> None:
    """Against finite differences of the value of the predicted clean action, where nothing is clipped."""
    networks = RandomNetworks()
    step, x = 2, 0.2 * networks.noise[-1]

    def value_at(noisy_action: Tensor) -> Tensor:
        clean = reverse_mean(networks.denoiser, SCHEDULE, noisy_action, step, networks.feature).clean_action
        assert clean.abs().max() < 1
        return networks.value(networks.feature, clean)

    with torch.no_grad():
        columns = []
        for offset in 1e-6 * torch.eye(ACTION_DIM, dtype=torch.float64):
            columns.append((value_at(x + offset) - value_at(x - offset)) / 2e-6)
    config = GuidanceConfig()
    _, ascent = value_ascent(config, networks.value, networks.denoiser, SCHEDULE, x, step, networks.feature)
    torch.testing.assert_close(ascent, torch.stack(columns, dim=-1), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("settings", [{"type": "dsg"}, {"type": "naive", "naive_normalised": True}])
def test_the_scale_and_offset_of_the_value_change_nothing(settings: dict[str, object]) -> None:
    networks = RandomNetworks()
    base = networks.sample(guided(networks.value, **settings))
    scaled = networks.sample(guided(lambda feature, action: 7 * networks.value(feature, action) + 3, **settings))
    torch.testing.assert_close(scaled, base, rtol=0, atol=1e-5)  # the norm's floor, amplified by the chain
    assert (base - networks.sample(None)).abs().max() > 1e-3


def test_plain_naive_guidance_depends_on_the_scale_of_the_value() -> None:
    networks = RandomNetworks()
    base = networks.sample(guided(networks.value, type="naive"))
    scaled = networks.sample(guided(lambda feature, action: 7 * networks.value(feature, action), type="naive"))
    assert (base - scaled).abs().max() > 1e-3


@pytest.mark.parametrize("normalised", [False, True])
def test_naive_step_adds_the_scaled_gradient_to_an_ordinary_step(normalised: bool) -> None:
    step, x, noise = 4, noise_of(5, 2)[-1], noise_of(5, 2)[4]
    slope = torch.tensor([3.0, 4.0], dtype=torch.float64)
    guide = guided(
        lambda feature, action: action @ slope,
        type="naive",
        naive_scale=0.5,
        naive_normalised=normalised,
        through_denoiser=False,
        clip_grad="none",
    )
    assert isinstance(guide, NaiveGuide)
    mean = reverse_mean(gaussian(0.0, 0.3), SCHEDULE, x, step, no_feature(5), clip=False).mean
    sigma = SCHEDULE.sigma[step]
    shift = 0.5 * (2**0.5 * sigma * slope / 5 if normalised else sigma**2 * slope)
    after = guide.reverse_step(gaussian(0.0, 0.3), SCHEDULE, x, step, no_feature(5), noise)
    torch.testing.assert_close(after, mean + shift + sigma * noise, rtol=0, atol=1e-7)


def test_without_guided_steps_the_chain_is_the_unguided_one_bit_for_bit() -> None:
    networks = RandomNetworks()
    unguided = networks.sample(None)
    for steps in (0, 1):  # the last step is never guided
        assert torch.equal(networks.sample(make_guide(GuidanceConfig(steps=steps), networks.value)), unguided)
    assert not torch.equal(networks.sample(guided(networks.value, steps=2)), unguided)
    assert make_guide(GuidanceConfig(steps=0), networks.value) is None
    assert make_guide(GuidanceConfig(type="none"), networks.value) is None


@pytest.mark.parametrize("kind", ["dsg", "naive"])
@pytest.mark.parametrize("through_denoiser", [True, False])
def test_no_parameter_receives_a_gradient(kind: str, through_denoiser: bool) -> None:
    networks = RandomNetworks()
    modules: list[nn.Module] = [networks.denoiser, networks.critic]
    with torch.no_grad():  # as an algorithm may call it
        target = networks.sample(guided(networks.value, type=kind, through_denoiser=through_denoiser))
    assert all(parameter.grad is None for module in modules for parameter in module.parameters())
    assert not target.requires_grad


@pytest.mark.parametrize("kind", ["dsg", "naive"])
def test_rows_do_not_influence_each_other(kind: str) -> None:
    networks = RandomNetworks()
    guide = guided(networks.value, type=kind)
    rows = [slice(i, i + 1) for i in range(len(networks.feature))]
    one_by_one = [
        sample(networks.denoiser, SCHEDULE, networks.feature[row], networks.noise[:, row], guide) for row in rows
    ]
    torch.testing.assert_close(networks.sample(guide), torch.cat(one_by_one), rtol=0, atol=1e-9)


def test_single_precision_chain_is_finite_and_within_the_bounds_for_untrained_networks() -> None:
    schedule = make_noise_schedule("cosine", NUM_STEPS)
    torch.manual_seed(0)
    denoiser = Denoiser(1, FEATURE_DIM, (16,), NUM_STEPS)  # one dimension: the shell is two points
    feature = torch.randn(64, FEATURE_DIM)
    noise = draw_noise(schedule, 64, 1, torch.Generator().manual_seed(0))
    for scale in (0.0, 1e-6, 1e6):

        def value(feature: Tensor, action: Tensor, scale: float = scale) -> Tensor:
            return scale * action.sum(dim=-1)

        target = sample(denoiser, schedule, feature, noise, guided(value))
        assert target.isfinite().all()
        assert target.abs().max() <= 1


# --- clipping inside the guidance ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clip_grad", "expected"),
    [
        # ascent (1, 1, -1, 1): inside; outside and outward; outside and back inward; outside below and back inward
        ("projected", (1.0, 0.0, -1.0, 1.0)),
        ("hard", (1.0, 0.0, 0.0, 0.0)),
        ("ste", (1.0, 1.0, -1.0, 1.0)),
        ("none", (1.0, 1.0, -1.0, 1.0)),
    ],
)
def test_gradient_at_saturated_coordinates(
    clip_grad: Literal["projected", "hard", "ste", "none"], expected: tuple[float, ...]
) -> None:
    slope = torch.tensor([1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    policy_mean = torch.tensor([0.2, 1.5, 1.5, -1.5], dtype=torch.float64)
    seen: list[Tensor] = []

    def value(feature: Tensor, action: Tensor) -> Tensor:
        seen.append(action.detach())
        return action @ slope

    step = 3
    x = SCHEDULE.sqrt_alpha_bar[step] * policy_mean[None]  # where the predicted clean action is the policy's mean
    config = GuidanceConfig(clip_grad=clip_grad, through_denoiser=False)
    prediction, ascent = value_ascent(config, value, gaussian(policy_mean, 0.3), SCHEDULE, x, step, no_feature(1))
    torch.testing.assert_close(prediction.clean_action[0], policy_mean)
    assert ascent[0].tolist() == pytest.approx(expected)
    bounded = policy_mean if clip_grad == "none" else policy_mean.clamp(-1, 1)
    torch.testing.assert_close(seen[0][0], bounded)
    mean = SCHEDULE.clean_coefficient[step] * bounded + SCHEDULE.noisy_coefficient[step] * x
    torch.testing.assert_close(prediction.mean, mean)


def test_projection_frees_saturated_coordinates_and_wastes_nothing_on_stuck_ones() -> None:
    """Four of eight coordinates of the policy lie beyond the bounds.

    `hard` freezes them where the optimum lies inside; `ste` spends the step's fixed length on them where it lies
    outside; `projected` does neither.
    """
    count = 2_000
    policy = gaussian(torch.tensor([1.2] * 4 + [0.0] * 4, dtype=torch.float64), 0.3)
    noise = noise_of(count, 8)

    def outward(feature: Tensor, action: Tensor) -> Tensor:
        return 3 * action[:, :4].sum(dim=-1) + quadratic(feature, action[:, 4:])

    def reached(value: ValueFunction, clip_grad: str) -> float:
        target = sample(policy, SCHEDULE, no_feature(count), noise, guided(value, clip_grad=clip_grad))
        return value(no_feature(count), target).mean().item()

    inside = {rule: reached(quadratic, rule) for rule in ("projected", "hard", "ste")}
    assert inside["projected"] > -0.05 > inside["hard"] + 0.3
    assert inside["projected"] == pytest.approx(inside["ste"])
    outside = {rule: reached(outward, rule) for rule in ("projected", "hard", "ste")}
    assert outside["projected"] > outside["ste"] + 0.1
    assert outside["projected"] == pytest.approx(outside["hard"])
    assert math.isclose(outside["projected"], 12.0, abs_tol=0.02)  # the maximum
