"""What a section of the link's figures says, kept as JSON between runs and written as Markdown. Computes no figure."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Table:
    """A header and rows of finished cells."""

    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True)
class Target:
    """One promise, what was measured, and whether the promise is kept."""

    promise: str
    measured: str
    is_met: bool


@dataclass(frozen=True)
class Section:
    """The result of one section; `failure` says why there is none."""

    title: str
    text: str = ""  # how it was measured
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    failure: str = ""
    stamp: str = ""  # revision and time of measuring
    wall_s: float = 0.0

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @staticmethod
    def load(path: Path) -> "Section":
        raw = json.loads(path.read_text())
        tables = [Table(**table) for table in raw.pop("tables")]
        targets = [Target(**target) for target in raw.pop("targets")]
        return Section(**raw, tables=tables, targets=targets)

    def markdown(self) -> str:
        parts = [f"## {self.title}"]
        if self.failure:
            return "\n\n".join([*parts, f"**Failed, no figures**: {self.failure}"])
        return "\n\n".join([*parts, *filter(None, [self.text]), *(table.markdown() for table in self.tables)])


def target_table(sections: Iterable[Section]) -> Table:
    rows = [
        [target.promise, target.measured, "met" if target.is_met else "**not met**"]
        for section in sections
        for target in section.targets
    ]
    return Table(["target", "measured", ""], rows)


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the median and the range of a few trials."""
    if not values:
        return "none"
    low, middle, high = min(values), median(values), max(values)
    return (
        f"{middle:.{digits}f}" if len(values) == 1 else f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
    )


def percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent))
