"""What one run is: task, algorithm, resolved configuration and protocol, and the folder that belongs to it."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from learner.config import LearnerConfig
from policy.config import apply_overrides, from_dict, load_preset, preset_names, to_json, valid_keys
from policy.errors import ConfigError, unknown_name

_PRESET = "paper_mujoco"
_REDUCED = "reduced_mujoco"
_NEAREST_VERSION = "-v4"  # what comes closest to the paper's v3
_LONGEST_NAME = 120  # a file system takes 255 bytes
_MACHINE_FIELDS = ("device", "torch_threads", "run_dir")  # of LearnerConfig: where a run happens, not what it is


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a run is evaluated. The first of `candidates` is the headline that best and last returns are taken of."""

    evaluation_every: int = 10_000
    """Environment steps between two evaluations."""
    episodes: int = 10
    """Episodes of one evaluation, for each number of candidates."""
    candidates: tuple[int, ...] = (4,)
    """K_e at every evaluation: samples among which the critic chooses each action."""
    more_candidates: tuple[int, ...] = (1, 32)
    """K_e at every `more_every`-th evaluation and the last one."""
    more_every: int = 5
    probe_states: int = 64
    """Replay states on which the critic contrast is measured; from the command line 256 on a GPU."""
    probe_after: int = 5
    """Evaluation at which they are drawn, or a later one if half of the replay would still be random actions'."""

    def __post_init__(self) -> None:
        if min(self.evaluation_every, self.episodes, self.more_every, self.probe_states, self.probe_after) < 1:
            raise ConfigError(f"{self}: every number must be at least 1")
        every = (*self.candidates, *self.more_candidates)
        if not self.candidates or min(every) < 1 or len(set(every)) != len(every):
            raise ConfigError(
                f"candidates {self.candidates} at every evaluation and {self.more_candidates} at some: each must be at "
                "least 1 and stand once, and at least one number must be evaluated every time"
            )

    def due_candidates(self, evaluation: int, *, is_last: bool) -> tuple[int, ...]:
        """Return K_e of the evaluation with this number, from 1."""
        return self.candidates + (self.more_candidates if is_last or evaluation % self.more_every == 0 else ())


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """One run of one seed."""

    task: str
    preset: str
    overrides: tuple[str, ...]
    config: LearnerConfig
    protocol: Protocol
    population: tuple[int, ...] = ()
    """Seeds that are trained together with this one, itself included; none if it is trained alone."""

    @property
    def folder(self) -> Path:
        """TASK/ALGORITHM/VARIANT/seed_N, below the folder that the command line names."""
        return self._variant_folder / f"seed_{self.config.seed}"

    @property
    def state_folder(self) -> Path:
        """Where checkpoint and replay are: a population's seeds share them."""
        if not self.population:
            return self.folder
        return self._variant_folder / f"population_{'_'.join(map(str, self.population))}"

    @property
    def _variant_folder(self) -> Path:
        return Path(self.task) / self.config.algorithm / variant_name(self.preset, self.overrides)

    @property
    def is_diffusion(self) -> bool:
        return self.config.policy.distribution == "diffusion"

    @property
    def has_candidates(self) -> bool:
        """Whether an evaluation draws samples among which the critic may choose; DIPO's are all the same by default."""
        return self.is_diffusion and (self.config.algorithm != "dipo" or self.config.dipo.evaluation_noise)

    def to_dict(self) -> dict[str, Any]:
        """Return what must be equal for a run to be continued, as JSON values."""
        learner = json.loads(to_json(self.config))
        for name in _MACHINE_FIELDS:
            del learner[name]
        return {
            "task": self.task,
            "algorithm": self.config.algorithm,
            "preset": self.preset,
            "overrides": list(self.overrides),
            "seed": self.config.seed,
            "population": list(self.population),
            "protocol": json.loads(json.dumps(asdict(self.protocol))),
            "learner": learner,
        }


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def variant_name(preset: str, overrides: Sequence[str]) -> str:
    """Return a folder name for a preset and what departs from it, whatever the order of the overrides."""
    parts = [Path(preset).stem, *sorted(override.replace(" ", "") for override in overrides)]
    name = re.sub(r"[^A-Za-z0-9_.=,+-]", "_", ",".join(parts))
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _LONGEST_NAME - 9]},{digest}"


def default_preset(algorithm: str, *, is_reduced: bool) -> str:
    """Return the preset of an algorithm; raises ConfigError naming the algorithms that have one."""
    suffix = "" if algorithm == "cgpo" else f"_{algorithm}"
    names = preset_names()
    if f"{_PRESET}{suffix}" not in names:
        known = ["cgpo", *(name.removeprefix(f"{_PRESET}_") for name in names if name.startswith(f"{_PRESET}_"))]
        raise unknown_name("algorithm", algorithm, known)
    reduced = f"{_REDUCED}{suffix}"
    return reduced if is_reduced and reduced in names else f"{_PRESET}{suffix}"


def resolve_config(
    preset: str, overrides: Sequence[str], *, algorithm: str, device: str, threads: int
) -> LearnerConfig:
    """Read a preset, set what overrides name, and choose the device. Raises ConfigError for what does not fit."""
    tables = load_preset(preset)
    raw = {**tables.get("learner", {}), "policy": tables.get("policy", {})}
    chosen = apply_overrides(raw, overrides, valid_keys(LearnerConfig))
    config = from_dict(LearnerConfig, chosen, "")
    if config.algorithm != algorithm:
        raise ConfigError(f"preset {preset} is for algorithm {config.algorithm!r}, not {algorithm!r}: give another one")
    return replace(config, device=chosen_device(device), torch_threads=threads)


def chosen_device(name: str) -> str:
    """Return the device that `auto` stands for; raises ConfigError for one that this machine does not have."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device cuda cannot be used: PyTorch finds no NVIDIA GPU. Choose --device cpu, or a machine with a GPU, "
            "its driver and a PyTorch built for it."
        )
    return name


def full_task_name(task: str) -> str:
    """Return the task with a version: v4 where none is given."""
    return task if re.search(r"-v\d+$", task) else f"{task}{_NEAREST_VERSION}"


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read "0-4", "7" or "0-2,5"; raises ConfigError."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is None:
            raise ConfigError(f"seeds {text!r} are not like 0-4 or 0,3,7")
        first = int(match[1])
        seeds += range(first, int(match[2] or first) + 1)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds {text!r} name no seed, or one twice")
    return tuple(seeds)


def parse_counts(text: str) -> tuple[int, ...]:
    """Read "1,32"; raises ConfigError."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"candidates {text!r} are not like 4 or 1,32") from None
