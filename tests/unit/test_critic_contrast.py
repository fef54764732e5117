"""The critic contrast by hand, and that measuring it changes nothing of the run."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithms import make_algorithm, make_population
from learner.critic_contrast import critic_contrast
from learner.diffusion import Diffusion
from learner.noise import Noise
from policy.encoder import EncoderInput
from tests.oracles import make_specs, small_config

SPECS = make_specs(3, 2)


def probe_states(*leading: int) -> Tensor:
    return torch.randn(*leading, 3, generator=torch.Generator().manual_seed(0))


def test_contrast_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of the samples (1, 2, 6) and (0, 0, 3), of the guided actions 7 and -1."""
    diffusion = Diffusion(Agents.single(small_config(kernels="plain")), action_dim=1)
    monkeypatch.setattr(
        diffusion, "candidates", lambda *_: torch.tensor([[[0.1], [0.2], [0.6]], [[0.0], [0.0], [0.3]]])
    )

    def critic(feature: Tensor, action: Tensor) -> Tensor:
        return 10 * action[..., None]

    guided = torch.tensor([[0.7], [-0.1]])
    network: Any = critic
    noise = Noise([0], is_population=False)
    result = critic_contrast(diffusion, network, network, torch.zeros(2, 3), noise, 3, guided)
    assert result["contrast"].item() == pytest.approx((3 + 2) / 2)
    assert result["guided_contrast"].item() == pytest.approx((4 - 2) / 2)
    assert result["value_std"].item() == pytest.approx(torch.tensor([1.0, 2, 6, 0, 0, 3]).std().item())
    assert "guided_contrast" not in critic_contrast(diffusion, network, network, torch.zeros(2, 3), noise, 3)


@pytest.mark.parametrize("name", ["cgpo", "qvpo", "dipo"])
def test_each_agents_contrast_is_its_own_and_measuring_leaves_no_trace(name: str) -> None:
    config = small_config(algorithm=name)
    configs = [replace(config, seed=seed) for seed in (4, 7)]
    together: Any = make_population(configs, SPECS)
    before = together.state()
    probe = probe_states(2, 20)
    measured = together.contrast(EncoderInput(probe), Noise([1, 2], is_population=True), num_candidates=5)
    assert measured.keys() == {"contrast", "value_std"} | ({"guided_contrast"} if name == "cgpo" else set())
    after = together.state()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert (measured["contrast"] > 0).all()
    for index, own in enumerate(configs):
        alone: Any = make_algorithm(own, SPECS)
        noise = Noise([index + 1], is_population=False)
        for key, value in alone.contrast(EncoderInput(probe[index]), noise, num_candidates=5).items():
            torch.testing.assert_close(measured[key][index], value, rtol=1e-3, atol=1e-5)


def test_the_guided_action_is_above_the_mean_and_more_candidates_reach_higher() -> None:
    algorithm: Any = make_algorithm(small_config(), SPECS)
    for weight in algorithm._critic.weights:
        weight.data.mul_(4)
    probe = EncoderInput(probe_states(50))
    few, many = (algorithm.contrast(probe, Noise([0], is_population=False), count) for count in (2, 32))
    assert few["guided_contrast"] > 0
    assert many["contrast"] > 1.5 * few["contrast"]
