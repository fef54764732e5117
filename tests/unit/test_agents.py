"""A population is its members: their networks, their noise, their optimisers, side by side."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learner.agents import Agents, PopulationAdam, tensors_of
from learner.config import LearnerConfig
from policy.denoiser import Denoiser
from policy.errors import ConfigError
from tests.oracles import small_config

CONFIGS = [replace(small_config(), seed=seed) for seed in (3, 8, 9)]


def make_denoiser() -> Denoiser:
    return Denoiser(2, 3, (16, 16), num_steps=5, time_embedding_dim=8)


def population(configs: list[LearnerConfig] = CONFIGS) -> Agents:
    return Agents(configs, is_population=True)


def test_each_member_has_the_networks_and_the_noise_of_its_own_seed() -> None:
    together = population()
    networks = [together.network(make_denoiser) for _ in range(2)]
    noise = together.noise(purpose=4)
    normal, uniform = noise.normal(5, 2), noise.uniform(7)
    integers, chains = noise.integers(20, 9), noise.chains(num_steps=5, rows=4, action_dim=2)
    for index, config in enumerate(CONFIGS):
        alone = Agents.single(config)
        for network in networks:
            expected = alone.network(make_denoiser)
            for name, tensor in tensors_of(expected).items():
                assert torch.equal(tensors_of(network)[name][index], tensor)
        own = alone.noise(purpose=4)
        assert torch.equal(normal[index], own.normal(5, 2))
        assert torch.equal(uniform[index], own.uniform(7))
        assert torch.equal(integers[index], own.integers(20, 9))
        assert torch.equal(chains[:, index], own.chains(num_steps=5, rows=4, action_dim=2))


def test_a_population_computes_and_learns_what_its_members_do_alone() -> None:
    agents = population()
    together = agents.network(make_denoiser)
    alone = [Agents.single(config).network(make_denoiser) for config in CONFIGS]
    noisy, feature = torch.randn(3, 10, 2), torch.randn(3, 10, 3)
    step = torch.randint(5, (3, 10))
    for level in (2, step):
        result = together(noisy, level, feature)
        for index, network in enumerate(alone):
            own_level = level if isinstance(level, int) else level[index]
            torch.testing.assert_close(result[index], network(noisy[index], own_level, feature[index]))
    optimiser = agents.optimiser(together.parameters(), lambda config: config.cgpo.actor_learning_rate)
    own_optimisers = [
        Agents.single(c).optimiser(n.parameters(), lambda c: c.cgpo.actor_learning_rate)
        for c, n in zip(CONFIGS, alone, strict=True)
    ]

    def loss(network: nn.Module, *inputs: Tensor) -> Tensor:
        predicted: Tensor = network(*inputs)
        return predicted.square().mean(dim=(-2, -1))

    for _ in range(5):
        optimiser.descend(loss(together, noisy, step, feature), max_norm=0.1)
        for index, (network, own) in enumerate(zip(alone, own_optimisers, strict=True)):
            own.descend(loss(network, noisy[index], step[index], feature[index]), max_norm=0.1)
    for index, network in enumerate(alone):
        for name, tensor in tensors_of(network).items():
            torch.testing.assert_close(tensors_of(together)[name][index], tensor, rtol=0, atol=1e-6)


def test_an_agent_whose_step_is_not_finite_holds_up_nobody() -> None:
    together = population().network(make_denoiser)
    before = copy.deepcopy(tensors_of(together))
    optimiser = PopulationAdam(together.parameters(), [0.1, 0.1, 0.1], eps=1e-8)
    scale = torch.tensor([1.0, torch.nan, 1.0])
    loss = scale * together(torch.ones(3, 4, 2), 1, torch.ones(3, 4, 3)).square().mean(dim=(-2, -1))
    optimiser.descend(loss)
    for name, tensor in together.stacked.named_parameters():
        assert torch.equal(tensor[1], before[name][1])
        assert tensor.isfinite().all()
    last = "trunk.2.bias"
    assert not torch.equal(tensors_of(together)[last][0], before[last][0])
    assert not torch.equal(tensors_of(together)[last][2], before[last][2])


def test_agents_may_differ_in_settings_that_are_read_for_each() -> None:
    gentle, bold = (small_config(cgpo={"discount": discount}) for discount in (0.9, 0.99))
    setting = population([gentle, bold]).setting(lambda config: config.cgpo.discount, num_axes=1)
    assert isinstance(setting, Tensor)
    torch.testing.assert_close(setting, torch.tensor([[0.9], [0.99]]))
    assert population([gentle, gentle]).setting(lambda config: config.cgpo.discount, num_axes=1) == 0.9


def test_several_configurations_are_no_single_agent() -> None:
    with pytest.raises(ConfigError, match="3 configurations"):
        Agents(CONFIGS, is_population=False)


def test_a_population_of_different_shapes_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"agents 0 and 1 .* learner.policy.num_critics: 2 and 3"):
        population([small_config(), small_config(policy={"num_critics": 3})])


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("cgpo", {"classifier": {"learning_rate": 0.1}}),  # by its name a learning rate, but nobody's own
        ("cgpo", {"sac": {"discount": 0.9}}),
        ("sac", {"cgpo": {"discount": 0.9}}),
        ("sac", {"sac": {"initial_temperature": 0.3}}),
    ],
)
def test_a_setting_that_is_not_read_for_each_agent_is_the_same_for_all(name: str, table: dict[str, Any]) -> None:
    ((section, fields),) = table.items()
    (field,) = fields
    with pytest.raises(ConfigError, match=rf"differ in learner\.{section}\.{field}: .* may differ in seed, {name}\."):
        population([small_config(algorithm=name), small_config(algorithm=name, **table)])
