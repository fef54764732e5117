"""Cheap control tasks for comparing variants of an algorithm, for Gymnasium, numpy alone.

`benchmarks.point_reach:PointReach-v0` has what the variants differ in and little else: six action elements that act
together, next actions that are valued, and noisy rewards. `benchmarks.point_reach:NoisyReach-v0` is what a critic that
believes in luck fails on: it goes on long enough for a value to be built on values, and the larger an action, the
noisier its reward.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

TASK = "benchmarks.point_reach:PointReach-v0"
NOISY_TASK = "benchmarks.point_reach:NoisyReach-v0"

_DIM = 6
_STEP = 0.25  # distance that a full action moves the point; the centre is some four steps away

Observation = NDArray[np.float32]


class PointReach(gymnasium.Env[Observation, NDArray[np.float32]]):
    """Bring a point of [-1, 1]^6 to the centre and hold it there.

    Observation (7,): the point, and the share of the episode that is left. Action (6,) in [-1, 1]: a displacement in
    axes turned against the point's. Reward: 1 - 3 mean(point^2), so 0 on average at the start and 1 in the centre, plus
    normal noise of standard deviation 0.5. Ends after 10 steps.
    """

    observation_space = Box(-1.0, 1.0, (_DIM + 1,), np.float32)
    action_space = Box(-1.0, 1.0, (_DIM,), np.float32)
    _horizon = 10

    def __init__(self) -> None:
        # The same turn in every environment: it is part of the task.
        self._turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(_DIM, _DIM)))
        self._point = np.zeros(_DIM)
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self._point = self.np_random.uniform(-1, 1, _DIM)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        action = np.clip(action, -1, 1)
        self._point = np.clip(self._point + _STEP * self._turn @ action, -1, 1)
        reward = 1 - 3 * float(np.mean(self._point**2)) + self._luck(action) * float(self.np_random.normal())
        return self._observation(), reward - self._cost(action), *self._is_over(), {}

    def _luck(self, action: NDArray[np.float32]) -> float:
        """Standard deviation of the reward's noise."""
        return 0.5

    def _cost(self, action: NDArray[np.float32]) -> float:
        return 0.0

    def _is_over(self) -> tuple[bool, bool]:
        return self._steps == self._horizon, False

    def _observation(self) -> Observation:
        left = 1 - self._steps / self._horizon
        return np.append(self._point, left).astype(np.float32)


class NoisyReach(PointReach):
    """The same without an end: what goes on is cut off after 50 steps, so the observation (6,) is the point alone.

    With s^2 = mean(action^2) the noise has the standard deviation 3 s, and an action costs 0.2 s^2.
    """

    observation_space = Box(-1.0, 1.0, (_DIM,), np.float32)
    _horizon = 50

    def _luck(self, action: NDArray[np.float32]) -> float:
        return 3 * float(np.sqrt(np.mean(action**2)))

    def _cost(self, action: NDArray[np.float32]) -> float:
        return 0.2 * float(np.mean(action**2))

    def _is_over(self) -> tuple[bool, bool]:
        return False, self._steps == self._horizon

    def _observation(self) -> Observation:
        return self._point.astype(np.float32)


for _task in (PointReach, NoisyReach):
    gymnasium.register(f"{_task.__name__}-v0", f"{__name__}:{_task.__name__}")
