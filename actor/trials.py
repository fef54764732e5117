"""The trials of an evaluation on disk: what each came to, which policy had it, and that the settings stay the same.

trials.jsonl has a line per trial, on the disk before the next one begins, and never says which policy it was: that is
in key.json, drawn once. A killed evaluation goes on with the first trial that has no line.
"""

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actor.report import drop_torn_line
from policy.errors import ConfigError, CorruptFileError
from policy.files import make_folder, replace_durably
from robot.interface import Array

_POSITION_TOLERANCE_M = 0.007  # a reset of a real arm arrives within 3 mm, and two of them are compared
_ROTATION_TOLERANCE_RAD = 0.045

Pose = list[list[float]]  # (4, 4)


@dataclass(frozen=True, kw_only=True)
class Start:
    """A start state: the seed that it was drawn with, and what was measured there."""

    seed: int
    O_T_EE: Pose | None = None  # None: not measured yet
    objects: dict[str, Pose] | None = None  # O_T_object of each; empty where the backend does not know


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One finished trial."""

    trial: int  # 1, 2, ...
    start: int  # index of the start state
    seed: int
    O_T_EE: Pose
    objects: dict[str, Pose]
    is_success: bool  # without any help
    verdict: bool  # what the judge said, help or not
    judged_by: str
    length: int  # control steps
    cycle_time_s: float  # control steps times period
    interventions: int
    intervention_steps: int
    clipped_steps: int  # that the safety gate changed
    stale_image_steps: int
    ee_jerk_m_s3: float | None  # rms_jerk of the EE's positions; None for fewer than four samples
    action_jerk_s3: float | None  # the same of the executed actions in [-1, 1], without the gripper's
    video: str  # path within the folder; empty: none
    void: str  # why it does not count and is run again; empty: it counts


class TrialFolder:
    """The files of one evaluation; one process at a time."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError when the folder cannot be used, or another process uses it."""
        make_folder(path)
        self.path = path
        self._trials_path = path / "trials.jsonl"
        self._descriptor = os.open(self._trials_path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise ConfigError(f"another evaluation runs in {path}. Wait for its end, or choose another --out.") from (
                error
            )
        drop_torn_line(self._trials_path)
        self.trials = read_trials(self._trials_path)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed before
            os.close(self._descriptor)

    def policy_folder(self, label: str) -> Path:
        return self.path / "policies" / label

    def prepare(self, settings: Mapping[str, Any], labels: Sequence[str], episodes: int) -> None:
        """Draw the order and write the settings. The order is random and no seed's: nobody can know it."""
        replace_durably(self.path / "key.json", json.dumps({"order": draw_order(labels, episodes)}).encode())
        replace_durably(self.path / "evaluation.json", json.dumps(settings, indent=1).encode())

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ConfigError when the evaluation began with other settings."""
        earlier = _flat(_read_json(self.path / "evaluation.json"))
        now = _flat(json.loads(json.dumps(settings)))
        for name in sorted(earlier.keys() | now.keys()):
            before, after = earlier.get(name), now.get(name)
            if before != after:
                raise ConfigError(
                    f"{self.path} holds an evaluation with {name} = {before!r}, not {after!r}: trials under different "
                    "settings cannot be counted together. Choose another --out, or go on with the same settings."
                )

    @property
    def order(self) -> list[str]:
        """Label of the policy of each trial."""
        order: list[str] = _read_json(self.path / "key.json")["order"]
        return order

    @property
    def counted(self) -> dict[int, Trial]:
        """The trials that count, by number."""
        return {trial.trial: trial for trial in self.trials if not trial.void}

    def add(self, trial: Trial) -> None:
        """Append a trial; durable when this returns."""
        os.write(self._descriptor, (json.dumps(asdict(trial)) + "\n").encode())
        os.fsync(self._descriptor)
        self.trials.append(trial)


def draw_order(labels: Sequence[str], episodes: int) -> list[str]:
    """Return the policy of each trial: each start state in turn, and for each all policies in random order.

    Within a start the order is random, so that whatever drifts (light, temperature, a tired person) favours none; the
    trials of one start follow each other, so that a person can put the objects back to the same places.
    """
    generator = secrets.SystemRandom()
    return [label for _ in range(episodes) for label in generator.sample(list(labels), len(labels))]


def read_trials(path: Path) -> list[Trial]:
    """Return the trials of a file, void ones included. Raises ConfigError when it is none."""
    try:
        return [Trial(**json.loads(line)) for line in path.read_text().splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not the trials.jsonl of an evaluation: {error}") from error


def recorded_starts(path: Path, episodes: int) -> list[Start]:
    """Return the first start states of an earlier evaluation. Raises ConfigError when it had fewer."""
    starts = {
        trial.start: Start(seed=trial.seed, O_T_EE=trial.O_T_EE, objects=trial.objects) for trial in read_trials(path)
    }
    if sorted(starts)[:episodes] != list(range(episodes)):
        raise ConfigError(
            f"--starts {path} holds {len(starts)} start states, --episodes {episodes} needs as many. Give fewer "
            "episodes, or another file."
        )
    return [starts[index] for index in range(episodes)]


def check_start(start: Start, O_T_EE: Array, objects: Mapping[str, Array]) -> None:
    """Raise ConfigError when what is measured at a recorded start state is not what was measured there before."""
    if start.O_T_EE is None:
        return
    recorded = {"EE": start.O_T_EE, **(start.objects or {})}
    measured = {"EE": O_T_EE, **objects}
    for name in recorded.keys() & measured.keys():
        before, now = np.asarray(recorded[name]), np.asarray(measured[name])
        distance_m = float(np.linalg.norm(now[:3, 3] - before[:3, 3]))
        cosine = (np.trace(before[:3, :3].T @ now[:3, :3]) - 1) / 2
        angle_rad = float(np.arccos(np.clip(cosine, -1, 1)))
        if distance_m > _POSITION_TOLERANCE_M or angle_rad > _ROTATION_TOLERANCE_RAD:
            raise ConfigError(
                f"the start state of seed {start.seed} is not the recorded one: {name} is {distance_m * 1e3:.1f} mm "
                f"and {angle_rad:.3f} rad away from where it was (limits {_POSITION_TOLERANCE_M * 1e3:.0f} mm and "
                f"{_ROTATION_TOLERANCE_RAD} rad). Is it another task, or another version of it?"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"{path} cannot be read: {error}. Choose another --out.") from error
    return content


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
