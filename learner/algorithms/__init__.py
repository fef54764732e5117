"""Algorithms by name. A new one is a file here and a line in ALGORITHMS."""

from learner.algorithms.base import Algorithm
from learner.config import LearnerConfig
from policy.registry import resolve
from policy.spec import Specs

ALGORITHMS = {
    "cgpo": "learner.algorithms.cgpo:Cgpo",
    "bc": "learner.algorithms.bc:BehaviourCloning",
}


def make_algorithm(config: LearnerConfig, specs: Specs) -> Algorithm:
    """Build the algorithm that the configuration names; raises ConfigError with the valid names."""
    algorithm: Algorithm = resolve("algorithm", ALGORITHMS, config.algorithm)(config, specs)
    return algorithm
