"""Learning curves as results: read from the folders of runs, kept as one CSV file each, read back from there.

FOLDER/TASK/ALGORITHM-VARIANT-HASH-sSEED.csv    "# name: JSON value" lines that say what the run is, then its curve.csv
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.mujoco.settings import variant_name
from benchmarks.mujoco.values import deciding_values, differences, digest_of, is_reduction
from policy.errors import ConfigError
from policy.files import make_folder, replace_file

_RETURN = re.compile(r"return_mean_k(\d+)")
_COMMENT = "# "


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What one seed's run has measured so far."""

    task: str
    algorithm: str
    preset: str
    overrides: tuple[str, ...]
    seed: int
    population: tuple[int, ...]
    """Seeds trained together with this one; none if it was trained alone."""
    protocol: Mapping[str, Any]
    """How it was evaluated, as benchmarks.mujoco.settings.Protocol."""
    steps: int
    """Environment steps that were asked for; 0 if unknown."""
    is_finished: bool
    starts: tuple[Mapping[str, Any], ...]
    """Of each start of the run: command, revision, versions, machine."""
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, float], ...]
    """An evaluation each, oldest first; cells that were not measured are absent."""
    learner: Mapping[str, Any] = field(default_factory=dict)
    """Values of its configuration, by dotted name; those that are not named have their defaults."""

    @property
    def variant(self) -> str:
        return variant_name(self.preset, self.overrides)

    @property
    def path(self) -> Path:
        """Where it is kept, below the folder of all."""
        return Path(short_name(self.task)) / f"{self.algorithm}-{self.variant}-{self.digest}-s{self.seed}.csv"

    @property
    def values(self) -> dict[str, Any]:
        """What decides the curve, by dotted name."""
        return deciding_values(self.learner, self.algorithm)

    @property
    def digest(self) -> str:
        """Hash of those values and of how a return is measured: only curves with the same one may be averaged."""
        measured = [self.protocol.get(name) for name in ("evaluation_every", "episodes")]
        return digest_of(self.values, *measured, self.candidates[:1])

    @property
    def differences(self) -> dict[str, tuple[Any, Any]]:
        """Each value that is not the one of the algorithm's paper_mujoco preset, and that one."""
        return differences(self.values, self.algorithm)

    @property
    def is_reduced(self) -> bool:
        """Whether a network, a chain, a batch or a number of samples is smaller than the paper's."""
        return any(is_reduction(name, *pair) for name, pair in self.differences.items())

    @property
    def env_step(self) -> int:
        """Environment steps at the last evaluation."""
        return int(self.rows[-1]["env_step"]) if self.rows else 0

    @property
    def candidates(self) -> tuple[int, ...]:
        """K_e that were evaluated, the headline first."""
        return tuple(int(found[1]) for name in self.columns if (found := _RETURN.fullmatch(name)))

    def returns(self, candidates: int) -> list[tuple[int, float]]:
        """Return (step, mean return) of each evaluation with this K_e."""
        return self.measured(f"return_mean_k{candidates}")

    def measured(self, column: str) -> list[tuple[int, float]]:
        """Return (step, value) of each evaluation at which `column` was measured."""
        return [(int(row["env_step"]), row[column]) for row in self.rows if column in row]


def short_name(task: str) -> str:
    """Return a task's name without the module that Gymnasium is to import for it."""
    return task.rpartition(":")[2]


def read_runs(out: Path) -> list[Curve]:
    """Read every run below the folder that runs were told to use, also those that are not finished."""
    return [_read_run(path.parent) for path in sorted(out.glob("*/*/*/seed_*/config.json"))]


def _read_run(folder: Path) -> Curve:
    config, status, summary = (_json(folder / f"{name}.json") for name in ("config", "status", "summary"))
    columns, rows = _parse_rows((folder / "curve.csv").read_text() if (folder / "curve.csv").exists() else "")
    return Curve(
        task=config["task"],
        algorithm=config["algorithm"],
        preset=Path(config["preset"]).stem,
        overrides=tuple(config["overrides"]),
        seed=config["seed"],
        population=tuple(config["population"]),
        protocol=config["protocol"],
        steps=int(status.get("steps", summary.get("env_step", 0))),
        is_finished=bool(summary),
        starts=tuple({**start, "command": _without_paths(start["command"])} for start in config["starts"]),
        columns=columns,
        rows=rows,
        learner=deciding_values(config["learner"], config["algorithm"]),
    )


def _json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return values


def _without_paths(command: Iterable[str]) -> list[str]:
    """Leave out where on somebody's machine files are; nothing of a result depends on it."""
    return [Path(word).name if word.startswith("/") else word for word in command]


def read_kept(folder: Path) -> list[Curve]:
    """Read every curve that `keep` has written."""
    curves: dict[Path, Curve] = {}
    for path in sorted(folder.glob("*/*.csv")):
        curve = parse(path.read_text(), str(path))
        if curve.path in curves:
            raise ConfigError(f"{path} holds the same run as another file there: remove the older one")
        curves[curve.path] = curve
    return [*curves.values()]


def keep(curves: Sequence[Curve], folder: Path) -> None:
    """Write each curve to its file in `folder`. Those of other runs stay."""
    for curve in curves:
        path = folder / curve.path
        make_folder(path.parent)
        replace_file(path, render(curve).encode())


def render(curve: Curve) -> str:
    """Return the text of a curve's file."""
    header = {
        "task": curve.task,
        "algorithm": curve.algorithm,
        "preset": curve.preset,
        "overrides": list(curve.overrides),
        "seed": curve.seed,
        "population": list(curve.population),
        "protocol": dict(curve.protocol),
        "steps": curve.steps,
        "is_finished": curve.is_finished,
        "starts": [dict(start) for start in curve.starts],
        "learner": dict(curve.learner),
    }
    text = io.StringIO()
    text.writelines(f"{_COMMENT}{name}: {json.dumps(value)}\n" for name, value in header.items())
    writer = csv.DictWriter(text, curve.columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.10g}" for name, value in row.items()} for row in curve.rows)
    return text.getvalue()


def parse(text: str, where: str) -> Curve:
    """Read back what `render` wrote. Raises ConfigError naming `where` for anything else."""
    header: dict[str, Any] = {}
    lines = text.splitlines(keepends=True)
    try:
        while lines and lines[0].startswith(_COMMENT):
            name, _, value = lines.pop(0).removeprefix(_COMMENT).partition(": ")
            header[name] = json.loads(value)
        columns, rows = _parse_rows("".join(lines))
        header["learner"]  # without it, it would be taken for one with every default
        header |= {name: tuple(header[name]) for name in ("overrides", "population", "starts")}
        return Curve(**header, columns=columns, rows=rows)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{where} is not a curve that benchmarks.mujoco.table has written: {error!r}. Restore it, or remove it and "
            "write it again from its run."
        ) from error


def _parse_rows(text: str) -> tuple[tuple[str, ...], tuple[dict[str, float], ...]]:
    """Return columns and rows; a last line that is still being written is left out."""
    complete = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(complete))
    rows = tuple({name: float(cell) for name, cell in row.items() if cell} for row in reader)
    return tuple(reader.fieldnames or ()), rows
