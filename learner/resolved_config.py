"""The configuration that the learner command wrote for its processes."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from learner.config import LearnerConfig
from policy.config import from_dict
from policy.errors import ConfigError


def load_config(path: Path) -> LearnerConfig:
    """Read the resolved configuration that the learner command wrote, choosing the device where it says auto.

    Raises ConfigError for a device that this machine does not have.
    """
    config = from_dict(LearnerConfig, json.loads(path.read_text()))
    if config.device == "auto":
        config = replace(config, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device = {config.device!r} cannot be used: {reason}. Choose auto or cpu, or cuda on a machine with an "
            "NVIDIA GPU, its driver and a PyTorch built for it."
        ) from error
    return config
