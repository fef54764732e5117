"""Algorithms by name. A new one is a file in this folder and a line in ALGORITHMS."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from policy.registry import resolve
from policy.spec import Specs

if TYPE_CHECKING:  # torch takes seconds to import and the supervisor only needs the names
    from learner.agents import Agents
    from learner.algorithms.base import Algorithm
    from learner.config import LearnerConfig

ALGORITHMS = {
    "cgpo": "learner.algorithms.cgpo:Cgpo",
    "sac": "learner.algorithms.sac:Sac",
    "td3": "learner.algorithms.td3:Td3",
    "tqc": "learner.algorithms.tqc:Tqc",
    "hil_serl_sac": "learner.algorithms.hil_serl_sac:HilSerlSac",
    "bc": "learner.algorithms.bc:BehaviourCloning",
    "qvpo": "learner.algorithms.qvpo:Qvpo",
    "dipo": "learner.algorithms.dipo:Dipo",
}


def make_algorithm(config: "LearnerConfig", specs: Specs) -> "Algorithm":
    """Build the algorithm that the configuration names, for one agent; raises ConfigError with the valid names."""
    from learner.agents import Agents

    return _make(Agents.single(config), specs)


def make_population(configs: "Sequence[LearnerConfig]", specs: Specs) -> "Algorithm":
    """Build one algorithm that trains P independent agents; all its tensors and batches have a leading axis P.

    The configurations may differ in learner.agents.variable_settings; raises ConfigError, naming the field, where they
    differ in anything else.
    """
    from learner.agents import Agents

    return _make(Agents(configs, is_population=True), specs)


def _make(agents: "Agents", specs: Specs) -> "Algorithm":
    algorithm: Algorithm = resolve("algorithm", ALGORITHMS, agents.config.algorithm)(agents, specs)
    return algorithm
