"""The policy that acts, and the weights it acts with. They change between episodes only."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from policy.acting import ActingPolicy
from policy.config import PolicyConfig
from policy.errors import WeightsError
from policy.image_codec import code_images
from policy.spec import Observation, Specs
from policy.success_classifier import TENSOR_PREFIX

_log = logging.getLogger(__name__)


class PublishedWeights(Protocol):
    """One version of the learner's policy (actor.link.PolicyWeights)."""

    @property
    def version(self) -> int: ...

    @property
    def learner_step(self) -> int: ...

    @property
    def published_wall_s(self) -> float: ...

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...


class WeightsSource(Protocol):
    """Where weights come from (actor.link.Link)."""

    def latest_weights(self) -> PublishedWeights | None:
        """Return the newest weights that arrived, the same object until others come, or None. Never blocks."""


@dataclass(frozen=True)
class Proposal:
    """What the policy would do, and which weights say so."""

    action: NDArray[np.float32]  # (A,) in [-1, 1]
    weights_version: int  # 0: untrained
    weights_age_s: float  # since the learner published them; 0 for version 0
    weights_lag_steps: int = 0  # learner steps that the learner was ahead of them, as far as known


class PolicyRunner:
    """Runs the newest usable weights; weights that do not fit are refused and the last good ones stay."""

    def __init__(
        self,
        specs: Specs,
        config: PolicyConfig,
        seed: int,
        source: WeightsSource,
        clock: Callable[[], float] = time.time,
        *,
        learner_step: Callable[[], int] = lambda: 0,
        candidates: int | None = None,
    ) -> None:
        """clock: the learner's, because publication times are by it. learner_step: the newest that was heard of.

        candidates: as in ActingPolicy.select_action; None takes the configuration's.
        """
        self._specs = specs
        self._config = config
        self._source = source
        self._clock = clock
        self._learner_step = learner_step
        self._policy = ActingPolicy(specs, config, seed)
        self._candidates = candidates
        self._warm_up(seed)
        self._weights: PublishedWeights | None = None
        self._refused: PublishedWeights | None = None

    @property
    def weights_version(self) -> int:
        """Version in use; 0 before any weights came."""
        return self._weights.version if self._weights else 0

    @property
    def weights_age_s(self) -> float:
        """Age of the weights in use since their publication; 0 before any came."""
        return max(0.0, self._clock() - self._weights.published_wall_s) if self._weights else 0.0

    @property
    def weights_lag_steps(self) -> int:
        """Learner steps that the learner is ahead of the weights in use, as far as known; 0 before any came."""
        return max(0, self._learner_step() - self._weights.learner_step) if self._weights else 0

    def swap_if_newer(self) -> bool:
        """Take over the newest weights, whole or not at all; return whether they changed. Call between episodes."""
        newest = self._source.latest_weights()
        if newest is None or newest is self._weights or newest is self._refused:  # a new run counts from 1 again
            return False
        try:
            self.use(newest)
        except WeightsError as error:
            self._refused = newest
            _log.error("weights version %d refused, version %d stays: %s", newest.version, self.weights_version, error)
            return False
        return True

    def _warm_up(self, seed: int) -> None:
        """Act once on nothing: the first call allocates and compiles what the control loop should not wait for."""
        spec = self._specs.observation
        blank: dict[str, Any] = {field.name: np.zeros(len(field.low), np.float32) for field in spec.fields}
        blank |= {image.name: np.zeros((image.height, image.width, 3), np.uint8) for image in spec.images}
        self._policy.select_action(code_images(blank, "jpeg"), self._candidates)
        self._policy.reseed(seed)

    def use(self, weights: PublishedWeights) -> None:
        """Act with these weights. Raises WeightsError, and nothing changes, when they do not fit."""
        self._policy.load_weights(
            {name: tensor for name, tensor in weights.tensors.items() if not name.startswith(TENSOR_PREFIX)}
        )
        self._weights = weights

    def reseed(self, seed: int) -> None:
        """Draw the noise of the following actions anew, as if nothing had been drawn before."""
        self._policy.reseed(seed)

    def propose(self, observation: Observation) -> Proposal:
        """Sample an action.

        An action that is not finite is proposed as zeros, which hold the arm: it could not be recorded as it is.
        """
        action = self._policy.select_action(observation, self._candidates)
        if not np.isfinite(action).all():
            _log.error("policy version %d gives %s: the arm holds instead", self.weights_version, action.tolist())
            action = np.zeros_like(action)
        return Proposal(action, self.weights_version, self.weights_age_s, self.weights_lag_steps)

    def frozen_copy(self, seed: int, candidates: int | None = None) -> "PolicyRunner":
        """Return a runner with the present weights that never swaps and draws its own noise, for an evaluation."""
        source = FixedWeights(self._weights)
        copy = PolicyRunner(self._specs, self._config, seed, source, self._clock, candidates=candidates)
        copy.swap_if_newer()
        return copy


@dataclass(frozen=True)
class FixedWeights:
    """A source of weights that never change, or of none."""

    weights: PublishedWeights | None

    def latest_weights(self) -> PublishedWeights | None:
        return self.weights
