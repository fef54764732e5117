"""The noise schedule against printed values and the identities that any schedule satisfies."""

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policy.noise_schedule import make_noise_schedule

KINDS: tuple[Literal["cosine", "vp"], ...] = ("cosine", "vp")

# t: beta, alpha_bar, sigma, clean_coefficient, noisy_coefficient of the cosine schedule, T = 20, computed in float64.
COSINE_20 = {
    1: (0.007993, 0.99200728, 0.0, 1.0, 0.0),
    2: (0.020075, 0.97209274, 0.075826, 0.716466, 0.283514),
    3: (0.032254, 0.94073900, 0.123244, 0.536620, 0.463264),
    5: (0.057520, 0.84701216, 0.195152, 0.356428, 0.642781),
    9: (0.117304, 0.57152668, 0.310661, 0.220293, 0.772979),
    10: (0.135922, 0.49384359, 0.339207, 0.203013, 0.786893),
    11: (0.156997, 0.41631159, 0.368976, 0.189019, 0.796193),
    15: (0.289725, 0.14427210, 0.519423, 0.152591, 0.784819),
    19: (0.748476, 0.00605964, 0.857261, 0.116883, 0.492423),
    20: (0.999000, 0.00000606, 0.996470, 0.077766, 0.031431),
}


@pytest.mark.parametrize("t", COSINE_20)
def test_cosine_schedule_has_its_printed_values(t: int) -> None:
    schedule = make_noise_schedule("cosine", 20)
    names = ("beta", "alpha_bar", "sigma", "clean_coefficient", "noisy_coefficient")
    for name, printed in zip(names, COSINE_20[t], strict=True):
        digits = 8 if name == "alpha_bar" else 6
        half_a_digit, float32_rounding = 0.5 * 10**-digits, 2**-24
        assert getattr(schedule, name)[t - 1].item() == pytest.approx(printed, abs=half_a_digit + float32_rounding)


def test_the_first_reverse_step_multiplies_the_denoisers_error_by_406() -> None:
    schedule = make_noise_schedule("cosine", 20)
    assert 1 / schedule.sqrt_alpha_bar[-1].item() == pytest.approx(406.2341, abs=1e-4)  # half a digit and rounding


def test_vp_schedule_has_its_closed_form() -> None:
    t = torch.arange(1, 21, dtype=torch.float64) / 20
    expected = torch.exp(-0.1 * t - 0.5 * (10 - 0.1) * t**2)  # the integral of beta from 0.1 to 10
    torch.testing.assert_close(make_noise_schedule("vp", 20).alpha_bar.double(), expected, rtol=1e-6, atol=0)


@given(kind=st.sampled_from(KINDS), num_steps=st.integers(2, 200))
def test_a_reverse_step_from_the_true_action_lands_on_the_forward_process(
    kind: Literal["cosine", "vp"], num_steps: int
) -> None:
    """q(x_{t-1} | a) = integral of p(x_{t-1} | x_t, a) q(x_t | a): the mean's and the variance's factor agree."""
    schedule = make_noise_schedule(kind, num_steps)
    previous_alpha_bar = torch.cat([torch.ones(1), schedule.alpha_bar[:-1]])
    mean = schedule.clean_coefficient + schedule.noisy_coefficient * schedule.sqrt_alpha_bar
    variance = schedule.noisy_coefficient**2 * (1 - schedule.alpha_bar) + schedule.sigma**2
    # A few float32 roundings of numbers up to 1.
    torch.testing.assert_close(mean, previous_alpha_bar.sqrt(), rtol=0, atol=1e-6)
    torch.testing.assert_close(variance, 1 - previous_alpha_bar, rtol=0, atol=1e-6)
    assert schedule.sigma[0] == 0
    assert schedule.num_steps == num_steps


def test_noised_actions_have_mean_sqrt_alpha_bar_a_and_variance_one_minus_alpha_bar() -> None:
    schedule = make_noise_schedule("cosine", 20)
    action = torch.tensor([[0.5, -1.0], [0.5, -1.0], [0.25, 0.75]])
    step = torch.tensor([0, 9, 19])  # each row its own level
    mean = schedule.add_noise(action, step, torch.zeros(3, 2))
    unit = schedule.add_noise(torch.zeros(3, 2), step, torch.ones(3, 2))
    alpha_bar = torch.tensor([[COSINE_20[t][1]] for t in (1, 10, 20)])
    # The printed alpha_bar_20 has three digits.
    torch.testing.assert_close(mean, alpha_bar.sqrt() * action, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(unit**2, (1 - alpha_bar).expand(3, 2), rtol=1e-5, atol=1e-7)
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(schedule.add_noise(action, step, noise), mean + unit * noise)
