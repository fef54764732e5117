"""Every switch of CGPO: builds, trains finite networks, and changes what is learned."""

import math
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor

from learner.agents import Agents
from learner.algorithm_config import CgpoConfig
from learner.algorithms.cgpo import Cgpo
from policy.config import PolicyConfig
from policy.errors import ConfigError
from tests.oracles import make_specs, merged, random_batch, small_config

# Each switch against the configuration it departs from; the second table is merged over the first.
SWITCHES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"guidance": {"type": "naive"}}),
    ({}, {"guidance": {"type": "none"}}),
    ({"guidance": {"type": "none"}}, {"guidance": {"best_of": 8}}),
    *(({}, {"guidance": {"rate": rate}}) for rate in (0.0, 0.35, 0.65, 1.0)),
    *(({}, {"guidance": {"steps": steps}}) for steps in (0, 2, 5)),
    *(({}, {"guidance": {"clip_grad": rule}}) for rule in ("hard", "ste", "none")),
    ({}, {"guidance": {"through_denoiser": False}}),
    ({"guidance": {"type": "naive"}}, {"guidance": {"naive_scale": 10.0}}),
    ({"guidance": {"type": "naive"}}, {"guidance": {"naive_normalised": True}}),
    ({}, {"critic": {"ddqn": False}}),
    *(({}, {"critic": {"target_candidates": count}}) for count in (1, 32)),
    *(({}, {"critic": {"target_truncation": rule}}) for rule in ("per_net", "none")),
    ({}, {"critic": {"target_type": "scalar"}}),
    ({}, {"critic": {"huber_kappa": 0.1}}),
    ({}, {"vbase": "zero"}),
    ({}, {"vbase": "sampled"}),
    ({"vbase": "sampled"}, {"vbase_samples": 9}),
    ({}, {"vbase_critic": "target"}),
    ({}, {"weight_norm": "mean"}),
    ({}, {"entropy_reduction": "mean"}),
    ({}, {"entropy_weight": 0.0}),
    ({}, {"entropy_samples": 10}),
    ({"entropy_anneal_steps": 0}, {"entropy_anneal_steps": 2}),
    ({}, {"grad_clip": 1e-3}),
    ({}, {"human_targets": True}),
    ({}, {"bc_warmup_steps": 1}),
    ({}, {"cta_ratio": 2}),
    ({}, {"shared_prefix": False}),
    ({}, {"policy": {"drop_quantiles": 0}}),
    ({}, {"policy": {"critic_layer_norm": True}}),
    ({}, {"policy": {"critic_activation": "relu"}}),
    ({}, {"policy": {"schedule": "vp"}}),
    ({}, {"policy": {"num_critics": 2, "num_quantiles": 1, "drop_quantiles": 0}, "critic": {"type": "twin_scalar"}}),
    ({"entropy_reduction": "mean"}, {"policy": {"behavior_candidates": 1}}),
]


def policy_after_three_steps(table: dict[str, Any]) -> dict[str, Tensor]:
    # Coarse steps and distinct target networks, so that what a switch does shows within three steps.
    fast = {"actor_learning_rate": 0.01, "target_update_rate": 0.3, "critic": {"learning_rate": 0.05}}
    table = merged(fast, table)
    algorithm = Cgpo(Agents.single(small_config(policy=table.pop("policy", {}), cgpo=table)), make_specs(2, 2))
    batches = [random_batch(16, 2, 2, seed) for seed in range(6)]
    for _ in range(3):
        metrics = algorithm.update_step(lambda: batches.pop(0))
        assert all(math.isfinite(float(value)) for value in metrics.values())
    assert all(tensor.isfinite().all() for tensor in algorithm.state().values())
    return algorithm.policy_tensors()


@pytest.mark.parametrize(("base", "switch"), SWITCHES, ids=str)
def test_every_switch_trains_finite_networks_and_makes_a_difference(
    base: dict[str, Any], switch: dict[str, Any]
) -> None:
    before, after = policy_after_three_steps(base), policy_after_three_steps(merged(base, switch))
    assert any(name not in after or not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "table",
    [
        {"entropy_samples": 0},  # the mean over no uniform action is not a number
        {"entropy_samples": 0, "entropy_reduction": "mean"},
        {"vbase_samples": 0},
        {"critic": {"target_candidates": 0}},
        {"critic": {"huber_kappa": 0.0}},
        {"guidance": {"best_of": 0}},
        {"guidance": {"rate": 1.1}},
        {"cta_ratio": 0},
        {"discount": 1.0},
        {"policy": {"num_critics": 0}},
        {"policy": {"time_embedding_dim": 2}},
        {"policy": {"time_embedding_dim": 31}},
        {"policy": {"behavior_candidates": 1}},  # under concat: acting without a critic on raw samples
        {"critic": {"type": "twin_scalar"}},  # with five quantiles
        {"policy": {"num_critics": 3, "num_quantiles": 1, "drop_quantiles": 0}},  # would silently be a minimum
        {"policy": {"num_critics": 2, "num_quantiles": 1, "drop_quantiles": 0}},  # scalar critics, quantile loss
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_anything_is_built(table: dict[str, Any]) -> None:
    table = dict(table)
    with pytest.raises(ConfigError):
        small_config(policy=table.pop("policy", {}), cgpo=table)


def leaves(table: dict[str, Any], prefix: str = "") -> set[tuple[str, Any]]:
    pairs: set[tuple[str, Any]] = set()
    for key, value in table.items():
        pairs |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {(f"{prefix}{key}", value)}
    return pairs


def choices(config: Any, prefix: str = "") -> set[tuple[str, Any]]:
    """Every value but the default of every Literal and bool field."""
    found: set[tuple[str, Any]] = set()
    for name, hint in get_type_hints(type(config)).items():
        default = getattr(config, name)
        if is_dataclass(default):
            found |= choices(default, f"{prefix}{name}.")
        values = (True, False) if hint is bool else get_args(hint) if get_origin(hint) is Literal else (default,)
        found |= {(f"{prefix}{name}", value) for value in values if value != default}
    return found


def test_every_choice_is_among_the_switches() -> None:
    covered = set().union(*(leaves(switch) for _, switch in SWITCHES))
    elsewhere = {  # of other algorithms and of image observations, which have tests of their own
        ("policy.distribution", "gaussian"),
        ("policy.distribution", "deterministic"),
        ("policy.gaussian_layer_norm", False),
        ("policy.encoder", "resnet10"),
        ("policy.success_classifier", True),
        ("policy.success_classifier_vector", True),
    }
    assert choices(CgpoConfig()) | choices(PolicyConfig(), "policy.") <= covered | elsewhere
