"""What a CUDA graph asks of an update, tested without a GPU.

On PyTorch's meta device tensors have shapes and no values: an update that reads one, whose shapes depend on one, or
that mixes in a tensor of the CPU, fails there as its capture would. Tensors that a graph goes on using must also stay
where they are, which is tested on the CPU, as the warm-up is.
"""

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from learner import agents
from learner.agents import PopulationAdam
from learner.algorithms import make_algorithm, make_population
from learner.algorithms.guarded_adam import GuardedAdam
from learner.noise import Noise
from learner.tensor_replay import TensorReplay
from policy.encoder import EncoderInput
from tests.oracles import make_specs, merged, small_config, with_gripper

F, A, BATCH = 3, 2, 8
POPULATIONS = pytest.mark.parametrize("num_agents", [None, 2])
CAPTURED = ("cgpo", "sac", "td3", "tqc", "qvpo", "dipo")
CGPO_SWITCHES: dict[str, dict[str, Any]] = {
    "naive": {"cgpo": {"guidance": {"type": "naive", "naive_normalised": True}, "vbase": "zero"}},
    "unguided": {"cgpo": {"guidance": {"type": "none", "best_of": 3}, "vbase": "sampled"}},
    "at the clean action": {"cgpo": {"guidance": {"through_denoiser": False, "clip_grad": "hard"}, "cta_ratio": 2}},
    "unclipped": {"cgpo": {"guidance": {"clip_grad": "none"}, "shared_prefix": False, "human_targets": True}},
    "target critic": {"cgpo": {"critic": {"ddqn": False, "target_truncation": "per_net"}, "vbase_critic": "target"}},
    "mean": {"cgpo": {"weight_norm": "mean", "entropy_reduction": "mean", "entropy_anneal_steps": 0, "grad_clip": 1.0}},
    "scalar": {
        "policy": {"num_quantiles": 1, "drop_quantiles": 0},
        "cgpo": {"critic": {"type": "twin_scalar", "target_candidates": 1}},
    },
}
CASES: dict[str, dict[str, Any]] = {name: {"algorithm": name} for name in CAPTURED} | CGPO_SWITCHES
CASES["dipo"] |= {"dipo": {"write_back": True}, "replay": {"capacity": 100}}


def make(settings: dict[str, Any], num_agents: int | None, device: str, has_gripper: bool = False) -> Any:
    """Return an algorithm and what it learns from."""
    config = small_config(**merged({"policy": {"denoising_steps": 4}}, settings), device=device)
    specs = with_gripper(make_specs(F, A - 1)) if has_gripper else make_specs(F, A)
    if num_agents is None:
        algorithm = make_algorithm(config, specs)
    else:
        algorithm = make_population([replace(config, seed=seed) for seed in range(num_agents)], specs)
    replay = TensorReplay(num_agents, 100, F, A, device)
    leading = () if num_agents is None else (num_agents,)
    for _ in range(20):
        step = (torch.rand(*leading, F), 2 * torch.rand(*leading, A) - 1, torch.rand(leading))
        replay.add(*step, torch.rand(*leading, F), torch.zeros(leading))
    noise = (MetaNoise if device == "meta" else Noise)(
        range(num_agents or 1), device, is_population=num_agents is not None
    )
    return algorithm, lambda: replay.sample(BATCH, noise)


class MetaNoise(Noise):
    """Noise without values, which has no generators."""

    def __init__(self, seeds: Any, device: Any = "cpu", *, is_population: bool) -> None:
        self.generators = [None for _ in seeds]  # type: ignore[misc]
        self._device = device
        self._is_population = is_population


class NothingFromTheHost(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails on an operation with a tensor that is not on the meta device: a graph would repeat its present values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            assert not isinstance(leaf, Tensor) or leaf.device.type == "meta", f"{func} of a tensor on {leaf.device}"
        return result


@pytest.fixture
def meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "Noise", MetaNoise)
    # The fused kernel is there for meta tensors, its caller does not expect them.
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)


@pytest.mark.parametrize(("case", "num_agents"), [*((case, None) for case in CASES), *((name, 2) for name in CAPTURED)])
@pytest.mark.usefixtures("meta_device")
def test_no_value_is_read_and_none_comes_from_the_host(case: str, num_agents: int | None) -> None:
    algorithm, sample_batch = make(CASES[case], num_agents, "meta")
    with NothingFromTheHost():
        metrics = algorithm.update_step(sample_batch)
    assert {tensor.shape for tensor in metrics.values()} == {torch.Size(() if num_agents is None else (num_agents,))}


@pytest.mark.usefixtures("meta_device")
def test_a_gripper_changes_nothing_about_it() -> None:
    algorithm, sample_batch = make({}, None, "meta", has_gripper=True)
    with NothingFromTheHost():
        algorithm.update_step(sample_batch)


@pytest.mark.parametrize("name", [*CAPTURED, "bc"])
@pytest.mark.usefixtures("meta_device")
def test_acting_needs_nothing_from_the_host(name: str) -> None:
    algorithm, _ = make({"algorithm": name}, None, "meta")
    feature, noise = EncoderInput(torch.zeros(4, F, device="meta")), MetaNoise([0], "meta", is_population=False)
    with NothingFromTheHost():
        actions = [algorithm.explore(feature, noise), algorithm.exploit(feature, noise, 3)]
    assert [action.shape for action in actions] == [(4, A), (4, A)]


@pytest.mark.usefixtures("meta_device")
def test_the_tests_above_can_fail() -> None:
    value = torch.ones(3, device="meta")
    with pytest.raises(RuntimeError):
        float(value.sum())
    with pytest.raises((RuntimeError, NotImplementedError)):
        value[value > 0]
    with pytest.raises((RuntimeError, AssertionError)), NothingFromTheHost():
        value + torch.ones(3)
    with pytest.raises(AssertionError), NothingRead():
        float(torch.ones(3).sum())
    with pytest.raises(AssertionError), NothingRead():
        torch.tensor([1.0, 2.0, 3.0])


# --- on the CPU ---------------------------------------------------------------------------------------------------


class NothingRead(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where Python asks for a value, or makes a tensor of numbers: on a GPU both are copies that wait."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        copies = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default)
        assert func not in copies, f"{func} between host and device"
        return func(*args, **(kwargs or {}))


def test_the_warm_up_is_asked_for_until_it_is_over_and_then_no_more() -> None:
    algorithm, sample_batch = make({"cgpo": {"bc_warmup_steps": 2}}, None, "cpu")
    for _ in range(2):
        assert algorithm.is_warming_up()
        algorithm.update_step(sample_batch)
    begun = algorithm.state()
    assert not algorithm.is_warming_up()
    with NothingRead():
        algorithm.update_step(sample_batch)
        assert not algorithm.is_warming_up()
    begun["actor_updates"].fill_(1)
    algorithm.load_state(begun)
    assert algorithm.is_warming_up()


def persistent_tensors(algorithm: Any) -> dict[str, Tensor]:
    """Return everything that an update finds again in the next one, by name."""
    tensors: dict[str, Tensor] = {}
    for name, part in algorithm._parts().items():
        if isinstance(part, Tensor):
            tensors[name] = part
        elif isinstance(part, nn.Module):
            tensors |= {f"{name}.{key}": value for key, value in part.state_dict(keep_vars=True).items()}
        elif isinstance(part, GuardedAdam | PopulationAdam):
            for index, optimiser in enumerate(part.members if isinstance(part, PopulationAdam) else [part]):
                tensors[f"{name}.{index}.counters"] = optimiser.counters()
                for number, moments in enumerate(optimiser.state.values()):
                    tensors |= {f"{name}.{index}.{number}.{key}": value for key, value in moments.items()}
    return tensors


@POPULATIONS
@pytest.mark.parametrize("name", CAPTURED)
def test_what_outlives_an_update_stays_where_it_is(name: str, num_agents: int | None) -> None:
    algorithm, sample_batch = make({"algorithm": name}, num_agents, "cpu")
    algorithm.update_step(sample_batch)
    tensors = persistent_tensors(algorithm)
    assert len(tensors) > 20
    places = {key: tensor.data_ptr() for key, tensor in tensors.items()}
    values = {key: tensor.clone() for key, tensor in tensors.items()}
    with NothingRead():
        for _ in range(2):
            algorithm.update_step(sample_batch)
    after = persistent_tensors(algorithm)
    assert {key: tensor.data_ptr() for key, tensor in after.items()} == places
    assert sum(not torch.equal(after[key], value) for key, value in values.items()) > len(values) / 2
