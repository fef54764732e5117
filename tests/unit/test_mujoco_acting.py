"""Decisions of the MuJoCo benchmark: those of the algorithm, and fit to be captured as a CUDA graph."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.mujoco.acting import Acting
from learner.agents import Agents
from learner.algorithms import make_algorithm, make_population
from learner.noise import Noise
from policy.encoder import EncoderInput
from tests.oracles import make_specs, small_config

F, A, B = 3, 2, 4
ALGORITHMS = ("cgpo", "sac", "td3", "tqc", "qvpo", "dipo")
POPULATIONS = pytest.mark.parametrize("num_agents", [None, 2])
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device here")


def make(name: str, num_agents: int | None, device: str, **settings: Any) -> tuple[Any, Agents]:
    config = replace(small_config(algorithm=name), device=device, **settings)
    configs = [replace(config, seed=seed) for seed in range(num_agents or 1)]
    specs = make_specs(F, A)
    algorithm = make_algorithm(config, specs) if num_agents is None else make_population(configs, specs)
    return algorithm, Agents(configs, is_population=num_agents is not None)


class MetaNoise(Noise):
    """Noise without values, which has no generators."""

    def __init__(self, seeds: Any, device: Any, *, is_population: bool) -> None:
        self.generators = [None for _ in seeds]  # type: ignore[misc]
        self._device, self._is_population = device, is_population


@POPULATIONS
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_decision_reads_nothing_back_from_the_device(
    name: str, num_agents: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On the meta device a tensor has no values: what reads one, or depends on one, fails as its capture would.
    monkeypatch.setattr("learner.agents.Noise", MetaNoise)
    algorithm, agents = make(name, num_agents, "meta")
    observation = EncoderInput(torch.empty(*agents.leading, B, F, device="meta"))
    for action in (
        algorithm.explore(observation, agents.noise(10)),
        algorithm.exploit(observation, agents.noise(10), 3),
    ):
        assert action.shape == (*agents.leading, B, A)
        assert action.device.type == "meta"


@POPULATIONS
@pytest.mark.parametrize("name", ["cgpo", "sac"])
def test_decisions_are_the_algorithms_own_and_repeat_after_a_reseed(name: str, num_agents: int | None) -> None:
    algorithm, agents = make(name, num_agents, "cpu")
    acting = Acting(algorithm.explore, agents, agents.noise(10))
    observation = np.random.default_rng(0).normal(size=(num_agents or 1, B, F)).astype(np.float32)
    first, second = acting(observation), acting(observation)
    vector = torch.from_numpy(observation).reshape(*agents.leading, B, F)
    expected = algorithm.explore(EncoderInput(vector), agents.noise(10))
    np.testing.assert_array_equal(first, expected.reshape(num_agents or 1, B, A).numpy())
    assert (first != second).any()
    acting.reseed([seed * 1000 + 10 for seed in range(num_agents or 1)])
    np.testing.assert_array_equal(acting(observation), first)


@needs_gpu
@POPULATIONS
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_graph_decides_as_single_calls_do(name: str, num_agents: int | None) -> None:
    algorithm, agents = make(name, num_agents, "cuda")
    single_calls, _ = make(name, num_agents, "cuda", cuda_graph="off")
    rng = np.random.default_rng(0)
    decide = partial(algorithm.exploit, candidates=3)
    graphed = Acting(decide, agents, agents.noise(10))
    plain = Acting(partial(single_calls.exploit, candidates=3), agents, agents.noise(10))
    plain._may_capture = False
    for step in range(12):
        if step == 8:
            for acting in (graphed, plain):
                acting.reseed(range(num_agents or 1))
        observation = rng.normal(size=(num_agents or 1, B, F)).astype(np.float32)
        np.testing.assert_allclose(graphed(observation), plain(observation), rtol=1e-4, atol=1e-5)
    assert graphed._graph is not None
