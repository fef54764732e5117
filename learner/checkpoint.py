"""Checkpoints: safetensors for tensors, JSON for the rest, published by one rename, verified before use.

A checkpoint holds weights, optimisers, generators, counters and a position in the episode log, not the replay buffer:
that is rebuilt from the log up to the position, so a resumed run continues bit for bit.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from learner.algorithms.state import SKIPPED
from policy.errors import WeightsError
from policy.failpoints import failpoint
from policy.files import sync_directory, write_durably

# 1: batches drawn by numpy, optimisers without the number of steps they left out. Both are begun anew: it goes on.
# 2: batches drawn on the device, by a generator of PyTorch.
FORMAT_VERSION = 2
_READABLE = (1, 2)
_REPLAY_NOISE = "trainer.replay_noise"  # beside the algorithm's own tensors
_RANK_NOISE = "trainer.rank_noise/"
_KEPT = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a trainer needs beside the episode log."""

    tensors: dict[str, Tensor]
    learner_step: int
    log_position: int  # replay at this moment = the log up to here
    weights_version: int
    replay_noise: Tensor  # state of the generator that batches are drawn with, empty where it is not known
    rank_noise: dict[str, Tensor] = field(default_factory=dict)  # all generators of the other ranks, see learner.leader


def save_checkpoint(directory: Path, checkpoint: Checkpoint, min_free_bytes: float = 0) -> Path:
    """Write a checkpoint below `directory` and return its folder; keeps the newest three that are whole.

    Nothing is replaced or deleted before the new one is complete on disk, so a crash at any moment leaves the last one.
    One of the same learner step is left as it is: it holds the same networks. Raises OSError, with nothing left behind,
    when the disk is full or less than min_free_bytes would be left for what matters more.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"step_{checkpoint.learner_step:010d}"
    if _is_whole(final):
        return final
    for unfinished in directory.glob(".tmp_*"):  # of a process that was killed
        shutil.rmtree(unfinished)
    rank_noise = {_RANK_NOISE + name: tensor for name, tensor in checkpoint.rank_noise.items()}
    data = save({**checkpoint.tensors, **rank_noise, _REPLAY_NOISE: checkpoint.replay_noise})
    _check_space(directory, len(data) + min_free_bytes)
    temporary = directory / f".tmp_{final.name}"
    try:
        _write(temporary, data, checkpoint)
        shutil.rmtree(final, ignore_errors=True)  # a corrupt one
        failpoint("checkpoint.before_rename")
        os.replace(temporary, final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    failpoint("checkpoint.after_rename")
    sync_directory(directory)
    _delete_old(directory)
    return final


def _write(folder: Path, data: bytes, checkpoint: Checkpoint) -> None:
    folder.mkdir()
    manifest = {
        "format_version": FORMAT_VERSION,
        "learner_step": checkpoint.learner_step,
        "log_position": checkpoint.log_position,
        "weights_version": checkpoint.weights_version,
        "num_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_durably(folder / "state.safetensors", data)
    failpoint("checkpoint.after_state")
    write_durably(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
    failpoint("checkpoint.after_manifest")
    sync_directory(folder)


def _check_space(directory: Path, needed_bytes: float) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise OSError(
            errno.ENOSPC,
            f"{free_bytes / 1e9:.2f} GB are free, {needed_bytes / 1e9:.2f} GB are needed (see learner.min_free_gb)",
            str(directory),
        )


def _delete_old(directory: Path) -> None:
    """Delete whatever is older than the third newest checkpoint that is whole: a corrupt one protects nothing."""
    num_whole = 0
    for folder in reversed(_folders(directory)):
        if num_whole == _KEPT:
            shutil.rmtree(folder)
        elif _is_whole(folder):
            num_whole += 1


class CheckpointWriter:
    """Writes checkpoints in a thread of its own, one at a time: training waits for the copy, not for the disk."""

    def __init__(self, directory: Path, min_free_bytes: float) -> None:
        self._directory = directory
        self._min_free_bytes = min_free_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        self._written: Future[Path] | None = None

    def begin(self, checkpoint: Checkpoint) -> None:
        """Start writing, once the one before has been asked for by `end`. The tensors are the writer's from here on."""
        assert self._written is None
        self._written = self._thread.submit(save_checkpoint, self._directory, checkpoint, self._min_free_bytes)

    @property
    def is_busy(self) -> bool:
        return self._written is not None

    def end(self, *, wait: bool) -> bool:
        """Return whether a checkpoint has been completed since the last call. Raises OSError when it could not be."""
        written = self._written
        if written is None or not (wait or written.done()):
            return False
        self._written = None
        written.result()
        return True

    def close(self) -> None:
        self._thread.shutdown()


def load_newest(directory: Path) -> Checkpoint | None:
    """Return the newest checkpoint that passes its check, or None where there is none at all.

    One that cannot be used is reported and passed over. Raises WeightsError if there are checkpoints and none can.
    """
    folders = _folders(directory)
    for folder in reversed(folders):
        try:
            return load_checkpoint(folder)
        except WeightsError as error:
            logger.error("%s Trying the one before.", error)
    if folders:
        raise WeightsError(
            f"none of the {len(folders)} checkpoints in {directory} can be used, see above. The episode log is intact: "
            "move the folder away to train again from the recorded data, or take it into a new run with "
            f"--from-log {directory.parent} --from-log-take all --run-dir ANOTHER."
        )
    return None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint folder. Raises WeightsError naming what is wrong."""
    try:
        manifest, data = _read_verified(folder)
        tensors = load(data)
        if manifest["format_version"] == 1:
            tensors |= _missing_in_format_1(tensors)
        rank_names = [name for name in tensors if name.startswith(_RANK_NOISE)]
        return Checkpoint(
            replay_noise=tensors.pop(_REPLAY_NOISE),
            rank_noise={name.removeprefix(_RANK_NOISE): tensors.pop(name) for name in rank_names},
            tensors=tensors,
            learner_step=manifest["learner_step"],
            log_position=manifest["log_position"],
            weights_version=manifest["weights_version"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"checkpoint {folder} cannot be read: {error}.") from error


def _read_verified(folder: Path) -> tuple[dict[str, Any], bytes]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    data = (folder / "state.safetensors").read_bytes()
    if manifest["format_version"] not in _READABLE:
        raise WeightsError(
            f"checkpoint {folder} has format {manifest['format_version']}, this program reads "
            f"{_READABLE[0]} to {_READABLE[-1]}: it was written by another version of this program, which can go on "
            "with it."
        )
    digest = hashlib.sha256(data).hexdigest()
    if digest != manifest["sha256"]:
        raise WeightsError(
            f"checkpoint {folder} is corrupt: {len(data)} bytes with SHA-256 {digest[:12]}…, its manifest says "
            f"{manifest['num_bytes']} bytes with {manifest['sha256'][:12]}…."
        )
    return manifest, data


def _missing_in_format_1(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    optimisers = {match[1] for name in tensors if (match := re.fullmatch(r"(.+)\.\d+\.exp_avg", name))}
    skipped = {f"{optimiser}.{SKIPPED}": torch.zeros(2) for optimiser in optimisers}
    return skipped | {_REPLAY_NOISE: torch.empty(0, dtype=torch.uint8)}


def _is_whole(folder: Path) -> bool:
    try:
        _read_verified(folder)
    except (WeightsError, OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _folders(directory: Path) -> list[Path]:
    return sorted(directory.glob("step_*"))
