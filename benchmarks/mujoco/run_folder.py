"""What a run leaves on disk: config.json, curve.csv, status.json, summary.json, and checkpoints to go on from.

DIR/TASK/ALGORITHM/VARIANT/seed_N/   config.json, curve.csv, metrics.jsonl, status.json, at the end summary.json
the same folder, or population_...   checkpoint.safetensors, replay/
"""

import csv
import importlib.metadata
import io
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.mujoco.settings import Protocol, RunSettings, flatten
from learner.config import LearnerConfig
from policy.errors import ConfigError, WeightsError
from policy.files import make_folder, replace_durably, replace_file
from policy.revision import read_revision

Row = dict[str, float | int | None]

RETURN_COLUMNS = ("return_mean", "return_std", "return_min", "return_max", "length_mean")
"""For each K_e a column named like return_mean_k4."""
WALL_CLOCK_COLUMNS = ("updates_per_s", "evaluation_s", "wall_s")
"""What differs between two runs of the same settings."""

_CURVE, _METRICS = "curve.csv", "metrics.jsonl"
_PACKAGES = ("torch", "gymnasium", "mujoco", "numpy")
_FREE = ("protocol.probe_states",)  # follows the device, and no return from it


CONTRAST_COLUMNS = ("contrast", "guided_contrast", "value_std")
"""Critic contrast (CGPO Eq 9), that of the guided action, and the spread of values; diffusion policies only."""


def columns(settings: RunSettings) -> list[str]:
    """Return the columns of curve.csv. A cell is empty where nothing was measured at that evaluation."""
    returns = [f"{name}_k{count}" for count in evaluated_candidates(settings) for name in RETURN_COLUMNS]
    training = ["training_return_mean", "training_episodes", "skipped_steps"]
    contrast = CONTRAST_COLUMNS if settings.is_diffusion else ()
    return ["env_step", "updates", *returns, "best_return", *training, *contrast, *WALL_CLOCK_COLUMNS]


def evaluated_candidates(settings: RunSettings) -> tuple[int, ...]:
    """Return every K_e of the run, the headline first; a policy without samples to choose from has 1."""
    if not settings.has_candidates:
        return (1,)
    return settings.protocol.candidates + settings.protocol.more_candidates


class RunFolder:
    """The folder of one seed's run."""

    def __init__(self, path: Path, settings: RunSettings) -> None:
        self.path = path
        self.settings = settings

    def check(self, *, is_resumed: bool) -> None:
        """Raise ConfigError where the folder holds another run, or one that is not to be resumed."""
        path = self.path / "config.json"
        if not path.exists():
            return
        self._check_same(self._stored())
        if not is_resumed:
            raise ConfigError(f"{self.path} holds a run already. Continue it with --resume, or choose another --out.")

    def record(self, start: Mapping[str, Any]) -> None:
        """Write config.json, or add this start of the run to it."""
        make_folder(self.path)
        path = self.path / "config.json"
        content = {**self.settings.to_dict(), "starts": []}
        if path.exists():  # what it was begun with stays, also where a newer program knows more settings
            content = self._stored()
            self._check_same(content)
        content["starts"] = [*content["starts"], start]
        replace_durably(path, json.dumps(content, indent=1).encode())
        (self.path / "summary.json").unlink(missing_ok=True)  # of the same run with fewer steps

    def notice_of_change(self, device: str, threads: int, machine: str) -> str:
        """Return what differs from where the run was at last, where sums may round otherwise; "" if nothing does.

        Raises ConfigError on another kind of device. The run must have been started.
        """
        before = self._stored()["starts"][-1]
        if before["device"] != device:
            raise ConfigError(
                f"{self.path} was run with --device {before['device']}, now it is {device}: their random numbers "
                f"differ, so the run cannot go on there. Give --device {before['device']}, or another --out."
            )
        now = {"threads": threads, "machine": machine}
        changes = [f"{name} {before[name]}, now {value}" for name, value in now.items() if before[name] != value]
        if not changes:
            return ""
        return (
            f". Before: {'; '.join(changes)}. The run goes on, but sums may round otherwise: its curve need not be the "
            "one that it would have had without the change."
        )

    def _stored(self) -> dict[str, Any]:
        path = self.path / "config.json"
        try:
            stored = json.loads(path.read_text())
            return {**stored, "starts": list(stored["starts"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}. Move its folder away to start again.") from error

    def _check_same(self, stored: Mapping[str, Any]) -> None:
        begun = {name: value for name, value in stored.items() if name != "starts"}
        # Settings that came with a newer program had no other value when the run began than their default.
        defaults = replace(self.settings, config=LearnerConfig(), protocol=Protocol()).to_dict()
        now = flatten(self.settings.to_dict())
        before = flatten(defaults) | flatten(begun)
        differences = [
            f"{name} was {value!r}, is {now.get(name)!r}"
            for name, value in before.items()
            if value != now.get(name) and name not in _FREE
        ]
        if differences:
            raise ConfigError(
                f"{self.path} holds a run with another configuration: {'; '.join(differences)}. Give the options that "
                "it was started with, or another --out."
            )

    def finished_steps(self) -> int:
        """Return the steps after which the run was finished; 0 while it is not."""
        path = self.path / "summary.json"
        return int(json.loads(path.read_text())["env_step"]) if path.exists() else 0

    def append(self, row: Row) -> None:
        """Add a row to curve.csv."""
        text = io.StringIO()
        path = self.path / _CURVE
        begun = path.read_text().splitlines()[:1] if path.exists() else []
        # A curve that an older program began keeps its columns.
        names = begun[0].split(",") if begun else columns(self.settings)
        writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
        if not begun:
            writer.writeheader()
        writer.writerow({name: _shown(value) for name, value in row.items()})
        _append(path, text.getvalue())

    def append_metrics(self, metrics: Mapping[str, float]) -> None:
        """Add a line to metrics.jsonl: what the updates since the last evaluation, or the last start, averaged to."""
        _append(self.path / _METRICS, json.dumps(metrics) + "\n")

    def sizes(self) -> dict[str, int]:
        """Return the bytes of the files that grow."""
        paths = {name: self.path / name for name in (_CURVE, _METRICS)}
        return {name: path.stat().st_size if path.exists() else 0 for name, path in paths.items()}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Take off what was written after the checkpoint. Raises WeightsError when something before it is gone."""
        for name, present in self.sizes().items():
            size = sizes.get(name, 0)
            if present < size:
                raise WeightsError(
                    f"{self.path / name} has {present} bytes, {size} when the checkpoint was written: it was changed "
                    "since. Start again in another folder."
                )
            if present:
                os.truncate(self.path / name, size)

    def read_curve(self) -> list[dict[str, str]]:
        path = self.path / _CURVE
        return list(csv.DictReader(path.open())) if path.exists() else []

    def write_status(self, **values: Any) -> None:
        status = {**values, "pid": os.getpid(), "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        replace_file(self.path / "status.json", json.dumps(status, indent=1).encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Say that the run is finished, and what it came to."""
        replace_durably(self.path / "summary.json", json.dumps(summary, indent=1).encode())


def summarise(rows: Sequence[Mapping[str, str]], headline: str) -> dict[str, float | int]:
    """Return best return, and mean over the last tenth of the evaluations, at least one."""
    returns = [float(row[headline]) for row in rows]
    last = returns[-max(1, math.ceil(len(returns) / 10)) :]
    return {
        "env_step": int(rows[-1]["env_step"]),
        "evaluations": len(rows),
        "best_return": max(returns),
        "last_tenth_return": sum(last) / len(last),
    }


def describe_start(env_step: int, command: Sequence[str], device: str, threads: int, machine: str) -> dict[str, Any]:
    """Return what is worth knowing about one start of a run: program, versions, machine."""
    return {
        "env_step": env_step,
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": list(command),
        "revision": read_revision(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "machine": machine,
        "device": device,
        "threads": threads,
    }


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _shown(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
