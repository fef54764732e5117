"""What the learner of the robot's preset publishes: everything that it trains and nothing of the frozen backbone."""

from dataclasses import replace

import pytest
import torch

from learner.algorithms import make_algorithm
from learner.config import LearnerConfig
from policy.acting import ActingPolicy
from policy.cli import config_from_preset
from policy.config import load_preset
from policy.encoder import ObservationEncoder
from policy.errors import WeightsError
from policy.spec import ActionSpec, Field, ImageField, ObservationSpec, Specs
from policy.weights import deserialise, serialise
from policy.weights_store import sha256

SPECS = Specs(
    ObservationSpec(
        (Field(name="position", unit="m", low=(-1.0,) * 3, high=(1.0,) * 3),),
        tuple(ImageField(name=name, height=128, width=128) for name in ("wrist", "side")),
    ),
    ActionSpec((Field(name="delta", unit="m", low=(-1.0,) * 3, high=(1.0,) * 3),)),
)


def preset_config(name: str) -> LearnerConfig:
    config = config_from_preset(LearnerConfig, "learner", load_preset(name))
    return replace(config, policy=replace(config.policy, encoder_weights="random"), device="cpu")


# Measured: 14.6 MB and 9.8 MB, most of it the heads of two cameras; the backbone would add 19.6 MB.
@pytest.mark.parametrize(("preset", "limit_mb"), [("paper_robot", 15.0), ("hil_serl_sac", 10.0)])
def test_the_frozen_backbone_never_travels(preset: str, limit_mb: float) -> None:
    config = preset_config(preset)
    backbone = ObservationEncoder(SPECS, config.policy).backbone
    assert backbone is not None
    frozen = [tensor for tensor in backbone.state_dict().values() if len(tensor.unique()) > 1]  # no zeros or ones
    assert sum(tensor.numel() for tensor in frozen) > 4_800_000
    published = make_algorithm(config, SPECS).policy_tensors()
    assert any(name.startswith("heads.") for name in published)
    for tensor in published.values():
        assert not any(tensor.shape == other.shape and torch.equal(tensor, other) for other in frozen)
    assert len(serialise(published)) < limit_mb * 1e6

    actor = ActingPolicy(SPECS, config.policy, seed=0)  # has the same backbone from its own disk
    data = serialise(published)
    actor.load_weights(deserialise(data, sha256(data)))


def test_weights_of_another_architecture_are_refused_by_name() -> None:
    config = preset_config("paper_robot")
    narrower = replace(config.policy, image_feature_dim=32)
    tensors = make_algorithm(config, SPECS).policy_tensors()
    with pytest.raises(
        WeightsError, match=r"nothing was loaded: .*heads\.cameras\.0\.\S+ is float32 \[.*this policy has"
    ):
        ActingPolicy(SPECS, narrower, seed=0).load_weights(tensors)
