"""The fast kernels against the plain ones: same numbers from the same noise, gradients, whole updates, populations."""

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mish

from learner.agents import Agents
from learner.algorithms import make_algorithm, make_population
from learner.algorithms.cgpo import make_value_network
from learner.config import LearnerConfig
from learner.guidance import make_guide
from learner.kernels import Kernels, fast_critic, fast_losses, make_kernels
from learner.kernels.fast import FastKernels
from learner.kernels.plain import PlainKernels
from learner.replay import Batch
from policy.diffusion_policy import make_critic, make_denoiser
from policy.encoder import EncoderInput
from policy.fast import activations, arranged_layers, mlp, native_check, native_kernels, products
from policy.fast.activations import Mish
from policy.fast.mlp import FastMlp
from tests.oracles import gaussian, make_specs, random_batch, small_config

FEATURE_DIM, ACTION_DIM, STATES = 5, 3, 7

# Wide and with enough rows for oneDNN's products, which small ones do not reach.
WIDE = {"denoiser_hidden": [128, 96], "critic_hidden": [96, 128], "num_quantiles": 25, "drop_quantiles": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "mish": {},
    "wide": WIDE,
    "three layers": {"denoiser_hidden": [16, 24, 12], "critic_hidden": [12, 16, 24], "num_critics": 3},
    "layer norm": {"critic_layer_norm": True, "critic_hidden": [16, 24]},
    "wide layer norm": {**WIDE, "critic_layer_norm": True},
    "relu": {"critic_activation": "relu", "critic_hidden": [16, 24]},
    "all quantiles": {"drop_quantiles": 0},
    "one critic": {"num_critics": 1},
    "most dropped": {"drop_quantiles": 4},
}
GUIDANCE: dict[str, dict[str, Any]] = {
    "dsg": {},
    "rate": {"rate": 0.4},
    "naive": {"type": "naive", "naive_scale": 3.0},
    "naive normalised": {"type": "naive", "naive_normalised": True},
    "hard": {"clip_grad": "hard"},
    "ste": {"clip_grad": "ste"},
    "unclipped": {"clip_grad": "none"},
    "not through the denoiser": {"through_denoiser": False},
    "none": {"type": "none"},
    "no steps": {"steps": 0},
    "one step": {"steps": 1},
    "whole chain": {"steps": 5},
    "longer than the chain": {"steps": 9},
}


@pytest.fixture(autouse=True, params=["compiled", "compiled but for products", "not compiled"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What of policy/fast/native.c is used."""
    is_used, is_product_used = request.param != "not compiled", request.param == "compiled"
    if is_used and native_kernels.native is None:
        pytest.skip("policy/fast/native.c was not compiled here")
    for module in (activations, fast_critic, fast_losses, native_check):
        monkeypatch.setattr(module, "is_native_used", lambda: is_used)
    for module in (arranged_layers, mlp, native_check):
        monkeypatch.setattr(module, "is_product_used", lambda: is_product_used)


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


class Case:
    """Networks of one agent, or of a population of P with different seeds, and inputs for every kernel."""

    def __init__(self, population: int | None = None, states: int = STATES, candidates: int = 4, **tables: Any) -> None:
        config = small_config(**tables)
        members = [replace(config, seed=seed) for seed in range(population or 1)]
        self.agents = Agents(members, is_population=population is not None)
        specs = make_specs(FEATURE_DIM, ACTION_DIM)
        self.denoiser = self.agents.network(lambda: make_denoiser(specs, config.policy))
        self.critic = self.agents.network(lambda: make_critic(specs, config.policy))
        self.network = self.agents.network(lambda: make_value_network(FEATURE_DIM, (16, 24)))
        with torch.no_grad():  # biases, gains and shifts start at the same numbers, which would hide mistakes
            for parameter in self.parameters():
                shape = parameter.shape[self.agents.is_population :]  # the same of every member
                parameter += 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
        source, steps = self.agents.noise(0), config.policy.denoising_steps
        rows, guided_steps = states * candidates, config.cgpo.guidance.steps
        self.feature = source.normal(states, FEATURE_DIM)
        self.actions = 2 * source.uniform(rows, ACTION_DIM) - 1
        self.action = self.actions[..., :states, :]
        self.step = source.integers(steps, rows)
        self.chains = source.chains(steps, rows, ACTION_DIM)
        self.noise, self.guided_noise = (source.chains(steps, states, ACTION_DIM) for _ in range(2))
        if config.cgpo.shared_prefix:
            self.guided_noise = torch.cat([self.guided_noise[:guided_steps], self.noise[guided_steps:]])

    def parameters(self) -> list[Tensor]:
        return [*self.denoiser.parameters(), *self.critic.parameters(), *self.network.parameters()]

    def results(self, kernels: Kernels) -> dict[str, Tensor]:
        pair = kernels.sample_pair(self.denoiser, self.critic, self.feature, self.noise, self.guided_noise)
        return {
            "sample": kernels.sample(self.denoiser, self.feature, self.chains),
            "unguided": pair[0],
            "guided": pair[1],
            "values": kernels.value(self.critic, self.feature, self.actions),
            "value": kernels.value(self.critic, self.feature, self.action),
            "quantiles": kernels.quantiles(self.critic, self.feature, self.action),
            "regressed": kernels.regress(self.network, self.feature),
            "noise": kernels.predict_noise(self.denoiser, self.actions, self.step, self.feature),
        }

    def check(self, tolerance: float = 1e-5) -> dict[str, Tensor]:
        """Both forms of the fast kernels; returns the results of the one for this device."""
        fast, plain = self.results(FastKernels(self.agents)), self.results(PlainKernels(self.agents))
        assert_close(fast, plain, tolerance)
        assert_close(self.results(FastKernels(self.agents, is_batched=True)), plain, tolerance)
        return fast


@pytest.mark.parametrize("population", [None, 1, 2])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_gives_the_plain_kernels_numbers(network: str, population: int | None) -> None:
    Case(population, policy=NETWORKS[network]).check()


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("guidance", GUIDANCE)
def test_every_kind_of_guidance_gives_the_plain_kernels_numbers(guidance: str, shared_prefix: bool) -> None:
    results = Case(cgpo={"guidance": GUIDANCE[guidance], "shared_prefix": shared_prefix}).check()
    is_same = torch.equal(results["guided"], results["unguided"])
    assert is_same is (shared_prefix and guidance in ("no steps", "one step"))  # the very last step is never guided


@pytest.mark.parametrize(("states", "candidates"), [(1, 1), (1, 4), (300, 1), (300, 4)])
def test_numbers_of_rows_in_one_group_and_in_several(states: int, candidates: int) -> None:
    """Among 300 guided rows there are some whose gradient is small, and its direction less certain by as much."""
    for policy in (WIDE, NETWORKS["layer norm"]):
        Case(states=states, candidates=candidates, policy=policy).check(1e-5 if states == 1 else 5e-5)


def test_scalar_critics_are_valued_by_their_minimum() -> None:
    policy = {"num_quantiles": 1, "drop_quantiles": 0}
    Case(policy=policy, cgpo={"critic": {"type": "twin_scalar"}}).check()


@pytest.mark.parametrize("num_dropped", [1, 2, 3])
def test_equal_quantiles_are_dropped_one_by_one(num_dropped: int) -> None:
    """A critic's quantiles come in pairs of equal ones: which of the two is dropped makes no difference."""
    case = Case(policy={"num_quantiles": 6, "drop_quantiles": num_dropped})
    with torch.no_grad():
        for last in (case.critic.weights[-1], case.critic.biases[-1]):
            last[..., 1::2] = last[..., ::2]
    case.check()


def test_members_of_a_population_may_differ_in_their_guidance() -> None:
    case = Case(population=2)
    rates = (0.2, 0.9)
    members = [
        replace(config, cgpo=replace(config.cgpo, guidance=replace(config.cgpo.guidance, rate=rate)))
        for config, rate in zip(case.agents.configs, rates, strict=True)
    ]
    before = PlainKernels(case.agents).sample_pair(
        case.denoiser, case.critic, case.feature, case.noise, case.guided_noise
    )
    case.agents = Agents(members, is_population=True)
    assert not torch.equal(case.check()["guided"], before[1])


def test_members_of_a_population_are_what_they_are_alone() -> None:
    both, alone = Case(population=2), Case()
    together, single = both.results(FastKernels(both.agents)), alone.results(FastKernels(alone.agents))
    for name, rows in together.items():
        assert_close(rows[0], single[name], 0.0)
        assert not torch.equal(rows[1], single[name])


# --- gradients ----------------------------------------------------------------------------------------------------


def gradients_of(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    return list(torch.autograd.grad((output * weight).sum(), inputs))


@pytest.mark.parametrize("is_batched", [False, True])
@pytest.mark.parametrize("population", [None, 2])
@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_equal_those_of_autograd(network: str, population: int | None, is_batched: bool) -> None:
    case = Case(population, policy=NETWORKS[network])
    feature, action = case.feature.requires_grad_(), case.action.clone().requires_grad_()
    of_critic, of_denoiser = [*case.critic.parameters(), feature, action], [*case.denoiser.parameters(), feature]
    results = []
    for kernels in (FastKernels(case.agents, is_batched), PlainKernels(case.agents)):
        quantiles = kernels.quantiles(case.critic, feature, action)
        noise = kernels.predict_noise(case.denoiser, case.actions, case.step, feature)
        regressed = gradients_of(kernels.regress(case.network, feature), list(case.network.parameters()))
        results.append(gradients_of(quantiles, of_critic) + gradients_of(noise, of_denoiser) + regressed)
    for fast, plain in zip(*results, strict=True):
        assert_close(fast / plain.abs().max(), plain / plain.abs().max())


def test_a_frozen_critic_does_not_pay_for_its_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    action = case.action.clone().requires_grad_()
    kernels = FastKernels(case.agents)
    expected = gradients_of(PlainKernels(case.agents).quantiles(case.critic, case.feature, action), [action])
    quantiles = kernels.quantiles(case.critic, case.feature, action, is_frozen=True)
    monkeypatch.delattr(FastMlp, "back_with_parameters")
    assert_close(gradients_of(quantiles, [action]), expected)
    with pytest.raises(AttributeError, match="back_with_parameters"):
        gradients_of(kernels.quantiles(case.critic, case.feature, action), list(case.critic.parameters()))


def test_a_parameter_changed_before_the_backward_pass_is_noticed() -> None:
    case = Case()
    quantiles = FastKernels(case.agents).quantiles(case.critic, case.feature, case.action)
    with torch.no_grad():
        case.critic.weights[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(quantiles.sum(), case.critic.biases[0])


def test_frozen_networks_and_no_grad_give_numbers_without_a_graph() -> None:
    case = Case()
    kernels = FastKernels(case.agents)
    with torch.no_grad():
        assert not kernels.quantiles(case.critic, case.feature, case.action).requires_grad
    case.critic.requires_grad_(False)
    assert not kernels.quantiles(case.critic, case.feature, case.action).requires_grad
    assert not kernels.value(case.critic, case.feature.requires_grad_(), case.actions).requires_grad


@pytest.mark.parametrize("kappa", [0.3, 1.0])
@pytest.mark.parametrize("shape", [(40, 5, 25, 115), (2, 7, 2, 5, 8)])
def test_the_loss_and_its_gradient(shape: tuple[int, ...], kappa: float) -> None:
    """The first shape takes several groups of rows; the second is a population's."""
    generator = torch.Generator().manual_seed(0)
    quantiles = torch.randn(shape[:-1], generator=generator).requires_grad_()
    targets = torch.randn((*shape[:-3], shape[-1]), generator=generator)
    targets[..., 0] = quantiles.detach()[..., 0, 0]  # an error of exactly 0
    results = []
    for kernels in (FastKernels(Agents.single(small_config())), PlainKernels(Agents.single(small_config()))):
        loss = kernels.quantile_huber_loss(quantiles, targets, kappa)
        results.append((loss.detach(), *gradients_of(loss, [quantiles])))
    (fast_loss, fast), (plain_loss, plain) = results
    assert_close(fast_loss / plain_loss, torch.ones_like(plain_loss))
    assert_close(fast / plain.abs().max(), plain / plain.abs().max())


# --- whole updates ------------------------------------------------------------------------------------------------


def trained(config: LearnerConfig, steps: int, population: bool) -> list[dict[str, Tensor]]:
    """The algorithm's state after each step."""
    specs = make_specs(FEATURE_DIM, ACTION_DIM)
    batch = random_batch(12, FEATURE_DIM, ACTION_DIM)
    if population:
        algorithm = make_population([config, replace(config, seed=config.seed + 1)], specs)
        batch = stacked(batch)
    else:
        algorithm = make_algorithm(config, specs)
    states = []
    for _ in range(steps):
        algorithm.update_step(lambda: batch)
        states.append({name: tensor.clone() for name, tensor in algorithm.state().items()})
    return states


def stacked(batch: Batch) -> Batch:
    """The same batch for two agents."""

    def twice(column: Any) -> Any:
        if isinstance(column, EncoderInput):
            return EncoderInput(twice(column.vector))
        return None if column is None else torch.stack([column] * 2)

    return Batch(*(twice(getattr(batch, field.name)) for field in fields(batch)))


@pytest.mark.parametrize("population", [False, True])
@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"policy": {"critic_layer_norm": True}, "cgpo": {"cta_ratio": 2, "human_targets": True}},
        {"cgpo": {"guidance": {"type": "naive"}, "vbase": "sampled", "critic": {"target_truncation": "per_net"}}},
    ],
    ids=["default", "layer norm", "naive"],
)
def test_updates_stay_together(tables: dict[str, Any], population: bool) -> None:
    """Parameters and moments after one and three steps. Where two quantiles tie to the last bit, where an action lies
    on its bound or two candidates have one value, rounding decides and the two would part: not so for these seeds."""
    plain = trained(small_config(kernels="plain", **tables), 3, population)
    fast = trained(small_config(kernels="fast", **tables), 3, population)
    for step in (0, 2):
        assert fast[step].keys() == plain[step].keys()
        for name, expected in plain[step].items():
            scale = max(1.0, float(expected.double().abs().max()))
            difference = (fast[step][name].double() - expected.double()).abs().max()
            assert difference < 1e-5 * scale, name


# --- products, activations and the choice of kernels --------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "runs_whole"),
    [
        (WIDE, True),
        ({**WIDE, "critic_layer_norm": True}, True),
        ({"denoiser_hidden": [24], "critic_hidden": [24]}, False),
    ],
)
def test_networks_run_whole_where_compiled_products_do_and_their_widths_allow(
    policy: dict[str, Any], runs_whole: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    called: set[str] = set()

    def noticed(name: str) -> Callable[..., Tensor]:
        kernel = getattr(native_kernels, name)

        def call(*given: Any) -> Tensor:
            called.add(name)
            result: Tensor = kernel(*given)
            return result

        return call

    for name in ("denoise", "forward_each"):
        monkeypatch.setattr(native_kernels, name, noticed(name))
    case = Case(policy=policy)
    case.results(FastKernels(case.agents))
    is_compiled = request.node.callspec.params["compiled"] == "compiled"
    assert called == ({"denoise", "forward_each"} if runs_whole and is_compiled else set())


def test_without_onednn_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    for module in (arranged_layers, mlp, native_check):
        monkeypatch.setattr(module, "is_product_used", lambda: False)
    case = Case(states=40, policy=WIDE)
    with_onednn = case.results(FastKernels(case.agents))
    monkeypatch.setattr(products, "is_onednn_used", lambda: asked.append(1))
    without = case.check()
    assert asked
    assert_close(without, with_onednn)


@pytest.mark.parametrize("rows", [1, 40, 300])
def test_products_of_every_layout(rows: int) -> None:
    """As it is, transposed, and with gaps, which oneDNN would take a thousand times as long for."""
    generator = torch.Generator().manual_seed(0)
    wide, weights, bias = (torch.randn(shape, generator=generator) for shape in ((rows, 200), (130, 200), (130,)))
    wide, weights = wide / 10, weights / 10
    layouts: list[Callable[[Tensor], Tensor]] = [lambda m: m[:, :120].contiguous(), lambda m: m[:, 40:160]]
    layouts.append(lambda m: m[:, :120].t().contiguous().t())
    for of_inputs in layouts:
        for of_weights in layouts:
            x, weight = of_inputs(wide), of_weights(weights)
            expected = (x.double() @ weight.double().t()).float()
            assert_close(products.linear(x, weight), expected)
            assert_close(products.linear(x, weight, bias), expected + bias)


def test_mish_and_its_slope_far_from_zero_too() -> None:
    z = torch.tensor([-300.0, -100.0, -20.0, -1.19, -1e-4, 0.0, 1e-4, 0.7, 20.0, 100.0, 300.0], requires_grad=True)
    expected = mish(z)
    (slope,) = torch.autograd.grad(expected.sum(), z)
    values, kept = Mish().values_and_slope(-z.detach()[:, None], 0, len(z))
    assert_close(values[:, 0], expected.detach(), 1e-6)
    assert_close(Mish().values(-z.detach()[:, None], 0), values, 1e-6)
    back = Mish().back(torch.ones(len(z), 1), kept, 0)
    assert_close(-back[:, 0], slope, 1e-6)


def test_parameters_are_read_at_every_call() -> None:
    case = Case()
    kernels = FastKernels(case.agents)
    before = case.results(kernels)
    with torch.no_grad():
        for parameter in case.parameters():
            parameter.mul_(1.1)
    after = case.results(kernels)
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert_close(after, case.results(PlainKernels(case.agents)))


def test_what_has_no_known_layers_goes_to_the_plain_kernels() -> None:
    case = Case()
    denoiser: Any = gaussian(0.25, 0.3)
    fast, plain = FastKernels(case.agents), PlainKernels(case.agents)
    noise = case.agents.noise(1).chains(5, STATES, ACTION_DIM).double()
    expected = plain.sample(denoiser, case.feature.double(), noise)
    assert torch.equal(fast.sample(denoiser, case.feature.double(), noise), expected)


def test_auto_and_fast_are_the_fast_kernels_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="learner.kernels"):
        assert isinstance(make_kernels(Agents.single(small_config())), FastKernels)
        assert isinstance(make_kernels(Agents.single(small_config(kernels="fast"))), FastKernels)
        assert isinstance(make_kernels(Agents.single(small_config(kernels="plain"))), PlainKernels)
    assert [record.message.split(":")[0] for record in caplog.records[:2]] == ["fast kernels on cpu"] * 2
    assert caplog.records[2].message.startswith("plain kernels on cpu")


def test_the_guide_is_told_the_rate_of_its_own_agent() -> None:
    config = small_config().cgpo.guidance
    guide = make_guide(config, lambda feature, action: action.sum(dim=-1), 0.0)
    assert guide is not None
    mean, noise = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    moved = guide.move(mean, torch.tensor([[1.0, 0.0]]), 0.5, noise)
    assert_close(moved, 0.5 * 2**0.5 * noise / 5)  # at rate 0 the sampled direction, at its shell's radius
