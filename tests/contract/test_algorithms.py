"""What every algorithm promises the trainer and the actor. A new algorithm is covered once it is registered."""

import logging
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from learner.agents import variable_settings
from learner.algorithms import ALGORITHMS, make_algorithm, make_population
from learner.algorithms.base import Algorithm, Metrics
from learner.algorithms.guarded_adam import GuardedAdam
from learner.config import LearnerConfig
from learner.kernels.fast import FastKernels
from learner.noise import Noise
from learner.replay import Batch
from policy.acting import ActingPolicy
from policy.config import PolicyConfig
from policy.encoder import EncoderInput
from policy.errors import ConfigError, WeightsError
from tests.oracles import make_specs, merged, random_batch, small_config, with_gripper

SPECS = make_specs(feature_dim=3, action_dim=2)
GRIPPER_SPECS = with_gripper(SPECS)
BANDIT_SPECS = make_specs(feature_dim=1, action_dim=1)

POPULATIONS = sorted(ALGORITHMS.keys() - {"bc", "hil_serl_sac"})  # those train one agent at a time

WIDE = {f"{network}_hidden": [32, 32] for network in ("denoiser", "critic", "gaussian", "deterministic")}
GENTLE = {"actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3, "tune_temperature": False}
FAST: dict[str, Any] = {
    "policy": WIDE,
    "cgpo": {
        "entropy_samples": 10,
        "actor_learning_rate": 3e-3,
        "value_learning_rate": 3e-3,
        "critic": {"learning_rate": 3e-3, "target_candidates": 1},
    },
    "hil_serl_sac": GENTLE,
    "sac": {**GENTLE, "initial_temperature": 1e-2},
    "tqc": {**GENTLE, "initial_temperature": 1e-2},
    "td3": {"actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3},
    "bc": {"learning_rate": 3e-3, "target_update_rate": 0.05},
}


def build(name: str, **settings: Any) -> Algorithm:
    return make_algorithm(small_config(algorithm=name, **settings), SPECS)


def train(algorithm: Algorithm, steps: int, first_seed: int = 0) -> list[Metrics]:
    """Do `steps` learner steps on the same batches whenever the first seed is the same."""
    seeds = iter(range(first_seed, first_seed + 1000))
    return [algorithm.update_step(lambda: random_batch(8, 3, 2, next(seeds))) for _ in range(steps)]


def assert_identical(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [
        name for name in left if left[name].dtype != right[name].dtype or not torch.equal(left[name], right[name])
    ]
    assert not different


@pytest.fixture(params=sorted(ALGORITHMS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_metrics_are_finite_scalars_of_the_same_names_at_every_step(name: str) -> None:
    metrics = train(build(name), 3)
    for step in metrics:
        assert step.keys() == metrics[0].keys()
        for value in step.values():
            assert np.ndim(value) == 0
            assert np.isfinite(float(value))
            assert not isinstance(value, Tensor) or not value.requires_grad


def test_metrics_of_a_single_row_are_finite_too(name: str) -> None:
    """NaN is no JSON."""
    metrics = build(name).update_step(lambda: random_batch(1, 3, 2, seed=1))
    assert not [key for key, value in metrics.items() if not np.isfinite(float(value))]


def test_its_kernels_are_made_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="learner.kernels"):
        build(name)
    said = [record.getMessage() for record in caplog.records if "kernels on" in record.getMessage()]
    assert len(said) == (name != "hil_serl_sac")  # which has none


@pytest.mark.parametrize("behavior_candidates", [1, 4])
def test_published_tensors_are_a_policy(name: str, behavior_candidates: int) -> None:
    distribution = small_config(algorithm=name).policy.distribution
    if distribution != "diffusion" and behavior_candidates > 1:
        pytest.skip("this policy is published without a critic")
    tables: dict[str, Any] = {
        "policy": {"behavior_candidates": behavior_candidates},
        "cgpo": {"entropy_reduction": "mean"},
        "qvpo": {"entropy_weight": 0.0},
    }
    algorithm = build(name, **tables)
    config = small_config(algorithm=name, **tables)
    policy = ActingPolicy(SPECS, config.policy, seed=0)
    train(algorithm, 2)
    tensors = algorithm.policy_tensors()
    published = {"denoiser"} if distribution == "diffusion" else {distribution}
    assert {tensor_name.split(".")[0] for tensor_name in tensors} == (
        published | {"critic"} if behavior_candidates > 1 else published
    )
    policy.load_weights(tensors)
    action = policy.select_action({"position": np.zeros(3, np.float32)})
    assert action.shape == (2,)
    assert np.isfinite(action).all()


def test_a_discrete_gripper_is_learned_published_and_resumed(name: str) -> None:
    """One state; a demonstrator closes and is rewarded, others open for nothing: the acting policy closes."""
    config = small_config(algorithm=name, **FAST)
    algorithm, again = make_algorithm(config, GRIPPER_SPECS), make_algorithm(config, GRIPPER_SPECS)
    is_human = torch.arange(64) < 32
    action = torch.zeros(64, 3)
    action[:, 2] = torch.where(is_human, -1.0, 1.0)
    feature, false = EncoderInput(torch.zeros(64, 3)), torch.zeros(64, dtype=torch.bool)
    batch = Batch(feature, action, is_human.float(), feature, torch.ones(64), is_human, false)
    for _ in range(150):
        algorithm.update_step(lambda: batch)
    policy = ActingPolicy(GRIPPER_SPECS, config.policy, seed=0)
    policy.load_weights(algorithm.policy_tensors())
    actions = [policy.select_action({"position": np.zeros(3, np.float32)}) for _ in range(10)]
    assert [action[2] for action in actions] == [-1.0] * 10
    assert {action.shape for action in actions} == {(3,)}
    again.load_state(algorithm.state())
    assert_identical(again.policy_tensors(), algorithm.policy_tensors())


@pytest.mark.parametrize("name", ["sac", "td3", "tqc"])
def test_what_acts_without_a_critic_is_evaluated_without_noise_on_both_sides(name: str) -> None:
    """Asked for one candidate the acting policy does what `exploit` does; left alone it explores, as `explore`."""
    algorithm = build(name)
    train(algorithm, 4)
    policy = ActingPolicy(SPECS, small_config(algorithm=name).policy, seed=0)
    policy.load_weights(algorithm.policy_tensors())
    state = np.array([0.3, -0.4, 0.9], np.float32)
    evaluated = [policy.select_action({"position": state}, candidates=1) for _ in range(2)]
    observation, noise = EncoderInput(torch.from_numpy(state)[None].expand(400, -1)), Noise([0], is_population=False)
    exploited, explored = algorithm.exploit(observation, noise, 1), algorithm.explore(observation, noise)
    np.testing.assert_array_equal(evaluated[0], evaluated[1])
    np.testing.assert_allclose(exploited, np.tile(evaluated[0], (400, 1)), atol=1e-6)
    acted = np.array([policy.select_action({"position": state}) for _ in range(400)])
    assert explored.std(dim=0).min() > 0.05
    np.testing.assert_allclose(acted.mean(axis=0), explored.mean(dim=0), atol=0.15)
    np.testing.assert_allclose(acted.std(axis=0), explored.std(dim=0), rtol=0.2)
    with pytest.raises(ConfigError, match="2 candidates"):
        policy.select_action({"position": state}, candidates=2)


def test_published_tensors_are_a_snapshot(name: str) -> None:
    algorithm = build(name)
    published = algorithm.policy_tensors()
    before = {tensor_name: tensor.clone() for tensor_name, tensor in published.items()}
    train(algorithm, 2)  # TD3's actor moves at every second step
    assert_identical(published, before)
    assert any(not torch.equal(before[key], value) for key, value in algorithm.policy_tensors().items())


def test_same_seed_and_batches_give_the_same_networks_and_another_seed_does_not(name: str) -> None:
    first, again, other = build(name), build(name), build(name, seed=1)
    torch.manual_seed(123)  # what the rest of the program draws is no business of the algorithm
    for algorithm in (first, again, other):
        train(algorithm, 2)
        torch.rand(3)
    assert_identical(first.state(), again.state())
    assert any(not torch.equal(first.state()[key], value) for key, value in other.state().items())


@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_restored_state_continues_bit_for_bit(name: str, steps_before: int) -> None:
    """With warm-up and anneal on, so that forgotten counters show; into an instance that has moved on elsewhere."""
    tables = {"cgpo": {"bc_warmup_steps": 4, "entropy_anneal_steps": 8, "cta_ratio": 2}}
    original = build(name, **tables)
    train(original, steps_before)
    state = original.state()
    saved = {key: value.clone() for key, value in state.items()}
    train(original, 4, first_seed=500)
    assert_identical(state, saved)  # a snapshot

    restored = build(name, seed=7, **tables)
    train(restored, 2, first_seed=900)
    restored.load_state(saved)
    assert_identical(restored.state(), saved)
    train(restored, 4, first_seed=500)
    assert_identical(restored.state(), original.state())
    assert_identical(restored.policy_tensors(), original.policy_tensors())


def test_a_state_that_lacks_any_tensor_is_refused(name: str) -> None:
    algorithm = build(name)
    train(algorithm, 1)
    state = algorithm.state()
    for missing in state:
        with pytest.raises(WeightsError):
            build(name).load_state({key: value for key, value in state.items() if key != missing})


def test_a_state_of_another_architecture_is_refused(name: str) -> None:
    other = build(name, policy={f"{network}_hidden": [17] for network in ("denoiser", "gaussian", "deterministic")})
    train(other, 1)
    with pytest.raises(WeightsError):
        build(name).load_state(other.state())
    algorithm = build(name)
    train(algorithm, 1)
    state = algorithm.state()
    for key, value in state.items():
        with pytest.raises(WeightsError):
            build(name).load_state({**state, key: torch.cat([value.flatten(), value.flatten()])})


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'cgpo'.*Valid: bc, cgpo, .*hil_serl_sac"):
        build("cpgo")


# --- populations ----------------------------------------------------------------------------------------------------


def agent_batch(agent: int, step: int) -> Batch:
    return random_batch(8, 3, 2, seed=100 * agent + step)


def stacked(batches: list[Batch]) -> Batch:
    """One batch of a population, (P, B, ...), of its agents' own."""

    def stack(column: str) -> Any:
        values = [getattr(batch, column) for batch in batches]
        if isinstance(values[0], EncoderInput):
            return EncoderInput(torch.stack([value.vector for value in values]))
        return torch.stack(values)

    return Batch(**{column: stack(column) for column in Batch.__dataclass_fields__ if column != "rows"})


def population_configs(name: str, seeds: list[int]) -> list[LearnerConfig]:
    """Agents that differ in what they may: seed, learning rate, discount. Odd seeds learn faster, and look less far."""
    own = [{"discount": 0.9 if seed % 2 else 0.99, "actor_learning_rate": 1e-3 * (1 + seed % 2)} for seed in seeds]
    return [small_config(algorithm=name, seed=seed, **{name: table}) for seed, table in zip(seeds, own, strict=True)]


def trained_alone(config: LearnerConfig, agent: int, steps: int) -> Algorithm:
    algorithm = make_algorithm(config, SPECS)
    for step in range(steps):
        algorithm.update_step(lambda step=step: agent_batch(agent, step))  # type: ignore[misc]
    return algorithm


def assert_agent_equals(together: Algorithm, index: int, alone: Algorithm) -> None:
    """Published tensors and actions of one agent of a population equal those of the agent that learned alone."""
    own = alone.policy_tensors()
    for key, tensor in together.policy_tensors().items():
        torch.testing.assert_close(tensor[index], own[key], rtol=0, atol=1e-5)
    num_agents = len(next(iter(together.policy_tensors().values())))
    feature = random_batch(6, 3, 2, seed=77).observation.vector
    for act in ("explore", "exploit"):
        arguments = (2,) if act == "exploit" else ()
        noises = Noise(list(range(num_agents)), is_population=True), Noise([index], is_population=False)
        shared = getattr(together, act)(EncoderInput(feature.expand(num_agents, -1, -1)), noises[0], *arguments)
        expected = getattr(alone, act)(EncoderInput(feature), noises[1], *arguments)
        torch.testing.assert_close(shared[index], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", POPULATIONS)
@pytest.mark.parametrize("seeds", [[4], [4, 7]])
def test_the_agents_of_a_population_learn_what_they_learn_alone(name: str, seeds: list[int]) -> None:
    configs = population_configs(name, seeds)
    together = make_population(configs, SPECS)
    metrics = [
        together.update_step(lambda step=step: stacked([agent_batch(agent, step) for agent in range(len(seeds))]))  # type: ignore[misc]
        for step in range(3)
    ]
    assert {tuple(torch.as_tensor(value).shape) for value in metrics[-1].values()} == {(len(seeds),)}
    for index, config in enumerate(configs):
        assert_agent_equals(together, index, trained_alone(config, index, steps=3))


@pytest.mark.parametrize("name", POPULATIONS)
def test_all_that_agents_may_differ_in_is_each_agents_own(name: str) -> None:
    """Each agent differs in one setting from the first; all get the same batches, so only that makes a difference."""
    settings = variable_settings(name)
    configs = [config_with(name, None), *(config_with(name, setting) for setting in settings)]
    together = make_population(configs, SPECS)
    for step in range(5):
        together.update_step(lambda step=step: stacked([agent_batch(0, step)] * len(configs)))  # type: ignore[misc]
    found = networks_of(together)
    first, *others = (networks_of(trained_alone(config, 0, steps=5)) for config in configs)
    for index, (setting, alone) in enumerate(zip(settings, others, strict=True), start=1):
        assert max(float((alone[key] - first[key]).abs().max()) for key in alone) > 1e-4, setting
        worst = max(float((found[key][index] - alone[key]).abs().max()) for key in alone)
        assert worst < 1e-5, setting


def config_with(name: str, setting: str | None) -> LearnerConfig:
    """Return a configuration that learns fast, with another value of `setting`; all but the seed are below 1."""
    rates = [own for own in variable_settings(name) if own.endswith("learning_rate")]
    table: dict[str, Any] = {}
    for own in rates:
        table = merged(table, nested(own, 5e-3))
    if setting is not None:
        value: Any = reduce(getattr, setting.split("."), small_config(algorithm=name, **table))
        table = merged(table, nested(setting, 7 if setting == "seed" else value * 0.2 if value > 0.5 else value * 4))
    return small_config(algorithm=name, **table)


def nested(setting: str, value: float) -> dict[str, Any]:
    """Return the tables that a setting's dotted name stands for."""
    table, _, rest = setting.partition(".")
    return {table: nested(rest, value) if rest else value}


def networks_of(algorithm: Algorithm) -> dict[str, Tensor]:
    """Return the tensors of all networks, those of a population by the names that an agent's have."""
    parts = ((key.partition("."), tensor) for key, tensor in algorithm.state().items())
    return {
        f"{part}.{rest.removeprefix('stacked.')}": tensor
        for (part, _, rest), tensor in parts
        if rest and "optimiser" not in part
    }


@pytest.mark.parametrize("name", POPULATIONS)
def test_an_agent_fed_with_nan_disturbs_no_other(name: str) -> None:
    configs = population_configs(name, [4, 7])
    together = make_population(configs, SPECS)
    before = together.policy_tensors()
    for step in range(3):
        batches = [agent_batch(0, step), agent_batch(1, step)]
        batches[1] = replace(batches[1], reward=torch.full_like(batches[1].reward, torch.nan))
        batches[1].observation.vector.fill_(torch.nan)
        together.update_step(lambda batches=batches: stacked(batches))  # type: ignore[misc]
    assert_agent_equals(together, 0, trained_alone(configs[0], 0, steps=3))
    for key, tensor in together.policy_tensors().items():
        assert torch.equal(tensor[1], before[key][1])  # no step of it was taken
    skipped = together.skipped_steps()
    assert any(counters.total == 0 for counters in skipped.values())
    assert any(counters.total > 0 for counters in skipped.values())


@pytest.mark.parametrize("name", POPULATIONS)
def test_a_restored_population_continues_bit_for_bit(name: str) -> None:
    configs = population_configs(name, [4, 7])
    original, restored = make_population(configs, SPECS), make_population(configs, SPECS)

    def update(algorithm: Algorithm, step: int) -> None:
        algorithm.update_step(lambda: stacked([agent_batch(0, step), agent_batch(1, step)]))

    for step in range(3):
        update(original, step)
    restored.load_state(original.state())
    for step in range(3, 5):
        update(original, step)
        update(restored, step)
    assert_identical(restored.state(), original.state())


# --- one captured graph ---------------------------------------------------------------------------------------------


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what makes the host wait for a GPU, or lets shapes depend on values: neither can be captured."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "randperm")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith(self.FORBIDDEN):
            raise AssertionError(f"{name} cannot be captured")
        if name in ("index", "index_put", "index_put_"):
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), "a boolean mask"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernels", ["plain", "fast"])
@pytest.mark.parametrize("name", POPULATIONS)
def test_an_update_never_waits_for_the_device_and_keeps_its_tensors(
    name: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that one graph of it can be replayed: the same operations on the same memory, whatever the values.

    The fast kernels are those of a GPU: one agent's on a CPU are never captured, and may look at their values.
    """
    monkeypatch.setattr("learner.kernels.FastKernels", partial(FastKernels, is_batched=True))
    algorithm = build(name, kernels=kernels)
    batch = random_batch(8, 3, 2)
    for _ in range(2):
        algorithm.update_step(lambda: batch)
    places = {key: tensor.data_ptr() for key, tensor in tensors_in_place(algorithm).items()}
    before = {key: tensor.clone() for key, tensor in tensors_in_place(algorithm).items()}
    with NoWaiting():  # type: ignore[no-untyped-call]
        for _ in range(2):
            metrics = algorithm.update_step(lambda: batch)
    after = tensors_in_place(algorithm)
    assert {key: tensor.data_ptr() for key, tensor in after.items()} == places
    assert any(not torch.equal(before[key], tensor) for key, tensor in after.items())
    assert all(isinstance(value, Tensor) for value in metrics.values())


def tensors_in_place(algorithm: Any) -> dict[str, Tensor]:
    """Parameters, buffers, Adam's moments and counters, themselves and not copies."""
    found: dict[str, Tensor] = {}
    for name, part in algorithm._parts().items():
        if isinstance(part, Tensor):
            found[name] = part
        elif isinstance(part, torch.nn.Module):
            found |= {f"{name}.{key}": tensor for key, tensor in part.state_dict(keep_vars=True).items()}
        elif isinstance(part, GuardedAdam):
            found[f"{name}.counters"] = part.counters()
            for index, moments in enumerate(part.state.values()):
                found |= {f"{name}.{index}.{key}": tensor for key, tensor in moments.items()}
    return found


# --- learning -------------------------------------------------------------------------------------------------------


def bandit_batches(generator: torch.Generator) -> Batch:
    """r = -(a - sin(s))^2, one step long: half the rows a good demonstrator's, half random."""
    feature, action = (2 * torch.rand(64, 1, generator=generator) - 1 for _ in range(2))
    is_human = torch.arange(64) < 32
    demonstrated = feature.sin() + 0.02 * torch.randn(64, 1, generator=generator)
    action = torch.where(is_human[:, None], demonstrated, action)
    reward = -(action - feature.sin()).square().squeeze(-1)
    observation, toggled = EncoderInput(feature), torch.zeros(64, dtype=torch.bool)
    return Batch(observation, action, reward, observation, torch.ones(64), is_human, toggled)


def acting_regret(algorithm: Algorithm, config: PolicyConfig) -> float:
    """Mean squared distance to the best action, as an actor would act."""
    policy = ActingPolicy(BANDIT_SPECS, config, seed=0)
    policy.load_weights(algorithm.policy_tensors())
    states = np.tile(np.linspace(-1, 1, 40, dtype=np.float32), 2)
    actions = np.array([policy.select_action({"position": state[None]})[0] for state in states])
    return float(np.mean((actions - np.sin(states)) ** 2))


def test_acting_improves_on_a_bandit(name: str) -> None:
    config: LearnerConfig = small_config(algorithm=name, **FAST)
    algorithm = make_algorithm(config, BANDIT_SPECS)
    before = acting_regret(algorithm, config.policy)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        algorithm.update_step(lambda: bandit_batches(generator))
    after = acting_regret(algorithm, config.policy)
    # Measured over six seeds: bc 400 to 760 times, cgpo 71 to 170 times.
    assert after < before / 10
