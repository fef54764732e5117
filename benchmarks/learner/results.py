"""What a run has measured, as it is kept in JSON. Computes ratios and shares, prints nothing."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.acting import ActingRow
from benchmarks.learner.paths import FAST, PLAIN, POPULATION, PathResult
from benchmarks.learner.race import median_ratio


@dataclass(frozen=True)
class ProductSpeed:
    """A way to multiply matrices (rows, fan in, fan out), and its operations a second."""

    operator: str
    shape: tuple[int, int, int]
    speed: float


@dataclass(frozen=True)
class CaseResult:
    """One preset at one size; `product_seconds` are those of the machine's fastest product, in the same rounds."""

    preset: str
    size: str
    widths: tuple[int, int]
    algorithm: str
    batch_size: int
    written_operations: int | None  # by formula; None for other algorithms than CGPO
    split_operations: int | None
    product_operations: int
    product_seconds: tuple[float, ...]
    paths: dict[str, PathResult]
    loss_difference: float | None

    @property
    def name(self) -> str:
        return f"{self.preset}@{self.size}"

    @property
    def peak(self) -> float:
        """Operations a second of the fastest product at its best."""
        return self.product_operations / min(self.product_seconds)

    def share(self, path: str) -> float:
        """Operations that the path executes a second, at its best, of the fastest product's."""
        return self.paths[path].speed / self.peak

    @property
    def speedup(self) -> float | None:
        """How many times longer the plain path takes than the fast one."""
        if FAST not in self.paths:
            return None
        return median_ratio(self.paths[PLAIN].times, self.paths[FAST].times)

    @property
    def single(self) -> PathResult:
        """The fastest path of one agent."""
        return self.paths.get(FAST, self.paths[PLAIN])

    @property
    def population_cost(self) -> float | None:
        """How many times longer P agents as one take than one agent."""
        if POPULATION not in self.paths:
            return None
        return median_ratio(self.paths[POPULATION].times, self.single.times)


@dataclass
class Machine:
    """Where and how it was measured."""

    command: str
    device: str
    processor: str
    threads: int
    clock: str
    matmul_precision: str
    torch_version: str
    revision: str
    began_utc: str
    load_before: float = 0.0
    load_after: float = 0.0
    wall_s: float = 0.0
    running_share: float = 0.0  # CPU time of this process over wall time


@dataclass
class Run:
    """Everything of one call of the benchmark."""

    machine: Machine
    products: list[ProductSpeed] = field(default_factory=list)
    cases: list[CaseResult] = field(default_factory=list)
    acting: list[ActingRow] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> "Run":
        raw = json.loads(path.read_text())
        cases = []
        for case in raw["cases"]:
            paths = {name: _from_json(PathResult, entry) for name, entry in case.pop("paths").items()}
            cases.append(_from_json(CaseResult, case | {"paths": paths}))
        products = [_from_json(ProductSpeed, product) for product in raw["products"]]
        acting = [ActingRow(**row) for row in raw["acting"]]
        return Run(Machine(**raw["machine"]), products, cases, acting, raw["skipped"])


def _from_json(cls: Any, raw: dict[str, Any]) -> Any:
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()})
