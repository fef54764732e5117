"""The trainer on a log with images: it learns, publishes the heads, and resumes to the same bits."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from learner.algorithm_config import CgpoConfig, CriticConfig, GuidanceConfig
from learner.config import LearnerConfig, ReplayConfig
from learner.trainer import Trainer
from policy.config import PolicyConfig
from policy.episode_log import EpisodeLog
from policy.errors import ConfigError
from policy.image_codec import code_images
from policy.spec import ActionSpec, Field, ImageField, ObservationSpec, Specs
from policy.transition import ActionSource, EpisodeMark, MarkKind, Recordable, RecordId, Transition

SIZE = 32
SPECS = Specs(
    ObservationSpec(
        (Field(name="position", unit="m", low=(-1.0,), high=(1.0,)),),
        tuple(ImageField(name=name, height=SIZE, width=SIZE) for name in ("wrist", "side")),
    ),
    ActionSpec((Field(name="delta", unit="m", low=(-1.0,), high=(1.0,)),)),
)


def make_config(run_dir: Path, image_storage: Literal["pixels", "maps"] = "maps") -> LearnerConfig:
    return LearnerConfig(
        policy=PolicyConfig(
            encoder="resnet10", encoder_weights="random", image_feature_dim=8, proprioception_feature_dim=4,
            denoising_steps=4, denoiser_hidden=(16,), critic_hidden=(16,), num_critics=2, num_quantiles=5,
        ),
        cgpo=CgpoConfig(guidance=GuidanceConfig(steps=2), critic=CriticConfig(target_candidates=2), value_hidden=(16,)),
        replay=ReplayConfig(
            capacity=15, batch_size=4, demonstration_fraction=0.5, training_starts=5, image_storage=image_storage
        ),
        run_dir=run_dir,
        device="cpu",
    )  # fmt: skip


def write_log(run_dir: Path) -> None:
    """More steps than the replay holds, of episodes of 5; every third one is a demonstration, one is discarded."""
    rng = np.random.default_rng(0)

    def observe() -> dict[str, Any]:
        images = {name: rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for name in ("wrist", "side")}
        return code_images({"position": rng.uniform(-1, 1, 1).astype(np.float32), **images}, "jpeg")

    bodies: list[Recordable] = []
    for number in range(25):
        episode, step = divmod(number, 5)
        transition = Transition(
            episode=episode,
            step=step,
            observation=observe(),
            policy_action=np.zeros(1, np.float32),
            executed_action=rng.uniform(-1, 1, 1).astype(np.float32),
            source=ActionSource.POLICY if episode % 3 else ActionSource.HUMAN_DEMONSTRATION,
            reward=float(step == 4),
            terminated=step == 4,
            truncated=False,
            weights_version=0,
            weights_age_s=0.0,
            wall_time_s=0.0,
            monotonic_time_s=0.0,
            final_observation=observe() if step == 4 else None,
        )
        bodies.append(transition)
    bodies.insert(22, EpisodeMark(episode=4, step=1, kind=MarkKind.DISCARD, wall_time_s=0.0))
    log = EpisodeLog(run_dir / "log.sqlite", SPECS)
    log.append([(RecordId("robot", "incarnation", number), body) for number, body in enumerate(bodies)])
    log.close()


def train(trainer: Trainer, steps: int) -> None:
    trainer.read_log()
    for _ in range(steps):
        trainer.update()


@pytest.mark.parametrize("image_storage", ["pixels", "maps"])
def test_a_resumed_run_with_images_equals_the_uninterrupted_one(
    tmp_path: Path, image_storage: Literal["pixels", "maps"]
) -> None:
    for name in ("whole", "resumed"):
        write_log(tmp_path / name)
    whole = Trainer(make_config(tmp_path / "whole", image_storage), SPECS)
    train(whole, 4)
    interrupted = Trainer(make_config(tmp_path / "resumed", image_storage), SPECS)
    train(interrupted, 2)
    interrupted.save()
    resumed = Trainer(make_config(tmp_path / "resumed", image_storage), SPECS)
    train(resumed, 2)
    state = resumed.algorithm.state()
    for name, tensor in whole.algorithm.state().items():
        assert torch.equal(state[name], tensor), name


def test_the_heads_are_trained_and_published_and_the_backbone_is_neither(tmp_path: Path) -> None:
    write_log(tmp_path)
    trainer = Trainer(make_config(tmp_path), SPECS)
    before = {name: tensor.clone() for name, tensor in trainer.algorithm.policy_tensors().items()}
    train(trainer, 2)
    after = trainer.algorithm.policy_tensors()
    heads = [name for name in after if name.startswith("heads.")]
    assert "heads.cameras.1.embedding" in heads
    assert not any(torch.equal(before[name], after[name]) for name in heads)
    assert sum(tensor.numel() for tensor in after.values()) < 200_000  # the backbone has 4.9 million


def test_images_without_an_encoder_end_the_trainer_at_its_start(tmp_path: Path) -> None:
    write_log(tmp_path)
    config = make_config(tmp_path)
    with pytest.raises(ConfigError, match=r"policy\.encoder is 'none'"):
        Trainer(replace(config, policy=replace(config.policy, encoder="none")), SPECS)


def test_an_encoder_that_is_not_here_ends_the_trainer_at_its_start(tmp_path: Path) -> None:
    write_log(tmp_path)
    config = make_config(tmp_path)
    with pytest.raises(ConfigError, match=r"python -m policy\.convert_encoder"):
        Trainer(replace(config, policy=replace(config.policy, encoder_weights="ab" * 32)), SPECS)
