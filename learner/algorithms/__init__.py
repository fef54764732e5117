"""Algorithms by name. A new one is a file in this folder and a line in ALGORITHMS."""

from typing import TYPE_CHECKING

from policy.registry import resolve
from policy.spec import Specs

if TYPE_CHECKING:  # torch takes seconds to import and the supervisor only needs the names
    from learner.algorithms.base import Algorithm
    from learner.config import LearnerConfig

ALGORITHMS = {
    "cgpo": "learner.algorithms.cgpo:Cgpo",
    "hil_serl_sac": "learner.algorithms.hil_serl_sac:HilSerlSac",
    "bc": "learner.algorithms.bc:BehaviourCloning",
}


def make_algorithm(config: "LearnerConfig", specs: Specs) -> "Algorithm":
    """Build the algorithm that the configuration names; raises ConfigError with the valid names."""
    algorithm: Algorithm = resolve("algorithm", ALGORITHMS, config.algorithm)(config, specs)
    return algorithm
