"""Small trainers, the logs they learn from, and running them, for tests."""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.algorithm_config import CgpoConfig, CriticConfig, GuidanceConfig
from learner.config import LearnerConfig, ReplayConfig
from learner.trainer import Trainer
from policy.config import PolicyConfig
from policy.episode_log import EpisodeLog
from policy.spec import ActionSpec, Field, ObservationSpec, Specs
from policy.transition import ActionSource, RecordId, Transition

HANG_LIMIT_S = 60.0

SPECS = Specs(
    ObservationSpec((Field(name="position", unit="m", low=(-1.0, -1.0), high=(1.0, 1.0)),)),
    ActionSpec((Field(name="delta", unit="m", low=(-1.0, -1.0), high=(1.0, 1.0)),)),
)


def make_config(run_dir: Path, algorithm: str = "cgpo", **changes: Any) -> LearnerConfig:
    """Return the configuration of a learner that takes milliseconds for a step; `changes` replace its fields."""
    small: dict[str, Any] = {"denoising_steps": 4, "denoiser_hidden": (16,), "critic_hidden": (16,), "num_critics": 2}
    if algorithm == "hil_serl_sac":
        policy = PolicyConfig(
            **small, gaussian_hidden=(16,), distribution="gaussian", num_quantiles=1, drop_quantiles=0,
            behavior_candidates=1,
        )  # fmt: skip
    else:
        policy = PolicyConfig(**small, num_quantiles=5)
    values: dict[str, Any] = {"run_dir": run_dir, "device": "cpu", "metrics_every": 5, "min_free_gb": 0.0}
    return LearnerConfig(
        policy=policy,
        cgpo=CgpoConfig(
            guidance=GuidanceConfig(steps=2),
            critic=CriticConfig(target_candidates=2),
            cta_ratio=2,
            value_hidden=(16,),
            human_targets=True,
            bc_warmup_steps=3,
        ),
        replay=ReplayConfig(capacity=50, batch_size=16, demonstration_fraction=0.5, training_starts=20),
        algorithm=algorithm,
        **(values | changes),
    )


def write_log(run_dir: Path, first: int, count: int, reward: float = 1.0) -> None:
    """Append `count` steps of episodes of 7 steps, every third one a demonstration; the last step brings `reward`."""
    log = EpisodeLog(run_dir / "log.sqlite", SPECS)
    rng = np.random.default_rng(first)
    records = []
    for sequence in range(first, first + count):
        episode, step = divmod(sequence, 7)
        records.append(
            (
                RecordId("robot", "incarnation", sequence),
                Transition(
                    episode=episode,
                    step=step,
                    observation={"position": rng.uniform(-1, 1, 2).astype(np.float32)},
                    policy_action=np.zeros(2, np.float32),
                    executed_action=rng.uniform(-1, 1, 2).astype(np.float32),
                    source=ActionSource.POLICY if episode % 3 else ActionSource.HUMAN_DEMONSTRATION,
                    reward=reward * (step == 6),
                    terminated=step == 6,
                    truncated=False,
                    weights_version=0,
                    weights_age_s=0.0,
                    wall_time_s=0.0,
                    monotonic_time_s=0.0,
                    final_observation={"position": np.ones(2, np.float32)} if step == 6 else None,
                ),
            )
        )
    log.append(records)
    log.close()


def train(trainer: Trainer, steps: int) -> None:
    trainer.read_log()
    for _ in range(steps):
        assert not trainer.missing()
        trainer.update()


def assert_same_state(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    """Assert that two algorithms' states are equal bit for bit."""
    assert left.keys() == right.keys()
    assert not [name for name in left if not torch.equal(left[name], right[name])]


def run_until(trainer: Trainer, condition: Callable[[], Any]) -> None:
    """Let the trainer run in a thread until the condition holds, stop it, and raise what it raised."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        run = thread.submit(trainer.run, stop)
        try:
            wait_until(lambda: run.done() or condition())
        finally:
            stop.set()
        run.result()


def wait_until(condition: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "hangs"
        time.sleep(0.01)
