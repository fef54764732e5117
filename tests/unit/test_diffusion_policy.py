"""The policy as the actor runs it: loading whole or not at all, choosing by the critic, reproducible."""

import numpy as np
import pytest
import torch
from torch import Tensor

from policy.acting import ActingPolicy
from policy.config import PolicyConfig
from policy.critic_network import conservative_value
from policy.diffusion_policy import make_critic, make_denoiser
from policy.errors import ConfigError, WeightsError
from policy.spec import ActionSpec, Field, ObservationSpec, Specs
from tests.oracles import make_specs

SPECS = make_specs(feature_dim=3, action_dim=2)
CONFIG = PolicyConfig(
    denoising_steps=5,
    denoiser_hidden=(16,),
    critic_hidden=(16,),
    num_critics=2,
    num_quantiles=5,
    drop_quantiles=1,
    behavior_candidates=4,
)
WITHOUT_CRITIC = PolicyConfig(denoising_steps=5, denoiser_hidden=(16,), behavior_candidates=1)
OBSERVATION = {"position": np.array([0.1, -0.2, 0.3], np.float32)}


def make_weights(seed: int, config: PolicyConfig = CONFIG) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    modules = {"denoiser": make_denoiser(SPECS, config), "critic": make_critic(SPECS, config)}
    published = modules if config.behavior_candidates > 1 else {"denoiser": modules["denoiser"]}
    return {f"{part}.{name}": t for part, module in published.items() for name, t in module.state_dict().items()}


def loaded(weights: dict[str, Tensor], seed: int = 0, config: PolicyConfig = CONFIG) -> ActingPolicy:
    policy = ActingPolicy(SPECS, config, seed)
    policy.load_weights(weights)
    return policy


def actions_of(policy: ActingPolicy, count: int = 3, candidates: int | None = None) -> list[list[float]]:
    return [policy.select_action(OBSERVATION, candidates).tolist() for _ in range(count)]


@pytest.mark.parametrize("config", [CONFIG, WITHOUT_CRITIC])
def test_actions_are_float32_within_the_bounds(config: PolicyConfig) -> None:
    policy = loaded(make_weights(0, config), config=config)
    for _ in range(20):
        action = policy.select_action(OBSERVATION)
        assert action.shape == (2,)
        assert action.dtype == np.float32
        assert np.abs(action).max() <= 1


def test_same_weights_and_seed_act_alike_and_each_decision_draws_anew() -> None:
    weights = make_weights(0)
    first = actions_of(loaded(weights))
    assert first == actions_of(loaded(weights))
    assert first != actions_of(loaded(weights, seed=1))
    assert first != actions_of(loaded(make_weights(1)))
    assert len({tuple(action) for action in first}) == 3


def test_a_policy_leaves_the_programs_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    actions_of(ActingPolicy(SPECS, CONFIG, seed=0))
    assert torch.equal(torch.rand(3), expected)


def test_the_observation_is_normalised_and_reaches_the_network() -> None:
    """Metres scaled up and the same field in millimetres are one policy; another observation is another action."""
    wide = Field(name="position", unit="mm", low=(-1000.0,) * 3, high=(1000.0,) * 3)
    millimetres = ActingPolicy(Specs(ObservationSpec((wide,)), SPECS.action), CONFIG, seed=0)
    millimetres.load_weights(make_weights(0))
    action = millimetres.select_action({"position": 1000 * OBSERVATION["position"]})
    np.testing.assert_allclose(action, actions_of(loaded(make_weights(0)), 1)[0], atol=1e-5)
    elsewhere = loaded(make_weights(0)).select_action({"position": -OBSERVATION["position"]})
    assert np.abs(elsewhere - action).max() > 1e-3


def test_more_candidates_are_worth_more_to_the_published_critic() -> None:
    weights = make_weights(0)
    policy, critic = loaded(weights), make_critic(SPECS, CONFIG)
    critic.load_state_dict(
        {name.removeprefix("critic."): t for name, t in weights.items() if name.startswith("critic.")}
    )

    def mean_value(candidates: int) -> float:
        actions = torch.tensor(actions_of(policy, 100, candidates))
        feature = torch.from_numpy(OBSERVATION["position"]).expand(100, -1)
        return conservative_value(critic(feature, actions), CONFIG.drop_quantiles).mean().item()

    values = [mean_value(candidates) for candidates in (1, 4, 32)]
    assert values == sorted(values)
    assert values[0] < values[2]


def test_the_best_candidate_is_the_conservatively_best() -> None:
    """Of two critics one loves large first actions, the other hates them more: their mean decides, not either."""
    weights = make_weights(0)
    for name in list(weights):
        if name.startswith("critic."):
            weights[name] = torch.zeros_like(weights[name])
    weights["critic.weights.0"][:, 3, 0] = torch.tensor([1.0, 1.0])  # one hidden unit grows with the first action
    weights["critic.weights.1"][0, 0, :] = 1.0
    weights["critic.weights.1"][1, 0, :] = -3.0
    chosen = np.mean([action[0] for action in actions_of(loaded(weights), 200)])
    weights["critic.weights.1"][1, 0, :] = 3.0
    assert chosen < np.mean([action[0] for action in actions_of(loaded(weights), 200)]) - 0.3


def test_a_few_high_quantiles_do_not_win() -> None:
    """One quantile in five of each critic loves large first actions, the others dislike them less: it is dropped."""
    weights = make_weights(0)
    for name in list(weights):
        if name.startswith("critic."):
            weights[name] = torch.zeros_like(weights[name])
    weights["critic.weights.0"][:, 3, 0] = 1.0
    weights["critic.weights.1"][:, 0, :] = -1.0
    weights["critic.weights.1"][:, 0, 2] = 100.0
    # Mish is positive above 0, where the loving quantile is the highest one.
    weights["critic.biases.0"][:, 0, 0] = 3.0
    chosen = np.mean([action[0] for action in actions_of(loaded(weights), 200)])
    assert chosen < np.mean([action[0] for action in actions_of(loaded(weights), 200, candidates=1)]) - 0.2


def test_wrong_weights_are_refused_whole_and_the_old_ones_stay() -> None:
    policy, twin = loaded(make_weights(0)), loaded(make_weights(0))
    good = make_weights(1)
    name = "denoiser.trunk.0.weight"
    broken = [
        {key: tensor for key, tensor in good.items() if key != name},
        {**good, "extra": torch.zeros(1)},
        {**good, name: torch.zeros(2, 2)},
        {**good, name: torch.full_like(good[name], torch.nan)},
        {key: tensor for key, tensor in good.items() if key.startswith("denoiser.")},
        {},
    ]
    for weights in broken:
        with pytest.raises(WeightsError):
            policy.load_weights(weights)
    assert actions_of(policy) == actions_of(twin)
    with pytest.raises(WeightsError, match="critic"):
        ActingPolicy(SPECS, WITHOUT_CRITIC, 0).load_weights(good)


def test_a_policy_without_critic_cannot_choose() -> None:
    policy = loaded(make_weights(0, WITHOUT_CRITIC), config=WITHOUT_CRITIC)
    with pytest.raises(ConfigError, match=r"4 candidates asked for.*without a critic"):
        policy.select_action(OBSERVATION, candidates=4)
    policy.select_action(OBSERVATION, candidates=1)


def test_an_action_of_one_dimension_and_one_feature_works() -> None:
    specs = Specs(
        ObservationSpec((Field(name="x", unit="m", low=(0.0,), high=(1.0,)),)),
        ActionSpec((Field(name="v", unit="m/s", low=(-1.0,), high=(1.0,)),)),
    )
    assert ActingPolicy(specs, CONFIG, seed=0).select_action({"x": np.array([0.5], np.float32)}).shape == (1,)
