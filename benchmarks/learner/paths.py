"""The ways in which one preset's update can be computed, and what one of them costs."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from benchmarks.learner.cases import Case, SyntheticReplay
from benchmarks.learner.flops import FlopCounter, count
from benchmarks.learner.phases import kernels_of, ledger_of
from benchmarks.learner.race import Clock, Times
from learner.algorithms import make_algorithm, make_population
from policy.errors import ConfigError

PLAIN, FAST, POPULATION = "plain", "fast", "population"
_UPDATES_BEFORE = 3  # the critic has moved, and everything that is prepared at first use is there
_PHASE_S = 3.0


@dataclass
class Path:
    """One algorithm on one path, with transitions to learn from."""

    name: str
    algorithm: Any
    sample_batch: Callable[[], Any]
    agents: int
    first_losses: dict[str, float]  # of its first update, which every path does from the same weights and noise

    @property
    def kernels(self) -> str:
        kernels = kernels_of(self.algorithm)
        return type(kernels).__name__ if kernels is not None else "none"

    def update(self) -> object:
        return self.algorithm.update_step(self.sample_batch)


@dataclass(frozen=True)
class PathResult:
    """Times of one update and the operations it executes; a population's are those of all its agents together."""

    kernels: str
    agents: int
    operations: int
    seconds: tuple[float, ...]
    phase_seconds: dict[str, float]
    phase_operations: dict[str, float]

    @property
    def times(self) -> Times:
        return Times(self.seconds)

    @property
    def speed(self) -> float:
        """Operations a second at its best."""
        return self.operations / self.times.best


def make_paths(case: Case, num_agents: int) -> tuple[dict[str, Path], list[str]]:
    """Return the paths that this preset has, by name, and why it lacks the others."""
    paths, missing = {PLAIN: _make_path(PLAIN, case, "plain", None)}, []
    plain = paths[PLAIN]
    for name, agents in ((FAST, None), (POPULATION, num_agents)):
        try:
            path = _make_path(name, case, "auto", agents)
        except ConfigError as error:
            missing.append(f"{case.name}, {name}: {error}")
            continue
        if name == FAST and path.kernels == plain.kernels:
            missing.append(f"{case.name}, fast: its inner loops ({plain.kernels}) are the plain path's")
        else:
            paths[name] = path
    return paths, missing


def _make_path(name: str, case: Case, kernels: Literal["plain", "auto"], num_agents: int | None) -> Path:
    config = dataclasses.replace(case.config, kernels=kernels)
    if num_agents is None:
        algorithm = make_algorithm(config, case.specs)
    else:
        seeds = [dataclasses.replace(config, seed=config.seed + agent) for agent in range(num_agents)]
        algorithm = make_population(seeds, case.specs)
    sample_batch = SyntheticReplay(case, num_agents).sample
    metrics = algorithm.update_step(sample_batch)
    losses = {key: float(torch.as_tensor(value).flatten()[0]) for key, value in metrics.items() if key.endswith("loss")}
    for _ in range(_UPDATES_BEFORE - 1):
        algorithm.update_step(sample_batch)
    return Path(name, algorithm, sample_batch, num_agents or 1, losses)


def result_of(path: Path, times: Times, clock: Clock) -> PathResult:
    """Complete what the race measured by the operations, and by the phases of a single agent's update."""
    operations = count(path.update)
    seconds_by_phase, operations_by_phase = {}, {}
    if path.agents == 1:
        updates = max(2, min(100, round(_PHASE_S / times.median)))
        seconds_by_phase = ledger_of(path.algorithm, path.sample_batch, updates, clock.now)
        with FlopCounter() as counter:
            operations_by_phase = ledger_of(path.algorithm, path.sample_batch, 1, lambda: counter.total)
    return PathResult(path.kernels, path.agents, operations, times.seconds, seconds_by_phase, operations_by_phase)


def largest_difference(losses: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Return the largest relative difference between the losses of two paths."""
    return max(abs(losses[name] - value) / max(abs(value), 1e-12) for name, value in reference.items())
