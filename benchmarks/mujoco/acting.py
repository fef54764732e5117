"""Decisions for arrays of observations: on CUDA one captured graph per kind of decision, elsewhere plain calls.

A chain of 20 denoising steps is a few hundred small kernels, which Python starts more slowly than a GPU runs them.
"""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.mujoco.environments import Array
from learner.agents import Agents
from learner.noise import Noise
from policy.encoder import EncoderInput

logger = logging.getLogger(__name__)

Decide = Callable[[EncoderInput, Noise], Tensor]
"""From observations (..., B, F) to actions (..., B, A), such as Algorithm.explore."""

_CALLS_BEFORE_CAPTURE = 3  # libraries have their kernels and workspaces then


class Acting:
    """One kind of decision, always for as many states. Make a new one after `algorithm.load_state`."""

    def __init__(self, decide: Decide, agents: Agents, noise: Noise) -> None:
        self._decide, self._agents, self._noise = decide, agents, noise
        self._may_capture = agents.device.type == "cuda" and agents.config.cuda_graph == "auto"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._num_calls = 0
        self._input = self._output = torch.empty(0)  # of the graph

    def reseed(self, seeds: Sequence[int]) -> None:
        """Have each agent draw as if nothing had been drawn before."""
        for generator, seed in zip(self._noise.generators, seeds, strict=True):
            generator.manual_seed(seed)

    def __call__(self, observation: Array) -> Array:
        """Return actions (P, B, A) for observations (P, B, F), float32. Waits for the device."""
        vector = torch.from_numpy(observation if self._agents.is_population else observation[0])
        self._num_calls += 1
        if self._may_capture and self._num_calls > _CALLS_BEFORE_CAPTURE and self._graph is None:
            self._capture(vector)
        if self._graph is not None:
            self._input.copy_(vector)
            self._graph.replay()
            action = self._output
        else:
            action = self._decide(EncoderInput(vector.to(self._agents.device)), self._noise)
        chosen: Array = action.reshape(*observation.shape[:2], -1).cpu().numpy()
        return chosen

    def _capture(self, vector: Tensor) -> None:
        """Capture the decision, which draws no number; where that fails, say why and go on without."""
        before = [generator.clone_state() for generator in self._noise.generators]
        self._input = vector.to(self._agents.device)
        graph = torch.cuda.CUDAGraph()
        try:
            for generator in self._noise.generators:
                graph.register_generator_state(generator)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._output = self._decide(EncoderInput(self._input), self._noise)
        except RuntimeError as error:
            # A capture that fails leaves its generators in a state in which they refuse to draw.
            for generator, state in zip(self._noise.generators, before, strict=True):
                generator.graphsafe_set_state(state)
            self._may_capture = False
            logger.warning("acting: call by call, it cannot be captured as a CUDA graph: %s", error)
        else:
            self._graph = graph
