"""The critic contrast of a run: on states of its replay, drawn once, with the same noise at every evaluation."""

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.mujoco.run_folder import CONTRAST_COLUMNS
from benchmarks.mujoco.settings import Protocol
from learner.agents import Agents
from learner.algorithms.base import Algorithm
from learner.algorithms.state import Stateful
from learner.tensor_replay import TensorReplay
from policy.encoder import EncoderInput

_DRAWING, _MEASURING = 13, 14  # purposes of noise


class Probe:
    """Each agent's states, zero until they are drawn: those of random actions are not the ones that a policy meets."""

    def __init__(self, algorithm: Algorithm, agents: Agents, protocol: Protocol, observation_dim: int) -> None:
        self._measure = getattr(algorithm, "contrast", None)
        self._agents, self._protocol = agents, protocol
        self._noise = agents.noise(_DRAWING)
        self._states = torch.zeros(*agents.leading, protocol.probe_states, observation_dim)

    def parts(self) -> dict[str, Stateful]:
        """Return what a resume needs."""
        return {"probe": self._states}

    def fit(self, state: Mapping[str, Tensor]) -> None:
        """Make room for as many states as the run began with, before its parts are restored."""
        self._states = torch.empty_like(state["probe"])

    def contrast(self, replay: TensorReplay, evaluation: int) -> dict[str, list[float]]:
        """Return CONTRAST_COLUMNS of each agent; nothing before the states are drawn, or without a diffusion policy."""
        if self._measure is None:
            return {}
        if not self._states.any():
            num_random = self._agents.config.replay.training_starts
            if evaluation < self._protocol.probe_after or replay.total < 2 * num_random:
                return {}
            drawn = replay.sample(self._states.shape[-2], self._noise)
            self._states.copy_(drawn.observation.vector)
        states = EncoderInput(self._states.to(self._agents.device))
        values: dict[str, Tensor] = self._measure(states, self._agents.noise(_MEASURING))
        return {name: values[name].reshape(-1).tolist() for name in CONTRAST_COLUMNS if name in values}
