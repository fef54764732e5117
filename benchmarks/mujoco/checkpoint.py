"""Checkpoints of a run: one safetensors file, whose header holds the counters as JSON. The replay has its own files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from policy.errors import WeightsError
from policy.files import make_folder, replace_durably

_FORMAT = 2  # 2: optimisers know how many steps they left out; from 1 they begin to count anew
_READABLE = ("1", "2")
_NAME = "checkpoint.safetensors"


@dataclass
class Progress:
    """What a checkpoint holds beside tensors: counters, and what has been gathered since the last evaluation."""

    env_step: int = 0
    updates: int = 0
    evaluations: int = 0  # those that are due every so many steps
    final_step: int = 0  # of the last evaluation that was due because it was a run's end
    episode_return: list[float] = field(default_factory=list)  # of each agent's episode under way
    finished_returns: list[list[float]] = field(default_factory=list)  # of each agent since the last evaluation
    best: list[float | None] = field(default_factory=list)  # of each agent
    updates_before: int = 0  # at the last evaluation
    training_s: float = 0.0  # since the last evaluation
    wall_s: float = 0.0
    episodes: list[int] = field(default_factory=list)  # numbers of the training episodes under way
    replay_rows: int = 0
    sizes: list[dict[str, int]] = field(default_factory=list)  # of each agent's growing files, bytes


def save_checkpoint(folder: Path, tensors: Mapping[str, Tensor], progress: Progress) -> None:
    """Write one file by one rename: a crash leaves the checkpoint before or this one."""
    make_folder(folder)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header = {"format": str(_FORMAT), "progress": json.dumps(vars(progress))}
    replace_durably(folder / _NAME, save(contiguous, metadata=header))


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], Progress] | None:
    """Return what the newest checkpoint holds, None without one; raises WeightsError for one that cannot be used."""
    path = folder / _NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            if header["format"] not in _READABLE:
                raise WeightsError(
                    f"checkpoint {path} has format {header['format']}, this program reads "
                    f"{' and '.join(_READABLE)}: go on with the program that wrote it, or start again in another "
                    "folder."
                )
            progress = Progress(**json.loads(header["progress"]))
            return {name: file.get_tensor(name) for name in file.keys()}, progress
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise WeightsError(f"checkpoint {path} cannot be read: {error!r}. Start again in another folder.") from error
