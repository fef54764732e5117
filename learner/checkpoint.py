"""Checkpoints: safetensors for tensors, JSON for the rest, published by one rename, verified before use.

A checkpoint holds weights, optimisers, generators, counters and a position in the episode log, not the replay buffer:
that is rebuilt from the log up to the position, so a resumed run continues bit for bit.
"""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from policy.errors import WeightsError
from policy.files import sync_directory, write_durably

FORMAT_VERSION = 1
_KEPT = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a trainer needs beside the episode log."""

    tensors: dict[str, Tensor]
    learner_step: int
    log_position: int  # replay at this moment = the log up to here
    weights_version: int
    replay_rng: dict[str, Any]  # state of the numpy bit generator


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint below `directory` and return its folder; keeps the newest three.

    Nothing is replaced or deleted before the new one is complete on disk, so a crash at any moment leaves the last one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"step_{checkpoint.learner_step:010d}"
    temporary = directory / f".tmp_{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    data = save(checkpoint.tensors)
    manifest = {
        "format_version": FORMAT_VERSION,
        "learner_step": checkpoint.learner_step,
        "log_position": checkpoint.log_position,
        "weights_version": checkpoint.weights_version,
        "replay_rng": checkpoint.replay_rng,
        "num_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_durably(temporary / "state.safetensors", data)
    write_durably(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
    if final.exists():  # resumed, and at the same step again: the newer one holds more of the log
        shutil.rmtree(final)
    os.replace(temporary, final)
    sync_directory(directory)
    for old in _folders(directory)[:-_KEPT]:
        shutil.rmtree(old)
    return final


def load_newest(directory: Path) -> Checkpoint | None:
    """Return the newest checkpoint that passes its check, or None where there is none at all.

    A corrupt one is reported and passed over. Raises WeightsError if there are checkpoints and all are corrupt.
    """
    folders = _folders(directory)
    for folder in reversed(folders):
        try:
            return load_checkpoint(folder)
        except WeightsError as error:
            logger.error("%s Trying the one before.", error)
    if folders:
        raise WeightsError(
            f"all {len(folders)} checkpoints in {directory} are corrupt. The episode log is intact: "
            "move the folder away to train again from the recorded data."
        )
    return None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint folder. Raises WeightsError naming what is wrong."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        data = (folder / "state.safetensors").read_bytes()
        if manifest["format_version"] != FORMAT_VERSION:
            raise WeightsError(
                f"checkpoint {folder} has format {manifest['format_version']}, this program reads {FORMAT_VERSION}."
            )
        digest = hashlib.sha256(data).hexdigest()
        if digest != manifest["sha256"]:
            raise WeightsError(
                f"checkpoint {folder} is corrupt: {len(data)} bytes with SHA-256 {digest[:12]}…, its manifest says "
                f"{manifest['num_bytes']} bytes with {manifest['sha256'][:12]}…."
            )
        return Checkpoint(
            tensors=load(data),
            learner_step=manifest["learner_step"],
            log_position=manifest["log_position"],
            weights_version=manifest["weights_version"],
            replay_rng=manifest["replay_rng"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"checkpoint {folder} cannot be read: {error}.") from error


def _folders(directory: Path) -> list[Path]:
    return sorted(directory.glob("step_*"))
