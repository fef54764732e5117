"""The sampler fed with exact denoisers: what the reverse process makes of known distributions, in closed form."""

import pytest
import torch
from torch import Tensor

from policy.denoiser import Denoiser
from policy.noise_schedule import make_noise_schedule
from policy.sampler import best_of, draw_noise, reverse_mean, sample
from tests.oracles import SCHEDULE, ClosedFormDenoiser, gaussian, gaussian_gain, point_and_uniform, two_points

NUM_STEPS = SCHEDULE.num_steps
# Standard deviation of a Gaussian policy -> of its samples: the posterior variance is too small for a Gaussian prior.
SAMPLED_STD = {
    0.05: 0.022798,
    0.1: 0.064365,
    0.2: 0.153046,
    0.3: 0.244962,
    0.5: 0.432302,
    0.6: 0.526428,
    1.0: 0.900995,
}


def no_feature(rows: int) -> Tensor:
    return torch.zeros(rows, 0, dtype=torch.float64)


def noise_of(rows: int, action_dim: int, seed: int = 0) -> Tensor:
    return draw_noise(SCHEDULE, rows, action_dim, torch.Generator().manual_seed(seed)).double()


def test_exact_noise_and_clean_action_of_a_gaussian_policy() -> None:
    x = torch.full((1, 1), 0.5, dtype=torch.float64)
    denoiser = gaussian(mean=0.2, std=0.3)
    assert gaussian_gain(9, 0.3).item() == pytest.approx(0.1148680301, abs=1e-7)
    assert denoiser(x, 9, no_feature(1)).item() == pytest.approx(0.4644566801, abs=1e-7)
    prediction = reverse_mean(denoiser, SCHEDULE, x, 9, no_feature(1))
    assert prediction.clean_action.item() == pytest.approx(0.2412895418, abs=1e-7)
    # c1_10 x0_hat + c2_10 x with the printed coefficients
    assert prediction.mean.item() == pytest.approx(0.203013 * 0.2412895418 + 0.786893 * 0.5, abs=1e-6)


def test_clean_action_is_clipped_inside_the_mean_only() -> None:
    x = torch.full((1, 1), 3.0, dtype=torch.float64)
    denoiser = gaussian(mean=1.5, std=0.3)
    clipped = reverse_mean(denoiser, SCHEDULE, x, 9, no_feature(1))
    literal = reverse_mean(denoiser, SCHEDULE, x, 9, no_feature(1), clip=False)
    assert clipped.clean_action.item() == literal.clean_action.item() > 1
    coefficient = SCHEDULE.clean_coefficient[9].item()
    assert (literal.mean - clipped.mean).item() == pytest.approx(coefficient * (clipped.clean_action.item() - 1))


@pytest.mark.parametrize("std", SAMPLED_STD)
def test_chain_of_a_gaussian_policy_follows_its_recursion(std: float) -> None:
    """Each step maps x to an affine function of x, so mean and variance of the chain are exact without any sampling."""
    denoiser = gaussian(mean=0.5, std=std)
    mean, variance = 0.0, 1.0
    for step in reversed(range(NUM_STEPS)):
        probes = torch.tensor([[0.0], [1.0], [mean]], dtype=torch.float64)
        at_zero, at_one, mean = reverse_mean(denoiser, SCHEDULE, probes, step, no_feature(3), clip=False).mean[:, 0]
        variance = (at_one - at_zero) ** 2 * variance + SCHEDULE.sigma[step] ** 2
    assert float(mean) == pytest.approx(0.5, abs=5e-6)
    assert float(variance) ** 0.5 == pytest.approx(SAMPLED_STD[std], abs=1e-6)


@pytest.mark.parametrize("std", [0.1, 0.3])  # wide policies are clipped at the bounds
def test_samples_of_a_gaussian_policy_have_the_chains_moments(std: float) -> None:
    count = 20_000
    samples = sample(gaussian(0.2, std), SCHEDULE, no_feature(count), noise_of(count, 1))
    expected = SAMPLED_STD[std]
    # Five standard errors.
    assert samples.mean().item() == pytest.approx(0.2, abs=5 * expected / count**0.5)
    assert samples.std().item() == pytest.approx(expected, rel=5 / (2 * count) ** 0.5)


@pytest.mark.parametrize("num_steps", [2, 5, 20])
def test_a_point_mass_is_reached_exactly(num_steps: int) -> None:
    schedule = make_noise_schedule("cosine", num_steps)
    action = torch.tensor([0.3, -0.9, 1.0])
    denoiser = ClosedFormDenoiser(lambda x, step, feature: action.expand_as(x), schedule)
    noise = draw_noise(schedule, 8, 3, torch.Generator().manual_seed(0))
    samples = sample(denoiser, schedule, torch.zeros(8, 0), noise)
    torch.testing.assert_close(samples, action.expand(8, 3), rtol=0, atol=1e-6)  # float32


def test_a_silent_network_gives_finite_actions_within_the_bounds() -> None:
    schedule = make_noise_schedule("cosine", 20)
    noise = draw_noise(schedule, 64, 3, torch.Generator().manual_seed(0))
    first, again = (
        sample(lambda noisy_action, step, feature: 0 * noisy_action, schedule, torch.zeros(64, 0), noise)
        for _ in range(2)
    )
    assert torch.equal(first, again)
    assert first.isfinite().all()
    assert first.abs().max() <= 1


def test_two_points_are_sampled_in_proportion_to_their_weights() -> None:
    count = 20_000
    samples = sample(two_points(-0.6, 0.4, second_weight=0.7), SCHEDULE, no_feature(count), noise_of(count, 1))
    is_first, is_second = (samples + 0.6).abs() < 0.05, (samples - 0.4).abs() < 0.05
    assert (is_first | is_second).double().mean() > 0.99
    # Loose: the posterior-variance sampler is not exact. Measured 0.714.
    assert is_second.double().mean().item() == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize(
    ("uniform_mass", "near_target", "std"),
    # concat with N_e lambda = 0.2, and mean with lambda = 0.02
    [(0.2 / 1.2, 0.868, 0.251), (0.02 / 1.02, 0.989, 0.073)],
)
def test_share_of_random_actions_under_each_entropy_reduction(
    uniform_mass: float, near_target: float, std: float
) -> None:
    """The optimum of the weighted regression, sampled: the 20-step sampler thins the uniform part out."""
    count = 20_000
    denoiser = point_and_uniform(point=0.5, uniform_mass=uniform_mass)
    samples = sample(denoiser, SCHEDULE, no_feature(count), noise_of(count, 1))
    share = ((samples - 0.5).abs() < 0.05).double().mean().item()
    assert share == pytest.approx(near_target, abs=0.01)  # 4 standard errors of the first share
    assert samples.std().item() == pytest.approx(std, abs=0.01)


def test_noise_of_a_step_drives_that_step_and_the_last_one_starts_the_chain() -> None:
    denoiser = gaussian(0.0, 1.0)
    noise = torch.zeros(NUM_STEPS + 1, 1, 1, dtype=torch.float64)
    assert sample(denoiser, SCHEDULE, no_feature(1), noise).item() == 0
    for entry in range(NUM_STEPS + 1):
        # What the affine rest of the chain leaves of a disturbance of 0.1 standard deviations.
        expected = 0.1 * (1.0 if entry == NUM_STEPS else SCHEDULE.sigma[entry].item())
        for step in reversed(range(entry)):
            slope = SCHEDULE.clean_coefficient[step] * gaussian_gain(step, 1.0) + SCHEDULE.noisy_coefficient[step]
            expected *= slope.item()
        noise[entry] = 0.1
        assert sample(denoiser, SCHEDULE, no_feature(1), noise).item() == pytest.approx(expected, abs=1e-12)
        noise[entry] = 0


def test_drawn_noise_is_reproducible_and_covers_start_and_every_step() -> None:
    first, again = (draw_noise(SCHEDULE, 3, 2, torch.Generator().manual_seed(4)) for _ in range(2))
    assert first.shape == (NUM_STEPS + 1, 3, 2)
    assert torch.equal(first, again)


def test_rows_are_independent_and_samples_carry_no_gradient() -> None:
    torch.manual_seed(0)
    schedule = make_noise_schedule("cosine", 6)
    denoiser = Denoiser(action_dim=2, feature_dim=3, hidden=(16,), num_steps=6)
    feature = torch.randn(4, 3)
    noise = draw_noise(schedule, 4, 2, torch.Generator().manual_seed(0))
    together = sample(denoiser, schedule, feature, noise)
    one_by_one = [sample(denoiser, schedule, feature[i : i + 1], noise[:, i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(one_by_one))
    assert not together.requires_grad


def test_best_candidate_is_chosen_within_its_own_state() -> None:
    candidates = torch.arange(12.0).view(2, 3, 2)  # two states, three candidates
    values = torch.tensor([[0.0, 2.0, 1.0], [5.0, 3.0, 4.0]])
    assert best_of(candidates, values).tolist() == [[2.0, 3.0], [6.0, 7.0]]
