"""The ways in which one preset's update can be computed, and what one of them costs."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.learner.cases import Case, make_synthetic_replay
from benchmarks.learner.flops import FlopCounter, count
from benchmarks.learner.phases import kernels_of, ledger_of
from benchmarks.learner.race import Clock, Times
from learner.algorithms import make_algorithm, make_population
from learner.config import LearnerConfig
from learner.graphed_update import GraphedUpdate
from policy.errors import ConfigError

PLAIN, FAST, POPULATION = "plain", "fast", "population"
_STEPS_BEFORE = 5  # the critic has moved, and what is prepared at first use is there: moments, workspaces, a graph
_MAX_UPDATES_BY_PHASE = 100


@dataclass
class Path:
    """One algorithm on one path, with transitions to learn from."""

    agents: int
    is_population: bool
    algorithm: Any
    sample_batch: Callable[[], Any]
    updates: GraphedUpdate
    first_losses: dict[str, float]  # of its first update, which every path does from the same weights and noise

    @property
    def kernels(self) -> str:
        kernels = kernels_of(self.algorithm)
        return type(kernels).__name__ if kernels is not None else "none"


@dataclass(frozen=True)
class PathResult:
    """Times of one learner step and the operations it executes; a population's are those of its agents together."""

    how: str
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
    """Return the paths that this preset has, by name, and why it lacks the others.

    plain: the reference kernels, call by call. fast: what the learner chooses on this device, on CUDA one graph.
    population: the same for several agents.
    """
    config = case.config
    plain = _make_path(case, dataclasses.replace(config, kernels="plain", cuda_graph="off"), None)
    paths, missing = {PLAIN: plain}, []
    for name, agents in ((FAST, None), (POPULATION, num_agents)):
        try:
            path = _make_path(case, dataclasses.replace(config, kernels="auto", cuda_graph="auto"), agents)
        except ConfigError as error:
            missing.append(f"{case.name}, {name}: {error}")
            continue
        if name == FAST and _how(path) == _how(plain):
            missing.append(f"{case.name}, fast: it is the plain path here ({_how(plain)})")
        else:
            paths[name] = path
    return paths, missing


def _make_path(case: Case, config: LearnerConfig, num_agents: int | None) -> Path:
    if num_agents is None:
        algorithm = make_algorithm(config, case.specs)
    else:
        seeds = [dataclasses.replace(config, seed=config.seed + agent) for agent in range(num_agents)]
        algorithm = make_population(seeds, case.specs)
    replay = make_synthetic_replay(case, num_agents)
    replay.prepare()
    metrics = algorithm.update_step(replay.sample)
    losses = {key: float(torch.as_tensor(value).flatten()[0]) for key, value in metrics.items() if key.endswith("loss")}
    updates = GraphedUpdate(algorithm, replay.sample, config, replay.prepare)
    for _ in range(_STEPS_BEFORE):
        updates.step()
    return Path(num_agents or 1, num_agents is not None, algorithm, replay.sample, updates, losses)


def _how(path: Path) -> str:
    return f"{path.kernels}, {path.updates.path}"


def result_of(path: Path, times: Times, clock: Clock, seconds: float) -> PathResult:
    """Add operations to what the race measured and, for one agent, the phases of updates for about `seconds`."""
    how = _how(path)

    def update() -> object:
        return path.algorithm.update_step(path.sample_batch)

    operations = count(update)
    seconds_by_phase, operations_by_phase = {}, {}
    if not path.is_population:
        updates = max(2, min(_MAX_UPDATES_BY_PHASE, round(seconds / times.median)))
        seconds_by_phase = ledger_of(path.algorithm, path.sample_batch, updates, clock.now)
        counter = FlopCounter()
        with counter:
            operations_by_phase = ledger_of(path.algorithm, path.sample_batch, 1, lambda: counter.total)
    return PathResult(how, path.agents, operations, times.seconds, seconds_by_phase, operations_by_phase)


def largest_difference(losses: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Return the largest relative difference between the losses of two paths."""
    return max(abs(losses[name] - value) / max(abs(value), 1e-12) for name, value in reference.items())
