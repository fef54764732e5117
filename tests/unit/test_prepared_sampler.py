"""The prepared policy computes what the plain one does, to rounding, and never with weights that were replaced."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from policy.acting import ActingPolicy
from policy.config import PolicyConfig
from policy.critic_network import conservative_value
from policy.diffusion_policy import make_critic, make_denoiser
from policy.encoder import ObservationEncoder, ObservationHeads
from policy.errors import WeightsError
from policy.fast import activations, native_check, prepared_sampler
from policy.fast.native_check import is_native_used
from policy.fast.prepared_sampler import PreparedChain, PreparedCritic
from policy.gripper_critic import GripperCritic, element_of
from policy.noise_schedule import make_noise_schedule
from policy.sampler import draw_noise, sample
from policy.spec import Field, ImageField, Observation, ObservationSpec, Specs
from tests.oracles import make_specs, with_gripper

ANT = make_specs(feature_dim=27, action_dim=8)
CONFIG = PolicyConfig(denoiser_hidden=(64, 48, 64), critic_hidden=(64, 48), num_critics=3, num_quantiles=7)
CAMERAS = tuple(ImageField(name=name, height=32, width=48) for name in ("wrist", "side"))
POSITION = Field(name="position", unit="m", low=(-1.0,) * 3, high=(1.0,) * 3)
IMAGES = with_gripper(Specs(ObservationSpec((POSITION,), CAMERAS), ANT.action))
IMAGE_CONFIG = replace(
    CONFIG,
    encoder="resnet10",
    encoder_weights="random",
    image_feature_dim=16,
    proprioception_feature_dim=8,
    gripper_critic_hidden=(16,),
    critic_layer_norm=True,
)


def like_trained(module: nn.Module, seed: int = 0) -> None:
    """Move every parameter: biases and gains start as zeros and ones, which would hide that one is left out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(params=["compiled", "by PyTorch"])
def is_compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "compiled" and not is_native_used():
        pytest.skip("policy/fast/native.c is not used here")
    if request.param != "compiled":  # as on a machine without a compiler: also of the single operations
        for module in (prepared_sampler, activations, native_check):
            monkeypatch.setattr(module, "is_native_used", lambda: False)
    return bool(request.param == "compiled")


@pytest.mark.parametrize("rows", [1, 4, 32])
@pytest.mark.parametrize(("schedule", "num_steps"), [("cosine", 20), ("cosine", 5), ("vp", 20), ("vp", 50)])
@pytest.mark.parametrize("hidden", [(16,), (64, 48, 64), (40,)])
def test_a_prepared_chain_is_the_samplers(
    schedule: Any, num_steps: int, rows: int, hidden: tuple[int, ...], is_compiled: bool
) -> None:
    config = replace(CONFIG, schedule=schedule, denoising_steps=num_steps, denoiser_hidden=hidden)
    denoiser, coefficients = make_denoiser(ANT, config), make_noise_schedule(schedule, num_steps)
    like_trained(denoiser)
    generator = torch.Generator().manual_seed(1)
    feature = torch.randn(1, 27, generator=generator)
    noise = draw_noise(coefficients, rows, 8, generator)
    untouched = noise.clone()
    chain = PreparedChain(denoiser, coefficients)
    assert (chain._network is not None) == (is_compiled and hidden != (40,))
    actions = chain.sample(feature, noise)
    expected = sample(denoiser, coefficients, feature.expand(rows, -1), noise)
    # A clean action is a difference of numbers of size 1 divided by this: rounding weighs most in few steps.
    largest = (coefficients.clean_coefficient / coefficients.sqrt_alpha_bar).max()
    tolerance = max(1e-5, 6 * torch.finfo(torch.float32).eps * float(largest))
    torch.testing.assert_close(actions, expected, rtol=0, atol=tolerance)
    assert expected.abs().lt(1).any(), "actions at their bounds alone would compare nothing"
    assert torch.equal(noise, untouched)


@pytest.mark.parametrize("rows", [1, 4, 32])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"critic_layer_norm": True},
        {"critic_activation": "relu"},
        {"drop_quantiles": 0},
        {"num_quantiles": 1, "drop_quantiles": 0},
        {"critic_hidden": (16,), "num_critics": 1},
    ],
    ids=lambda changes: " ".join(changes) or "mish",
)
def test_a_prepared_critic_values_as_the_ensemble_does(changes: dict[str, Any], rows: int, is_compiled: bool) -> None:
    config = replace(CONFIG, **changes)
    critic = make_critic(ANT, config)
    like_trained(critic)
    generator = torch.Generator().manual_seed(1)
    feature, actions = torch.randn(1, 27, generator=generator), torch.rand(rows, 8, generator=generator)
    chooser = PreparedCritic(critic, config.drop_quantiles)
    assert (chooser._network is not None) == (is_compiled and config.critic_activation == "mish")
    values = chooser.value(feature, actions)
    expected = conservative_value(critic(feature.expand(rows, -1), actions), config.drop_quantiles)
    torch.testing.assert_close(values, expected.detach(), rtol=1e-5, atol=1e-5)


def test_sums_of_any_size_pass_through_mish(is_compiled: bool) -> None:
    """An identity in exact arithmetic could overflow or cancel at the ends."""
    denoiser = make_denoiser(ANT, replace(CONFIG, denoiser_hidden=(64,)))
    parameters = dict(denoiser.named_parameters())
    with torch.no_grad():
        parameters["trunk.0.bias"].copy_(torch.tensor([-300.0, -90.0, -20.0, -1.0, 1.0, 20.0, 90.0, 300.0]).repeat(8))
        parameters["trunk.2.weight"].mul_(1e-3)
    schedule = make_noise_schedule("cosine", 20)
    noise = draw_noise(schedule, 4, 8, torch.Generator().manual_seed(1))
    actions = PreparedChain(denoiser, schedule).sample(torch.zeros(1, 27), noise)
    torch.testing.assert_close(actions, sample(denoiser, schedule, torch.zeros(4, 27), noise), rtol=0, atol=1e-5)


class PlainPolicy:
    """ActingPolicy written with nothing prepared."""

    def __init__(self, specs: Specs, config: PolicyConfig, seed: int) -> None:
        self._specs, self._config = specs, config
        self._schedule = make_noise_schedule(config.schedule, config.denoising_steps)
        self._encoder = ObservationEncoder(specs, config)
        self.modules = nn.ModuleDict(
            {
                "denoiser": make_denoiser(specs, config),
                "critic": make_critic(specs, config),
                "heads": ObservationHeads(specs, config),
            }
        )
        if specs.action.gripper == "discrete":
            self.modules["gripper"] = GripperCritic(specs, config)
        like_trained(self.modules, seed)
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def select_action(self, observation: Observation, candidates: int) -> Tensor:
        feature = self.modules["heads"](self._encoder.inputs(observation))
        rows = feature.expand(candidates, -1)
        noise = draw_noise(self._schedule, candidates, self._specs.action.continuous_dim, self._generator)
        actions = sample(self.modules["denoiser"], self._schedule, rows, noise)
        action = actions[
            conservative_value(self.modules["critic"](rows, actions), self._config.drop_quantiles).argmax()
        ]
        if "gripper" in self.modules:
            action = torch.cat([action, element_of(self.modules["gripper"](feature).argmax(dim=1))])
        return action


@pytest.mark.parametrize("candidates", [None, 1, 32])
@pytest.mark.parametrize(("specs", "config"), [(ANT, CONFIG), (IMAGES, IMAGE_CONFIG)], ids=["vector", "images"])
def test_decisions_are_those_of_the_plain_policy(specs: Specs, config: PolicyConfig, candidates: int | None) -> None:
    plain = PlainPolicy(specs, config, seed=3)
    policy = ActingPolicy(specs, config, seed=3)
    policy.load_weights(plain.modules.state_dict())
    rng = np.random.default_rng(0)
    for _ in range(3):
        observation: dict[str, Any] = {"position": rng.uniform(-1, 1, specs.observation.fields[0].size)}
        observation |= {
            image.name: rng.integers(0, 256, (image.height, image.width, 3), dtype=np.uint8)
            for image in specs.observation.images
        }
        expected = plain.select_action(observation, candidates or config.behavior_candidates)
        np.testing.assert_allclose(policy.select_action(observation, candidates), expected, rtol=0, atol=1e-5)


def test_new_weights_replace_what_was_prepared_and_refused_ones_do_not() -> None:
    first, second = (PlainPolicy(ANT, CONFIG, seed) for seed in (3, 4))
    observation = {"position": np.zeros(27, np.float32)}

    def act(policy: ActingPolicy) -> list[float]:
        policy.reseed(0)
        return [float(value) for value in policy.select_action(observation)]

    fresh = []
    for plain in (first, second):
        policy = ActingPolicy(ANT, CONFIG, seed=0)
        policy.load_weights(plain.modules.state_dict())
        fresh.append(act(policy))
    policy = ActingPolicy(ANT, CONFIG, seed=0)
    given = {name: tensor.clone() for name, tensor in first.modules.state_dict().items()}
    policy.load_weights(given)
    for tensor in given.values():
        tensor.zero_()
    assert act(policy) == fresh[0]
    broken = second.modules.state_dict()
    broken["critic.weights.0"] = torch.full_like(broken["critic.weights.0"], torch.nan)
    with pytest.raises(WeightsError):
        policy.load_weights(broken)
    assert act(policy) == fresh[0]
    policy.load_weights(second.modules.state_dict())
    assert act(policy) == fresh[1] != fresh[0]


def test_a_prepared_form_keeps_nothing_of_the_networks_it_was_made_of() -> None:
    denoiser, critic, schedule = make_denoiser(ANT, CONFIG), make_critic(ANT, CONFIG), make_noise_schedule("cosine", 20)
    chain, chooser = PreparedChain(denoiser, schedule), PreparedCritic(critic, 2)
    feature, noise = torch.zeros(1, 27), draw_noise(schedule, 4, 8, torch.Generator().manual_seed(1))
    actions = chain.sample(feature, noise)
    values = chooser.value(feature, actions)
    like_trained(nn.ModuleList([denoiser, critic]))
    assert torch.equal(chain.sample(feature, noise), actions)
    assert torch.equal(chooser.value(feature, actions), values)


def test_an_observation_that_is_not_finite_gives_an_action_that_is_not(is_compiled: bool) -> None:
    """The actor then holds (actor/policy_runner.py); a number made up instead would move the arm."""
    policy = ActingPolicy(ANT, CONFIG, seed=0)
    assert not np.isfinite(policy.select_action({"position": np.full(27, np.nan, np.float32)})).any()
